r"""CO3D: `frame_annotations.jgz` of a category, with the cameras of PyTorch3D.

A row vector of the world becomes `x R + T` in camera coordinates with the axes left, up, forward. Focal length and
principal point are in normalised device coordinates: of a shorter side from −1 to 1 (`ndc_isotropic`), or of both sides
(`ndc_norm_image_bounds`), and grow to the left and upwards.
"""

import functools
import gzip
import json
import os
from pathlib import Path

import numpy as np

from .base import PosedImages
from .images import intrinsics_matrix, read_images

_FLIP = np.diag([-1.0, -1.0, 1.0])  # left and up to right and down


def load_co3d(folder: str | os.PathLike[str], category: str, sequence: str, *, masked: bool = True) -> PosedImages:
    """Reads a sequence of CO3D.

    **Arguments:**

    - `folder`: the root of the data set, with a folder for each category.
    - `category`: such as `"hydrant"`.
    - `sequence`: the name of the sequence.
    - `masked`: whether the object's mask becomes the opacity.

    **Returns:**

    The [`stochinv.data.PosedImages`][], in the order of frames and the units of the file.

    **Raises:**

    `ValueError` if the sequence or images are missing, or if frames are of different sizes.
    """
    folder = Path(folder)
    path = folder / category / "frame_annotations.jgz"
    if not path.exists():
        raise ValueError(f"`folder`: there is no {path}; give the root of the data set, and a category that it has.")
    frames = _annotations(path)
    known = sorted({frame["sequence_name"] for frame in frames})
    frames = sorted(
        (frame for frame in frames if frame["sequence_name"] == sequence), key=lambda frame: frame["frame_number"]
    )
    if not frames:
        raise ValueError(f"`sequence`: {path} has no sequence {sequence!r}, but {', '.join(known[:8])}.")
    images = read_images([folder / frame["image"]["path"] for frame in frames])
    if masked:
        masks = read_images([folder / frame["mask"]["path"] for frame in frames])
        images = np.concatenate([images[..., :3], masks[..., :1]], -1)
    cameras = [_camera(frame["viewpoint"], *frame["image"]["size"]) for frame in frames]
    scale = np.array([images.shape[2], images.shape[1]]) / np.array(frames[0]["image"]["size"])[::-1]
    intrinsics, poses = (np.stack(x).astype(np.float32) for x in zip(*cameras, strict=True))
    return PosedImages(images, intrinsics * np.array([[scale[0]], [scale[1]], [1]], np.float32), poses, name=sequence)


@functools.lru_cache(maxsize=1)  # one file holds all sequences of a category, and takes long to read
def _annotations(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _camera(viewpoint, height, width):
    half = np.array([width, height]) / 2
    convention = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    if convention not in ("ndc_isotropic", "ndc_norm_image_bounds"):
        raise ValueError(f"CO3D: intrinsics of the format {convention!r} are unknown; use ndc_isotropic.")
    unit = np.full(2, half.min()) if convention == "ndc_isotropic" else half
    focal = np.array(viewpoint["focal_length"]) * unit
    centre = half - np.array(viewpoint["principal_point"]) * unit
    rotation = _FLIP @ np.array(viewpoint["R"]).T
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ (_FLIP @ np.array(viewpoint["T"]))
    return intrinsics_matrix(*focal, *centre), pose
