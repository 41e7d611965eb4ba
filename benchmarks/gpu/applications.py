"""The GPU presets of the examples: motions of films, codes of a generator, scenes from one photograph.

Each writes its picture into the folder `OUT`. The generator of digits is read from the folder `STOCHINV_DATA` where it
is at hand, and trained otherwise.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from measuring import OUT, record

import gan_inversion
import inverse_graphics
import motion

# Time goes into training: scores beside it are of fewer cases than an example's table has.
SIZES = {
    "motion": "gpu --steps 3000 --batch-size 16 --draws 4 --pairs 24 --samples 16",
    "generators": "--steps 2000",
    "scenes": "gpu --minutes 2.5 --train 300 --no-regressor",
}
TINY = {
    "motion": "--height 36 --crop 16 --records 16 --steps 2 --batch-size 4 --draws 2 --pairs 24 --samples 16",
    "generators": "--steps 2 --batch-size 8 --width 16 --contexts 3 --candidates 4 --samples 5 --images 20 "
    "--sampler-steps 1 2 --generator-steps 2 --classifier-steps 2 --reference 200 --moves 3",
    "scenes": "gpu --size 16 --path-samples 2 --train 10 --held-out 2 --resolution 8 --ray-samples 8 --width 48 "
    "--depth 1 --steps 2 --batch-size 2 --no-regressor",
}
EXAMPLES = {"motion": motion, "generators": gan_inversion, "scenes": inverse_graphics}


@dataclass(frozen=True)
class Options:
    """Trains an example at the size of a GPU."""

    problem: Literal["motion", "generators", "scenes"] = "motion"
    """Which example."""
    quick: bool = False
    """Everything at a small size."""


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    name = options.problem
    arguments = [*(TINY if options.quick else SIZES)[name].split(), "--out", str(OUT / f"{name}.png")]
    if name == "motion":
        arguments += ["--gif", str(OUT / "motion.gif")]
    if name == "scenes":
        arguments += ["--folder", str(OUT / "rendered")]
    if name == "generators":
        arguments += ["--cache", str(OUT / "generator")]
        weights = Path(os.environ.get("STOCHINV_DATA", "")) / "mnist_gan_mlp.npz"
        arguments += ["--generator", str(weights)] if weights.is_file() and not options.quick else []
    for figure, value in EXAMPLES[name].main(arguments).items():
        parts = value if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [("", value)]
        for part, x in dict(parts).items():
            record(name, f"{figure.replace('_', ' ')} {part}".strip(), x, "s" if "seconds" in figure else "")


if __name__ == "__main__":
    main()
