"""Training steps of inverse graphics at the scale of Tewari et al. 2023: 64×64 views, scored on parts of 24×24 pixels.

The problem is that of `examples/inverse_graphics.py`, with a wider transformer, on views of noise. Images per second
are targets; each comes with one context view. One batch stays on the device, so that nothing waits for the host.
"""

from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from measuring import TENSOR_CORES, TrainingStep, matrix_product, operations, record, seconds_per_call

import inverse_graphics
import scenes
import stochinv as si


@dataclass(frozen=True)
class Options:
    """Speed, memory and utilisation of training steps."""

    precision: Literal["float32", "bf16"] = "float32"
    """In what networks compute."""
    accumulate: int = 1
    """In how many parts a batch is worked on."""
    batch_size: int = 32
    """Targets per step."""
    size: int = 64
    """Height and width of the views in pixels."""
    patch: int = 24
    """Height and width of the parts of views that are scored."""
    width: int = 576
    """Features of the transformer."""
    depth: int = 8
    """Blocks of the transformer."""
    resolution: int = 48
    """Grid points of the field along each axis."""
    ray_samples: int = 64
    """Samples of a field on each ray."""
    quick: bool = False
    """Everything at a small size."""


def make_batch(options: Options) -> si.Example:
    """A batch of views of noise around the origin."""
    rng, number = np.random.default_rng(0), 8
    poses = np.stack([scenes.camera_pose(angle, 0.3) for angle in 2 * np.pi * np.arange(number) / number])
    intrinsics = np.stack([scenes.intrinsics(options.size)] * number)
    make = lambda: rng.random((number, options.size, options.size, 4), np.float32)
    known = [si.data.PosedImages(make(), intrinsics, poses.astype(np.float32)) for _ in range(4)]
    batches = si.data.SceneBatches(known, options.batch_size, patch=(options.patch,) * 2, stride=2)
    return jax.tree.map(jnp.asarray, batches.batch(rng))


def make_state(options: Options, batch: si.Example) -> si.State:
    config = replace(
        inverse_graphics.PRESETS["gpu"],
        family="random",
        size=options.size,
        width=options.width,
        depth=options.depth,
        resolution=options.resolution,
        ray_samples=options.ray_samples,
        draws=2,
    )
    problem = inverse_graphics.make_problem(config, jr.key(0))
    return si.init(problem, batch, key=jr.key(1), precision=options.precision, accumulate=options.accumulate)


def make_step(static: si.State, accumulate: int):
    """A step of training with a batch in so many parts, of the arrays of a state and a batch."""

    def step(arrays, batch):
        state, metrics = si.step(replace(eqx.combine(arrays, static), accumulate=accumulate), batch)
        return eqx.filter(state, eqx.is_array), metrics["loss"]

    return step


def tell_memory(part: str, step: TrainingStep):
    """What the program asks for beside its arguments, and the most that the device has held."""
    record(part, "temporaries", step.program.memory_analysis().temp_size_in_bytes / 2**30, "GiB")
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is None:
        record(part, "peak memory", "unknown", "", "the device does not tell")
    else:
        record(part, "peak memory", peak / 2**30, "GiB")


def tell_utilisation(part: str, options: Options, counts: dict[str, float], seconds: float):
    """Operations of a step over those of matrix products in the same time."""
    dtype, note = (jnp.float32, f", {TENSOR_CORES}") if options.precision == "float32" else (jnp.bfloat16, "")
    peak = matrix_product(dtype, options.quick)
    note = f"of {peak / 1e12:.4g} TFLOP/s, measured in {jnp.dtype(dtype).name}{note}"
    for name, count in counts.items():
        record(part, f"operations per step, {name}", count / 1e12, "TFLOP")
        record(part, f"utilisation (MFU), operations {name}", 100 * count / seconds / peak, "%", note)


def measure(options: Options):
    part = f"transformer, {options.precision}"
    if options.accumulate > 1:
        part += f", in {options.accumulate} parts"
    batch = make_batch(options)
    arrays, static = eqx.partition(make_state(options, batch), eqx.is_array)
    shapes = jax.eval_shape(lambda *x: x, arrays, batch)
    parameters = sum(x.size for x in jax.tree.leaves(arrays.problem.denoiser))
    record(part, "parameters", parameters / 1e6, "M")
    step = TrainingStep(make_step(static, options.accumulate), arrays, batch)
    record(part, "compilation", step.compile_seconds, "s")
    seconds = seconds_per_call(step, options.quick)
    record(part, "training", options.batch_size / seconds, "images/s", f"batches of {options.batch_size}")
    tell_memory(part, step)
    # Compiled, calls of libraries may hide some; and a loop over parts would be counted once.
    counts = {"compiled": operations(step.program)} if options.accumulate == 1 else {}
    whole = jax.jit(make_step(static, accumulate=1)).lower(*shapes)
    tell_utilisation(part, options, counts | {"as written": operations(whole)}, seconds)


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        sizes = {"batch_size": 4, "size": 16, "patch": 4, "width": 48, "depth": 1, "resolution": 6, "ray_samples": 4}
        options = replace(options, **sizes)
    measure(options)


if __name__ == "__main__":
    main()
