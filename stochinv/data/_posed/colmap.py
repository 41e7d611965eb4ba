r"""Reconstructions by COLMAP: `cameras`, `images` and `points3D`, as text or binary.

An image has a rotation, as a quaternion (w, x, y, z), and a translation from *world to camera*, with OpenCV axes; the
centre of the top left pixel is at (½, ½).
"""

import os
import struct
from pathlib import Path

import numpy as np

from .base import PosedImages
from .images import intrinsics_matrix, read_images

# Identifier, number of parameters; the first ones are fx, fy, cx, cy, or f, cx, cy. What follows is distortion.
_MODELS = {
    "SIMPLE_PINHOLE": (0, 3),
    "PINHOLE": (1, 4),
    "SIMPLE_RADIAL": (2, 4),
    "RADIAL": (3, 5),
    "OPENCV": (4, 8),
}
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


def load_colmap(folder: str | os.PathLike[str], images: str | os.PathLike[str]) -> PosedImages:
    """Reads a reconstruction by COLMAP.

    **Arguments:**

    - `folder`: the folder of the model, with `cameras.bin` and `images.bin` or both as `.txt`. Where `points3D` is
        there too, `near` and `far` are those of its points.
    - `images`: the folder of the images. Copies of other size will do.

    **Returns:**

    The [`stochinv.data.PosedImages`][], in the order of the images' names, in the units of the model.

    **Raises:**

    `ValueError` if files are missing, or for cameras with distortion: undistort them by COLMAP first.
    """
    folder, images = Path(folder), Path(images)
    binary = (folder / "images.bin").exists()
    suffix = ".bin" if binary else ".txt"
    for name in ("cameras", "images"):
        if not (folder / (name + suffix)).exists():
            raise ValueError(f"`folder`: there is no {folder / (name + suffix)}; give the folder of one model.")
    read_cameras, read_poses, read_points = (
        (_binary_cameras, _binary_images, _binary_points) if binary else (_text_cameras, _text_images, _text_points)
    )
    cameras = read_cameras(folder / f"cameras{suffix}")
    entries = sorted(read_poses(folder / f"images{suffix}"), key=lambda entry: entry[3])
    pixels = read_images([images / name for *_, name in entries])
    intrinsics, poses = [], []
    for quaternion, translation, identifier, _ in entries:
        model, width, height, parameters = cameras[identifier]
        k = _intrinsics(folder, model, parameters)
        k[0] *= pixels.shape[2] / width
        k[1] *= pixels.shape[1] / height
        intrinsics.append(k)
        poses.append(_camera_to_world(quaternion, translation))
    poses = np.stack(poses).astype(np.float32)
    points_path = folder / f"points3D{suffix}"
    points = read_points(points_path) if points_path.exists() else np.zeros((0, 3))
    return PosedImages(pixels, np.stack(intrinsics), poses, *_bounds(points, poses), name=folder.name)


def _intrinsics(folder, model, parameters):
    focal = 1 if model in _ONE_FOCAL else 2
    if np.any(np.abs(parameters[focal + 2 :]) > 1e-8):
        raise ValueError(
            f"`folder`: {folder} has a camera of model {model} with distortion; undistort the images by "
            "`colmap image_undistorter`."
        )
    return intrinsics_matrix(parameters[0], parameters[focal - 1], parameters[focal], parameters[focal + 1])


def _camera_to_world(quaternion, translation):
    w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ np.asarray(translation)
    return pose


def _bounds(points, poses):
    """The 1 % and 99 % quantiles of the distances from cameras to points before them."""
    if len(points) == 0:
        return None, None
    offsets = points[None] - poses[:, None, :3, 3]
    ahead = np.einsum("vpi,vi->vp", offsets, poses[:, :3, 2]) > 0
    distances = np.linalg.norm(offsets, axis=-1)[ahead]
    if distances.size == 0:
        return None, None
    near, far = np.quantile(distances, (0.01, 0.99))
    return 0.9 * float(near), 1.1 * float(far)


def _lines(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def _text_cameras(path):
    cameras = {}
    for line in filter(str.strip, _lines(path)):
        identifier, model, width, height, *parameters = line.split()
        cameras[int(identifier)] = (_known(path, model), int(width), int(height), np.array(parameters, float))
    return cameras


def _text_images(path):
    """Every second line is that of an image; the others, which may be empty, list its points."""
    for line in _lines(path)[::2]:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        yield np.array(words[1:5], float), np.array(words[5:8], float), int(words[8]), words[9]


def _text_points(path):
    return np.array([line.split()[1:4] for line in _lines(path) if line.strip()], float).reshape(-1, 3)


def _known(path, model):
    if model not in _MODELS:
        raise ValueError(
            f"`folder`: {path} has a camera of model {model}, but only {', '.join(_MODELS)} are pinhole cameras; "
            "undistort the images by `colmap image_undistorter`."
        )
    return model


def _unpack(file, layout):
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _binary_cameras(path):
    names = {number: name for name, (number, _) in _MODELS.items()}
    cameras = {}
    with open(path, "rb") as file:
        for _ in range(_unpack(file, "Q")[0]):
            identifier, number, width, height = _unpack(file, "iiQQ")
            model = _known(path, names.get(number, f"number {number}"))
            parameters = np.array(_unpack(file, f"{_MODELS[model][1]}d"))
            cameras[identifier] = (model, width, height, parameters)
    return cameras


def _binary_images(path):
    with open(path, "rb") as file:
        for _ in range(_unpack(file, "Q")[0]):
            _, *numbers, camera = _unpack(file, "i7di")
            name = b"".join(iter(lambda: file.read(1), b"\0")).decode()
            (points,) = _unpack(file, "Q")
            file.seek(24 * points, os.SEEK_CUR)
            yield np.array(numbers[:4]), np.array(numbers[4:]), camera, name


def _binary_points(path):
    points = []
    with open(path, "rb") as file:
        for _ in range(_unpack(file, "Q")[0]):
            _, x, y, z, *_ = _unpack(file, "Q3d3Bd")
            (track,) = _unpack(file, "Q")
            file.seek(8 * track, os.SEEK_CUR)
            points.append((x, y, z))
    return np.array(points).reshape(-1, 3)
