r"""Tomography: line integrals of an image along the rays of a scanner.

A ray is known by its angle `θ` and its signed distance `r` from the centre of rotation, the pixel
`(height // 2, width // 2)`. At `t` pixels along it, it is at the row and column

`(height // 2, width // 2) + r (−sin θ, cos θ) + t (cos θ, sin θ)`,

so that rays of 0° run down the columns, and larger angles turn them towards the right. A line integral is the sum of
bilinear interpolations at all whole numbers `t`, over zeros outside of the image. Angles and bins are those of
`skimage.transform.radon`.
"""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from .._checks import check_integer, check_number, is_integer, shown
from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel


class _AbstractBeam(AbstractLinearForwardModel):
    """The line integrals of an image along rays that turn with an angle."""

    shape: eqx.AbstractVar[tuple[int, int]]
    num_bins: eqx.AbstractVar[int]

    @abc.abstractmethod
    def _rays(self, radians: Float[Array, " angles"]) -> tuple[Float[Array, "angles bins"], Float[Array, " bins"]]:
        """The angle of each ray in radians, and its signed distance from the centre in pixels."""

    def __call__(self, signal: Inexact[Array, "height width *channels"], params: Params) -> Inexact[Array, "..."]:
        """The line integrals of an image.

        **Arguments:**

        - `signal`: the image, shape `(height, width)` or `(height, width, channels)`, in any unit; may be complex.
        - `params`: the angle in degrees, a scalar or of shape `(angles,)`.

        **Returns:**

        The line integrals in units of a pixel's value times its width, shape `(*angles, bins, *channels)`.

        **Raises:**

        `ValueError` if the image is not of `shape`, or `params` is neither an angle nor an array `(angles,)`.
        """
        if signal.shape[:2] != self.shape:
            raise ValueError(
                f"{type(self).__name__}: the signal must be of shape {self.shape} or {(*self.shape, 'channels')}, got "
                f"{signal.shape}; give its height and width as `shape`."
            )
        angles, distances = self._rays(self._radians(params, signal.dtype))
        # One angle after the other, and its places again for derivatives, so that memory holds those of one. Sines and
        # cosines are taken before: in the loop, XLA would take them for each place.
        one_angle = lambda turn: _line_integrals(signal, turn[0], turn[1], distances)
        integrals = jax.lax.map(jax.checkpoint(one_angle, prevent_cse=False), (jnp.cos(angles), jnp.sin(angles)))
        return integrals.reshape(*np.shape(params), *integrals.shape[1:])

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """An image of `shape` with the channels and the dtype of the measurement."""
        channels = observation.shape[np.ndim(params) + 1 :]
        return jax.ShapeDtypeStruct((*self.shape, *channels), observation.dtype)

    def _radians(self, params, dtype):
        if params is None or np.ndim(params) > 1:
            raise ValueError(
                f"{type(self).__name__}: `params` must be an angle in degrees or angles of shape (angles,), got "
                f"{shown(params)}; use `jax.vmap` for angles of several images."
            )
        return jnp.deg2rad(jnp.asarray(params, jnp.finfo(dtype).dtype)).reshape(-1)


def _line_integrals(image, cosines, sines, distances):
    """Those along the rays of one angle, shape `(bins, *channels)`."""
    height, width = image.shape[:2]
    # The farthest place to which a corner pixel reaches.
    reach = math.ceil(math.hypot(height // 2 + 1, width // 2 + 1))
    along = jnp.arange(-reach, reach + 1, dtype=distances.dtype)
    rows = height // 2 + (cosines[:, None] * along - (sines * distances)[:, None])
    columns = width // 2 + (sines[:, None] * along + (cosines * distances)[:, None])
    # Zeros around the image, to which all places outside are moved.
    padded = jnp.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2))
    rows, columns = jnp.clip(rows + 1, 0, height + 1), jnp.clip(columns + 1, 0, width + 1)
    row = jnp.minimum(rows.astype(jnp.int32), height)
    column = jnp.minimum(columns.astype(jnp.int32), width)
    below, right = rows - row, columns - column
    corner, down = row * (width + 2) + column, width + 2

    def integrate(pixels):
        at = lambda offset: jnp.take(pixels, corner + offset, mode="clip")
        top = (1 - right) * at(0) + right * at(1)
        bottom = (1 - right) * at(down) + right * at(down + 1)
        # XLA gathers five times as fast on a CPU if a product sums, not a reduction.
        return jnp.matmul((1 - below) * top + below * bottom, jnp.ones_like(along), precision="highest")

    channels = padded.reshape((height + 2) * (width + 2), -1)
    integrals = [integrate(channels[:, i]) for i in range(channels.shape[1])]
    return jnp.stack(integrals, -1).reshape(-1, *image.shape[2:])


@final
class ParallelBeam(_AbstractBeam):
    r"""Line integrals of an image along parallel rays, one pixel apart: the Radon transform.

    The signal is the image, the parameters are the angle in degrees, or several, which are measured together: a
    sinogram. Few views or a limited range of angles are only a choice of these. `Composed(ParallelBeam(shape),
    BeerLambert(photons))` with [`stochinv.PoissonNoise`][] counts photons.

    It equals `skimage.transform.radon`: rays of 0° run down the columns, and bin `k` is `k − num_bins // 2` pixels
    from the centre `(height // 2, width // 2)`. A ray is summed over the whole image, corners included. With the
    default number of bins corners are seen at some angles only, as with `circle=True`; with `ceil(√2 max(shape))` bins
    all is seen at every angle, as with `circle=False`.

    **Arguments:**

    - `shape`: the `(height, width)` of the image, in pixels; it may have channels behind.
    - `num_bins`: how many rays each angle has, at least 1; by default as many as the longer side has pixels.

    **Raises:**

    `ValueError` if `shape` is no pair of positive integers, or `num_bins` no positive integer.

    ??? cite "Source"

        Kak & Slaney 1988, "Principles of computerized tomographic imaging", sections 3.1 to 3.3.
    """

    shape: tuple[int, int]
    num_bins: int

    def __init__(self, shape: tuple[int, int], num_bins: int | None = None) -> None:
        self.shape = _as_shape("ParallelBeam", shape)
        self.num_bins = max(self.shape) if num_bins is None else num_bins

    def __check_init__(self) -> None:
        check_integer("ParallelBeam: `num_bins`", self.num_bins)

    def _rays(self, radians):
        distances = jnp.arange(self.num_bins, dtype=radians.dtype) - self.num_bins // 2
        return jnp.broadcast_to(radians[:, None], (radians.size, self.num_bins)), distances

    def filtered_back_projection(
        self, observation: Inexact[Array, "..."], params: Params
    ) -> Inexact[Array, "height width *channels"]:
        """An image with about these line integrals, at once: good for many angles and little noise.

        Projections are filtered by the ramp and smeared back along their rays, as `skimage.transform.iradon` does.

        **Arguments:**

        - `observation`: the line integrals, shape `(*angles, bins, *channels)`.
        - `params`: their angles in degrees, a scalar or of shape `(angles,)`, spread evenly over 180° or 360°.

        **Returns:**

        The image, shape `(height, width, *channels)`. Pixels farther than `num_bins // 2` from the centre, which some
        angles do not see, are 0.

        **Raises:**

        `ValueError` if the measurement is not of the shape of its angles and bins.

        ??? cite "Source"

            Kak & Slaney 1988, "Principles of computerized tomographic imaging", section 3.3; the filter is
            equation 61 of chapter 3.
        """
        radians = self._radians(params, observation.dtype)
        expected = (*np.shape(params), self.num_bins)
        if observation.shape[: len(expected)] != expected:
            raise ValueError(
                f"ParallelBeam: the measurement must be of shape {expected}, with or without channels behind, got "
                f"{observation.shape}; give `num_bins` and `params` as it was measured."
            )
        radius = self.num_bins // 2
        sinogram = observation.reshape(radians.size, self.num_bins, -1)
        ramp = jnp.asarray(_ramp(self.num_bins), radians.dtype)
        filtered = jnp.einsum("rb,abc->arc", ramp, sinogram, precision="highest")
        rows, columns = (jnp.arange(n, dtype=radians.dtype) - n // 2 for n in self.shape)

        def add(image, view):
            cosine, sine, projection = view
            place = jnp.clip(cosine * columns - sine * rows[:, None] + radius, 0, 2 * radius)
            bin_ = jnp.minimum(place.astype(jnp.int32), max(2 * radius - 1, 0))
            at = lambda i: jnp.take(projection, bin_ + i, axis=0, mode="clip")
            above = (place - bin_)[..., None]
            return image + (1 - above) * at(0) + above * at(1), None

        start = jnp.zeros((*self.shape, sinogram.shape[-1]), observation.dtype)
        image, _ = jax.lax.scan(add, start, (jnp.cos(radians), jnp.sin(radians), filtered))
        seen = (rows[:, None] ** 2 + columns**2 <= radius**2)[..., None]
        image = jnp.where(seen, image * (math.pi / radians.size), 0)
        return image.reshape(*self.shape, *observation.shape[len(expected) :])


@final
class FanBeam(_AbstractBeam):
    r"""Line integrals of an image along rays from a point source to a flat detector.

    The signal is the image, the parameters are the angle in degrees, or several, over which source and detector turn
    about the centre `(height // 2, width // 2)`. Few views or a limited range of angles are only a choice of these.

    At 0° the source is above the image, at the row `height // 2 − source_distance`, and the detector below, along the
    row `height // 2 + detector_distance`; the middle of bin `k` is `(k − num_bins // 2) · bin_width` to the right. Both
    turn as the rays of [`stochinv.forward.ParallelBeam`][], which is the limit of a source far away. A line integral
    is one along a line of no width, whatever the width of the bins.

    **Arguments:**

    - `shape`: the `(height, width)` of the image, in pixels; it may have channels behind.
    - `num_bins`: how many rays each angle has, at least 1.
    - `source_distance`: from the source to the centre, in pixels; more than half the diagonal of the image.
    - `detector_distance`: from the centre to the detector, in pixels, at least 0.
    - `bin_width`: the distance of neighbouring bins on the detector, in pixels, positive. The bins are
        `bin_width · source_distance / (source_distance + detector_distance)` apart at the centre.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Kak & Slaney 1988, "Principles of computerized tomographic imaging", section 3.4.2.
    """

    shape: tuple[int, int]
    num_bins: int
    source_distance: float
    detector_distance: float
    bin_width: float

    def __init__(
        self,
        shape: tuple[int, int],
        num_bins: int,
        source_distance: float,
        detector_distance: float,
        bin_width: float,
    ) -> None:
        self.shape = _as_shape("FanBeam", shape)
        self.num_bins = num_bins
        self.source_distance = source_distance
        self.detector_distance = detector_distance
        self.bin_width = bin_width

    def __check_init__(self) -> None:
        check_integer("FanBeam: `num_bins`", self.num_bins)
        half = math.hypot(*self.shape) / 2
        check_number(
            "FanBeam: `source_distance`",
            self.source_distance,
            f"a number of pixels above half the image's diagonal, {half:.6g}",
            lambda x: x > half,
            arrays=False,
        )
        check_number(
            "FanBeam: `detector_distance`",
            self.detector_distance,
            "a number of pixels of at least 0",
            lambda x: x >= 0,
            arrays=False,
        )
        check_number(
            "FanBeam: `bin_width`", self.bin_width, "a positive number of pixels", lambda x: x > 0, arrays=False
        )

    def _rays(self, radians):
        across = (np.arange(self.num_bins) - self.num_bins // 2) * self.bin_width
        tilts = np.arctan2(across, self.source_distance + self.detector_distance)
        distances = jnp.asarray(self.source_distance * np.sin(tilts), radians.dtype)
        return radians[:, None] + jnp.asarray(tilts, radians.dtype), distances


def _as_shape(name, shape):
    if not isinstance(shape, tuple | list) or len(shape) != 2 or not all(is_integer(n) and n >= 1 for n in shape):
        raise ValueError(f"{name}: `shape` must be the (height, width) of the image in pixels, got {shown(shape)}.")
    return int(shape[0]), int(shape[1])


def _ramp(num_bins):
    """The matrix of the ramp filter up to the Nyquist frequency, from bins to all whole distances they reach."""
    radius = num_bins // 2
    lags = np.arange(-radius, radius + 1)[:, None] - (np.arange(num_bins) - radius)
    odd = np.where(lags % 2, lags, 1)
    return np.where(lags % 2, -1 / (math.pi * odd) ** 2, np.where(lags, 0.0, 0.25))
