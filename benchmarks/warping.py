r"""What warping costs. Prints two tables.

The first compares `stochinv.forward.Warp` with `jax.scipy.ndimage.map_coordinates` of order 1, mapped over channels: a
batch of frames, each warped by several displacement fields, forwards and with the gradient in the fields. The two take
turns, each first as often as the other; times are medians, of all processor cores together and on the clock.

The second compares a training step of motion from one frame with the same network's *bare* step, which does the same
work written out: network, warp, energy score and optimiser. The last columns are the network alone, its displacements
compared with zero, no warp and no energy score, and a second copy of the bare step over the first, which tells how far
off a ratio is by chance. What `fit` adds around a step is in `training.py`.

    python benchmarks/warping.py [--quick] [--json PATH]
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.ndimage
import numpy as np
import optax
import tyro

import stochinv as si


@dataclass(frozen=True)
class Options:
    """Time of warping over that of other ways."""

    rounds: int = 10
    """How often each takes its turn."""
    batch: int = 32
    """Frames."""
    draws: int = 4
    """Displacement fields per frame."""
    sizes: tuple[int, ...] = (32, 128)
    """Heights and widths of frames, in pixels."""
    width: int = 32
    """Features of the network."""
    quick: bool = False
    """Everything at a small size."""
    json: Path | None = None
    """Also write the figures to this file."""


def turns(functions, rounds):
    """Seconds on the clock and of all cores together, shape `(functions, 2)`: medians over turns."""
    now = lambda: np.asarray([time.perf_counter(), time.process_time()])
    for function in functions:
        jax.block_until_ready(function())
    times = []
    for turn in range(rounds):
        taken = {}
        for index in np.roll(range(len(functions)), turn):
            start = now()
            jax.block_until_ready(functions[index]())
            taken[index] = now() - start
        times.append([taken[index] for index in range(len(functions))])
    return np.median(times, 0)


def map_coordinates(flow, source):
    """The same warp by `jax.scipy.ndimage`."""
    height, width, _ = source.shape
    places = [jnp.arange(height)[:, None] + flow[..., 0], jnp.arange(width) + flow[..., 1]]
    warp = lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, 1, mode="nearest")
    return jax.vmap(warp, -1, -1)(source)


def warp_loss(warp, gradient):
    """The mean square of all warps, and its gradient in the fields if asked for, compiled."""
    loss = lambda flow, source: jnp.mean(jax.vmap(jax.vmap(warp, (0, None)))(flow, source) ** 2)
    return jax.jit(jax.value_and_grad(loss) if gradient else loss)


def compare_warps(options):
    """The rows of the first table."""
    warps = (si.forward.Warp(), map_coordinates)
    for size in options.sizes:
        source = jr.uniform(jr.key(0), (options.batch, size, size, 3))
        flow = 2 * jr.normal(jr.key(1), (options.batch, options.draws, size, size, 2))
        for what in ("forward", "gradient"):
            functions = [warp_loss(warp, what == "gradient") for warp in warps]
            calls = [partial(function, flow, source) for function in functions]
            values = [call() for call in calls]
            np.testing.assert_allclose(*(jax.tree.leaves(value)[0] for value in values), rtol=1e-4)
            clock, cores = turns(calls, options.rounds).T
            yield {
                "size": size,
                "what": what,
                "milliseconds": float(1e3 * clock[0]),
                "milliseconds_map_coordinates": float(1e3 * clock[1]),
                "ratio": float(clock[0] / clock[1]),
                "processor_ratio": float(cores[0] / cores[1]),
            }


def compare_steps(options):
    """The row of the second table."""
    size, margin = options.sizes[0], 4
    forward = si.forward.Warp(scale=4, margin=margin)
    whole = size + 2 * margin
    source = jr.uniform(jr.key(0), (options.batch, whole, whole, 3))
    after = source[:, margin:-margin, margin:-margin]
    network = si.nn.FlowDenoiser(3, scale=4, margin=margin, width=options.width, depth=1, key=jr.key(1))
    objective = si.ProperScore(num_draws=options.draws, sample_time=si.pure_noise)
    problem = si.StochasticInverseProblem(forward, network, objective=objective)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    numbers, rest = eqx.partition(eqx.tree_at(lambda p: p.denoiser, problem, None), eqx.is_array)
    optimizer = optax.adam(1e-3)

    def ours(params, numbers, source, after, key):
        problem = replace(eqx.combine(numbers, rest), denoiser=eqx.combine(params, static))
        return problem.loss(si.Example(None, si.View(after, source)), key=key)[0]

    def displacements(params, source, after, key):
        noise_key, draw_key = jr.split(key)
        denoiser, level = eqx.combine(params, static), problem.schedule.level(1.0)
        noisy = level.alpha * after + level.sigma * jr.normal(noise_key, after.shape)
        draw = lambda key: denoiser(noisy, level, None, source, key=key)
        return jax.vmap(draw)(jr.split(draw_key, options.draws))

    def bare(params, numbers, source, after, key):
        warped = jax.vmap(lambda u: forward(u, source).ravel())(displacements(params, source, after, key))
        norm = lambda x: jnp.sqrt(jnp.mean(x**2, -1) + 1e-12)
        first, second = jnp.triu_indices(options.draws, 1)
        return jnp.mean(norm(warped - after.ravel())) - jnp.mean(norm(warped[first] - warped[second])) / 2

    def network_alone(params, numbers, source, after, key):
        return jnp.mean(displacements(params, source, after, key) ** 2)

    def step(loss):
        def update(params, state, numbers, key):
            batch_loss = lambda params: jnp.mean(
                jax.vmap(loss, (None, None, 0, 0, 0))(params, numbers, source, after, jr.split(key, options.batch))
            )
            value, gradient = jax.value_and_grad(batch_loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        update = jax.jit(update)
        return lambda: update(params, optimizer.init(params), numbers, jr.key(2))

    clock, cores = turns([step(ours), step(bare), step(bare), step(network_alone)], options.rounds).T
    return {
        "milliseconds": float(1e3 * clock[0]),
        "milliseconds_bare": float(1e3 * clock[1]),
        "milliseconds_network": float(1e3 * clock[3]),
        "ratio": float(clock[0] / clock[1]),
        "processor_ratio": float(cores[0] / cores[1]),
        "ratio_bare": float(clock[2] / clock[1]),
        "processor_ratio_bare": float(cores[2] / cores[1]),
    }


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(options, rounds=2, batch=4, draws=2, sizes=(16,), width=8)
    print(f"stochinv {si.__version__}, jax {jax.__version__}, {jax.default_backend()}")
    warps = []
    print("\nWarp and map_coordinates, milliseconds")
    print(f"{'frames':<12}{'':<12}{'Warp':>10}{'map_coordinates':>18}{'ratio':>10}{'processor':>12}")
    for row in compare_warps(options):
        warps.append(row)
        print(
            f"{options.batch}×{row['size']:<9}{row['what']:<12}{row['milliseconds']:>10.1f}"
            f"{row['milliseconds_map_coordinates']:>18.1f}{row['ratio']:>10.3f}{row['processor_ratio']:>12.3f}",
            flush=True,
        )
    steps = compare_steps(options)
    print("\nTraining step, milliseconds")
    print(f"{'':<24}{'stochinv':>10}{'bare':>18}{'ratio':>10}{'processor':>12}{'network alone':>16}{'bare/bare':>12}")
    print(
        f"{'':<24}{steps['milliseconds']:>10.1f}{steps['milliseconds_bare']:>18.1f}{steps['ratio']:>10.3f}"
        f"{steps['processor_ratio']:>12.3f}{steps['milliseconds_network']:>16.1f}{steps['ratio_bare']:>12.3f}"
    )
    figures = {"warps": warps, "steps": steps}
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main()
