r"""How accurate, how fast and how large the samplers are. Prints one table for each of the three questions.

**Accuracy**, in double precision. A signal of 16 entries with an anisotropic Gaussian law is measured by a context of 4
entries and a target of 8, all linear, with the exact denoiser. The law of the target measurement given the context is
known, and compared with that of a sampler's answers at a given number of network evaluations: relative error of mean
and covariance in Frobenius norm, the worst over a few random problems. It contains no Monte-Carlo error, since
every sampler is an affine map of its Gaussian inputs: a first run notes each key that `jax.random.normal` is
called with; then `jax.random.normal` is replaced by the look-up of a key's row in an array of inputs, and the
derivative with respect to that array is the exact linear map.

**Speed**, in single precision, for a batch of 64: time of a jitted sampler over that of a jitted `lax.scan` with
the same number of calls of `problem.denoise` (encoder, network and forward model) and one addition after each.
Both run in turn, many times; the table has the median of the ratios, and the A/A column the ratio of two runs of the
scan, with half the distance between its 10 % and 90 % quantiles. The same follows for processor time (of all
cores together, medians over the runs), which other programs on the machine disturb less.

**Memory**: what XLA reserves for intermediate results of a jitted sampler with 10 and with 1000 steps.

    python benchmarks/samplers.py [--quick] [--json PATH]
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import stochinv as si

SIGNAL, TARGET, CONTEXT = 16, 8, 4
SCHEDULES = {
    "cosine": si.CosineSchedule(),
    "vp": si.VariancePreserving(),
    "ve": si.VarianceExploding(),
    "flow": si.RectifiedFlow(),
}


@dataclass(frozen=True)
class Options:
    """Accuracy, speed and memory of the samplers."""

    evaluations: tuple[int, ...] = (5, 10, 16, 20, 24, 50, 100)
    """Numbers of network evaluations for the accuracy."""
    schedules: tuple[str, ...] = ("cosine",)
    """Noise schedules for the accuracy: cosine, vp, ve, flow."""
    problems: int = 5
    """Random problems, of which the worst counts."""
    timed_evaluations: int = 21
    """Network evaluations in the speed comparison; odd, so that all samplers make the same number."""
    batch: int = 64
    """Samples drawn at once in the speed comparison."""
    image: int = 16
    """Height and width of the U-Net's images."""
    width: int = 32
    """Channels of the U-Net's first level."""
    mlp_width: int = 64
    """Width of the MLP."""
    rounds: int = 15
    """Alternations in the speed comparison with the U-Net; the MLP has ten times as many."""
    memory_steps: tuple[int, int] = (10, 1000)
    """Numbers of steps in the memory comparison."""
    samplers: tuple[str, ...] = ("",)
    """Which samplers: those whose name contains one of these."""
    skip: tuple[str, ...] = ()
    """Parts to leave out: accuracy, mlp, unet, memory."""
    quick: bool = False
    """A small version of everything, in about a minute."""
    json: Path | None = None
    """Also write the figures to this file."""


def make_samplers(evaluations):
    """Every fixed-step sampler, with at most this many network evaluations, and how many it makes."""
    two_stage = (evaluations - 1) // 2 + 1
    both = 2 * (two_stage - 1) + 1
    return {
        "ExponentialAdams": (si.ExponentialAdams(num_steps=evaluations), evaluations),
        "ProbabilityFlow(Heun), log-SNR grid": (si.ProbabilityFlow(num_steps=two_stage), both),
        "ProbabilityFlow(Heun), Karras grid": (si.ProbabilityFlow(num_steps=two_stage, grid=si.Karras()), both),
        "ProbabilityFlow(Heun), time grid": (si.ProbabilityFlow(num_steps=two_stage, grid=si.UniformTime()), both),
        "ReverseSDE(ShARK)": (si.ReverseSDE(num_steps=two_stage), both),
        "ReverseSDE(Euler)": (si.ReverseSDE(num_steps=evaluations, solver=dfx.Euler()), evaluations),
        "Ancestral(eta=0)": (si.Ancestral(num_steps=evaluations, eta=0.0), evaluations),
        "Ancestral(eta=1)": (si.Ancestral(num_steps=evaluations), evaluations),
    }


def chosen(options):
    return [name for name in make_samplers(5) if any(part in name for part in options.samplers)]


def print_table(title, header, rows):
    print(f"\n{title}")
    rows = [[str(x) for x in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [x.ljust(w) if i < 1 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells), flush=True)


# Accuracy


def linear_gaussian(seed, schedule):
    """A problem with the exact denoiser, its inputs, and the law of the target given the context."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(SIGNAL, SIGNAL)))
    rows, _ = np.linalg.qr(rng.normal(size=(SIGNAL, SIGNAL)))
    target, given = rows[:TARGET], rows[TARGET : TARGET + CONTEXT]
    covariance = basis * np.geomspace(1.0, 0.02, SIGNAL) ** 2 @ basis.T
    # Units in which the target measurement has variance 1, as after standardisation.
    covariance = covariance / np.mean(np.diag(target @ covariance @ target.T))
    mean = 0.5 * rng.normal(size=SIGNAL)
    observed = given @ (mean + np.linalg.cholesky(covariance) @ rng.normal(size=SIGNAL))
    gain = np.linalg.solve(given @ covariance @ given.T, given @ covariance).T
    law_mean = target @ (mean + gain @ (observed - given @ mean))
    law_covariance = target @ (covariance - gain @ given @ covariance) @ target.T
    forward = si.forward.Linear()
    problem = si.StochasticInverseProblem(
        forward,
        si.GaussianDenoiser(forward, jnp.asarray(mean), jnp.asarray(covariance)),
        schedule=schedule,
        objective=si.SquaredError(),  # the samplers of means are compared
        signal=jax.ShapeDtypeStruct((SIGNAL,), jnp.result_type(float)),
    )
    context = si.View(jnp.asarray(observed.reshape(1, CONTEXT)), jnp.asarray(given[None]))
    return (problem, context, jnp.asarray(target)), law_mean, law_covariance


@contextlib.contextmanager
def replaced_normal(replacement):
    """`jax.random.normal` is another function in this block; nothing compiled with either one survives."""
    original = jr.normal
    jax.clear_caches()
    jr.normal = replacement
    try:
        yield
    finally:
        jr.normal = original
        jax.clear_caches()


def noted_keys(sampler, inputs, key):
    """All keys with which a sampler calls `jax.random.normal`, and the size of what it draws with each."""
    seen, original = {}, jr.normal

    def noting(key, shape=(), dtype=float):
        size = int(np.prod(shape))
        jax.debug.callback(lambda data: seen.__setitem__(tuple(np.asarray(data).tolist()), size), key)
        return original(key, shape, dtype)

    with replaced_normal(noting):
        jax.block_until_ready(eqx.filter_jit(lambda *x: sampler(*x, key=key).observation)(*inputs))
        jax.effects_barrier()
    return np.asarray(list(seen), np.uint32), max(seen.values())


def affine_map(sampler, example_inputs, key):
    """A function from a problem to the exact mean and covariance of a sampler's measurements."""
    keys, size = noted_keys(sampler, example_inputs, key)

    def looked_up(inputs):
        def normal(key, shape=(), dtype=float):
            row = jnp.argmax(jnp.all(keys == key, axis=-1))
            return inputs[row, : int(np.prod(shape))].reshape(shape).astype(dtype)

        return normal

    def moments(problem, context, params):
        def answer(inputs):
            jr.normal = looked_up(inputs)
            observation = sampler(problem, context, params, key=key).observation
            return observation, observation

        # `ProbabilityFlow` has a reverse mode alone, and few inputs; the others have many.
        jacobian = jax.jacrev if isinstance(sampler, si.ProbabilityFlow) else jax.jacfwd
        matrix, mean = jacobian(answer, has_aux=True)(jnp.zeros((len(keys), size)))
        matrix = matrix.reshape(TARGET, -1)
        return mean, matrix @ matrix.T

    return moments


def accuracy(options):
    rows, figures = [], []
    relative = lambda x, y: float(np.linalg.norm(np.asarray(x) - y) / np.linalg.norm(y))
    for schedule_name in options.schedules:
        cases = [linear_gaussian(seed, SCHEDULES[schedule_name]) for seed in range(options.problems)]
        for name in chosen(options):
            row = [f"{name}, {schedule_name}"]
            for evaluations in options.evaluations:
                sampler, _ = make_samplers(evaluations)[name]
                moments = affine_map(sampler, cases[0][0], jr.PRNGKey(0))
                with replaced_normal(jr.normal):
                    compiled = eqx.filter_jit(moments)
                    results = [compiled(*inputs) for inputs, _, _ in cases]
                mean = max(relative(m, e) for (m, _), (_, e, _) in zip(results, cases, strict=True))
                covariance = max(relative(c, e) for (_, c), (_, _, e) in zip(results, cases, strict=True))
                row.append(f"{100 * mean:.2f} / {100 * covariance:.2f}")
                figures.append(
                    {
                        "sampler": name,
                        "schedule": schedule_name,
                        "evaluations": evaluations,
                        "mean": mean,
                        "covariance": covariance,
                    }
                )
            rows.append(row)
    spread = [np.sqrt(np.linalg.eigvalsh(c)[[0, -1]]) for _, _, c in cases]
    print_table(
        f"Accuracy: relative error of mean / covariance in %, the worst of {options.problems} problems with principal "
        f"standard deviations from {min(x[0] for x in spread):.3f} to {max(x[1] for x in spread):.2f}, by number of "
        "evaluations",
        ["sampler, schedule", *options.evaluations],
        rows,
    )
    return figures


# Speed and memory


def mlp_problem(options):
    """A tiny MLP for a vector signal, known through two linear measurements of 4 entries."""
    forward = si.forward.Linear()
    signal = jax.ShapeDtypeStruct((16,), jnp.float32)
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    context, params = si.View(array(1, 4), array(1, 4, 16)), array(8, 16)
    return with_network(forward, signal, context, params, options.mlp_width), context, params


def unet_problem(options):
    """A U-Net for an image, known through square windows of half its height."""
    size = options.image
    forward = si.forward.Window((size, size, 1), (size // 2, size // 2))
    signal = jax.ShapeDtypeStruct((size, size, 1), jnp.float32)
    corner = jnp.asarray([1, 2])
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(1, size // 2, size // 2, 1)), jnp.float32)
    context = si.View(observation, corner[None])
    return with_network(forward, signal, context, corner, options.width), context, corner


def with_network(forward, signal, context, params, width):
    """A problem with the network that `fit` would make, its zero weights replaced so that nothing is trivial."""
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    observation = jax.eval_shape(forward, signal, params)
    info = si.DataInfo(observation, shapes(params), shapes(context), si.Units(jnp.zeros(()), jnp.ones(())), affine=True)
    denoiser = si.nn.default_denoiser(forward, signal, info, width=width, key=jr.PRNGKey(0))
    rng = np.random.default_rng(0)
    fill = lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.02), x.dtype) if not np.any(np.asarray(x)) else x
    denoiser = jax.tree.map(lambda x: fill(x) if eqx.is_inexact_array(x) else x, denoiser)
    return si.StochasticInverseProblem(forward, denoiser, objective=si.SquaredError(), signal=signal, data_info=info)


def bare_scan(problem, context, params, keys, evaluations):
    """The same number of denoiser calls, and one addition after each."""
    levels = jax.vmap(problem.schedule.level)(jnp.linspace(1, 0, evaluations))

    def one(key):
        structure = problem.observation_structure(params)

        def step(noisy, level):
            sample = problem.denoise(noisy, level, context, params)
            return noisy + 0.1 * sample.observation, None

        noisy, _ = jax.lax.scan(step, jr.normal(key, structure.shape, structure.dtype), levels)
        return noisy

    return jax.vmap(one)(keys)


def draw(problem, context, params, keys, sampler):
    return jax.vmap(lambda key: sampler(problem, context, params, key=key))(keys)


def compile_with_arrays(function, problem, context, params, keys, static):
    """An ahead-of-time compiled `function(problem, context, params, keys, static)`, and its array arguments."""
    arrays, rest = eqx.partition((problem, context, params, keys), eqx.is_array)
    call = jax.jit(lambda arrays: function(*eqx.combine(arrays, rest), static))
    return call.lower(arrays).compile(), arrays


def seconds(compiled, arrays):
    """On the clock, and of all processor cores together."""
    start, start_cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(arrays))
    return time.perf_counter() - start, time.process_time() - start_cores


def speed(options, name, case, rounds):
    problem, context, params = case
    keys = jr.split(jr.PRNGKey(1), options.batch)
    parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(problem.denoiser, eqx.is_inexact_array)))
    rows, figures = [], []
    bare = {}
    for sampler_name in chosen(options):
        sampler, evaluations = make_samplers(options.timed_evaluations)[sampler_name]
        if evaluations not in bare:
            bare[evaluations] = compile_with_arrays(bare_scan, *case, keys, evaluations)
        run, plain = compile_with_arrays(draw, *case, keys, sampler), bare[evaluations]
        seconds(*run), seconds(*plain)
        times = np.asarray([[seconds(*plain), seconds(*run), seconds(*plain)] for _ in range(rounds)])
        (first, ours, second), (first_cores, ours_cores, second_cores) = np.moveaxis(times, -1, 0).transpose(0, 2, 1)
        ratio = float(np.median(2 * ours / (first + second)))
        cores = float(2 * np.median(ours_cores) / (np.median(first_cores) + np.median(second_cores)))
        same = second / first
        spread = float(np.diff(np.quantile(same, [0.1, 0.9]))[0] / 2)
        each = float(np.median(ours)) / evaluations
        rows.append(
            [
                sampler_name,
                evaluations,
                f"{1e3 * each:.3f}",
                f"{ratio:.3f}",
                f"{np.median(same):.3f} ± {spread:.3f}",
                f"{cores:.3f}",
                f"{np.median(second_cores) / np.median(first_cores):.3f}",
            ]
        )
        figures.append(
            {
                "network": name,
                "sampler": sampler_name,
                "evaluations": evaluations,
                "ratio": ratio,
                "processor_ratio": cores,
                "a_over_a": float(np.median(same)),
                "a_over_a_spread": spread,
                "milliseconds_per_evaluation": 1e3 * each,
            }
        )
    print_table(
        f"Speed, {name} of {parameters:,} parameters, batch {options.batch}: time over that of a bare scan, "
        f"median of {rounds}",
        ["sampler", "evaluations", "ms each", "ratio", "A/A", "processor", "A/A"],
        rows,
    )
    return figures


def memory(options, case):
    problem, context, params = case
    keys = jr.split(jr.PRNGKey(1), options.batch)
    rows, figures = [], []
    for name in chosen(options):
        if not name.endswith(("Karras grid", "time grid")):
            sizes = []
            for steps in options.memory_steps:
                sampler = eqx.tree_at(lambda s: s.num_steps, make_samplers(5)[name][0], steps)
                compiled, _ = compile_with_arrays(draw, *case, keys, sampler)
                sizes.append(int(compiled.memory_analysis().temp_size_in_bytes))
            rows.append([name, *(f"{x / 2**20:.2f}" for x in sizes), f"{sizes[1] / sizes[0]:.3f}"])
            figures.append({"sampler": name, "steps": list(options.memory_steps), "bytes": sizes})
    print_table(
        f"Memory, U-Net, batch {options.batch}: intermediate results in MiB",
        ["sampler", *(f"{x} steps" for x in options.memory_steps), "ratio"],
        rows,
    )
    return figures


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(
            options,
            evaluations=(24,),
            problems=2,
            timed_evaluations=5,
            batch=8,
            image=8,
            width=8,
            mlp_width=16,
            rounds=2,
            memory_steps=(10, 100),
        )
    print(f"stochinv {si.__version__}, jax {jax.__version__}, diffrax {dfx.__version__}, {jax.default_backend()}")
    figures = {}
    if "accuracy" not in options.skip:
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            figures["accuracy"] = accuracy(options)
        finally:
            jax.config.update("jax_enable_x64", before)
    if "mlp" not in options.skip:
        figures["mlp"] = speed(options, "MLP", mlp_problem(options), 10 * options.rounds)
    unet = None if {"unet", "memory"} <= set(options.skip) else unet_problem(options)
    if "unet" not in options.skip:
        figures["unet"] = speed(options, "U-Net", unet, options.rounds)
    if "memory" not in options.skip:
        figures["memory"] = memory(options, unet)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main()
