r"""The coordinates in which signals are noised: those in which a Gaussian signal is white.

With `s ~ N(m, W Wᵀ)` the standardised signal is `z = W⁻¹ (s − m)`. `W` is the symmetric root, the one for which `z` is
closest to the centred signal, so that what is near in a signal stays near in `z`.
"""

from typing import final

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ._custom_types import FloatScalar, FloatScalarLike, Observation, PyTree
from ._data_info import AbstractUnits


@final
class Whitening(AbstractUnits):
    """Signals in the coordinates in which `N(mean, root rootᵀ)` is standard normal.

    **Arguments:**

    - `mean`: the mean of all entries of a signal, raveled.
    - `root`: the symmetric root of their covariance.
    - `inverse`: its inverse.
    """

    mean: Float[Array, " n"]
    root: Float[Array, "n n"]
    inverse: Float[Array, "n n"]

    def __repr__(self) -> str:
        return f"Whitening({self.mean.size} entries)"

    def standardise(self, observation: Observation) -> Observation:
        flat, unravel = ravel_pytree(observation)
        return unravel(self.inverse @ (flat - self.mean))

    def destandardise(self, observation: Observation) -> Observation:
        flat, unravel = ravel_pytree(observation)
        return unravel(self.mean + self.root @ flat)

    def unit(self, observation: Observation) -> PyTree:
        """Each entry is standardised with others: what is noised has no noise of its own to be told in these units."""
        return jax.tree.map(lambda x: jnp.ones((), x.dtype), observation)

    def log_volume(self, observation: Observation) -> FloatScalar:
        return jnp.linalg.slogdet(self.root)[1]


def whitening(mean: Float[Array, " n"], covariance: Float[Array, "n n"], scale: FloatScalarLike = 1.0) -> Whitening:
    """The [`stochinv.Whitening`][] of a Gaussian, its principal standard deviations at least 1e-4 of the largest.

    **Arguments:**

    - `mean`, `covariance`: those of the Gaussian, in units of `scale`.
    - `scale`: in raw units; no unit of the signal is too small or too large to be squared this way.
    """
    values, vectors = jnp.linalg.eigh(covariance)
    scales = jnp.sqrt(jnp.maximum(values, 1e-8 * values[-1]))
    root, inverse = (vectors * scales) @ vectors.T, (vectors / scales) @ vectors.T
    return Whitening(scale * mean, scale * root, inverse / scale)
