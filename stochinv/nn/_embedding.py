"""Fixed sinusoidal features, and the noise level's embedding made from them.

A scalar `v` becomes `sin(2π v / P_k)` and `cos(2π v / P_k)` for periods `P_1 > … > P_n` in geometric progression. Long
periods tell far values apart, short ones near values. The periods are constants, not parameters: nothing trains them.

The noise level enters as its log signal-to-noise ratio `log α²/σ²`, which has the same meaning under every noise
schedule (Kingma et al. 2021, "Variational Diffusion Models").
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ._linear import Linear
from ._misc import check_positive

_NUM_PERIODS = 16
_LONGEST_PERIOD = 128.0
_SHORTEST_PERIOD = 2.0
_LARGEST_LOG_SNR = 30.0


def sinusoidal_features(
    value: Float[Array, "*axes"], *, longest: float, shortest: float, num_periods: int
) -> Float[Array, "*axes features"]:
    """Sines and cosines of a value at geometrically spaced periods, sines first.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    periods = np.geomspace(longest, shortest, num_periods)
    frequencies = jnp.asarray(2 * math.pi / periods, value.dtype)
    angles = value[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class NoiseEmbedding(eqx.Module):
    """Maps a log signal-to-noise ratio to a vector.

    Sinusoidal features of periods from 128 down to 2, then a perceptron with one hidden layer. Ratios beyond ±30 are
    embedded as ±30.
    """

    hidden: Linear
    out: Linear
    size: int = eqx.field(static=True)

    def __init__(self, size: int, *, key: PRNGKeyArray) -> None:
        """**Arguments:**

        - `size`: size of the embedding and of the hidden layer, at least 1.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if `size` is not positive.
        """
        check_positive(size=size)
        hidden_key, out_key = jr.split(key)
        self.hidden = Linear(2 * _NUM_PERIODS, size, key=hidden_key)
        self.out = Linear(size, size, key=out_key)
        self.size = size

    def __call__(self, log_snr: Float[ArrayLike, ""]) -> Float[Array, " size"]:
        """**Arguments:**

        - `log_snr`: the scalar `log α²/σ²`, a natural logarithm, from about −15 (noise) to 15 (data). The features are
            computed in single precision at least.

        **Returns:**

        Vector of shape `(size,)` in the parameters' type.

        **Raises:** `ValueError` if `log_snr` is not a scalar.
        """
        if jnp.ndim(log_snr) != 0:
            raise ValueError(
                f"`log_snr` of `NoiseEmbedding` has shape {jnp.shape(log_snr)}, but it "
                "has to be a scalar: use `jax.vmap` for a batch."
            )
        log_snr = jnp.asarray(log_snr)
        log_snr = log_snr.astype(jnp.promote_types(log_snr.dtype, jnp.float32))
        features = sinusoidal_features(
            jnp.clip(log_snr, -_LARGEST_LOG_SNR, _LARGEST_LOG_SNR),
            longest=_LONGEST_PERIOD,
            shortest=_SHORTEST_PERIOD,
            num_periods=_NUM_PERIODS,
        )
        return self.out(jax.nn.silu(self.hidden(features)))
