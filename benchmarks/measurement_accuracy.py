"""Training and comparisons in measurement space, for `posterior_accuracy.py`.

The distance of samples to the reference with each objective, at several numbers of sampler steps, and the distance of
two sets of reference samples to each other (the floor). Simulators and references are NumPy and SciPy; nothing of the
library makes a measurement.
"""

import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import optax
from posterior_problems import PROBLEMS, transport

import stochinv as si


def stream(data, batch, seed):
    """Batches without end, of fresh signals."""
    rng = np.random.default_rng(seed)
    while True:
        yield data(rng, batch)


class KeepBest:
    """Remembers the problem with the lowest validation loss.

    It does not stop training: the loss falls most while the learning rate does, at the end.
    """

    def __init__(self):
        self.problem, self.seen, self.best = None, 0, np.inf

    def __call__(self, progress):
        losses = progress.history.validation_loss
        if len(losses) == self.seen:
            return False
        self.seen = len(losses)
        if losses[-1] < self.best:
            self.best, self.problem = losses[-1], progress.current_problem()
        return False


def train(case, options):
    steps = max(int(case.training_steps * options.training), 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, case.learning_rate, max(steps // 50, 1), steps, 1e-5)
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=case.weight_decay)
    settings: dict[str, Any] = {"key": jr.key(options.seed), "steps": steps, "optimizer": optimizer}
    start = time.perf_counter()
    batch_size = 16 if options.quick else case.batch_size
    if callable(case.data):
        data = stream(case.data, batch_size, options.seed)
        problem = case.problem.fit(data, roles=case.roles, **settings).problem
    elif case.validation is None:
        problem = case.problem.fit(case.data, roles=case.roles, batch_size=batch_size, **settings).problem
    else:
        keep = KeepBest()
        every = max(steps // 40, 1)
        problem = case.problem.fit(
            case.data,
            batch_size=batch_size,
            validation=case.validation,
            validation_every=every,
            log_every=every,
            callbacks=[keep],
            **settings,
        ).problem
        problem = problem if keep.problem is None else keep.problem
    return problem, time.perf_counter() - start


def draw(case, problem, index, steps, samples):
    """Samples as rows; those outside the prior's bounds are drawn again."""
    context, params = case.contexts[index]
    sampler = case.sampler(steps) if isinstance(problem.objective, si.SquaredError) else si.Ancestral(steps)
    rows = np.zeros((0, 1))
    for attempt in range(20):
        key = jr.fold_in(jr.key(100 + index), attempt)
        sample = problem.sample(context, params, key=key, sampler=sampler, num_samples=samples, chunk_size=samples)
        new = case.rows(sample.signal)
        new = new[np.all(np.abs(new) <= case.bound, -1)]
        rows = new if attempt == 0 else np.concatenate([rows, new])
        if len(rows) >= samples:
            break
    return rows[:samples]


def distance(case, a, b, index):
    n = min(len(a), len(b))
    if case.distance == "C2ST":
        return si.diagnostics.c2st(b[:n], a[:n])
    if case.distance == "W2²":
        return transport(a, b)
    return float(si.diagnostics.sliced_wasserstein(a[:n], b[:n], key=jr.key(index), num_projections=200))


def compare(case, problem, steps, options):
    """Means over the contexts of the distance and of the other figures; the floor where there is no problem."""
    n = options.samples
    if problem is None:
        return score(case, lambda index, rng: case.reference(index, rng, n), n)
    return score(case, lambda index, rng: draw(case, problem, index, steps, n), n)


def score(case, rows_of, n):
    collected = []
    for index in range(len(case.contexts)):
        rng = np.random.default_rng(1000 + index)
        reference = case.reference(index, rng, n)
        rows = rows_of(index, rng)
        figures = case.figures(rows, reference)
        collected.append({"distance": distance(case, rows, reference, index)} | figures)
    return {name: float(np.mean([x[name] for x in collected])) for name in collected[0]}


def estimate_scores(case, options):
    """Figures and times of neural posterior score estimation by `sbi`, in an interpreter of its own."""
    records = jax.tree.map(lambda *x: np.concatenate(x), case.data, case.validation)
    with tempfile.TemporaryDirectory() as folder:
        source, destination = Path(folder) / "simulations.npz", Path(folder) / "samples.npz"
        np.savez(
            source,
            theta=records.target.observation,
            x=records.context,
            observed=np.stack([context for context, _ in case.contexts]),
            bound=case.bound,
            samples=options.samples,
        )
        script = Path(__file__).with_name("npse.py")
        subprocess.run([options.npse, script, source, destination], check=True, stdout=subprocess.DEVNULL)
        with np.load(destination) as found:
            samples, training, sampling = found["samples"], float(found["training"]), float(found["sampling"])
    figures = score(case, lambda index, rng: samples[index], options.samples)
    return figures | {"seconds": training, "sampling_seconds": sampling}


def make_objective(name):
    return si.ProperScore() if name == "energy score" else si.SquaredError()


def run(name, options):
    figures: dict[str, Any] = {"problem": name}
    for objective in options.objectives:
        case = PROBLEMS[name](options, make_objective(objective))
        if options.quick:
            case = replace(case, contexts=case.contexts[:2])
        if "floor" not in figures:
            figures |= {"metric": case.distance, "floor": compare(case, None, 0, options)}
        problem, seconds = train(case, options)
        figures[objective] = {"seconds": seconds} | {
            str(steps): compare(case, problem, steps, options) for steps in options.steps
        }
    if options.npse is not None and case.validation is not None:
        figures["npse"] = estimate_scores(case, options)
    return figures


def print_table(results, options):
    header = ["problem", "metric", "objective", *(f"{x} steps" for x in options.steps), "floor", "training"]
    rows = [header]
    for result in results:
        for objective in options.objectives:
            of = result[objective]
            cells = [f"{of[str(x)]['distance']:.4f}" for x in options.steps]
            rows.append(
                [
                    result["problem"],
                    result["metric"],
                    objective,
                    *cells,
                    f"{result['floor']['distance']:.4f}",
                    f"{of['seconds']:.0f} s",
                ]
            )
        if "npse" in result:
            cells = [*[""] * (len(options.steps) - 1), f"{result['npse']['distance']:.4f}"]
            row = [result["problem"], result["metric"], "NPSE (sbi)", *cells, f"{result['floor']['distance']:.4f}"]
            rows.append([*row, f"{result['npse']['seconds']:.0f} s"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(x.ljust(w) if i < 3 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))))
