r"""Figures, and the numbers of a signal under their names.

Figures are made without pyplot: no window opens, and nothing has to be closed. Pyplot is also what shows figures in
notebooks, so each is given the method by which these ask any object for its picture.
"""

import functools
import io
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float

from .._checks import check_arrays, check_finite, shown
from .._custom_types import PyTree
from .._lazy import optional


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a width and height in inches, which shows itself in notebooks."""
    module = optional("matplotlib.figure", "Plots need Matplotlib", "plot")
    figure = module.Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = functools.partial(as_png, figure)
    return figure


def as_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def as_entries(
    name: str, tree: PyTree, leading: tuple[str, ...], remedy: str
) -> dict[str, Float[np.ndarray, "*leading"]]:
    """Every number of a signal under its name, in the order of the PyTree; a complex one as two.

    **Arguments:**

    - `name`: of the argument, for errors.
    - `tree`: signals with leading axes.
    - `leading`: the names of these axes.
    - `remedy`: for values that are not finite, an imperative.

    **Raises:**

    `ValueError` if an array lacks the leading axes, has others than the first, or holds NaN or infinite values.
    """
    check_arrays(name, tree)
    check_finite(name, tree, remedy)
    entries, sizes = {}, set()
    for path, leaf in jtu.tree_flatten_with_path(tree)[0]:
        x = np.asarray(leaf)
        where = f"`{name}{jtu.keystr(path)}`"
        if x.ndim < len(leading) or 0 in x.shape:
            raise ValueError(
                f"{where} must have shape ({', '.join((*leading, '...'))}) and hold numbers, got shape {x.shape}; "
                "stack the signals."
            )
        sizes.add(x.shape[: len(leading)])
        base = jtu.keystr(path, simple=True, separator=".")
        for index in np.ndindex(x.shape[len(leading) :]):
            entries |= _named_parts(_label(base, index), x[(..., *index)])
    if len(sizes) != 1:
        raise ValueError(
            f"`{name}` must have arrays with equal axes ({', '.join(leading)}), got {sorted(sizes)}; stack the signals."
        )
    return entries


def _label(base: str, index: tuple[int, ...]) -> str:
    place = ",".join(map(str, index))
    if not base:
        return f"entry {place}" if index else "signal"
    return f"{base}[{place}]" if index else base


def _named_parts(label: str, x: np.ndarray) -> dict[str, np.ndarray]:
    if np.iscomplexobj(x):
        return {f"re {label}": np.real(x).astype(np.float64), f"im {label}": np.imag(x).astype(np.float64)}
    return {label: x.astype(np.float64)}


def as_labels(names: Any, entries: dict[str, Any]) -> list[str]:
    """The names that a user gave to the entries, or those they have."""
    if names is None:
        return list(entries)
    known = isinstance(names, list | tuple) and all(isinstance(x, str) for x in names)
    if not known or len(names) != len(entries):
        raise ValueError(f"`names` must be {len(entries)} strings, one for each entry, got {shown(names)}.")
    return list(names)


def check_same_entries(name: str, entries: dict[str, Any], draws: dict[str, Any]):
    """Raises a `ValueError` if a signal has other entries than the draws have."""
    if list(entries) != list(draws):
        raise ValueError(
            f"`{name}` must be a signal like those of `draws`, with the entries {shown(list(draws))}, got "
            f"{shown(list(entries))}; give the same PyTree."
        )


def check_few(name: str, entries: dict[str, Any], most: int):
    """Raises a `ValueError` if a signal has more entries than can be shown."""
    if len(entries) > most:
        raise ValueError(
            f"`{name}` has {len(entries)} entries, of which at most {most} can be shown; give a few scalar functions "
            "of the signals, as a dictionary."
        )
