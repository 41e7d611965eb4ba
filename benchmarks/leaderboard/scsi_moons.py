"""Two moons under Gaussian noise, recovered from one noisy measurement of each point.

    python benchmarks/leaderboard/scsi_moons.py [--code FOLDER] [--quick] [--json PATH]

The problem is that of the two-dimensional experiment of self-consistent stochastic interpolants (SCSI,
github.com/clarkmiyamoto/scsi): points of two half circles with a spread of 0.05, seen under noise of 0.1. What is
judged is the law of clean points that each method has found, by distances from 20,000 points of the true one: sliced
W1, in thousandths, and W2, the measure of that experiment, of 2,048 points. The bar is half of SCSI's sliced W1.

Ours is given 20,000 measurements and draws from `posterior(None)`. SCSI is its authors' code, run here from a clone of
theirs for as long of processor time as ours took, and with PyTorch installed. It is given new measurements at each
step, and draws a clean point for each of 20,000 further ones. Two rows tell how to read the distances: the measurements
themselves, and other points of the true law.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from leaderboard.rows import Row, print_rows, save
from leaderboard.scsi_notebook import recover
from signal_case import Sizes, draws_of, records
from signal_laws import transport

import stochinv as si

PROBLEM, NOISE, SPREAD = "two moons, noise 0.1", 0.1, 0.05


@dataclass(frozen=True)
class Options:
    """Two moons from noisy measurements alone."""

    code: Path | None = None
    """A clone of SCSI's repository, to run it beside ours."""
    seed: int = 0
    """Seed of the measurements and of training."""
    seconds: float | None = None
    """How long ours may be trained, by the clock; by default as long as it takes."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the rows to this file."""


def moons(rng: np.random.Generator, number: int) -> np.ndarray:
    """Points of two half circles, one of them upside down and shifted, half of the points each in random order."""
    angle, second = rng.uniform(0, np.pi, number), rng.permutation(number) >= number // 2
    arc = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.where(second[:, None], [1, 0.5] - arc, arc) + SPREAD * rng.normal(size=(number, 2))


def measure(rng: np.random.Generator, signals: np.ndarray) -> np.ndarray:
    return signals + NOISE * rng.normal(size=signals.shape)


def distances(points: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    sliced = si.diagnostics.sliced_wasserstein(points, truth, key=jr.key(0), num_projections=200)
    return {"sliced W1 x 1000": 1000 * float(sliced), "W2": float(np.sqrt(transport(points, truth)))}


def fit(sizes: Sizes, number: int, seconds: float | None = None) -> tuple[np.ndarray, float]:
    """Points of the law that was found from noisy measurements, and the processor time of all cores."""
    rng = np.random.default_rng(sizes.seed)
    data = records(measure(rng, moons(rng, sizes(20_000, 128)))[:, None])
    problem = si.StochasticInverseProblem(lambda signal, params: signal, noise=NOISE, signal=(2,))
    settings: dict[str, Any] = {"steps": 4, "rounds": 2, "batch_size": 32} if sizes.quick else {}
    start = time.process_time()
    trained = problem.fit(data, key=jr.key(sizes.seed), seconds=seconds, **settings).problem
    spent = time.process_time() - start
    return draws_of(trained, [None], number)[0], spent


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = tyro.cli(Options, args=argv)
    sizes, rng = Sizes(options.quick, options.seed), np.random.default_rng(1)
    number = sizes(20_000, 200)
    truth, again, measured = moons(rng, number), moons(rng, number), measure(rng, moons(rng, number))
    drawn, seconds = fit(sizes, number, options.seconds)
    theirs = None
    if options.code is not None:
        points, spent, steps = recover(options.code, measured, cpu_seconds=seconds, seed=options.seed)
        given, source = f"{516 * steps:,} measurements", "its code at 3cee354, run here"
        theirs = Row(PROBLEM, "SCSI", given, distances(points, truth), source, cpu_seconds=spent)
    bars = None if theirs is None else {"sliced W1 x 1000": theirs.figures["sliced W1 x 1000"] / 2}
    given = f"{sizes(20_000, 128):,} measurements"
    rows = [
        Row(PROBLEM, "stochinv", given, distances(drawn, truth), "run here", bars, seconds),
        *([] if theirs is None else [theirs]),
        Row(PROBLEM, "the measurements", "", distances(measured, truth), "run here"),
        Row(PROBLEM, "the truth again", "", distances(again, truth), "run here"),
    ]
    print_rows(rows)
    if options.json is not None:
        save(rows, options.json)
    return rows


if __name__ == "__main__":
    main()
