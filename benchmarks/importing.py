r"""How long `import stochinv` takes, over the import of what it stands on: `import jax, equinox, diffrax, optax`.

Fresh processes take turns, in one order and in the other; the first turn, which may have to read from disk, does not
count. The table has medians on the clock and of processor time, and the medians of the ratios. Then come the packages
that the import of stochinv adds.

    python benchmarks/importing.py [--quick] [--json PATH]
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

STATEMENTS = {
    "stochinv": "import stochinv",
    "what it stands on": "import jax, equinox, diffrax, optax",
    "Python": "pass",
}
ADDED = """
import sys
import jax, equinox, diffrax, optax
before = {name.split(".")[0] for name in sys.modules}
import stochinv
print(*sorted({name.split(".")[0] for name in sys.modules} - before))
"""


@dataclass(frozen=True)
class Options:
    """Time of an import over that of what it stands on."""

    rounds: int = 11
    """How often each takes its turn."""
    quick: bool = False
    """Two turns."""
    json: Path | None = None
    """Also write the figures to this file."""


def seconds(statement):
    """Seconds on the clock, and of processor time, of a process that runs one statement."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    wall, after = time.perf_counter() - start, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, processor


def turns(rounds):
    """Times of shape `(rounds, statements, 2)`."""
    times = []
    for turn in range(rounds + 1):
        order = list(STATEMENTS)[:: 1 if turn % 2 else -1]
        measured = {name: seconds(STATEMENTS[name]) for name in order}
        times.append([measured[name] for name in STATEMENTS])
    return np.asarray(times[1:])


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(options, rounds=2)
    times = turns(options.rounds)
    medians, ratios = np.median(times, 0), np.median(times[:, 0] / times[:, 1], 0)
    print(f"{'seconds':<20}{'clock':>10}{'processor':>12}")
    for name, (wall, processor) in zip(STATEMENTS, medians, strict=True):
        print(f"{name:<20}{wall:>10.2f}{processor:>12.2f}")
    print(f"{'ratio':<20}{ratios[0]:>10.2f}{ratios[1]:>12.2f}")
    process = subprocess.run([sys.executable, "-c", ADDED], check=True, capture_output=True, text=True)
    print(f"\nadded: {process.stdout.strip()}")
    figures = {
        "seconds": {name: row.tolist() for name, row in zip(STATEMENTS, medians, strict=True)},
        "ratio": float(ratios[0]),
        "processor_ratio": float(ratios[1]),
        "added": process.stdout.split(),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main()
