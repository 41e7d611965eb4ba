r"""Warping: how a still image moves.

A displacement field `u` says, for every pixel `p` of the frame that is measured, where in the source frame it comes
from: `o(p) = x(p + u(p))`, with `x` interpolated bilinearly (*backward* warping). One field applied again and again
gives a sequence of frames. Each is a warp of the source itself, by the composed displacement
`d_j(p) = u(p) + d_{j−1}(p + u(p))`, so that no frame is blurred by the interpolations before it. What lies outside of
the source is its nearest edge.
"""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._custom_types import Params, Structure
from .._forward.base import AbstractForwardModel


@final
class Warp(AbstractForwardModel):
    """Backward bilinear warping of a source frame, the parameters, by a displacement field, the signal.

    The signal has the shape `(height, width, 2)`: the displacements of each pixel along rows (downwards) and along
    columns (to the right), in pixels of the frame. A pixel of the measured frame shows the source at its own place plus
    that displacement, so that what moves to the right has displacements to the left.

    **Arguments:**

    - `scale`: the signal may be coarser than the frame, with one vector for `scale × scale` pixels, at least 1. It is
        interpolated linearly; its unit is the pixel of the frame nevertheless.
    - `margin`: by how many pixels the source reaches beyond the frame on each side, at least 0. Short displacements
        then need no pixel that the source has not.
    - `num_frames`: how many frames follow the source, at least 1, as the leading axis of the measurement; `None` for
        one frame without that axis. The same field leads from each frame to the one before.
    """

    scale: int = 1
    margin: int = 0
    num_frames: int | None = None

    def __check_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"Warp: `scale` must be at least 1, got {self.scale}.")
        if self.margin < 0:
            raise ValueError(f"Warp: `margin` must be at least 0, got {self.margin}.")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"Warp: `num_frames` must be at least 1, or None, got {self.num_frames}.")

    def __call__(
        self, signal: Float[Array, "rows columns 2"], params: Shaped[Array, "_ _ channels"]
    ) -> Float[Array, "*frames height width channels"]:
        """Warps the source frame.

        **Arguments:**

        - `signal`: the displacement field, in pixels.
        - `params`: the source frame, shape `(height + 2 margin, width + 2 margin, channels)`, grey values in any unit.

        **Returns:**

        The frame of shape `(height, width, channels)`, or `num_frames` of them, in the dtype of the signal.

        **Raises:**

        `ValueError` if the shapes of signal and source do not fit.
        """
        displacement = self.displacement(signal, params)
        height, width = displacement.shape[-3:-1]
        rows, columns = _grid(height, width, displacement.dtype)
        rows, columns = rows + self.margin + displacement[..., 0], columns + self.margin + displacement[..., 1]
        return sample_bilinear(jnp.asarray(params, signal.dtype), rows, columns)

    def displacement(
        self, signal: Float[Array, "rows columns 2"], params: Shaped[Array, "_ _ channels"]
    ) -> Float[Array, "*frames height width 2"]:
        """The displacement of every pixel from its place in the *source*, in pixels.

        **Arguments:**

        - `signal`, `params`: the displacement field and the source frame.

        **Returns:**

        The signal at the frame's resolution and, for several frames, composed from each to the source.
        """
        height, width = self._frame_size(params)
        expected = self._field_shape(height, width)
        if signal.shape != expected:
            raise ValueError(
                f"Warp: for a source of shape {params.shape} with `scale={self.scale}` and `margin={self.margin}` the "
                f"signal must be of shape {expected}, got {signal.shape}."
            )
        shape = (height, width, 2)
        fine = signal if signal.shape == shape else jax.image.resize(signal, shape, "linear")
        if self.num_frames is None:
            return fine
        rows, columns = _grid(height, width, fine.dtype)
        rows, columns = rows + fine[..., 0], columns + fine[..., 1]

        def compose(displacement, _):
            displacement = fine + sample_bilinear(displacement, rows, columns)
            return displacement, displacement

        return jax.lax.scan(compose, jnp.zeros(shape, fine.dtype), length=self.num_frames)[1]

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the displacement field, given that of the frame or frames."""
        return jax.ShapeDtypeStruct(self._field_shape(*observation.shape[-3:-1]), observation.dtype)

    def _field_shape(self, height, width):
        return -(-height // self.scale), -(-width // self.scale), 2

    def _frame_size(self, params):
        if params is None or len(params.shape) != 3:
            got = None if params is None else params.shape
            raise ValueError(f"Warp: `params` must be the source frame, (height, width, channels), got {got}.")
        height, width = (n - 2 * self.margin for n in params.shape[:2])
        if height < 1 or width < 1:
            raise ValueError(
                f"Warp: the source of shape {params.shape} leaves no frame inside of `margin={self.margin}`; give a "
                "larger source or a smaller margin."
            )
        return height, width


def sample_bilinear(
    image: Float[Array, "height width channels"], rows: Float[Array, "*places"], columns: Float[Array, "*places"]
) -> Float[Array, "*places channels"]:
    """The bilinear interpolation of an image at any places; those outside are moved to the nearest edge.

    **Arguments:**

    - `image`: of at least one pixel.
    - `rows`, `columns`: the places, in pixels from the centre of the top left one.
    """
    return _interpolated(image, rows, columns)


@jax.custom_jvp
def _interpolated(image, rows, columns):
    """Without derivatives the sum of four corners is fastest on a CPU: 5 times at 128×128 pixels."""
    (row, column), (down, across), (below, right) = _corners(image, rows, columns)
    above, left = 1 - below, 1 - right

    def interpolate(channel):
        at = lambda i, j: channel.at[row + i, column + j].get(mode="clip")
        top = above * left * at(0, 0) + above * right * at(0, across)
        return top + below * left * at(down, 0) + below * right * at(down, across)

    return jax.vmap(interpolate, -1, -1)(image)


@_interpolated.defjvp
def _interpolated_jvp(primals, tangents):
    return jax.jvp(_interpolated_with_derivatives, primals, tangents)


def _interpolated_with_derivatives(image, rows, columns):
    """With derivatives it is fastest to take one channel after the other, in single numbers."""
    (row, column), (down, across), (below, right) = _corners(image, rows, columns)
    width = image.shape[1]
    corner, down = row * width + column, down * width

    def interpolate(channel):
        at = lambda offset: jnp.take(channel, corner + offset, mode="clip")
        top = at(0) + right * (at(across) - at(0))
        bottom = at(down) + right * (at(down + across) - at(down))
        return top + below * (bottom - top)

    return jnp.stack([interpolate(channel.ravel()) for channel in jnp.moveaxis(image, -1, 0)], -1)


def _corners(image, rows, columns):
    """The top left corner of the square around each place, the steps to the next ones, and how far the place is."""
    height, width, _ = image.shape
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    row = jnp.clip(rows.astype(jnp.int32), 0, max(height - 2, 0))
    column = jnp.clip(columns.astype(jnp.int32), 0, max(width - 2, 0))
    return (row, column), (int(height > 1), int(width > 1)), (rows - row, columns - column)


def _grid(height, width, dtype):
    return jnp.arange(height, dtype=dtype)[:, None], jnp.arange(width, dtype=dtype)
