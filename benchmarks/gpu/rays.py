"""Rays per second of volume rendering, forwards and with the field's gradient, beside those that memory allows.

The roofline counts what a field's samples are made of, the corners between which they lie, as if each were read from
memory: once forwards; for the gradient read, and read and written as sums. A cache that holds the field exceeds it.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro
from measuring import bandwidth, record, seconds_per_call

import scenes
import stochinv as si


@dataclass(frozen=True)
class Options:
    """Speed of rendering."""

    size: int = 256
    """Height and width of the image in pixels."""
    ray_samples: int = 64
    """Samples along a ray."""
    resolution: int = 128
    """Grid points along each axis, of voxels and of planes."""
    features: int = 32
    """Features on each plane."""
    width: int = 64
    """Hidden features of the perceptron that decodes them."""
    quick: bool = False
    """Everything at a small size."""


def make_fields(options: Options):
    """Fields by their names, each with the bytes from which a sample is interpolated."""
    n, features, width = options.resolution, options.features, options.width
    keys = jr.split(jr.key(0), 5)
    voxels = si.forward.VoxelField(jr.normal(keys[0], (n, n, n)), jr.normal(keys[1], (n, n, n, 3)))
    planes = si.forward.TriPlaneField(
        jr.normal(keys[2], (3, n, n, features)),
        jr.normal(keys[3], (features, width)) / features**0.5,
        jnp.zeros(width),
        jr.normal(keys[4], (width, 4)) / width**0.5,
        jnp.zeros(4),
    )
    return {"voxels": (voxels, 8 * 4 * 4), "tri-planes": (planes, 3 * 4 * features * 4)}


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(options, size=16, ray_samples=8, resolution=8, features=4, width=8)
    renderer = si.forward.VolumeRenderer(options.ray_samples)
    size = (options.size, options.size)
    camera = si.forward.Camera(scenes.intrinsics(options.size), scenes.camera_pose(0.5, 0.3), size)
    bytes_per_second, rays = bandwidth(options.quick), options.size**2
    error = lambda field, camera: jnp.mean(renderer(field, camera) ** 2)
    for name, (field, sample_bytes) in make_fields(options).items():
        calls = {"forwards": (jax.jit(renderer), 1), "with gradient": (jax.jit(jax.grad(error)), 3)}
        for what, (call, passes) in calls.items():
            seconds = seconds_per_call(lambda call=call, field=field: call(field, camera), options.quick)
            limit = bytes_per_second / (passes * options.ray_samples * sample_bytes)
            record("rays", f"{name}, {what}", rays / seconds / 1e6, "M rays/s", f"{options.ray_samples} samples each")
            record(
                "rays",
                f"{name}, {what}, roofline",
                limit / 1e6,
                "M rays/s",
                f"{passes} × {sample_bytes} bytes a sample",
            )
            record("rays", f"{name}, {what}, of the roofline", 100 * rays / seconds / limit, "%")


if __name__ == "__main__":
    main()
