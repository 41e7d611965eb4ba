from typing import Literal, final

import jax
import jax.numpy as jnp
from jax.scipy.signal import fftconvolve
from jaxtyping import Array, Float, Inexact

from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel


@final
class Blur(AbstractLinearForwardModel):
    """Convolves each channel of an image with a kernel; the size stays the same.

    It is done by FFTs, at any size of the kernel. Rounding is about 1e-6 of the largest value, and may leave dark
    pixels that far below 0: give counts a `background`.

    **Arguments:**

    - `kernel`: shape `(height, width)`, odd sizes in pixels; `None` if the parameters of each measurement are its
        kernel.
    - `boundary`: what lies outside of the image: its `"edge"` pixels, its reflection (`"reflect"`), zeros
        (`"constant"`), or its opposite side (`"wrap"`).
    """

    kernel: Float[Array, "height width"] | None = None
    boundary: Literal["edge", "reflect", "constant", "wrap"] = "reflect"

    def __check_init__(self) -> None:
        if self.kernel is not None and not all(n % 2 for n in self.kernel.shape):
            raise ValueError(
                f"Blur: `kernel` must have odd sizes, got {self.kernel.shape}; add a row or column of zeros."
            )
        if self.boundary not in ("edge", "reflect", "constant", "wrap"):
            raise ValueError(f"Blur: `boundary` must be edge, reflect, constant or wrap, got {self.boundary!r}.")

    def __call__(
        self, signal: Inexact[Array, "height width *channels"], params: Params
    ) -> Inexact[Array, "height width *channels"]:
        kernel = params if self.kernel is None else self.kernel
        if kernel is None or kernel.ndim != 2 or not all(n % 2 for n in kernel.shape):
            got = None if kernel is None else kernel.shape
            raise ValueError(f"Blur: without `kernel`, `params` must be one (height, width) of odd sizes, got {got}.")
        rows, columns = (n // 2 for n in kernel.shape)
        channels = signal.reshape(*signal.shape[:2], -1)
        padded = jnp.pad(channels, ((rows, rows), (columns, columns), (0, 0)), mode=self.boundary)
        one = lambda channel: fftconvolve(channel, kernel.astype(signal.dtype), mode="valid")
        return jax.vmap(one, -1, -1)(padded).reshape(signal.shape)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the measurement, which is that of the signal."""
        return observation
