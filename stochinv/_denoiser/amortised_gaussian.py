r"""A network's own guess of a Gaussian, for another network to correct.

A signal that a nonlinear forward model hides, such as the latent code of a generator, has no back-projection and no
Gaussian in closed form to start from. But a code has a scale, and a context that says nothing of an entry leaves it as
it was: `ŝ = μ + σ (z + network(features, z))`, where `μ` and `log σ` are linear in the features. Fresh networks return
zeros: then `μ = 0` and `σ = 1`, and the draws are those of `N(0, I)`, the prior of most generators.
"""

from typing import final

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, Context, Key, Observation, Params
from .._schedule import NoiseLevel
from .network import AbstractEncoder, Features


@final
class AmortisedGaussian(AbstractEncoder):
    """Encodes measurements by a network, and makes a Gaussian of a vector signal from its features.

    In a [`stochinv.NetworkDenoiser`][] with a `latent_size` of at least the length of the signal, the leading entries
    of the latent code pass through to the signal. Draws from the same measurements share the features.

    **Arguments:**

    - `network`: a callable with the arguments of an encoder, `(noisy, level, context, params)`, that returns a vector.
    - `num_features`: the length of that vector.
    - `size`: the length of the signal.
    - `key`: a PRNG key for the weights.
    """

    network: AnyCallable
    to_mean: Float[Array, "features size"]
    to_log_scale: Float[Array, "features size"]

    def __init__(self, network: AnyCallable, num_features: int, size: int, *, key: Key) -> None:
        for name, value in (("num_features", num_features), ("size", size)):
            if value < 1:
                raise ValueError(f"AmortisedGaussian: `{name}` must be at least 1, got {value}.")
        self.network = network
        self.to_mean, self.to_log_scale = jr.normal(key, (2, num_features, size)) / num_features**0.5

    def __call__(self, noisy: Observation, level: NoiseLevel, context: Context, params: Params) -> Features:
        features = self.network(noisy, level, context, params)
        log_scale = 4 * jnp.tanh(features @ self.to_log_scale / 4)
        return Features(features, features @ self.to_mean, jnp.exp(log_scale))
