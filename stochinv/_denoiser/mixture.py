r"""A denoiser that draws by choosing one of several signals.

A network is continuous in its latent code. Where a posterior has separate modes, some of its draws lie between them,
and the energy score, in which such draws count with their share squared, hardly tells. A choice has no between:

`ŝ = ŝ_k` with probability `π_k`, where both the signals `ŝ_1, …, ŝ_K` and their probabilities are the network's.
"""

from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, Context, Key, Observation, Params, Signal, Structure
from .._schedule import NoiseLevel
from .base import AbstractMixtureDenoiser


@final
class MixtureDenoiser(AbstractMixtureDenoiser):
    """Chooses one of the `K` signals that another denoiser proposes, by the probabilities that it gives them.

    The proposals may be draws themselves, made with one latent code. Without a key the most probable one is the answer.

    **Arguments:**

    - `denoiser`: a denoiser that returns `(signals, logits)`: signals with a leading axis of length `K`, and an array
        of shape `(K,)`, whose softmax are the probabilities; see `structure`. Its signals must differ before
        training, as equal ones have equal gradients.

    ??? cite "Source"

        Bishop 1994, "Mixture density networks".
    """

    denoiser: AnyCallable

    def components(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> tuple[Signal, Float[Array, " components"]]:
        signals, logits = self.denoiser(noisy, level, context, params, key=key)
        return signals, jax.nn.log_softmax(logits)

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        choice_key, proposal_key = (None, None) if key is None else jr.split(key)
        signals, log_shares = self.components(noisy, level, context, params, key=proposal_key)
        index = jnp.argmax(log_shares) if choice_key is None else jr.categorical(choice_key, log_shares)
        return jax.tree.map(lambda x: x[index], signals)

    @staticmethod
    def structure(signal: Structure, num_components: int) -> tuple[Structure, jax.ShapeDtypeStruct]:
        """The `signal` of a [`stochinv.NetworkDenoiser`][] whose answers are to be chosen from.

        **Arguments:**

        - `signal`: the `jax.ShapeDtypeStruct`s of one signal, for a network of vectors.
        - `num_components`: how many signals are proposed, at least 2.

        **Returns:**

        The structures of the signals and of their logits.

        **Raises:**

        `ValueError` if there are fewer than two components.
        """
        if num_components < 2:
            raise ValueError(f"MixtureDenoiser: `num_components` must be at least 2, got {num_components}.")
        stack = lambda x: jax.ShapeDtypeStruct((num_components, *x.shape), x.dtype)
        dtype = jnp.result_type(*jax.tree.leaves(signal))
        return jax.tree.map(stack, signal), jax.ShapeDtypeStruct((num_components,), dtype)
