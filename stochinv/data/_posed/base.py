r"""Images of one scene with the cameras that took them, and training records made of many scenes.

Every loader returns a `PosedImages`, whatever the format: OpenCV axes, pixels in [0, 1], intrinsics in pixels.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..._checks import as_range
from ..._lazy import optional
from ..._view import Example, View
from ...forward._camera import Camera


@dataclasses.dataclass(frozen=True)
class PosedImages:
    """Images of one scene, all of one size, with their cameras.

    **Arguments:**

    - `images`: shape `(views, height, width, 3 or 4)`, between 0 and 1; a fourth channel is the opacity, by which
        colours are *not* multiplied.
    - `intrinsics`: `K` of each view, shape `(views, 3, 3)`, in pixels; the centre of the first pixel is at `(½, ½)`.
    - `poses`: from camera to world, shape `(views, 4, 4)`, OpenCV axes.
    - `near`, `far`: the distances from the cameras between which the scene lies, in its units, where they are known.
    - `name`: what error messages call the scene.

    **Raises:**

    `ValueError` for images and cameras that do not fit together, and for cameras that look away from one another's
    scene: their axes are of another convention.
    """

    images: Float[np.ndarray, "..."]
    intrinsics: Float[np.ndarray, "_ 3 3"]
    poses: Float[np.ndarray, "_ 4 4"]
    near: float | None = None
    far: float | None = None
    name: str = "scene"

    def __post_init__(self) -> None:
        number = len(self.images)
        if number == 0:
            raise ValueError(f"{self.name}: there are no images; give at least one.")
        if self.images.ndim != 4 or self.images.shape[-1] not in (3, 4):
            raise ValueError(
                f"{self.name}: `images` must be of shape (views, height, width, 3 or 4), got {self.images.shape}."
            )
        if self.intrinsics.shape != (number, 3, 3) or self.poses.shape != (number, 4, 4):
            raise ValueError(
                f"{self.name}: {number} images need `intrinsics` of shape {(number, 3, 3)} and `poses` of shape "
                f"{(number, 4, 4)}, got {self.intrinsics.shape} and {self.poses.shape}."
            )
        try:
            _ = self.cameras
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        _check_directions(self.name, self.poses)

    @property
    def cameras(self) -> Camera:
        """The cameras of all views, stacked."""
        return Camera(self.intrinsics, self.poses, self.images.shape[1:3])

    def resize(self, size: tuple[int, int]) -> "PosedImages":
        """The same views with another number of pixels, averaged over what a new pixel covers.

        **Arguments:**

        - `size`: the new height and width, in pixels.
        """
        resize = optional("skimage.transform", "`resize` needs scikit-image", "data").resize
        rows, columns = size[0] / self.images.shape[1], size[1] / self.images.shape[2]
        pixels = premultiply(self.images)
        pixels = resize(pixels, (len(pixels), *size, pixels.shape[-1]), order=1, anti_aliasing=min(rows, columns) < 1)
        scale = np.array([[columns], [rows], [1.0]], np.float32)
        images = np.clip(np.asarray(_divide(pixels)), 0, 1).astype(np.float32)
        return dataclasses.replace(self, images=images, intrinsics=self.intrinsics * scale)

    def normalise(self, radius: float = 1.0) -> "PosedImages":
        """The scene moved and scaled so that what all cameras look at is the origin, and its content fits a ball.

        The content is taken to reach as far from there as `far`, or else half way to the nearest camera.

        **Arguments:**

        - `radius`: of the ball, in the new units.
        """
        centre = focus_point(self.poses)
        distances = np.linalg.norm(self.poses[:, :3, 3] - centre, axis=1)
        extent = 0.5 * distances.min() if self.far is None else max(self.far - distances.mean(), 1e-6)
        scale = radius / extent
        poses = self.poses.copy()
        poses[:, :3, 3] = (poses[:, :3, 3] - centre) * scale
        times = lambda x: None if x is None else float(x * scale)
        return dataclasses.replace(self, poses=poses, near=times(self.near), far=times(self.far))

    def views(self, background: float | tuple[float, ...] | None = None) -> View:
        """The images as measurements.

        **Arguments:**

        - `background`: the colour that transparent pixels show; `None` keeps the opacity, or adds one of 1, with
            colours multiplied by it, as `VolumeRenderer(background=None)` measures them.

        **Returns:**

        A [`stochinv.View`][] with a views axis, whose parameters are [`stochinv.forward.Camera`][]s.
        """
        return View(measurements(self.images, background), self.cameras)


def premultiply(images: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Colours times opacity, where there is one."""
    if images.shape[-1] == 3:
        return images
    return np.concatenate([images[..., :3] * images[..., 3:], images[..., 3:]], -1)


def _divide(images):
    if images.shape[-1] == 3:
        return images
    return np.concatenate([images[..., :3] / np.maximum(images[..., 3:], 1e-6), images[..., 3:]], -1)


def measurements(
    images: Float[np.ndarray, "... channels"], background: float | tuple[float, ...] | None
) -> Float[np.ndarray, "... out"]:
    """Images over a background, or premultiplied with their opacity for `None`.

    **Arguments:**

    - `images`: between 0 and 1, shape `(..., 3 or 4)`; a fourth channel is the opacity, by which colours are not
        multiplied.
    - `background`: the colour that transparent pixels show, between 0 and 1; `None` returns premultiplied colours and
        the opacity, 1 where the images have none.

    **Returns:**

    Shape `(..., 3)`, or `(..., 4)` for `None`.
    """
    pixels = premultiply(images.astype(np.float32))
    if background is None:
        opaque = np.ones((*pixels.shape[:-1], 1), np.float32)
        return pixels if pixels.shape[-1] == 4 else np.concatenate([pixels, opaque], -1)
    if pixels.shape[-1] == 3:
        return pixels
    return pixels[..., :3] + (1 - pixels[..., 3:]) * np.asarray(background, np.float32)


def focus_point(poses: Float[np.ndarray, "views 4 4"]) -> Float[np.ndarray, "3"]:
    """The point nearest to all optical axes, by least squares; one unit ahead where they are parallel."""
    places, axes = poses[:, :3, 3].astype(float), poses[:, :3, 2].astype(float)
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    total = projectors.mean(0)
    if np.linalg.eigvalsh(total)[0] < 1e-4:
        return places.mean(0) + axes.mean(0)
    return np.linalg.solve(total, np.einsum("nij,nj->i", projectors, places) / len(places))


def _check_directions(name, poses):
    if len(poses) < 3:
        return
    offsets = focus_point(poses) - poses[:, :3, 3]
    if np.mean(np.sum(offsets * poses[:, :3, 2], -1) < 0) > 0.75:
        raise ValueError(
            f"{name}: most cameras look away from the point that their optical axes meet in, so points of the scene "
            "are behind them; `poses` must have OpenCV axes (multiply the y and z columns of OpenGL's by −1) and lead "
            "from camera to world (else invert them)."
        )


@dataclasses.dataclass(frozen=True)
class SceneBatches:
    """Training records from many scenes, drawn anew at every step: an endless iterable of batches for `fit`.

    Every scene must have views of the same size. Scored as novel measurements are *parts* of views: all the pixels, or
    a patch of every `stride`-th pixel, which a smaller camera sees; a training step then renders no whole image.

    **Arguments:**

    - `scenes`: a sequence of [`stochinv.data.PosedImages`][]; one that loads a scene when it is indexed will do.
    - `batch_size`: scenes per batch, at least 1.
    - `context`: how many context views, or a pair (least, most) from which the number is drawn for each record.
    - `novel`: how many views are scored beside the target, at least 0.
    - `place`: where novel views are: `"anywhere"`, or `"between"` the first context view and the target in the order of
        the scene's views, as of the frames of a video.
    - `patch`: height and width of the parts that are scored, in pixels; `None` for whole views. With a patch one part
        of the target and one of the first context view are scored as well.
    - `stride`: rows and columns from one scored pixel to the next, at least 1.
    - `context_views`: the views that may be context, such as `range(2)`; `None` for all.
    - `background`: as in [`stochinv.data.PosedImages.views`][].
    - `seed`: of everything random.
    """

    scenes: Sequence[PosedImages]
    batch_size: int
    context: int | tuple[int, int] = 1
    novel: int = 1
    place: Literal["anywhere", "between"] = "anywhere"
    patch: tuple[int, int] | None = None
    stride: int = 1
    context_views: Sequence[int] | None = None
    background: float | tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.scenes) == 0:
            raise ValueError("SceneBatches: `scenes` is empty; give at least one scene.")
        if self.batch_size < 1:
            raise ValueError(f"SceneBatches: `batch_size` must be at least 1, got {self.batch_size}.")
        least, most = as_range("SceneBatches: `context`", self.context)
        if not 0 <= least <= most:
            raise ValueError(
                f"SceneBatches: `context` must be a number ≥ 0 or a pair (least, most), got {self.context}."
            )
        if self.place not in ("anywhere", "between"):
            raise ValueError(f'SceneBatches: `place` must be "anywhere" or "between", got {self.place!r}.')
        first = self.scenes[0]
        views, height, width = first.images.shape[:3]
        needed = most + 1 + self.novel
        if views < needed:
            raise ValueError(
                f"SceneBatches: {needed} views are needed (context {self.context}, target 1, novel {self.novel}), but "
                f"{first.name} has {views}; give more views, or ask for fewer."
            )
        if self.patch is not None and any(
            self.stride * (p - 1) + 1 > n for p, n in zip(self.patch, (height, width), strict=True)
        ):
            raise ValueError(
                f"SceneBatches: a `patch` of {self.patch} pixels with `stride` {self.stride} does not fit into views "
                f"of {(height, width)}."
            )
        if self.patch is None and self.novel == 0 and self.stride != 1:
            raise ValueError("SceneBatches: `stride` is for patches; give `patch`.")

    def __iter__(self) -> Iterator[Example]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield self.batch(rng)

    def batch(self, rng: np.random.Generator) -> Example:
        """One batch, drawn by `rng`.

        **Returns:**

        An [`stochinv.Example`][] whose arrays have a leading axis of `batch_size`.
        """
        records = [self._record(rng) for _ in range(self.batch_size)]
        context, target, scored = ([r[i] for r in records] for i in range(3))
        least, most = as_range("SceneBatches: `context`", self.context)
        given = None
        if most:
            mask = None
            if least < most:
                mask = np.arange(most) < rng.integers(least, most + 1, self.batch_size)[:, None]
            given = View(*_stack(context), mask)
        novel = None
        if scored[0] is not None:
            novel = View(*_stack(scored))
        return Example(given, View(*_stack(target)), novel)

    def _record(self, rng):
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        size, expected = scene.images.shape[1:3], self.scenes[0].images.shape[1:3]
        if size != expected:
            raise ValueError(
                f"SceneBatches: {scene.name} has views of {size} pixels, but {self.scenes[0].name} of {expected}; "
                f"`resize` one of them."
            )
        context, target, novel = self._deal(len(scene.images), rng)
        take = lambda index: (
            measurements(scene.images[index], self.background),
            scene.intrinsics[index],
            scene.poses[index],
            size,
        )
        if self.patch is None:
            return take(context), take(target), take(novel) if self.novel else None
        scored = [*context[:1], target, *novel]
        return take(context), take(target), self._parts(scene, scored, rng)

    def _deal(self, number, rng):
        most = as_range("SceneBatches: `context`", self.context)[1]
        if self.place == "between" and self.novel:
            inner = rng.permutation(np.arange(1, number - 1))[: self.novel]
            low, high = inner.min(), inner.max()
            first, target = rng.integers(0, low), rng.integers(high + 1, number)
            if rng.random() < 0.5:
                first, target = target, first
            rest = rng.permutation(np.setdiff1d(np.arange(number), [first, target, *inner]))[: max(most - 1, 0)]
            return np.array([first, *rest][:most], int), int(target), inner
        allowed = np.arange(number) if self.context_views is None else np.asarray(self.context_views)
        context = rng.permutation(allowed)[:most]
        others = rng.permutation(np.setdiff1d(np.arange(number), context))
        return context, int(others[0]), others[1 : 1 + self.novel]

    def _parts(self, scene, views, rng):
        """Patches of views, each with the camera that sees no more than it."""
        patch, stride = self.patch, self.stride
        assert patch is not None
        parts, intrinsics = [], []
        for view in views:
            spare = [n - stride * (p - 1) for n, p in zip(scene.images.shape[1:3], patch, strict=True)]
            row, column = (int(rng.integers(n)) for n in spare)
            rows = slice(row, row + stride * (patch[0] - 1) + 1, stride)
            columns = slice(column, column + stride * (patch[1] - 1) + 1, stride)
            parts.append(measurements(scene.images[view, rows, columns], self.background))
            k = scene.intrinsics[view] / np.array([[stride], [stride], [1.0]], np.float32)
            k[0, 2] = (scene.intrinsics[view, 0, 2] - column - 0.5) / stride + 0.5
            k[1, 2] = (scene.intrinsics[view, 1, 2] - row - 0.5) / stride + 0.5
            intrinsics.append(k)
        return np.stack(parts), np.stack(intrinsics), scene.poses[np.asarray(views)], patch


def _stack(records: list[Any]) -> tuple[Any, Camera]:
    images, intrinsics, poses = (np.stack([r[i] for r in records]) for i in range(3))
    return images, Camera(intrinsics, poses, records[0][3])
