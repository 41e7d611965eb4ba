r"""Warping: how a still image moves.

A displacement field `u` says, for every pixel `p` of the frame that is measured, where in the source frame it comes
from: `o(p) = x(p + u(p))`, with `x` interpolated bilinearly (*backward* warping). One field applied again and again,
or a trajectory of fields, gives a sequence of frames. Each is a warp of the source itself, by the composed displacement
`d_j(p) = u_j(p) + d_{j−1}(p + u_j(p))`, so that no frame is blurred by the interpolations before it.
"""

from typing import Literal, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

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
    - `boundary`: what lies outside of the source: its `"edge"` pixels or its reflection (`"reflect"`). With `"mask"`
        there is nothing, and the measurement has one more channel: the share of each pixel that comes from inside, by
        which its colours are multiplied; for observed frames it is 1.
    - `margin`: by how many pixels the source reaches beyond the frame on each side, at least 0. Short displacements
        then need no boundary.
    - `num_frames`: how many frames follow the source, at least 1, as the leading axis of the measurement; `None` for
        one frame without that axis.
    - `trajectory`: whether the signal has one field per frame, shape `(num_frames, height, width, 2)`, each from its
        frame to the one before; otherwise the same field leads from each frame to the one before.
    """

    scale: int = 1
    boundary: Literal["edge", "reflect", "mask"] = "edge"
    margin: int = 0
    num_frames: int | None = None
    trajectory: bool = False

    def __check_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"Warp: `scale` must be at least 1, got {self.scale}.")
        if self.boundary not in ("edge", "reflect", "mask"):
            raise ValueError(f"Warp: `boundary` must be edge, reflect or mask, got {self.boundary!r}.")
        if self.margin < 0:
            raise ValueError(f"Warp: `margin` must be at least 0, got {self.margin}.")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"Warp: `num_frames` must be at least 1, or None, got {self.num_frames}.")
        if self.trajectory and self.num_frames is None:
            raise ValueError("Warp: a `trajectory` needs its number of fields; give `num_frames`.")

    def __call__(
        self, signal: Float[Array, "*fields rows columns 2"], params: Shaped[Array, "_ _ channels"]
    ) -> Float[Array, "*frames height width measured"]:
        """Warps the source frame.

        **Arguments:**

        - `signal`: the displacement field, or one for each frame, in pixels.
        - `params`: the source frame, shape `(height + 2 margin, width + 2 margin, channels)`, grey values in any unit.

        **Returns:**

        The frame of shape `(height, width, channels)`, or `num_frames` of them, in the dtype of the signal.

        **Raises:**

        `ValueError` if the shapes of signal and source do not fit.
        """
        source = jnp.asarray(params, signal.dtype)
        rows, columns = self._places(signal, params)
        height, width, _ = source.shape
        if self.boundary == "reflect":
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        elif self.boundary == "mask":
            source = jnp.concatenate([source, jnp.ones_like(source[..., :1])], -1)
            source = jnp.pad(source, ((1, 1), (1, 1), (0, 0)))
            rows, columns = rows + 1, columns + 1
        return sample_bilinear(source, rows, columns)

    def displacement(
        self, signal: Float[Array, "*fields rows columns 2"], params: Shaped[Array, "_ _ channels"]
    ) -> Float[Array, "*frames height width 2"]:
        """The displacement of every pixel from its place in the *source*, in pixels.

        **Arguments:**

        - `signal`, `params`: the displacement field and the source frame.

        **Returns:**

        The signal at the frame's resolution and, for several frames, composed from each to the source.
        """
        height, width = self._frame_size(params)
        fields = (*self._field_size(height, width), 2)
        expected = (self.num_frames, *fields) if self.trajectory else fields
        if signal.shape != expected:
            raise ValueError(
                f"Warp: for a source of shape {params.shape} with `scale={self.scale}` and `margin={self.margin}` the "
                f"signal must be of shape {expected}, got {signal.shape}."
            )
        shape = (*signal.shape[:-3], height, width, 2)
        fine = signal if signal.shape == shape else jax.image.resize(signal, shape, "linear")
        if self.num_frames is None:
            return fine
        grid_rows, grid_columns = _grid(height, width, fine.dtype)

        def compose(displacement, field):
            field = fine if field is None else field
            before = sample_bilinear(displacement, grid_rows + field[..., 0], grid_columns + field[..., 1])
            return field + before, field + before

        start = jnp.zeros((height, width, 2), fine.dtype)
        _, displacements = jax.lax.scan(compose, start, fine if self.trajectory else None, length=self.num_frames)
        return displacements

    def inside(
        self, signal: Float[Array, "*fields rows columns 2"], params: Shaped[Array, "_ _ channels"]
    ) -> Bool[Array, "*frames height width"]:
        """Which pixels come from inside of the source, so that no boundary has a part in them.

        **Arguments:**

        - `signal`, `params`: the displacement field and the source frame.

        **Returns:**

        `True` where the displaced place lies within the source.
        """
        rows, columns = self._places(signal, params)
        height, width = params.shape[:2]
        return (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the displacement field, given that of the frame or frames."""
        height, width = observation.shape[-3:-1]
        shape = (*self._field_size(height, width), 2)
        if self.trajectory:
            shape = (self.num_frames, *shape)
        return jax.ShapeDtypeStruct(shape, observation.dtype)

    def _field_size(self, height, width):
        return -(-height // self.scale), -(-width // self.scale)

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

    def _places(self, signal, params):
        """The row and the column in the source that each pixel of each frame comes from."""
        displacement = self.displacement(signal, params)
        height, width = displacement.shape[-3:-1]
        rows, columns = _grid(height, width, displacement.dtype)
        return rows + self.margin + displacement[..., 0], columns + self.margin + displacement[..., 1]


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


def _reflect(places, size):
    """Places folded back into `[0, size − 1]`, as a path between two mirrors."""
    if size == 1:
        return jnp.zeros_like(places)
    return (size - 1) - jnp.abs(places % (2 * (size - 1)) - (size - 1))
