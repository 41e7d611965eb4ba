from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel


@final
class ChannelMix(AbstractLinearForwardModel):
    """Mixes the channels of each pixel linearly: grey values from colours, spectral bands, stains.

    **Arguments:**

    - `matrix`: shape `(measured channels, channels of the signal)`; `None` if the parameters of each measurement are
        its matrix.
    """

    matrix: Float[Array, "measured channels"] | None = None

    def _matrix(self, params):
        matrix = params if self.matrix is None else self.matrix
        if matrix is None or len(matrix.shape) != 2:
            got = None if matrix is None else matrix.shape
            raise ValueError(f"ChannelMix: without `matrix`, `params` must be one (measured, channels), got {got}.")
        return matrix

    def __call__(self, signal: Float[Array, "... channels"], params: Params) -> Float[Array, "... measured"]:
        return signal @ jnp.asarray(self._matrix(params), signal.dtype).T

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The shape of the measurement with the number of channels of the signal."""
        return jax.ShapeDtypeStruct((*observation.shape[:-1], self._matrix(params).shape[1]), observation.dtype)
