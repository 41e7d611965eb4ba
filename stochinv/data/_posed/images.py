r"""Image files of one scene."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..._lazy import optional


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """Reads images of one size, as numbers between 0 and 1 of shape `(views, height, width, 3 or 4)`.

    Grey images are taken as colours. If some have an opacity and others do not, those are opaque.

    **Raises:**

    `ValueError` if there are none, if files are missing, or if sizes differ.
    """
    imread = optional("imageio.v3", "Reading images needs ImageIO", "data").imread
    if not paths:
        raise ValueError("There are no images to read; give a folder, or a selection of views, that has some.")
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images are missing, such as {missing[0]}; download them, or leave them "
            "out of the scene's camera file."
        )
    images = [np.asarray(imread(path)) for path in paths]
    images = [x[..., None] if x.ndim == 2 else x for x in images]
    images = [np.repeat(x, 3, -1) if x.shape[-1] == 1 else x for x in images]
    sizes = {x.shape[:2]: path for x, path in zip(images, paths, strict=True)}
    if len(sizes) > 1:
        listed = ", ".join(f"{path.name} {size}" for size, path in sizes.items())
        raise ValueError(f"The images are of different sizes ({listed}); resize or crop the files to one.")
    scaled = [x.astype(np.float32) / (np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1) for x in images]
    if any(x.shape[-1] == 4 for x in scaled):
        opaque = lambda x: np.concatenate([x, np.ones((*x.shape[:2], 1), np.float32)], -1)
        scaled = [x if x.shape[-1] == 4 else opaque(x) for x in scaled]
    return np.stack(scaled)


def intrinsics_matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """The matrix `K` without skew, in pixels."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)  # OpenGL's y is up and its z backwards; its own inverse
