"""How near to the truth posteriors are that were learned from measurements alone.

    python benchmarks/posterior_accuracy.py [--problems pendulum null_space] [--quick] [--json PATH]

Problems are trained in signal space, with the defaults of `fit` unless `Case.settings` says otherwise. Their posteriors
are known: in closed form, by Gibbs sampling, or by sequential Monte Carlo with the true law of signals. Nothing of the
library makes a measurement or a reference. Columns: what was measured on held-out records, what exact posteriors have,
the bar, and the seconds of training with compilation, on the clock and of all cores together.

Simulators of sbibm need the reference files of that package, which is not installed for it:

    pip download --no-deps sbibm==1.1.0 && unzip sbibm-1.1.0-*.whl -d sbibm-files
    python benchmarks/posterior_accuracy.py --problems two_moons slcp gaussian_mixture bernoulli_glm --sbibm sbibm-files
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import signal_closed_forms as closed
import signal_problems as problems
import signal_simulators as simulators
import signal_tomography as images
import tyro
from signal_case import Case, Sizes

import stochinv as si

SIGNAL_PROBLEMS: dict[str, Callable[[Sizes], Case]] = {
    "pendulum": problems.make_pendulum(1),
    "pendulum_three_clips": problems.make_pendulum(3),
    "lotka_volterra": problems.lotka_volterra,
    "jumps": problems.jumps,
    "null_space": closed.null_space,
    "manifold": closed.manifold,
    "noisy_circle": closed.noisy_circle,
    "banana": closed.banana,
    "concentrations": closed.concentrations,
    "sigmoid": closed.sigmoid,
    "spectra": problems.spectra,
    "density": closed.density,
    "tomography": images.tomography,
}
SIMULATORS: dict[str, simulators.Simulator] = {
    "two_moons": simulators.two_moons,
    "slcp": simulators.slcp,
    "gaussian_mixture": simulators.gaussian_mixture,
    "bernoulli_glm": simulators.bernoulli_glm,
}


@dataclass(frozen=True)
class Options:
    """Posterior samples against references."""

    problems: tuple[str, ...] = ()
    """Which problems; by default all but two_moons, slcp, gaussian_mixture and bernoulli_glm, which need
    `sbibm`."""
    seed: int = 0
    """Seed of training."""
    seconds: float | None = None
    """How long each may be trained; by default as long as it takes."""
    quick: bool = False
    """Tiny sizes: that everything runs, and nothing else."""
    json: Path | None = None
    """Also write the figures to this file."""
    sbibm: Path | None = None
    """The folder with the unpacked files of sbibm."""


def run(name: str, sizes: Sizes, sbibm: Path | None = None, *, seconds: float | None = None) -> dict:
    """Trains a problem, for so many seconds at most, and measures how near its posteriors are to the truth."""
    case = SIMULATORS[name](sizes, sbibm) if name in SIMULATORS else SIGNAL_PROBLEMS[name](sizes)
    return {"problem": name, **train(case, sizes, seconds=seconds)}


def train(case: Case, sizes: Sizes, *, seconds: float | None = None) -> dict:
    """Trains for so many seconds at most; the figures of what was trained, and how long it took."""
    settings: dict[str, Any] = {"seconds": seconds, **case.settings}
    if sizes.quick:
        settings |= {"steps": 4, "rounds": 2, "batch_size": 32}
    start, cpu = time.perf_counter(), time.process_time()
    fit = case.problem.fit(case.data, key=jr.key(sizes.seed), **settings)
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    figures = [asdict(x) | {"met": bool(x.met)} for x in case.assess(fit.problem)]
    return {**times, "history": repr(fit.history), "score": fit.history.score, "figures": figures}


def print_table(results: Sequence[dict]):
    rows = [["problem", "measured", "value", "truth", "bar", "", "training", "CPU"]]
    for result in results:
        for x in result["figures"]:
            low, high = x["bar"]
            bar = f"<= {high:g}" if low == 0 else f"{low:g} to {high:g}"
            numbers = [f"{x['value']:.4f}", f"{x['truth']:.3g}", bar, "met" if x["met"] else "missed"]
            rows.append(
                [
                    result["problem"],
                    x["measured"],
                    *numbers,
                    f"{result['seconds']:.0f} s",
                    f"{result['cpu_seconds']:.0f} s",
                ]
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip())


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    print(f"stochinv {si.__version__}, jax {jax.__version__}, {jax.default_backend()}")
    results = []
    for name in options.problems or SIGNAL_PROBLEMS:
        results.append(run(name, Sizes(options.quick, options.seed), options.sbibm, seconds=options.seconds))
        print_table(results[-1:])
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=2))
        # A process has room for so many compiled programs only.
        jax.clear_caches()
    print()
    print_table(results)
    return results


if __name__ == "__main__":
    main()
