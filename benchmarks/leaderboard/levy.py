"""Posteriors of Lévy processes, learned from measurements alone, beside exact ones.

    python benchmarks/leaderboard/levy.py [--cells identity/laplace fourier/gauss] [--quick] [--json PATH]

The benchmark of Zach, Haouchat and Unser (ICLR 2026, arXiv:2509.12821): 64 cumulative sums of independent jumps, four
laws of jumps, four operators, noise at 25 dB. For each cell a posterior is trained from 12,000 measurements, one of
each signal, all by the one operator, and no signal is shown to it. Exact posteriors are of Gibbs sampling. Columns:

- gap dB: by how much the squared error of the mean of 200 draws is above that of the exact posterior mean, averaged
  over 200 tests; and its standard error.
- coverage: for how many tests the true signal is in the region of highest posterior density of level 0.9. The region
  ends at the exact log-density that nine tenths of the draws reach, all of the same weight.

  Where jumps can be none, their law has a point mass, and no draw of a continuous sampler has jumps of exactly 0: its
  draws have no density beside those that do, and the region holds everything ("coverage, no blur"). There jumps are
  compared as seen with the noise of measurements: to those of truth and draws alike normal noise is added, and the
  density is that of such jumps. The region of exact draws has nine true signals in ten in either case.

What is drawn are the jumps, of which a signal is the running sum: they are all alike, as is the Gaussian from which
training starts, and the values of a signal are not.

What one fixed operator never sees of any signal, no method can learn from its measurements alone. Where the operator
has such a null space, or nearly, one thing more is told: that jumps are exchangeable, which all Lévy processes have.
The forward model tells it. The measurement of a signal is taken for one of another, whose jumps are the same in a known
order, drawn at random: since both signals have the same law, it is as good a measurement of that one, and what is
never seen of one order is seen of others. Tests are not reordered. `--untold` leaves that out.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from levy_figures import best_of, coverage, gaps, quadratic, total_variation
from levy_problem import LAWS, OPERATORS, Problem, make_problem
from levy_references import posterior_draws
from rows import Row, load, print_rows, save

import stochinv as si

CELLS = tuple(
    f"{operator}/{law}" for operator in OPERATORS for law in ("gauss", "laplace", "bernoulli_laplace", "student")
)
OURS = "stochinv"
BARS = {"gap dB": 0.25, "coverage's error": 0.03}


@dataclass(frozen=True)
class Options:
    """Posteriors of Lévy processes beside exact ones."""

    cells: tuple[str, ...] = CELLS
    """Which cells, `operator/law`; also with the laws student_2 and student_3."""
    seed: int = 0
    """Seed of training."""
    steps: int | None = None
    """Optimiser steps; by default those of `fit`."""
    rounds: int | None = None
    """Rounds of training; by default those of `fit`."""
    tests: int = 200
    """How many signals are tests."""
    draws: int = 200
    """How many draws are made given each test: the mean of `n` has an error of its own, of 10 log10(1 + 1/n) dB."""
    untold: bool = False
    """Not to tell that jumps are exchangeable."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the rows to this file, after each cell; other cells in it are kept."""


@dataclass(frozen=True)
class Sizes:
    """Entries of a signal; how many records train, tune weights and test; draws given each test; and of Gibbs sampling,
    after so many rounds."""

    signal: int
    numbers: dict[str, int]
    draws: int
    exact: int
    burn: int


TINY = Sizes(16, {"training": 256, "validation": 4, "test": 4}, draws=20, exact=20, burn=20)


def full(options: Options) -> Sizes:
    numbers = {"training": 12_000, "validation": 200, "test": options.tests}
    return Sizes(64, numbers, options.draws, exact=1200, burn=200)


def forward_of(operator: np.ndarray, told: bool):
    """What measures jumps, of which a signal is the running sum; where it is told that they are exchangeable, after
    these took an order."""
    matrix, size = jnp.asarray(operator, jnp.float32), operator.shape[1]
    if not told:
        return lambda jumps, params: matrix @ jnp.cumsum(jumps[:, 0])

    def forward(jumps, order):
        places = jnp.round(size * order).astype(int)
        return matrix @ jnp.cumsum(jumps[places, 0])

    return forward


def records(measured: np.ndarray, size: int, told: bool, reordered: bool) -> si.View:
    """One measurement each, of jumps in random orders, as shares of all places, or in their own."""
    observation = np.asarray(measured[:, None], np.float32)
    if not told:
        return si.View(observation)
    places = np.tile(np.arange(size), (len(measured), 1, 1))
    if reordered:
        places = np.random.default_rng(1).permuted(places, axis=-1)
    return si.View(observation, np.asarray(places / size, np.float32))


def draw(problem: Problem, options: Options, sizes: Sizes) -> tuple[np.ndarray, float, str]:
    """Draws `(tests, number, size)` of posteriors learned from measurements, the CPU seconds, and what was given."""
    size = problem.operator.shape[1]
    least = np.linalg.svd(problem.operator, compute_uv=False)[-1]
    told = not options.untold and (len(problem.operator) < size or least < problem.noise)
    untrained = si.StochasticInverseProblem(forward_of(problem.operator, told), noise=problem.noise, signal=(size, 1))
    settings: dict[str, Any] = {"steps": options.steps, "rounds": options.rounds}
    if options.quick:
        settings = {"steps": 4, "rounds": 2, "batch_size": 32}
    cpu = time.process_time()
    data = records(problem.measured["training"], size, told, reordered=True)
    trained = untrained.fit(data, key=jr.key(options.seed), **settings).problem
    seconds = time.process_time() - cpu
    tests = records(problem.measured["test"], size, told, reordered=False)
    jumps = trained.sample_many(tests, key=jr.key(options.seed + 1), num_samples=sizes.draws).signal[..., 0]
    given = "measurements, exchangeable jumps" if told else "measurements"
    return np.cumsum(np.asarray(jumps, np.float64), -1), seconds, given


def run(cell: str, options: Options) -> list[Row]:
    """The rows of one cell."""
    operator, law = cell.split("/")
    sizes = TINY if options.quick else full(options)
    problem = make_problem(LAWS[law], OPERATORS[operator](sizes.signal), sizes.numbers)
    signals, measured = problem.signals["test"], problem.measured["test"]
    rng, cpu = np.random.default_rng(2), time.process_time()
    exact = posterior_draws(
        rng, problem.law, problem.operator, measured, problem.noise, sizes.exact, sizes.burn, thin=1
    )
    gibbs_seconds = time.process_time() - cpu
    best = exact.mean(1)

    def row(method, given, estimate, draws=None, seconds=None):
        gap = gaps(estimate, best, signals)
        figures = {"gap dB": gap.mean(), "standard error": gap.std() / len(gap) ** 0.5}
        if draws is not None:
            figures |= coverage(problem, measured, draws, signals)
        bars = BARS if method == OURS else None
        figures = {name: float(value) for name, value in figures.items()}
        return Row(f"Lévy {cell}", method, given, figures, "run here", bars, seconds)

    rows = [row("Gibbs sampling", "the prior", best, exact, gibbs_seconds)]
    drawn, seconds, given = draw(problem, options, sizes)
    rows.append(row(OURS, given, drawn.mean(1), drawn, seconds))
    tuned = "operator, weight tuned on signals"
    rows.append(row("L2", tuned, best_of(quadratic(problem.operator), problem, np.logspace(-5, 5, 300))))
    rows.append(row("L1", tuned, best_of(total_variation(problem.operator), problem, np.logspace(-3, 3, 25))))
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = tyro.cli(Options, args=argv)
    print(f"stochinv {si.__version__}, jax {jax.__version__}, {jax.default_backend()}")
    for cell in options.cells:
        operator, _, law = cell.partition("/")
        if operator not in OPERATORS or law not in LAWS:
            raise ValueError(f"--cells has {cell}; write OPERATOR/LAW of {', '.join(OPERATORS)} and {', '.join(LAWS)}.")
    path, rows = options.json, []
    if path is not None and path.exists():
        rows = load(path)
    for cell in options.cells:
        new = run(cell, options)
        print_rows(new)
        rows = [x for x in rows if x.problem != new[0].problem] + new
        if path is not None:
            save(rows, path)
        # A process has room for so many compiled programs only.
        jax.clear_caches()
    print()
    print_rows(rows)
    return rows


if __name__ == "__main__":
    main()
