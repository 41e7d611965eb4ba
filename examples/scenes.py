"""Posed views of random scenes, path traced by Mitsuba.

Two families of scenes, all of them inside the unit ball, seen by cameras around it:

- `random`: two to four solids of random shape, place, colour and pattern, which occlude one another;
- `hidden`: one solid whose far side is red (probability 0.7) or blue (0.3). The first two views see its front alone.
  There is no floor, and light is followed to the first surface only, so that no light carries the hidden colour there.

    python examples/scenes.py --family hidden --number 1000      # about seven minutes, once: the file is kept

The views are written to a compressed npz: `rgba` (scenes, views, height, width, 4) as bytes, not premultiplied; `c2w`
(scenes, views, 4, 4), from camera to world, OpenCV axes (x right, y down, z forward); `K` (3, 3) in pixels; `red`
(scenes,), whether the far side is red, for the hidden family.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

FOV, DISTANCE = 33.0, 3.6  # degrees, and from the camera to the origin
RED_SHARE = 0.7
RED, BLUE = np.array([0.85, 0.06, 0.06]), np.array([0.06, 0.1, 0.85])
HIDDEN_NORMAL = -0.3  # what faces away from the front by more than this is hidden from the front


@dataclass
class Config:
    """Renders posed views of random scenes, and keeps them in a file."""

    family: Literal["random", "hidden"] = "random"
    """Which family of scenes."""
    number: int = 1000
    """How many scenes."""
    views: int = 8
    """Views of each."""
    size: int = 32
    """Height and width of a view in pixels."""
    samples: int = 64
    """Light paths per pixel."""
    seed: int = 0
    """Seed of the first scene; scene `i` has the seed `(seed, i)`."""
    folder: Path = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "stochinv"
    """Where files are kept."""


def main(argv=None):
    path = cached(tyro.cli(Config, args=argv))
    print(path)
    return path


def cached(config):
    """The path of the file with these scenes; they are rendered if it does not exist."""
    name = f"{config.family}-{config.number}x{config.views}-{config.size}px-{config.samples}spp-seed{config.seed}.npz"
    path = config.folder / name
    if not path.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial.npz")
        np.savez_compressed(temporary, **render_scenes(config))
        temporary.replace(path)
    return path


def render_scenes(config):
    """All scenes of a family, as arrays."""
    start = time.perf_counter()
    views, poses, labels = [], [], []
    for index in tqdm(range(config.number), unit="scene", disable=None):
        rng = np.random.default_rng((config.seed, index))
        solids, red = make_scene(config.family, rng)
        cameras = make_cameras(config.family, config.views, rng)
        views.append(render(solids, cameras, config.size, config.samples, depth=2 if config.family == "hidden" else 4))
        poses.append(cameras)
        labels.append(red)
    print(f"{config.number} scenes in {time.perf_counter() - start:.0f} seconds")
    arrays = {"rgba": np.stack(views), "c2w": np.stack(poses).astype(np.float32), "K": intrinsics(config.size)}
    return arrays | ({"red": np.asarray(labels)} if config.family == "hidden" else {})


def make_scene(family, rng):
    """The solids of a scene, each `(vertices, normals, faces, colours)`, and whether its far side is red."""
    if family == "hidden":
        return make_hidden_scene(rng, bool(rng.random() < RED_SHARE))
    solids, places = [], []
    number = rng.integers(2, 5)
    while len(solids) < number:
        radii = rng.uniform(0.22, 0.45, 3)
        place = rng.uniform(-0.6, 0.6, 3) * (1, 1, 0.8)
        if np.linalg.norm(place) + radii.max() > 0.98 or any(
            np.linalg.norm(place - other) < 0.8 * (radii.max() + size) for other, size in places
        ):
            continue
        places.append((place, radii.max()))
        points, normals, faces = superellipsoid(radii, rng.uniform(0.25, 1.2, 2))
        turn = rotation(rng)
        first, second = random_colour(rng), random_colour(rng)
        pattern = rng.integers(3)
        stripes = np.sin(points @ rng.normal(size=3) * 14) > 0
        second_part = (np.zeros(len(points), bool), stripes, points[:, 2] > 0)[pattern]
        colours = np.where(second_part[:, None], second, first)
        solids.append((points @ turn.T + place, normals @ turn.T, faces, colours))
    return solids, False


def make_hidden_scene(rng, red):
    """One solid whose front looks to +x; its shape and its front's colours do not depend on `red`."""
    points, normals, faces = superellipsoid(rng.uniform(0.5, 0.75, 3), rng.uniform(0.3, 1.1, 2))
    first, second = front_colour(rng), front_colour(rng)
    colours = np.where((points[:, 2] > rng.uniform(-0.3, 0.3))[:, None], first, second)
    colours = np.where((normals[:, 0] < HIDDEN_NORMAL)[:, None], RED if red else BLUE, colours)
    return [(points, normals, faces, colours)], red


def superellipsoid(radii, exponents, resolution=48):
    """A solid between a box (small exponents) and an octahedron (2), with an ellipsoid at 1."""
    along, up = np.meshgrid(
        np.linspace(-np.pi, np.pi, 2 * resolution + 1),
        np.linspace(-np.pi / 2, np.pi / 2, resolution + 1),
        indexing="ij",
    )
    power = lambda x, e: np.sign(x) * np.abs(x) ** e
    shape = lambda a, b: np.stack(
        [power(np.cos(up), a) * power(np.cos(along), b), power(np.cos(up), a) * power(np.sin(along), b),
         power(np.sin(up), a)], -1
    ).reshape(-1, 3)  # fmt: skip
    points = shape(*exponents) * radii
    normals = shape(*(2 - np.asarray(exponents))) / radii
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    stride = resolution + 1
    corner = (np.arange(2 * resolution)[:, None] * stride + np.arange(resolution)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + stride, corner + stride + 1], -1),
            np.stack([corner, corner + stride + 1, corner + 1], -1),
        ]
    )
    return points, normals, faces


def random_colour(rng):
    """A random saturated colour, or a grey."""
    if rng.random() < 0.15:
        return np.full(3, rng.uniform(0.1, 0.9))
    hue = rng.random() * 6
    wheel = np.clip([abs(hue - 3) - 1, 2 - abs(hue - 2), 2 - abs(hue - 4)], 0, 1)
    return (1 - rng.uniform(0.5, 1) * (1 - wheel)) * rng.uniform(0.5, 0.95)


def front_colour(rng):
    """A yellow, green or grey, which neither red nor blue nor a mixture of these could be taken for."""
    tone = rng.uniform(0.3, 0.9)
    return tone * np.array([(1.0, 0.85, 0.1), (0.15, 0.9, 0.2), (0.9, 0.9, 0.9)][rng.integers(3)])


def rotation(rng):
    """A rotation drawn uniformly."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix * np.sign(np.linalg.det(matrix))


def make_cameras(family, views, rng):
    """Poses from camera to world; of the hidden family, the first two see the front."""
    azimuth, elevation = rng.uniform(-np.pi, np.pi, views), np.deg2rad(rng.uniform(-5, 45, views))
    if family == "hidden":
        elevation = np.deg2rad(rng.uniform(-20, 30, views))
        azimuth[:2], elevation[:2] = np.deg2rad(rng.uniform(-8, 8, 2)), np.deg2rad(rng.uniform(-6, 6, 2))
    return np.stack([camera_pose(a, e) for a, e in zip(azimuth, elevation, strict=True)])


def camera_pose(azimuth, elevation, distance=DISTANCE):
    """The pose of a camera that looks at the origin from an azimuth and an elevation, in radians."""
    place = distance * np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    forward = -place / distance
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, place], -1)
    return pose


def intrinsics(size):
    """The intrinsics of a square view, in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    focal = size / 2 / np.tan(np.deg2rad(FOV) / 2)
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)


def render(solids, cameras, size, samples, *, depth):
    """Path-traced views under soft light, as bytes of shape (views, size, size, 4)."""
    import mitsuba as mi

    mi.set_variant("scalar_rgb")
    lights = {
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": 0.55}},
        "lamp": {
            "type": "directional",
            "direction": [-0.3, -0.4, -1.0],
            "irradiance": {"type": "rgb", "value": 1.3},
        },
    }
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": depth, "hide_emitters": True},
            **lights,
            **{f"solid{i}": make_mesh(mi, *solid) for i, solid in enumerate(solids)},
        }
    )
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # in Mitsuba x is left and y is up
    views = []
    for index, camera in enumerate(cameras):
        film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba", "rfilter": {"type": "box"}}
        sensor = mi.load_dict(
            {
                "type": "perspective",
                "fov": FOV,
                "to_world": mi.ScalarTransform4f(camera @ flip),
                "film": film,
                "sampler": {"type": "independent", "sample_count": samples},
            }
        )
        views.append(to_bytes(np.array(mi.render(scene, sensor=sensor, seed=index))))
    return np.stack(views)


def make_mesh(mi, points, normals, faces, colours):
    colour = {"type": "mesh_attribute", "name": "vertex_color"}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": colour}})
    mesh = mi.Mesh("solid", len(points), len(faces), props=properties, has_vertex_normals=True)
    arrays = mi.traverse(mesh)
    arrays["vertex_positions"] = points.astype(np.float32).ravel()
    arrays["vertex_normals"] = normals.astype(np.float32).ravel()
    arrays["faces"] = faces.astype(np.uint32).ravel()
    mesh.add_attribute("vertex_color", 3, colours.astype(np.float32).ravel())
    arrays.update()
    return mesh


def to_bytes(rgba):
    """A linear, premultiplied image as sRGB bytes that are not premultiplied."""
    alpha = np.clip(rgba[..., 3:], 0, 1)
    linear = np.clip(rgba[..., :3] / np.maximum(alpha, 1e-6), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * np.concatenate([srgb, alpha], -1)).astype(np.uint8)


if __name__ == "__main__":
    main()
