r"""What a training step and a denoising step of inverse graphics cost. Prints one table.

*lifting* is the network of `examples/inverse_graphics.py`: it makes a voxel field once, which is then rendered.
*pixelNeRF* is the same image encoder with a perceptron, 64 wide and of 5 residual blocks, at every sample of every ray.
A training step takes the gradient of the squared error over two 16×16 parts of views, and a step of Adam; *the
example's* that of the energy score of the four fields that its draws choose from. A denoising step makes one signal and
renders its whole image. One record at a time: processor time, the median over repeats, also in units of a 1024³ product
of float32 matrices, which takes turns with each step.

On Linux one core runs everything, and freed memory is kept: without that, `glibc` asks the system for memory
at each step that needs more than 32 MiB, which takes 20 ms of processor time for 40 MiB.

    python benchmarks/rendering.py [--json PATH]
"""

import ctypes
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import stochinv as si
from stochinv._problem_base import encode_context
from stochinv.forward._volume_voxels import interpolate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import inverse_graphics
import scenes


@dataclass(frozen=True)
class Options:
    """Processor time and memory of training and denoising steps."""

    size: int = 32
    """Height and width of the views in pixels."""
    samples: tuple[int, ...] = (16, 32, 64)
    """Samples along a ray."""
    networks: tuple[str, ...] = ("lifting", "pixelNeRF")
    """Which networks."""
    repeats: int = 24
    """How often each step is timed."""
    width: int = 144
    """Features of the transformer."""
    depth: int = 4
    """Blocks of the transformer."""
    resolution: int = 24
    """Grid points of the field along each axis."""
    json: Path | None = None
    """Also write the figures to this file."""


class PixelNeRF(si.forward.AbstractField):
    """An image's features, and the perceptron that makes density and colour of them at a point."""

    features: jax.Array
    camera: si.forward.Camera
    inward: si.nn.Linear
    blocks: tuple
    out: si.nn.Linear
    lower: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    upper: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, points, directions):
        pixels, depth = self.camera.project(points)
        size = self.camera.image_size
        place = jnp.stack([pixels[..., 1] / size[0], pixels[..., 0] / size[1]], -1)
        h = self.inward(jnp.concatenate([interpolate(self.features, place), points, depth[..., None]], -1))
        for first, second in self.blocks:
            h = h + second(jax.nn.relu(first(jax.nn.relu(h))))
        raw = self.out(h)
        return 20 * jax.nn.softplus(raw[..., 0] - 4), jax.nn.sigmoid(raw[..., 1:])


class PixelNeRFDenoiser(eqx.Module):
    """A field that evaluates its network wherever it is seen; features of context and target are added."""

    encoder: si.nn.PatchTransformer
    embedding: si.nn.NoiseEmbedding
    inward: si.nn.Linear
    blocks: tuple
    out: si.nn.Linear

    def __init__(self, options, *, key):
        keys = jr.split(key, 15)
        size = (options.size, options.size)
        self.encoder = si.nn.PatchTransformer(
            4, 64, image_size=size, embedding_size=128, width=options.width, depth=options.depth, key=keys[0]
        )
        self.embedding = si.nn.NoiseEmbedding(128, key=keys[1])
        self.inward = si.nn.Linear(68, 64, key=keys[2])
        self.blocks = tuple(
            (si.nn.Linear(64, 64, key=keys[3 + i]), si.nn.Linear(64, 64, key=keys[8 + i])) for i in range(5)
        )
        self.out = si.nn.Linear(64, 4, key=keys[13])

    def __call__(self, noisy, level, context, params, *, key=None):
        images = jnp.concatenate([noisy[None], context.observation])
        embeddings = jax.vmap(self.embedding)(jnp.stack([level.log_snr, 30.0 * jnp.ones(())]))
        features = jnp.sum(jax.vmap(self.encoder)(images, embeddings), 0)
        return PixelNeRF(features, params, self.inward, self.blocks, self.out)


def make_record(options):
    """A context view, a target, and two parts of 16×16 pixels; and the noise level of the denoising step."""
    size = options.size
    poses = np.stack([scenes.camera_pose(a, 0.3) for a in (0, 1, 2)])
    cameras = si.forward.Camera(np.stack([scenes.intrinsics(size)] * 3), poses, (size, size))
    images = jr.uniform(jr.key(0), (3, size, size, 4))
    take = lambda index: jax.tree.map(lambda x: x[index], cameras)
    parts = jax.vmap(lambda camera: camera.crop((0, 0), (size // 2, size // 2), stride=2))(take(slice(1, 3)))
    return si.Example(
        si.View(images[:1], take(slice(0, 1))), si.View(images[1], take(1)), si.View(images[1:, ::2, ::2], parts)
    )


class PartsError(si.AbstractObjective):
    """The squared error of the parts alone."""

    stochastic: ClassVar[bool] = False

    def check(self, problem, example):
        """Anything may be timed."""

    def __call__(self, problem, example, *, key):
        level = jax.tree.map(jnp.asarray, problem.schedule.level(0.5))
        signal = problem.denoise(
            example.target.observation, level, example.context, example.target.params, key=key
        ).signal
        predicted = si.MultiView(problem.forward)(signal, example.novel.params)
        return jnp.mean((predicted - example.novel.observation) ** 2), {}


def training_step(forward, denoiser, objective, example):
    """One step of Adam, with its arguments."""
    problem = si.StochasticInverseProblem(forward, denoiser, objective=objective)
    params, static = eqx.partition(denoiser, eqx.is_inexact_array)
    optimizer = optax.adam(1e-3)

    def step(params, state, key):
        def loss(params):
            whole = eqx.tree_at(lambda p: p.denoiser, problem, eqx.combine(params, static))
            return whole.loss(example, key=key)[0]

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    return step, (params, optimizer.init(params), jr.key(1))


def denoising_step(forward, denoiser, example):
    """One evaluation of the denoiser, and its image, as in a sampler: what the context says is computed before."""
    problem = si.StochasticInverseProblem(forward, denoiser)
    level = jax.tree.map(jnp.asarray, problem.schedule.level(0.5))
    context = jax.jit(lambda context: encode_context(problem, context))(example.context)
    step = lambda noisy, key: problem.denoise(noisy, level, context, example.target.params, key=key).observation
    return step, (example.target.observation, jr.key(2))


def compiled(step, arguments, trains=False):
    """The compiled call, and the megabytes that it needs beside its arguments.

    One that trains gives its first two arguments up for its results, as `fit` does.
    """
    program = jax.jit(step, donate_argnums=(0, 1) if trains else ()).lower(*arguments).compile()
    state = jax.tree.map(jnp.array, arguments)

    def call():
        nonlocal state
        result = program(*state)
        if trains:
            state = (*result, *state[2:])
        return result

    return call, program.memory_analysis().temp_size_in_bytes / 2**20


def in_turns(calls, repeats):
    """The median milliseconds of processor time of each."""
    times = np.zeros((repeats, len(calls)))
    for turn in range(-1, repeats):
        for index, call in enumerate(calls):
            start = time.process_time()
            jax.block_until_ready(call())
            times[turn, index] = time.process_time() - start
    return 1e3 * np.median(times, axis=0)


def use_one_core():
    """Runs everything on one core, with the memory that is freed kept; on Linux, where either can be asked for."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    example = make_record(options)
    matrix = jr.normal(jr.key(0), (1024, 1024))
    product, _ = compiled(lambda a: a @ a, (matrix,))
    make = partial(
        si.nn.LiftingDenoiser,
        (options.size, options.size, 4),
        resolution=options.resolution,
        support="ball",
        width=options.width,
        depth=options.depth,
        latent_size=0,
        key=jr.key(3),
    )
    lifting = make()
    networks = {"lifting": lifting, "pixelNeRF": PixelNeRFDenoiser(options, key=jr.key(4))}
    networks = {name: networks[name] for name in options.networks}
    figures = {}
    for name, network in networks.items():
        size = sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
        print(f"{name}: {size / 1e6:.2f} M parameters")
    print(f"\n{'step':<44}{'samples':>8}{'ms':>9}{'products':>10}{'product, ms':>13}{'krays/s':>9}{'MiB':>8}")
    for samples in options.samples:
        forward = si.forward.VolumeRenderer(samples, background=None)
        cases = {}
        for name, network in networks.items():
            cases[f"{name}: training, squared error"] = training_step(forward, network, PartsError(), example), 512
            cases[f"{name}: denoising"] = denoising_step(forward, network, example), options.size**2
        if "lifting" in networks:
            score = si.ProperScore(inverse_graphics.RULE, num_draws=2, score_target=False)
            cases["lifting: training, the example's"] = (
                training_step(forward, make(num_components=4), score, example),
                2048,
            )
        for name, ((step, arguments), rays) in cases.items():
            call, memory = compiled(step, arguments, "training" in name)
            milliseconds, unit = map(float, in_turns([call, product], options.repeats))
            figures[f"{name}, {samples} samples"] = {"ms": milliseconds, "products": milliseconds / unit}
            print(
                f"{name:<44}{samples:>8}{milliseconds:>9.1f}{milliseconds / unit:>10.2f}{unit:>13.1f}"
                f"{rays / milliseconds:>9.1f}{memory:>8.1f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    use_one_core()
    main()
