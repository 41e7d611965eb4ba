"""Problems that are trained from end to end: the quickstart, and the jumps of `posterior_accuracy.py`."""

from dataclasses import dataclass
from typing import Literal

import posterior_accuracy
import tyro
from measuring import OUT, record
from signal_case import Sizes

import quickstart

TINY = "--steps 4 --rounds 2 --batch-size 8 --train 64 --digits 3 --unseen 2 --samples 4"


@dataclass(frozen=True)
class Options:
    """Trains a problem and measures its posteriors."""

    problem: Literal["quickstart", "jumps"] = "quickstart"
    """Which problem."""
    precision: Literal["float32", "bf16"] = "float32"
    """In what the networks of the quickstart compute in training."""
    seconds: float = 40.0
    """How long the jumps may be trained."""
    quick: bool = False
    """Everything at a small size."""


def measure_quickstart(options: Options):
    part = f"quickstart, {options.precision}"
    picture = OUT / f"quickstart-{options.precision}.png"
    sizes = TINY.split() if options.quick else []
    figures = quickstart.main([*sizes, "--precision", options.precision, "--out", str(picture)])
    for name, value in figures.items():
        record(part, name.replace("_", " "), value, "s" if name.endswith("seconds") else "")


def measure_jumps(options: Options):
    result = posterior_accuracy.run("jumps", Sizes(options.quick, seed=0), seconds=options.seconds)
    record("jumps", "train seconds", result["seconds"], "s", f"at most {options.seconds:g} s, with compilation")
    for x in result["figures"]:
        record("jumps", x["measured"], x["value"], "", f"exact posteriors have {x['truth']:g}")


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    {"quickstart": measure_quickstart, "jumps": measure_jumps}[options.problem](options)


if __name__ == "__main__":
    main()
