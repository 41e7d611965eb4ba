r"""The format of NeRF's synthetic scenes: `transforms_train.json` beside its images.

Poses lead from camera to world with OpenGL axes; all views share a horizontal field of view, or have intrinsics in
pixels under the names that instant-ngp gave them.
"""

import json
import math
import os
from pathlib import Path

import numpy as np

from .base import PosedImages
from .images import OPENGL, intrinsics_matrix, read_images


def load_nerf_synthetic(folder: str | os.PathLike[str], split: str | None = "train") -> PosedImages:
    """Reads a scene in the format of NeRF's synthetic scenes.

    **Arguments:**

    - `folder`: where `transforms_{split}.json` lies, and the images that it names.
    - `split`: `"train"`, `"val"` or `"test"`; `None` reads `transforms.json`.

    **Returns:**

    The [`stochinv.data.PosedImages`][]; units are those of the file, in which the scenes fit the box from −1.5 to 1.5
    and cameras are 4 away, so that `near` is 2 and `far` 6.

    **Raises:**

    `ValueError` if images or camera parameters are missing, or do not fit together.
    """
    folder = Path(folder)
    path = folder / ("transforms.json" if split is None else f"transforms_{split}.json")
    if not path.exists():
        raise ValueError(f"`folder`: there is no {path}; give the folder of one scene, and a split that it has.")
    record = json.loads(path.read_text())
    frames = record["frames"]
    files = [folder / frame["file_path"] for frame in frames]
    images = read_images([file if file.suffix else file.with_suffix(".png") for file in files])
    height, width = images.shape[1:3]
    intrinsics = np.stack([_intrinsics(path, record | frame, height, width) for frame in frames])
    poses = np.asarray([frame["transform_matrix"] for frame in frames], np.float32) @ OPENGL
    return PosedImages(images, intrinsics, poses, 2.0, 6.0, name=folder.name)


def _intrinsics(path, record, height, width):
    if "fl_x" in record:
        fx, fy = record["fl_x"], record.get("fl_y", record["fl_x"])
    elif "camera_angle_x" in record:
        fx = fy = width / 2 / math.tan(record["camera_angle_x"] / 2)
    else:
        raise ValueError(f"`folder`: {path} has neither `camera_angle_x` nor `fl_x`; add the field of view in radians.")
    return intrinsics_matrix(fx, fy, record.get("cx", width / 2), record.get("cy", height / 2))
