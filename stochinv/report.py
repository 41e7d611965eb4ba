r"""Whether the posteriors of a saved problem can be trusted, from the command line.

    python -m stochinv.report problem.stochinv data.npz --forward model.py:forward --out report.html

`data.npz` holds held-out records, as `numpy.savez` writes them:

- `observation`: measurements, shape (records, views, ...); where one has several arrays, `observation.NAME` of each;
- `params`: the parameters of each measurement, shape (records, views, ...), or `params.NAME`; left out where the
  forward model has none;
- `mask`: which measurements count, booleans of shape (records, views); left out where all do;
- `signal`: the true signals where they are known, shape (records, ...), or `signal.NAME`.

The forward model is code, and is not in the file of a problem: `--forward` names a Python file and what it calls the
forward model. That file is run.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np

from ._load import load
from ._pairs import Pairs
from ._view import View
from .diagnostics import report

PARTS = ("observation", "params", "mask", "signal")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads a problem and held-out records, writes the report, and prints what it found.

    **Arguments:**

    - `arguments`: those of the command line; `None` for the ones that the program was started with.
    """
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m stochinv.report", description=__doc__, formatter_class=style)
    parser.add_argument("problem", help="a problem that was trained and saved")
    parser.add_argument("data", help="held-out records, an npz file")
    parser.add_argument("--forward", required=True, metavar="FILE.py:NAME", help="the forward model")
    parser.add_argument("--out", default="report.html", help="where the page goes; by default %(default)s")
    given = parser.parse_args(arguments)
    try:
        problem = load(given.problem, read_forward(given.forward))
        found = report(problem, read_records(given.data), key=jr.key(0))
        found.save(given.out)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{found!r}\nThe report is in {given.out}.")


def read_forward(place: str) -> Any:
    """What a Python file has under a name.

    **Raises:**

    `ValueError` if that is not a file's path and a name, or if the file has nothing of that name.
    """
    path, _, name = place.rpartition(":")
    if not path.endswith(".py") or not os.path.isfile(path):
        raise ValueError(
            f"`--forward` must be a Python file and a name in it, got {place!r}; write `model.py:forward`."
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name not in vars(module):
        raise ValueError(f"`--forward` names {name!r}, but {path} has no such name; write `model.py:forward`.")
    return vars(module)[name]


def read_records(path: str | os.PathLike[str]) -> View | Pairs:
    """Held-out records from an npz file, with their signals where it has them.

    **Raises:**

    `ValueError` if it is no such file, or has other arrays than those that are known.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`data` must be an npz file of plain arrays, got {str(path)!r}; write `numpy.savez`."
        ) from error
    unknown = sorted(name for name in arrays if name.partition(".")[0] not in PARTS)
    parts = {name: _part(arrays, name) for name in PARTS}
    if unknown or parts["observation"] is None:
        raise ValueError(
            f"`data` must hold `observation`, and may hold `params`, `mask` and `signal`, got {sorted(arrays)}; name "
            "its arrays so."
        )
    view = View(parts["observation"], parts["params"], parts["mask"])
    return view if parts["signal"] is None else Pairs(parts["signal"], view)


def _part(arrays: dict[str, np.ndarray], name: str) -> Any:
    """An array, a dictionary of those whose names begin alike, or `None`."""
    named = {key.partition(".")[2]: x for key, x in arrays.items() if key.partition(".")[0] == name}
    return named.get("", named or None)


if __name__ == "__main__":
    main()
