from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel


@final
class Downsample(AbstractLinearForwardModel):
    """The mean over blocks of `factor × factor` pixels. It takes no parameters.

    **Arguments:**

    - `factor`: the size of a block in pixels, at least 1; it must divide the height and the width of the image.
    """

    factor: int

    def __check_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(
                f"Downsample: `factor` must be at least 1, got {self.factor}; 1 leaves the image as it is."
            )

    def __call__(
        self, signal: Inexact[Array, "height width *channels"], params: Params
    ) -> Inexact[Array, "rows columns *channels"]:
        height, width, *channels = signal.shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Downsample: `factor` {self.factor} must divide the image's size {(height, width)}; crop the image or "
                "change it."
            )
        blocks = signal.reshape(height // self.factor, self.factor, width // self.factor, self.factor, *channels)
        return jnp.mean(blocks, axis=(1, 3))

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """An image `factor` times as high and as wide as the measurement."""
        height, width, *channels = observation.shape
        return jax.ShapeDtypeStruct((height * self.factor, width * self.factor, *channels), observation.dtype)
