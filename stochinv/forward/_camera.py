r"""Pinhole cameras and the rays through their pixels.

A point `x` of the world has the camera coordinates `y = Rᵀ (x − o)`, with the axes of OpenCV: `y₁` right, `y₂` down,
`y₃` forward. It is seen at the pixel coordinates `(u, v) = (K y)₁,₂ / y₃`, where the centre of the top left pixel is at
`(½, ½)`. The pixels of a part of an image, or of every n-th row and column, are again those of a pinhole camera.
"""

from typing import Any, TypeAlias, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

_TOLERANCE = 2e-3  # of a rotation's entries; poses are often stored with few digits


@final
class Rays(eqx.Module):
    """Half-lines along which a field is seen, in any arrangement: an image, a patch, a random subset of pixels.

    **Arguments:**

    - `origins`, `directions`: shape `(*shape, 3)`, in the units of the scene; directions have length 1.
    - `offsets`: where in each of the intervals along a ray the sample lies, between 0 and 1, shape `(*shape, samples)`
        or `(*shape, 1)`: drawn at random for stratified sampling. `None` takes the middles.
    """

    origins: Float[Array, "*shape 3"]
    directions: Float[Array, "*shape 3"]
    offsets: Float[Array, "..."] | None = None

    def rays(self) -> "Rays":
        """Themselves, as those of a camera."""
        return self


@final
class Camera(eqx.Module):
    """A pinhole camera: the known parameters of an image. Several cameras stack along leading axes of their arrays.

    **Arguments:**

    - `intrinsics`: `K`, shape `(3, 3)`, upper triangular, in pixels; the centre of the first pixel is at `(½, ½)`.
    - `pose`: from camera to world, shape `(4, 4)`: a rotation and the camera's place. OpenCV axes: x right, y down, z
        forward.
    - `image_size`: height and width in pixels.

    **Raises:**

    `ValueError` for intrinsics or poses that no pinhole camera has, where their values are known.
    """

    intrinsics: Float[Array, "*views 3 3"]
    pose: Float[Array, "*views 4 4"]
    image_size: tuple[int, int] = eqx.field(static=True)

    def __init__(self, intrinsics: Any, pose: Any, image_size: tuple[int, int]) -> None:
        dtype = jnp.result_type(float)
        self.intrinsics = jnp.asarray(intrinsics, dtype)
        self.pose = jnp.asarray(pose, dtype)
        self.image_size = (int(image_size[0]), int(image_size[1]))

    def __check_init__(self) -> None:
        if self.intrinsics.shape[-2:] != (3, 3) or self.pose.shape[-2:] != (4, 4):
            raise ValueError(
                f"Camera: `intrinsics` must be of shape (3, 3) and `pose` of shape (4, 4), got {self.intrinsics.shape} "
                f"and {self.pose.shape}; add the row (0, 0, 0, 1) to a pose of shape (3, 4)."
            )
        if min(self.image_size) < 1:
            raise ValueError(
                f"Camera: `image_size` must be at least (1, 1), got {self.image_size}; give (height, width) in pixels."
            )
        if not any(isinstance(x, Tracer) for x in (self.intrinsics, self.pose)):
            _check_intrinsics(np.asarray(self.intrinsics))
            _check_pose(np.asarray(self.pose))

    @property
    def position(self) -> Float[Array, "*views 3"]:
        """Where the camera is, in the units of the scene."""
        return self.pose[..., :3, 3]

    def rays(self) -> Rays:
        """The rays through the centres of the pixels of one camera, in the shape `(height, width)`."""
        height, width = self.image_size
        k, dtype = self.intrinsics, self.pose.dtype
        v, u = jnp.meshgrid(jnp.arange(height, dtype=dtype) + 0.5, jnp.arange(width, dtype=dtype) + 0.5, indexing="ij")
        y = (v - k[1, 2]) / k[1, 1]
        x = (u - k[0, 2] - k[0, 1] * y) / k[0, 0]
        directions = jnp.stack([x, y, jnp.ones_like(x)], -1) @ self.pose[:3, :3].T
        directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
        return Rays(jnp.broadcast_to(self.position, directions.shape), directions)

    def project(self, points: Float[Array, "*shape 3"]) -> tuple[Float[Array, "*shape 2"], Float[Array, "*shape"]]:
        """Where one camera sees points of the world.

        **Arguments:**

        - `points`: shape `(*shape, 3)`, in the units of the scene.

        **Returns:**

        The pixel coordinates `(u, v)`, and the depths along the optical axis in the units of the scene; points with a
        depth of 0 or less are behind the camera, and their pixel coordinates mean nothing.
        """
        local = (points - self.position) @ self.pose[:3, :3]
        depth = local[..., 2]
        safe = jnp.where(depth > 1e-6, depth, 1.0)
        k = self.intrinsics
        x, y = local[..., 0] / safe, local[..., 1] / safe
        return jnp.stack([k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]], -1), depth

    def crop(self, corner: Int[Array, "2"] | tuple[int, int], size: tuple[int, int], *, stride: int = 1) -> "Camera":
        """The camera whose pixels are some of this one's: those of a patch, or every `stride`-th of a larger one.

        **Arguments:**

        - `corner`: row and column of the first pixel.
        - `size`: height and width of the result, in pixels.
        - `stride`: rows and columns from one pixel to the next, at least 1.
        """
        row, column = corner[0], corner[1]
        scale = jnp.asarray([[1 / stride], [1 / stride], [1.0]], self.intrinsics.dtype)
        k = (self.intrinsics * scale).at[..., 0, 2].set((self.intrinsics[..., 0, 2] - column - 0.5) / stride + 0.5)
        return Camera(k.at[..., 1, 2].set((self.intrinsics[..., 1, 2] - row - 0.5) / stride + 0.5), self.pose, size)


Point: TypeAlias = tuple[float | int, float | int, float | int] | Float[ArrayLike, "3"]


def look_at(position: Point, target: Point, up: Point) -> Float[np.ndarray, "4 4"]:
    """The pose of a camera that looks from one place at another.

    **Arguments:**

    - `position`: where the camera is, in the units of the scene.
    - `target`: what it looks at; another place than `position`.
    - `up`: what is up in the image; not along the line of sight.

    **Returns:**

    The pose from camera to world, OpenCV axes.

    **Raises:**

    `ValueError` if the three leave the orientation open.
    """
    place, upwards = np.asarray(position, float), np.asarray(up, float)
    forward = np.asarray(target, float) - place
    right = np.cross(forward, upwards)
    if np.linalg.norm(right) < 1e-6 * max(float(np.linalg.norm(forward) * np.linalg.norm(upwards)), 1e-12):
        raise ValueError(
            f"look_at: `up` {up} must not be along the line of sight {forward}, nor may either be 0; take another `up`."
        )
    right, forward = right / np.linalg.norm(right), forward / np.linalg.norm(forward)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, place], -1)
    return pose


def _check_intrinsics(k):
    if not np.all(np.isfinite(k)):
        raise ValueError("Camera: `intrinsics` has NaN or infinite entries; leave that view out.")
    bad = (k[..., 0, 0] <= 0) | (k[..., 1, 1] <= 0)
    if np.any(bad):
        first = k[tuple(np.argwhere(bad)[0])] if bad.ndim else k
        raise ValueError(
            f"Camera: `intrinsics` must have positive focal lengths in pixels, got {first.tolist()}, which is singular "
            "or mirrored; flip the axes in `pose` instead (OpenGL's y and z are OpenCV's times −1)."
        )
    lower = np.stack([k[..., 1, 0], k[..., 2, 0], k[..., 2, 1], k[..., 2, 2] - 1], -1)
    if np.any(np.abs(lower) > 1e-4):
        raise ValueError(
            "Camera: `intrinsics` must be upper triangular with last row (0, 0, 1); divide a matrix by its last entry."
        )


def _check_pose(pose):
    if not np.all(np.isfinite(pose)):
        raise ValueError("Camera: `pose` has NaN or infinite entries; leave that view out.")
    if np.any(np.abs(pose[..., 3, :] - np.array([0, 0, 0, 1])) > 1e-4):
        raise ValueError("Camera: `pose` must have the last row (0, 0, 0, 1); transpose it if it is the last column.")
    r = pose[..., :3, :3]
    error = np.max(np.abs(np.swapaxes(r, -1, -2) @ r - np.eye(3)), initial=0.0)
    if error > _TOLERANCE:
        raise ValueError(
            f"Camera: the upper left 3×3 block of `pose` is no rotation (RᵀR differs from 1 by {error:.2g}); divide "
            "out its scale, or orthonormalise it."
        )
    if np.any(np.linalg.det(r) < 0):
        raise ValueError(
            "Camera: the upper left 3×3 block of `pose` is a reflection (determinant −1); flip two axes, not one or "
            "three."
        )
