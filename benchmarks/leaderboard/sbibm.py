"""Posteriors of sbibm's problems from 10,000 and 30,000 simulations: C2ST against its reference samples.

    pip download --no-deps sbibm==1.1.0 && unzip sbibm-1.1.0-*.whl -d sbibm-files
    python benchmarks/leaderboard/sbibm.py --sbibm sbibm-files [--quick] [--json PATH]

A classifier tells draws of each of the ten posteriors from its reference samples; 0.5 is a perfect posterior. It is
sbibm's, and sees 3,000 of each, where the published figures are of 10,000, from which it can tell a little more. The
bars are for 10,000 simulations.

Not all were given the same. sbibm's methods and GenSBI see parameters and one simulation of each, nothing else. Ours
is told the simulator's likelihood too, as any problem of this library is: so it simulates the same parameters afresh as
often as it likes, and weights draws. Of GenSBI at 10,000 simulations the figure is that of the best of its
configurations for each problem, chosen by this very figure.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from leaderboard.rows import Row, print_rows, save
from posterior_accuracy import SIMULATORS, train
from signal_case import Sizes

PROBLEMS = ("two_moons", "slcp", "gaussian_mixture", "bernoulli_glm")
BARS = {"two_moons": 0.52, "slcp": 0.70, "gaussian_mixture": 0.52, "bernoulli_glm": 0.60}

RESULTS = "sbibm's published results, github.com/sbi-benchmark/results at 741183c"
STATISTICS = "github.com/aurelio-amerio/GenSBI-examples at 15d84c6, best_configurations_summary.md"
PAPER = "GenSBI's paper, arXiv 2605.27499"
# C2ST in the order of `PROBLEMS`, means over ten observations; of the mixture, sbibm's second run, after its repair.
PUBLISHED: Mapping[int, Mapping[tuple[str, str], tuple[float, ...]]] = {
    10_000: {
        ("NPE", RESULTS): (0.606, 0.901, 0.615, 0.678),
        ("SNPE", RESULTS): (0.554, 0.845, 0.551, 0.614),
        ("SNLE", RESULTS): (0.571, 0.713, 0.685, 0.553),
        ("GenSBI", STATISTICS): (0.522, 0.657, 0.510, 0.616),
    },
    30_000: {
        ("NPE", PAPER): (0.57, 0.84, 0.56, 0.65),
        ("GenSBI", PAPER): (0.51, 0.57, 0.50, 0.58),
    },
}


@dataclass(frozen=True)
class Options:
    """Posteriors of simulators with a prior, against sbibm's references."""

    sbibm: Path
    """The folder with the unpacked files of sbibm."""
    problems: tuple[str, ...] = PROBLEMS
    """Which problems."""
    simulations: tuple[int, ...] = tuple(PUBLISHED)
    """From how many simulations."""
    seed: int = 0
    """Seed of the simulations and of training."""
    seconds: float | None = None
    """How long ours may be trained, by the clock; by default as long as it takes."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the rows to this file."""


def published(problem: str, simulations: int) -> list[Row]:
    index, rows = PROBLEMS.index(problem), PUBLISHED.get(simulations, {})
    given = {"SNPE": "simulations, some near the observation", "SNLE": "simulations, some near the observation"}
    return [
        Row(title(problem, simulations), method, given.get(method, "simulations"), {"C2ST": values[index]}, source)
        for (method, source), values in rows.items()
    ]


def title(problem: str, simulations: int) -> str:
    return f"{problem}, {simulations:,}"


def ours(problem: str, simulations: int, sizes: Sizes, folder: Path, seconds: float | None = None) -> Row:
    result = train(SIMULATORS[problem](sizes, folder, simulations=simulations), sizes, seconds=seconds)
    return Row(
        title(problem, simulations),
        "stochinv",
        "parameters, likelihood",
        {"C2ST": result["figures"][0]["value"]},
        "run here",
        bars={"C2ST": BARS[problem]} if simulations == 10_000 else None,
        cpu_seconds=result["cpu_seconds"],
    )


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = tyro.cli(Options, args=argv)
    rows: list[Row] = []
    for simulations in options.simulations:
        for problem in options.problems:
            row = ours(problem, simulations, Sizes(options.quick, options.seed), options.sbibm, options.seconds)
            rows += [row, *published(problem, simulations)]
            print_rows([row])
            if options.json is not None:
                save(rows, options.json)
            # A process has room for so many compiled programs only.
            jax.clear_caches()
    print()
    print_rows(rows)
    return rows


if __name__ == "__main__":
    main()
