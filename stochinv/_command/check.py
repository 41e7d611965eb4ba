r"""`stochinv check`: is a forward model fit for the library?"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

from .._checks import check_arrays, shown
from .._coordinates import Coordinates, RealForward
from .._custom_types import Params, PyTree, Structure
from .._data_info import describe
from .._forward.base import as_forward_model
from .._problem import StochasticInverseProblem
from .._view import View, as_signal, structure
from .files import Refusal, read_names
from .forward_checks import Row, Subject, look, verdict

# How many measurements are looked at.
NUMBER = 64


def check(
    place: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FILE.py:NAME", help="The forward model, or a problem. The file is run."),
    ],
    signal: Annotated[
        str | None,
        tyro.conf.arg(help="The signal: a shape such as 28,28,1, or a name in the file; `signal` by default."),
    ] = None,
    params: Annotated[
        str | None,
        tyro.conf.arg(
            help="The parameters: the shape of those of one measurement, such as 4, which are then drawn from N(0, 1); "
            "none; or a name in the file, of arrays with those of several measurements along a first axis, or of a "
            "View; `params` by default."
        ),
    ] = None,
    signal_dtype: Annotated[str, tyro.conf.arg(help="Where `--signal` is a shape.")] = "float32",
    params_dtype: Annotated[str, tyro.conf.arg(help="Where `--params` is a shape.")] = "float32",
) -> bool:
    """Says whether a forward model is fit for the library, and what to do where it is not.

    Shapes are numbers with commas between them, or `scalar`.
    """
    names, name = read_names("place", place)
    given = names[name]
    forward, known, bounds = _as_forward(given)
    found = as_structure(signal, names, known, signal_dtype)
    measured = as_params(params, names, params_dtype)
    number = jax.tree.leaves(measured)[0].shape[0] if jax.tree.leaves(measured) else 0
    one = structure(jax.tree.map(lambda x: x[0], measured))
    takes = f"a signal {describe(found)} and {f'params {describe(one)}' if number else 'no params'}"
    print(f"{place} with {takes}")
    coordinates = Coordinates(found, bounds)
    subject = Subject(RealForward(forward, coordinates), coordinates, coordinates.structure(), measured, number)
    try:
        rows = look(subject)
    except Exception as error:
        error.add_note(f"`{name}` raised this with {takes}; if it takes others, give `--signal` and `--params`.")
        raise
    _show(rows)
    return not any(row.wrong for row in rows)


def _show(rows: list[Row]):
    """A table, then the verdict and what to do."""
    width = max(len(row.found) for row in rows)
    print()
    for row in rows:
        print(f"  {row.what:24} {row.found:{width}}  {row.mark}")
    print(f"\n{verdict(rows)}")
    for row in rows:
        if row.remedy:
            print(f"- {row.what}: {row.remedy}.")


def _as_forward(given: Any) -> tuple[Any, Structure | None, PyTree]:
    """A forward model, and the structure and the constraints of its signal where they are known."""
    if isinstance(given, StochasticInverseProblem):
        return given.forward, given.signal, given.support
    if not callable(given) or isinstance(given, type):
        raise Refusal(
            f"`place` must name a function of a signal and parameters, or a problem, got {shown(given)}; name another."
        )
    return as_forward_model(given), None, None


def as_structure(given: str | None, names: Mapping[str, Any], known: Structure | None, dtype: str) -> Structure:
    """The structure of the signal, from an option or from the file."""
    if given is None and known is not None:
        return known
    if given is not None and (shape := _as_shape(given)) is not None:
        return _as_signal("--signal", jax.ShapeDtypeStruct(shape, _as_dtype("--signal-dtype", dtype)))
    if (given or "signal") not in names:
        what = "is missing" if given is None else f"is {given!r}, which the file does not have"
        raise Refusal(
            f"`--signal` {what}; give the shape of a signal, such as `--signal 28,28,1`, or define `signal = "
            "(28, 28, 1)` in the file."
        )
    return _as_signal("--signal", names[given or "signal"])


def as_params(given: str | None, names: Mapping[str, Any], dtype: str) -> Params:
    """The parameters of several measurements along a first axis, from an option or from the file."""
    if given == "none":
        return None
    if given is not None and (shape := _as_shape(given)) is not None:
        return _drawn(shape, _as_dtype("--params-dtype", dtype))
    if (given or "params") not in names:
        what = "is missing" if given is None else f"is {given!r}, which the file does not have"
        raise Refusal(
            f"`--params` {what}; give the shape of the parameters of one measurement, such as `--params 4`, or "
            "`--params none`, or define `params` in the file: those of several measurements along a first axis."
        )
    tree = names[given or "params"]
    if isinstance(tree, View):
        # Records and views.
        tree = jax.tree.map(lambda x: jnp.reshape(x, (-1, *jnp.shape(x)[2:])), tree.params)
    try:
        check_arrays("params", tree)
    except ValueError as error:
        raise Refusal(str(error)) from error
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(tree)}
    if jax.tree.leaves(tree) and (len(sizes) != 1 or sizes & {(), (0,)}):
        raise Refusal(
            f"`--params` has arrays of shapes {[jnp.shape(x) for x in jax.tree.leaves(tree)]}, but all need a first "
            "axis, of measurements; write `x[None]` for those of one."
        )
    return jax.tree.map(lambda x: _spread(jnp.asarray(x)), tree)


def _spread(x):
    """At most so many, from the first to the last."""
    number = min(NUMBER, x.shape[0])
    return x[jnp.linspace(0, x.shape[0] - 1, number).astype(int)]


def _drawn(shape, dtype):
    if jnp.issubdtype(dtype, jnp.bool_):
        return jr.bernoulli(jr.key(1), shape=(NUMBER, *shape))
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise Refusal(
            f"`--params-dtype` is {dtype}, but nobody knows which integers are meant; define `params` in the file: "
            "those of several measurements along a first axis."
        )
    return jr.normal(jr.key(1), (NUMBER, *shape), dtype)


def _as_shape(text: str) -> tuple[int, ...] | None:
    """The shape that a text spells, `None` if it spells none."""
    if text == "scalar":
        return ()
    return tuple(map(int, text.strip("(,)").split(","))) if re.fullmatch(r"\(?\d+(, ?\d+)*,?\)?", text) else None


def _as_dtype(option: str, text: str):
    try:
        return jnp.dtype(text)
    except TypeError as error:
        raise Refusal(f"`{option}` must be an array's number format, got {text!r}; write `float32`.") from error


def _as_signal(option: str, tree: Any) -> Structure:
    try:
        return as_signal(tree)
    except ValueError as error:
        raise Refusal(f"{option}: {error}") from error
