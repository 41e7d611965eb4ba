"""A mixture of 25 Gaussians in eight dimensions, seen through few noisy projections: draws against exact posteriors.

    python benchmarks/leaderboard/mixture25.py [--rows 2] [--quick] [--json PATH]

The problem, the measure and the figures of others are those of the benchmark of MCGDiff's authors (Cardoso et al.,
arXiv 2308.07983): the largest W2 of 100 random projections between 1,000 draws and 10,000 exact ones, the mean of some
repetitions, here ten. Where a mode has a weight of a twentieth, as that of two rows has, chance alone moves such a
distance by about 2: by how many of a thousand draws are in that mode. So ours is also judged by 10,000 draws against
100,000, and so are exact draws; the bar is for that.

Every method there is given the exact score of the mixture. Ours is given samples of it and learns; in a second row it
is given neither, but 65,536 measurements by random matrices of as many rows, one of each signal, from which the mixture
has to be found first.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from leaderboard.mixture25_law import MEASUREMENTS, SIZE, WEIGHTS, draw, draw_posterior, largest_sliced, means
from leaderboard.rows import Row, print_rows, save
from signal_case import Sizes, draws_of, records

import stochinv as si

FEW, MANY = "largest sliced W2, 1,000 draws", "10,000 draws"
BAR, REPETITIONS = 2.0, 10
SOURCE = "github.com/gabrielvc/benchopts_inverse_problem_diffusion_prior at 59559eb, its outputs of 2024-03-15"
# Means over the repetitions there, by rows of the measurement.
PUBLISHED = {
    "DDRM": {1: 29.68, 2: 13.60, 4: 0.486},
    "DPS": {1: 27.22, 2: 18.70, 4: 12.40},
    "MCGDiff, 32 particles": {1: 19.82, 2: 10.84, 4: 0.996},
    "MCGDiff, 128 particles": {1: 5.23, 2: 4.28, 4: 0.179},
}


@dataclass(frozen=True)
class Options:
    """Posteriors of a mixture of 25 Gaussians."""

    rows: tuple[int, ...] = (2,)
    """How many projections a measurement has: 1, 2 or 4."""
    given: tuple[str, ...] = ("prior", "measurements")
    """What ours is given."""
    seed: int = 0
    """Seed of the measurements and of training."""
    seconds: float | None = None
    """How long ours may be trained, by the clock; by default as long as it takes."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the rows to this file."""


def from_prior(rows: int, sizes: Sizes) -> tuple[si.StochasticInverseProblem, Any, Any]:
    """The problem whose matrix is the one given, its prior as data, and the measurement."""
    given = MEASUREMENTS[rows]
    matrix = jnp.asarray(given.matrix, jnp.float32)
    components = dist.MultivariateNormal(jnp.asarray(means(), jnp.float32), jnp.eye(SIZE))
    prior = dist.MixtureSameFamily(dist.Categorical(jnp.asarray(WEIGHTS, jnp.float32)), components)
    problem = si.StochasticInverseProblem(lambda signal, params: matrix @ signal, noise=given.noise, signal=(SIZE,))
    return problem, si.data.Simulated(prior), si.View(jnp.asarray(given.observed[None], jnp.float32))


def from_measurements(rows: int, sizes: Sizes) -> tuple[si.StochasticInverseProblem, Any, Any]:
    """The problem whose matrices differ from record to record, its measurements, and the one given."""
    given, rng = MEASUREMENTS[rows], np.random.default_rng(sizes.seed)
    number = sizes(65_536, 128)
    # Rows as long as those of the given matrix are on average, in random directions.
    matrices = rng.normal(size=(number, 1, rows, SIZE)) * np.sqrt(np.mean(given.matrix**2))
    clean = np.einsum("nvij,nj->nvi", matrices, draw(rng, number))
    data = records(clean + given.noise * rng.normal(size=clean.shape), matrices)
    problem = si.StochasticInverseProblem(lambda signal, matrix: matrix @ signal, noise=given.noise, signal=(SIZE,))
    return problem, data, records(given.observed[None], given.matrix[None])


GIVEN: dict[str, Callable[..., tuple[si.StochasticInverseProblem, Any, Any]]] = {
    "prior": from_prior,
    "measurements": from_measurements,
}


def judge(rows: int, sizes: Sizes, drawn: np.ndarray) -> dict[str, float]:
    """The distances of draws from exact ones: the mean of some of few draws each, and that of all."""
    rng, given = np.random.default_rng(100), MEASUREMENTS[rows]
    distance = lambda draws: largest_sliced(rng, draws, draw_posterior(rng, 10 * len(draws), given))
    few = np.split(drawn[: REPETITIONS * sizes(1000, 20)], REPETITIONS)
    return {FEW: float(np.mean([distance(x) for x in few])), MANY: distance(drawn)}


def ours(rows: int, name: str, sizes: Sizes, seconds: float | None = None) -> Row:
    problem, data, context = GIVEN[name](rows, sizes)
    settings: dict[str, Any] = {"steps": 4, "rounds": 2, "batch_size": 32} if sizes.quick else {}
    start = time.process_time()
    trained = problem.fit(data, key=jr.key(sizes.seed), seconds=seconds, **settings).problem
    spent = time.process_time() - start
    figures = judge(rows, sizes, draws_of(trained, [context], sizes(10_000, 400))[0])
    given = "samples of the prior" if name == "prior" else f"{sizes(65_536, 128):,} measurements"
    bars = {MANY: BAR} if rows == 2 and name == "prior" else None
    return Row(title(rows), "stochinv", given, figures, "run here", bars, spent)


def title(rows: int) -> str:
    return f"8 entries, {rows} measured"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = tyro.cli(Options, args=argv)
    sizes = Sizes(options.quick, options.seed)
    rows: list[Row] = []
    for number in options.rows:
        for name in options.given:
            rows.append(ours(number, name, sizes, options.seconds))
            print_rows(rows[-1:])
            if options.json is not None:
                save(rows, options.json)
            # A process has room for so many compiled programs only.
            jax.clear_caches()
        for method, values in PUBLISHED.items():
            rows.append(Row(title(number), method, "the prior's score", {FEW: values[number]}, SOURCE))
        exact = draw_posterior(np.random.default_rng(1), sizes(10_000, 400), MEASUREMENTS[number])
        rows.append(Row(title(number), "exact draws", "the posterior", judge(number, sizes, exact), "run here"))
    if options.json is not None:
        save(rows, options.json)
    print()
    print_rows(rows)
    return rows


if __name__ == "__main__":
    main()
