r"""Whether the posteriors of a saved problem can be trusted, from the command line.

    python -m stochinv.report problem.stochinv data.npz --forward model.py:forward --out report.html

`data.npz` holds held-out records, as `numpy.savez` writes them:

- `observation`: measurements, shape (records, views, ...); where one has several arrays, `observation.NAME` of each;
- `params`: the parameters of each measurement, shape (records, views, ...), or `params.NAME`; left out where the
  forward model has none;
- `mask`: which measurements count, booleans of shape (records, views); left out where all do;
- `signal`: the true signals where they are known, shape (records, ...), or `signal.NAME`.

The forward model is code, and is not in the file of a problem: `--forward` names a Python file and what it calls the
forward model. That file is run. `stochinv report` is the same.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax.random as jr
import numpy as np
import tyro

from ._command.files import Refusal, read_names
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
    try:
        tyro.cli(write_report, prog="python -m stochinv.report", args=arguments)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(2)


def write_report(
    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="A problem that was trained and saved.")],
    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            help="Held-out records: an npz file of `observation`, `params`, `mask` and `signal`, the last two if any."
        ),
    ],
    forward: Annotated[str, tyro.conf.arg(metavar="FILE.py:NAME", help="The forward model. The file is run.")],
    out: Annotated[str, tyro.conf.arg(help="Where the page goes.")] = "report.html",
) -> None:
    """Tests whether posteriors can be trusted, and writes a page about it that anyone can read."""
    names, name = read_names("--forward", forward)
    try:
        trained = load(problem, names[name])
        found = report(trained, read_records(data), key=jr.key(0))
        found.save(out)
    except (ValueError, OSError, ImportError) as error:
        raise Refusal(str(error)) from error
    print(f"{found!r}\nThe report is in {out}.")


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
