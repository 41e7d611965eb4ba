r"""What JAX's persistent cache of compiled programs saves. Prints a table with a row for each process.

Each is a fresh one, and fits a small problem in signal space (512 records, signals of 2 entries) and draws 1,000
signals. Rows are: without a cache; with an empty one; with the same again; and with other data and another key of the
same shapes. The cache is measured with JAX's own threshold, by which a program is kept if it took a second to compile,
and with none. `programs` is how many were compiled or read, `read` how many of them the cache had.

    python benchmarks/compiling.py [--quick] [--json PATH]
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

PROGRAM = """
import collections, json, sys, time
start = time.perf_counter()
import jax, jax.numpy as jnp, jax.random as jr
import stochinv as si

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
seed, steps = map(int, sys.argv[1:])
keys = jr.split(jr.key(seed), 5)
signals = jr.normal(keys[0], (512, 2)) @ jnp.asarray([[1.0, 0.5], [0.0, 0.3]])
angles = jr.uniform(keys[1], (512, 1), maxval=3.0)
forward = lambda signal, angle: signal[0] * jnp.cos(angle) + signal[1] * jnp.sin(angle)
clean = jax.vmap(forward)(signals, angles)
data = si.View(clean + 0.1 * jr.normal(keys[2], clean.shape), angles)
problem = si.StochasticInverseProblem(forward, noise=0.1, signal=(2,))
ready = time.perf_counter()
fit = problem.fit(data, key=keys[3], steps=steps, rounds=2)
fitted = time.perf_counter()
posterior = fit.problem.posterior(jax.tree.map(lambda x: x[0], data))
jax.block_until_ready(posterior.sample(keys[4], 1000))
end = time.perf_counter()
print(json.dumps({
    "fit": fitted - ready,
    "sample": end - fitted,
    "total": end - start,
    "programs": counts["compile_requests_use_cache"],
    "read": counts["cache_hits"],
}))
"""


@dataclass(frozen=True)
class Options:
    """Seconds of a small fit and its first draws, with and without a cache of compiled programs."""

    steps: int = 200
    """Steps of the fit."""
    quick: bool = False
    """Few steps, and no threshold only."""
    json: Path | None = None
    """Also write the figures to this file."""


def run(seed, steps, folder=None, threshold=None):
    """The figures of a process."""
    environment = {name: x for name, x in os.environ.items() if "CACHE" not in name}
    environment["JAX_COMPILATION_CACHE_DIR"] = "" if folder is None else folder
    if threshold is not None:
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = threshold
    command = [sys.executable, "-c", PROGRAM, str(seed), str(steps)]
    process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout)


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    steps = 4 if options.quick else options.steps
    print(f"{'cache':<20}{'seconds: fit':>14}{'sample':>10}{'total':>10}{'programs':>10}{'read':>8}{'MiB':>8}")
    figures = []

    def measure(cache, seed, folder=None, threshold=None):
        row = {"cache": cache, "threshold": threshold} | run(seed, steps, folder, threshold)
        row["mib"] = sum(x.stat().st_size for x in Path(folder).rglob("*")) / 2**20 if folder else 0.0
        figures.append(row)
        print(
            f"{cache:<20}{row['fit']:>14.1f}{row['sample']:>10.1f}{row['total']:>10.1f}{row['programs']:>10}"
            f"{row['read']:>8}{row['mib']:>8.1f}",
            flush=True,
        )

    if not options.quick:
        measure("none", 0)
    for threshold in ["0"] if options.quick else [None, "0"]:
        print("from 1 second on" if threshold is None else "every program")
        with tempfile.TemporaryDirectory() as folder:
            for cache, seed in [("empty", 0), ("the same again", 0), ("other data", 1)]:
                measure(cache, seed, folder, threshold)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main()
