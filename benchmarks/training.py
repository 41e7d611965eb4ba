r"""What `fit` costs on top of the training step itself. Prints one table.

A *bare* step does the same work as a step of `fit`, written out below: the same network, batch, loss, gradient
clipping, optimiser and average of the parameters, as one jitted function with donated buffers.

A callback is called every few steps of `fit`. It runs the bare loop for as many steps, twice, before it
returns, so that the three take turns: `fit`, bare, bare. The table has steps per second, the median of the ratios of
`fit`'s time to the mean of its two neighbours', and the ratio of the second bare loop to the first (A/A) with half
the distance between its 10 % and 90 % quantiles; then the same for processor time (of all cores together, medians
over the turns), which other programs on the machine disturb less. Each loop ends by waiting for its last loss;
compilation is left out. Records are indexed on the device from arrays in memory; in the rows named *iterator*, `fit` is
given a Python iterator of NumPy batches, and the bare loop is the same as before.

    python benchmarks/training.py [--quick] [--json PATH]
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
import numpy as np
import optax
import tyro

import stochinv as si

GRADIENT_CLIP, LEARNING_RATE, EMA_GAMMA = 1.0, 1e-3, 6.94


@dataclass(frozen=True)
class Options:
    """Time of a `fit` step over that of a bare one."""

    rounds: int = 20
    """How often `fit` and the bare loop take turns."""
    unet_steps: int = 5
    """Steps per turn with the U-Net."""
    mlp_steps: int = 50
    """Steps per turn with the MLP."""
    unet_batch: int = 16
    """Records per step with the U-Net."""
    mlp_batch: int = 64
    """Records per step with the MLP."""
    image: int = 16
    """Height and width of the U-Net's images."""
    width: int = 32
    """Channels of the U-Net's first level."""
    mlp_width: int = 320
    """Width of the MLP."""
    networks: tuple[str, ...] = ("MLP", "U-Net")
    """Which networks."""
    records: int = 1024
    """Records in memory."""
    quick: bool = False
    """Everything at a small size."""
    json: Path | None = None
    """Also write the figures to this file."""


def mlp_case(options):
    """A vector signal, known through linear measurements of 8 entries."""
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(options.records, 16))
    rows = rng.normal(size=(options.records, 2, 8, 16)) / 4
    measured = np.einsum("nvij,nj->nvi", rows, signals)
    problem = si.StochasticInverseProblem(si.forward.Linear(), signal=(16,))
    return problem, to_example(measured, rows), options.mlp_width, options.mlp_batch, options.mlp_steps


def unet_case(options):
    """An image, known through square windows of half its height."""
    rng = np.random.default_rng(0)
    size, half = options.image, options.image // 2
    images = rng.normal(size=(options.records, size, size, 1))
    corners = rng.integers(0, half + 1, size=(options.records, 2, 2)).astype(np.int32)
    windows = [
        [image[i : i + half, j : j + half] for i, j in pair] for image, pair in zip(images, corners, strict=True)
    ]
    problem = si.StochasticInverseProblem(si.forward.Window((size, size, 1), (half, half)))
    return problem, to_example(np.asarray(windows), corners), options.width, options.unet_batch, options.unet_steps


def to_example(measured, params):
    """The first of two views as the context, the second as the target."""
    cast = lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else x.dtype)
    measured, params = cast(measured), cast(params)
    return si.Example(si.View(measured[:, :1], params[:, :1]), si.View(measured[:, 1], params[:, 1]))


def with_network(problem, data, width):
    """The problem with its default network, and the units of its data."""
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
    example = shapes(data)
    signal = problem.signal
    if signal is None:
        signal = problem.forward.signal_structure(example.target.observation, example.target.params)
    mean, std = jnp.mean(data.target.observation), jnp.std(data.target.observation)
    target, context = example.target, example.context
    info = si.DataInfo(target.observation, target.params, context, si.Units(mean, std), affine=True)
    denoiser = si.nn.default_denoiser(problem.forward, signal, info, width=width, key=jr.PRNGKey(0))
    objective = si.SquaredError()
    return si.StochasticInverseProblem(problem.forward, denoiser, objective=objective, signal=signal, data_info=info)


def now():
    return np.asarray([time.perf_counter(), time.process_time()])


class BareLoop:
    """The training step written out, without anything around it."""

    def __init__(self, problem, data, batch_size):
        forward, schedule = problem.forward, problem.schedule
        mean, std = problem.units.mean, problem.units.std
        # The forward model inside the denoiser is not trained; it has no floating-point arrays here.
        params, static = eqx.partition(problem.denoiser, eqx.is_inexact_array)
        optimizer = optax.chain(optax.clip_by_global_norm(GRADIENT_CLIP), optax.adam(LEARNING_RATE))

        def record_loss(params, record, key):
            denoiser = eqx.combine(params, static)
            time_key, noise_key = jr.split(key)
            observation = (record.target.observation - mean) / std
            context = si.View((record.context.observation - mean) / std, record.context.params)
            level = schedule.level(jr.uniform(time_key))
            noise = jr.normal(noise_key, observation.shape, observation.dtype)
            noisy = level.alpha * observation + level.sigma * noise
            signal = denoiser(noisy, level, context, record.target.params)
            predicted = (forward(signal, record.target.params) - mean) / std
            return jnp.mean((predicted - observation) ** 2)

        def batch_loss(params, batch, key):
            keys = jr.split(key, batch_size)
            return jnp.mean(jax.vmap(partial(record_loss, params))(batch, keys))

        def step(state, records, key, index):
            params, optimizer_state, average, number = state
            batch = jax.tree.map(lambda x: x[index], records)
            loss, gradient = jax.value_and_grad(batch_loss)(params, batch, jr.fold_in(key, number))
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
            params = optax.apply_updates(params, updates)
            number = number + 1
            keep = (1 - 1 / number) ** (EMA_GAMMA + 1)
            average = jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, params)
            return (params, optimizer_state, average, number), loss

        copy = lambda tree: jax.tree.map(jnp.array, tree)
        self.step = jax.jit(step, donate_argnums=0)
        self.state = (copy(params), optimizer.init(params), copy(params), jnp.zeros((), jnp.int32))
        self.records, self.key = data, jr.PRNGKey(0)
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        number = len(jax.tree.leaves(data)[0])
        self.order = np.random.default_rng(0).permutation(number).astype(np.int32)
        self.batch_size, self.position = batch_size, 0

    def run(self, steps):
        """Seconds for a number of steps, on the clock and of all processor cores together."""
        start = now()
        losses = []
        for _ in range(steps):
            if self.position + self.batch_size > len(self.order):
                self.position = 0
            index = self.order[self.position : self.position + self.batch_size]
            self.position += self.batch_size
            self.state, loss = self.step(self.state, self.records, self.key, index)
            losses.append(loss)
        jax.device_get(losses)
        return now() - start


def iterator(data, batch_size):
    """Random batches of NumPy arrays, without end."""
    data = jax.tree.map(np.asarray, data)
    rng = np.random.default_rng(0)
    while True:
        index = rng.integers(0, len(jax.tree.leaves(data)[0]), batch_size)
        yield jax.tree.map(lambda x, index=index: x[index], data)


def compare(name, case, bare, source, rounds):
    """One row of the table."""
    problem, data, batch_size, steps = case
    times, last = [], None

    def take_turns(progress):
        nonlocal last
        ours = None if last is None else now() - last
        times.append([ours, bare.run(steps), bare.run(steps)])
        last = now()

    problem.fit(
        data if source == "arrays" else iterator(data, batch_size),
        key=jr.PRNGKey(0),
        # The first turn compiles.
        steps=steps * (rounds + 1),
        batch_size=batch_size,
        optimizer=optax.adam(LEARNING_RATE),
        gradient_clip=GRADIENT_CLIP,
        ema=si.PowerEMA(EMA_GAMMA),
        log_every=steps,
        callbacks=[take_turns],
        progress=False,
    )
    # The neighbours of a turn of `fit`: the bare loop before it, and the one after it.
    times = [[times[i - 1][2], times[i][0], times[i][1], times[i][2]] for i in range(1, len(times))]
    (before, ours, after, again), cores = np.asarray(times).transpose(2, 1, 0)
    cores = np.median(cores, axis=-1)
    same = again / after
    return {
        "network": name,
        "parameters": bare.parameters,
        "batch": batch_size,
        "data": source,
        "steps_per_second": float(steps / np.median(ours)),
        "bare_steps_per_second": float(steps / np.median(np.concatenate([before, after]))),
        "ratio": float(np.median(2 * ours / (before + after))),
        "processor_ratio": float(2 * cores[1] / (cores[0] + cores[2])),
        "processor_a_over_a": float(cores[3] / cores[2]),
        "a_over_a": float(np.median(same)),
        "a_over_a_spread": float(np.diff(np.quantile(same, [0.1, 0.9]))[0] / 2),
    }


def compare_all(options):
    """The rows of the table."""
    for name, make_case in {"MLP": mlp_case, "U-Net": unet_case}.items():
        if name in options.networks:
            problem, data, width, batch_size, steps = make_case(options)
            problem = with_network(problem, data, width)
            bare = BareLoop(problem, data, batch_size)
            bare.run(steps)
            for source in ("arrays", "iterator"):
                yield compare(name, (problem, data, batch_size, steps), bare, source, options.rounds)


def print_table(title, header, rows):
    print(f"\n{title}")
    rows = [[str(x) for x in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells), flush=True)


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(
            options,
            rounds=2,
            unet_steps=2,
            mlp_steps=2,
            unet_batch=4,
            mlp_batch=8,
            image=8,
            width=8,
            mlp_width=16,
            records=64,
        )
    print(f"stochinv {si.__version__}, jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}")
    steps = list(compare_all(options))
    print_table(
        f"Training: time of a `fit` step over that of a bare jitted step, median of {options.rounds} turns",
        ["network", "data", "parameters", "batch", "fit steps/s", "bare steps/s", "ratio", "A/A", "processor", "A/A"],
        [
            [
                x["network"],
                x["data"],
                f"{x['parameters']:,}",
                x["batch"],
                f"{x['steps_per_second']:.1f}",
                f"{x['bare_steps_per_second']:.1f}",
                f"{x['ratio']:.3f}",
                f"{x['a_over_a']:.3f} ± {x['a_over_a_spread']:.3f}",
                f"{x['processor_ratio']:.3f}",
                f"{x['processor_a_over_a']:.3f}",
            ]
            for x in steps
        ],
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"steps": steps}, indent=2))
    return {"steps": steps}


if __name__ == "__main__":
    main()
