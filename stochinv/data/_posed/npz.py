r"""Posed images in an npz file: `rgb` or `rgba`, `c2w` and `K`, of one scene or of many."""

import os

import numpy as np

from .base import PosedImages


def load_posed_npz(path: str | os.PathLike[str]) -> list[PosedImages]:
    """Reads posed images of one or many scenes from an npz file.

    Its arrays are `rgb` or `rgba`, shape `([scenes,] views, height, width, 3 or 4)`, bytes or numbers between 0 and 1;
    `c2w`, from camera to world with OpenCV axes, shape `([scenes,] views, 4, 4)` or `(…, 3, 4)`; and `K` in pixels,
    shape `(3, 3)` or with the leading axes of `c2w`. `near` and `far` may be given as scalars.

    **Arguments:**

    - `path`: the file.

    **Returns:**

    One [`stochinv.data.PosedImages`][] per scene.

    **Raises:**

    `ValueError` if an array is missing, or if they do not fit together.
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    pixels = arrays.get("rgba", arrays.get("rgb"))
    missing = [name for name in ("c2w", "K") if name not in arrays]
    if pixels is None or missing:
        wanted = ", ".join([*(["rgb or rgba"] if pixels is None else []), *missing])
        raise ValueError(f"`path`: {path} has no array {wanted}, but {sorted(arrays)}; add it under that name.")
    if pixels.ndim not in (4, 5):
        raise ValueError(
            f"`path`: images of shape {pixels.shape} in {path}; they need the axes ([scenes,] views, height, width, "
            "channels)."
        )
    images = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
    poses = full_poses(arrays["c2w"])
    lead = images.shape[:-3]
    if poses.shape[:-2] != lead:
        raise ValueError(f"`path`: {path} has images of {lead} and `c2w` of {poses.shape[:-2]}; save as many of both.")
    intrinsics = np.broadcast_to(arrays["K"].astype(np.float32), (*lead, 3, 3))
    if images.ndim == 4:
        images, intrinsics, poses = images[None], intrinsics[None], poses[None]
    bounds = [float(arrays[name]) if name in arrays else None for name in ("near", "far")]
    name = os.path.basename(os.fspath(path))
    return [
        PosedImages(image, k, pose, *bounds, name=f"{name}, scene {index}")
        for index, (image, k, pose) in enumerate(zip(images, intrinsics, poses, strict=True))
    ]


def full_poses(poses: np.ndarray) -> np.ndarray:
    """Poses with their last row, single precision."""
    poses = np.asarray(poses, np.float32)
    if poses.shape[-2:] == (4, 4):
        return poses
    last = np.broadcast_to(np.array([0, 0, 0, 1], np.float32), (*poses.shape[:-2], 1, 4))
    return np.concatenate([poses, last], -2)
