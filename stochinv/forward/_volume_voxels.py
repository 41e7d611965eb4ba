r"""A radiance field on a grid of voxels.

Raw values are interpolated linearly between the grid's points, which span the box from corner to corner, and *then*
turned into a density `scale · softplus(·)` and a colour `sigmoid(·)`: surfaces stay sharp within a voxel (Sun et al.
2022, "Direct Voxel Grid Optimization", section 4). The colour is the same from all directions.
"""

import itertools
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._volume_base import AbstractField, check_box


@final
class VoxelField(AbstractField):
    """A radiance field by linear interpolation on a grid of voxels.

    **Arguments:**

    - `density`: raw values, any real numbers, shape `(x, y, z)` with at least 2 points along each axis.
    - `colour`: raw values, any real numbers, shape `(x, y, z, 3)`.
    - `lower`, `upper`: the corners of the box, in the units of the scene.
    - `density_scale`: what `softplus` of a raw density is multiplied by, in units of one over length; large enough that
        a voxel can be opaque.
    """

    density: Float[Array, "x y z"]
    colour: Float[Array, "x y z channels"]
    lower: tuple[float, float, float] = eqx.field(static=True, default=(-1.0, -1.0, -1.0))
    upper: tuple[float, float, float] = eqx.field(static=True, default=(1.0, 1.0, 1.0))
    density_scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_box("VoxelField", self.lower, self.upper)
        shape = self.density.shape
        if len(shape) != 3 or self.colour.shape != (*shape, 3) or min(shape) < 2:
            raise ValueError(
                "VoxelField: `density` and `colour` must share a grid of at least 2 points along each axis, with 3 "
                f"values of `colour` at each, got {shape} and {self.colour.shape}."
            )
        if not self.density_scale > 0:
            raise ValueError(f"VoxelField: `density_scale` must be positive, got {self.density_scale}; 1 is none.")

    def __call__(
        self, points: Float[Array, "*shape 3"], directions: Float[Array, "*shape 3"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape 3"]]:
        grid = jnp.concatenate([self.density[..., None], self.colour], -1)
        lower, upper = jnp.asarray(self.lower, points.dtype), jnp.asarray(self.upper, points.dtype)
        raw = interpolate(grid, (points - lower) / (upper - lower))
        return self.density_scale * jax.nn.softplus(raw[..., 0]), jax.nn.sigmoid(raw[..., 1:])


def interpolate(grid: Float[Array, "..."], points: Float[Array, "*shape axes"]) -> Float[Array, "*shape channels"]:
    """Linear interpolation along every axis, constant beyond the grid.

    **Arguments:**

    - `grid`: values at points that span the unit cube, shape `(*sizes, channels)`, at least 2 along each axis.
    - `points`: in units of the cube, shape `(*shape, axes)`, where `axes` is the number of `sizes`.
    """
    *sizes, channels = grid.shape
    last = jnp.asarray(sizes, points.dtype) - 1
    scaled = jnp.clip(points, 0, 1) * last
    low = jnp.clip(jnp.floor(scaled), 0, last - 1)
    weights = jnp.stack([1 - (scaled - low), scaled - low])
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    first = jnp.sum(low.astype(jnp.int32) * jnp.asarray(strides, jnp.int32), -1)
    flat = grid.reshape(-1, channels)
    total = jnp.zeros((*points.shape[:-1], channels), grid.dtype)
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        weight, offset = jnp.ones(points.shape[:-1], points.dtype), 0
        for axis, bit in enumerate(corner):
            weight, offset = weight * weights[bit, ..., axis], offset + bit * strides[axis]
        total = total + weight[..., None] * flat.at[first + offset].get(mode="promise_in_bounds")
    return total
