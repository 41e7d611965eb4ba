r"""The format of LLFF: `poses_bounds.npy` beside a folder of images.

Each row holds a 3×5 matrix and two bounds of depth. The matrix's columns are the camera's axes *down, right, backwards*
in the world, its place, and (height, width, focal length) of the images for which the scene was reconstructed.
"""

import os
from pathlib import Path

import numpy as np

from .base import PosedImages
from .images import intrinsics_matrix, read_images
from .npz import full_poses

_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_llff(folder: str | os.PathLike[str], images: str = "images") -> PosedImages:
    """Reads a scene in the format of LLFF.

    **Arguments:**

    - `folder`: where `poses_bounds.npy` lies.
    - `images`: the folder of images in it; a copy of other size, such as `"images_8"`, will do. They belong to the rows
        in the order of their names.

    **Returns:**

    The [`stochinv.data.PosedImages`][], in the units of the file.

    **Raises:**

    `ValueError` if files are missing, or if their number is not that of the poses.
    """
    folder = Path(folder)
    path = folder / "poses_bounds.npy"
    if not path.exists():
        raise ValueError(f"`folder`: there is no {path}; give the folder of one scene.")
    rows = np.load(path)
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise ValueError(
            f"`folder`: {path} has the shape {rows.shape}, but 17 numbers per view are expected; give another file."
        )
    files = sorted(file for file in (folder / images).glob("*") if file.suffix.lower() in _SUFFIXES)
    if len(files) != len(rows):
        raise ValueError(
            f"`images`: {folder / images} has {len(files)} images, but {path.name} {len(rows)} poses; add or remove "
            "files."
        )
    pixels = read_images(files)
    matrices = rows[:, :15].reshape(-1, 3, 5)
    down, right, backwards, place, size = np.moveaxis(matrices, -1, 0)
    poses = full_poses(np.stack([right, down, -backwards, place], -1))
    scale = pixels.shape[2] / size[:, 1]
    intrinsics = np.stack(
        [intrinsics_matrix(f * s, f * s, pixels.shape[2] / 2, pixels.shape[1] / 2)
         for f, s in zip(size[:, 2], scale, strict=True)]
    )  # fmt: skip
    return PosedImages(pixels, intrinsics, poses, float(rows[:, 15].min()), float(rows[:, 16].max()), name=folder.name)
