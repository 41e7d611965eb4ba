from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel


@final
class Mask(AbstractLinearForwardModel):
    """Multiplies the signal by a mask: what is masked out is measured as 0.

    The parameters are the mask: an array that broadcasts against the signal, 1 where it is measured and 0 elsewhere
    (any other weights will do).
    """

    def __call__(self, signal: Float[Array, "..."], params: Params) -> Float[Array, "..."]:
        return signal * jnp.asarray(params, signal.dtype)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the measurement, which is that of the signal."""
        return observation


@final
class Window(AbstractLinearForwardModel):
    """A rectangular window of an image.

    The parameters are the row and the column of its top left pixel, integers of shape `(2,)`; a window that would leave
    the image is moved inside.

    **Arguments:**

    - `image_shape`: `(height, width, channels)` of the image, in pixels.
    - `size`: `(height, width)` of the window, in pixels, at most those of the image.
    """

    image_shape: tuple[int, int, int]
    size: tuple[int, int]

    def __check_init__(self) -> None:
        if not all(1 <= s <= n for s, n in zip(self.size, self.image_shape[:2], strict=True)):
            raise ValueError(
                f"Window: `size` must be between (1, 1) and the image's {self.image_shape[:2]}, got {self.size}."
            )

    def __call__(
        self, signal: Float[Array, "height width channels"], params: Int[Array, "2"]
    ) -> Float[Array, "window_height window_width channels"]:
        if signal.shape != self.image_shape:
            raise ValueError(
                f"Window: the signal must be of shape {self.image_shape}, got {signal.shape}; give it as `image_shape`."
            )
        return jax.lax.dynamic_slice(signal, (params[0], params[1], 0), (*self.size, self.image_shape[2]))

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """An image of `image_shape` in the dtype of the measurement."""
        return jax.ShapeDtypeStruct(self.image_shape, jnp.result_type(*jax.tree.leaves(observation)))
