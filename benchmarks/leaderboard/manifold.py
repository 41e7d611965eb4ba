"""The law of points on a closed curve in five dimensions, from two noisy projections of each point.

    python benchmarks/leaderboard/manifold.py [--code FOLDER] [--quick] [--json PATH]

The problem is that of the manifold of Rozet et al. (DiEM, arXiv 2405.13712) and of DiffEM (arXiv 2510.12691), on a
curve of the same kind: one measurement of each point, along two random directions and with noise of 0.01. What is
judged is the law of points that was found, by the squared W2 between 2,048 points of it and as many of the true law,
exactly, the mean of eight pairs; and of 512 points. Sets of the true law differ by as much as the last row says.

Both papers show pictures, and no figures of the law that was found. DiffEM is its authors' code, run here from a clone
of theirs in the setting that it calls tiny, of 512 measurements and as many points; its other settings are for a GPU.
Ours is given 65,536 measurements, as in both papers, and in a second row 512.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

import signal_closed_forms
from leaderboard.diffem_code import recover
from leaderboard.rows import Row, print_rows, save
from signal_case import Sizes, draws_of
from signal_laws import transport

PROBLEM, BAR, SETS = "closed curve in 5 dimensions", 0.08, 8
MANY, FEW = "squared W2, 2,048 points", "512 points"


@dataclass(frozen=True)
class Options:
    """Points on a curve, from two noisy projections of each."""

    measurements: tuple[int, ...] = (65_536, 512)
    """How many measurements ours is given."""
    code: Path | None = None
    """A clone of DiffEM's repository, to run it beside ours."""
    seed: int = 0
    """Seed of the measurements and of training."""
    seconds: float | None = None
    """How long ours may be trained, by the clock; by default as long as it takes."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the rows to this file."""


def distances(points: np.ndarray, sizes: Sizes) -> dict[str, float]:
    """The mean squared W2 of sets of points from the true law; of as many points as there are."""
    found, rng = {}, np.random.default_rng(0)
    for name, number in ((MANY, sizes(2048, 20)), (FEW, sizes(512, 10))):
        if len(points) >= number:
            pairs = [
                (rng.permutation(points)[:number], signal_closed_forms.draw_curve(rng, number)) for _ in range(SETS)
            ]
            found[name] = float(np.mean([transport(a, b) for a, b in pairs]))
    return found


def ours(measurements: int, sizes: Sizes, seconds: float | None = None) -> Row:
    case = signal_closed_forms.manifold(sizes, measurements=measurements)
    settings: dict[str, Any] = {"steps": 4, "rounds": 2, "batch_size": 32} if sizes.quick else {}
    start = time.process_time()
    trained = case.problem.fit(case.data, key=jr.key(sizes.seed), seconds=seconds, **settings).problem
    spent = time.process_time() - start
    figures = distances(draws_of(trained, [None], SETS * sizes(2048, 20))[0], sizes)
    bars = {MANY: BAR} if measurements == 65_536 else None
    return Row(PROBLEM, "stochinv", f"{sizes(measurements, 128):,} measurements", figures, "run here", bars, spent)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = tyro.cli(Options, args=argv)
    sizes, rng = Sizes(options.quick, options.seed), np.random.default_rng(options.seed)
    rows: list[Row] = []
    for number in options.measurements:
        rows.append(ours(number, sizes, options.seconds))
        print_rows(rows[-1:])
        if options.json is not None:
            save(rows, options.json)
        # A process has room for so many compiled programs only.
        jax.clear_caches()
    if options.code is not None:
        drawn, seconds = recover(options.code, lambda number: signal_closed_forms.draw_curve(rng, number))
        figures, source = distances(drawn, sizes), "its code at 1db2bc7, run here"
        rows.append(Row(PROBLEM, "DiffEM, tiny", "512 measurements", figures, source, None, seconds))
    truth = signal_closed_forms.draw_curve(np.random.default_rng(1), SETS * sizes(2048, 20))
    rows.append(Row(PROBLEM, "the truth again", "", distances(truth, sizes), "run here"))
    print()
    print_rows(rows)
    if options.json is not None:
        save(rows, options.json)
    return rows


if __name__ == "__main__":
    main()
