r"""RealEstate10K: a text file of cameras for each clip, and a folder of its frames.

After a line with the video's address, each line is a frame: its time in microseconds; fx, fy, cx, cy in fractions of
width and height; two numbers without meaning; and the 3×4 matrix from world to camera, row by row, with OpenCV axes.
"""

import os
from pathlib import Path

import numpy as np

from .base import PosedImages
from .images import intrinsics_matrix, read_images
from .npz import full_poses


def load_realestate10k(cameras: str | os.PathLike[str], frames: str | os.PathLike[str], every: int = 1) -> PosedImages:
    """Reads a clip of RealEstate10K.

    **Arguments:**

    - `cameras`: the text file of the clip.
    - `frames`: the folder of its frames, each named by its time in microseconds, as `.png` or `.jpg`.
    - `every`: the number of frames from one view to the next, at least 1.

    **Returns:**

    The [`stochinv.data.PosedImages`][], in the order of time and the units of the file.

    **Raises:**

    `ValueError` if frames are missing, or the file is of another format.
    """
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    cameras, frames = Path(cameras), Path(frames)
    rows = [line.split() for line in cameras.read_text().splitlines()[1:] if line.strip()][::every]
    if not rows or any(len(row) != 19 for row in rows):
        raise ValueError(f"`cameras`: {cameras} must have 19 numbers on each line after the first; give another file.")
    suffix = ".jpg" if (frames / f"{rows[0][0]}.jpg").exists() else ".png"
    images = read_images([frames / (row[0] + suffix) for row in rows])
    numbers = np.array([row[1:] for row in rows], float)
    height, width = images.shape[1:3]
    intrinsics = [
        intrinsics_matrix(fx * width, fy * height, cx * width, cy * height) for fx, fy, cx, cy in numbers[:, :4]
    ]
    poses = np.linalg.inv(full_poses(numbers[:, 6:].reshape(-1, 3, 4)).astype(float)).astype(np.float32)
    return PosedImages(images, np.stack(intrinsics), poses, name=cameras.stem)
