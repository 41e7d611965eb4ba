r"""Checks of what users give: one sentence that names the argument, its value, and what to give instead.

Names are passed as they are shown, such as "`steps`" or "Patches: `size`". What is being traced is not known, and not
looked at.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer


def shown(value: Any, limit: int = 80) -> str:
    """A value in one short line; an array by its number format and shape."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        return f"an array of {value.dtype} of shape {value.shape}"
    return shorten(repr(value), limit)


def numbers(tree: Any) -> str:
    """A PyTree of scalars in one line, to six digits; what is traced as it is."""
    known = lambda x: isinstance(x, jax.Array | np.ndarray) and not is_traced(x)
    spell = lambda x: float(f"{float(x):.6g}") if known(x) else x
    return repr(jax.tree.map(spell, tree))


def shorten(text: str, limit: int) -> str:
    """A text in one line, its end left out where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def plain(tree: Any) -> Any:
    """A module whose NumPy scalars are Python's numbers: settings, which no compilation may take for arrays."""
    return jax.tree.map(lambda x: x.item() if isinstance(x, np.generic) else x, tree)


def is_traced(value: Any) -> bool:
    """Whether a value is being traced, and so not known."""
    return isinstance(value, Tracer)


def is_integer(value: Any) -> bool:
    """Whether a user's number is an integer, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_range(name: str, value: Any) -> tuple[int, int]:
    """The least and the largest of what a user gave as a number of at least 0, or as a pair (least, most).

    **Raises:**

    `ValueError` if it is neither.
    """
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(map(is_integer, pair)) or not 0 <= pair[0] <= pair[1]:
        raise ValueError(
            f"{name} must be a number >= 0 or a pair (least, most) with 0 <= least <= most, got {shown(value)}."
        )
    return int(pair[0]), int(pair[1])


def check_integer(name: str, value: Any, least: int = 1):
    """Raises a `ValueError` if a number is not an integer of at least `least`."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}.")


def check_number(
    name: str, value: Any, wanted: str, holds: Callable[[Any], bool] = lambda x: True, *, arrays: bool = True
):
    """Raises a `ValueError` if a number is not real, finite and in its range.

    **Arguments:**

    - `name`, `value`: the argument.
    - `wanted`: what it must be, after "must be".
    - `holds`: whether a finite number is in its range.
    - `arrays`: whether JAX arrays without axes, which may be traced, will do for numbers.
    """
    if arrays and is_traced(value):
        return
    kinds = (int, float, np.integer, np.floating) + ((jax.Array,) if arrays else ())
    known = isinstance(value, kinds) and not isinstance(value, bool) and np.ndim(value) == 0
    known = known and not jnp.issubdtype(jnp.result_type(value), jnp.bool_) and not np.iscomplexobj(value)
    # While a function is traced, even an array that is known is compared by operations that are traced.
    number = np.asarray(value).item() if known else value
    if not known or not abs(number) < math.inf or not holds(number):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")


def check_flag(name: str, value: Any, *, none: bool = False):
    """Raises a `ValueError` if a value is neither `True` nor `False`, nor `None` where that is allowed."""
    if not isinstance(value, bool | np.bool_) and not (none and value is None):
        choices = "`True`, `False` or `None`" if none else "`True` or `False`"
        raise ValueError(f"{name} must be {choices}, got {shown(value)}.")


def check_instance(name: str, value: Any, kind: Any, wanted: str):
    """Raises a `ValueError` if a value is a class, or not of a kind; `wanted` says what it must be."""
    if isinstance(value, type):
        raise ValueError(f"{name} is the class {value.__name__}; give an instance, such as `{value.__name__}(...)`.")
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")


def check_callable(name: str, value: Any, wanted: str):
    """Raises a `ValueError` if a value cannot be called, or is a class; `wanted` says what it must be."""
    if not callable(value) or isinstance(value, type):
        check_instance(name, value, (), wanted)


def check_path(name: str, value: Any):
    """Raises a `ValueError` if a value is no path."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, got {shown(value)}; give a string or a `pathlib.Path`.")


def check_key(key: Any):
    """Raises a `ValueError` if `key` is not one PRNG key.

    Both kinds that JAX has are: typed keys, and the arrays of two or four numbers of earlier days.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
    if not (typed and key.ndim == 0) and not old:
        raise ValueError(f"`key` must be one PRNG key such as `jax.random.key(0)`, got {shown(key)}.")


def check_arrays(name: str, tree: Any):
    """Raises a `ValueError` if a leaf of a PyTree is neither an array of numbers nor a number.

    The name is shown with the path of the leaf behind it, in backticks.
    """
    for path, x in jtu.tree_flatten_with_path(tree)[0]:
        where = f"`{name}{jtu.keystr(path)}`"
        if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "OSUMm":
            raise ValueError(
                f"{where} is an array of {x.dtype}, but must hold numbers; give all records the same shape, for "
                "instance by padding, and convert to `float32`."
            )
        if not isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex):
            raise ValueError(f"{where} is {shown(x)}, but must be an array of numbers; convert it by `jnp.asarray`.")


def check_finite(name: str, tree: Any, remedy: str):
    """Raises a `ValueError` if a number in a PyTree of arrays is NaN or infinite.

    By NumPy, so that nothing is compiled for it.
    """
    for path, x in jtu.tree_flatten_with_path(tree)[0]:
        if is_traced(x) or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            continue
        bad = np.size(x) - int(np.sum(np.isfinite(np.asarray(x))))
        if bad:
            raise ValueError(f"`{name}{jtu.keystr(path)}` has {bad} NaN or infinite values of {np.size(x)}; {remedy}.")
