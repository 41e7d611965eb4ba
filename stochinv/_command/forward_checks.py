r"""What a forward model does with random signals, as a table with remedies.

Derivatives along a random direction `v` at a random signal `s` are compared with the central difference
`(f(s + h v) − f(s − h v)) / 2h`, at the best of three steps `h`: larger ones err by curvature, and smaller ones by
rounding.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from .._checks import shorten
from .._complex import as_parts
from .._coordinates import Coordinates, RealForward
from .._custom_types import AnyCallable, Params, Structure, summary
from .._data_info import describe
from .._structure import count_entries, zeros_of
from .._training.probe import is_affine
from ..diagnostics import identifiability

BATCH, POINTS = 64, 8
STEPS = (3e-2, 1e-2, 3e-3)
REVERSE, FORWARD, SEEN = "derivative, backwards", "derivative, forwards", "identifiable"
FIT = "Fit for the library."
# How far values and derivatives may be apart, relative to their size.
VALUE_GAP, SLOPE_GAP = 1e-3, 2e-2
# The largest signals, in entries, whose Jacobians are kept.
LARGEST = 2048
# Seconds for a measurement, above which training is slow.
SLOW = 3e-3


class Row(NamedTuple):
    """One line of the table.

    **Arguments:**

    - `what`, `found`: the question and the answer.
    - `remedy`: what to do; empty where all is right.
    - `wrong`: whether the library cannot work with it.
    """

    what: str
    found: str
    remedy: str = ""
    wrong: bool = False

    @property
    def mark(self) -> str:
        return "wrong" if self.wrong else "see below" if self.remedy else "ok"


@final
class Subject(eqx.Module):
    """A forward model with what it is given.

    **Arguments:**

    - `forward`: the forward model of coordinates.
    - `coordinates`: those of its signals.
    - `signal`: their structure.
    - `params`: parameters of measurements along a first axis, or `None`.
    - `number`: how many these are; 0 for a forward model without parameters.
    """

    forward: RealForward
    coordinates: Coordinates
    signal: Structure
    params: Params
    number: int

    def signals(self, number: int, seed: int = 0) -> Any:
        """Random signals, along a first axis."""
        flat, unravel = zeros_of(self.signal)
        return jax.vmap(unravel)(jr.normal(jr.key(seed), (number, flat.size), flat.dtype))

    def params_of(self, index: Any) -> Params:
        """The parameters of one measurement, or of several."""
        return jax.tree.map(lambda x: x[index % self.number], self.params) if self.number else self.params

    def plain(self, signal: Any, params: Params) -> Any:
        """What the user's forward model returns, complex where it is."""
        return self.forward.forward(self.coordinates.to_signal(signal), params)

    def batch(self) -> tuple[Any, Params]:
        """Signals and parameters of as many measurements as are made at a time."""
        return self.signals(BATCH), self.params_of(jnp.arange(BATCH))

    def mapped(self) -> AnyCallable:
        """The forward model of a batch, compiled once."""
        return jax.jit(jax.vmap(self.forward, (0, 0 if self.number else None)))


def look(subject: Subject) -> list[Row]:
    """All rows; fewer where the forward model fails in one that the others build upon.

    What the forward model raises as it is called for the first time is passed on.
    """
    signal, params = jax.tree.map(lambda x: x[0], subject.signals(BATCH)), subject.params_of(0)
    plain = subject.plain(signal, params)
    first = as_parts(plain)
    mapped, batch = subject.mapped(), subject.batch()
    questions = (
        lambda: measurement(plain),
        lambda: deterministic(first, subject.forward(signal, params)),
        lambda: traceable(lambda: jax.jit(subject.forward)(signal, params), first),
        lambda: batched(lambda: jax.tree.map(lambda x: x[0], mapped(*batch)), first),
        lambda: finite(mapped(*batch)),
        lambda: dependent(*(mapped(signals, batch[1]) for signals in (batch[0], subject.signals(BATCH, 1)))),
    )
    rows = []
    for question in questions:
        rows.append(question())
        if rows[-1].wrong:
            return rows
    rows += slopes(subject)
    affine = is_affine(subject.forward, subject.signal, params, jr.key(1))
    seen = [] if _row(rows, REVERSE).remedy else [identifiable(subject, affine)]
    return [*rows, Row("affine", "yes" if affine else "no"), *seen, speed(lambda: mapped(*batch))]


def verdict(rows: list[Row]) -> str:
    """One sentence."""
    if any(row.wrong for row in rows):
        return "Not fit for the library."
    if _row(rows, REVERSE).remedy:
        return "Fit for signal space alone."
    return "Fit for the library, but part of the signal is not measured." if _row(rows, SEEN).remedy else FIT


def _row(rows: list[Row], what: str) -> Row:
    return next(row for row in rows if row.what == what)


def measurement(plain: Any) -> Row:
    """What one call returns, as Python runs it."""
    leaves = jax.tree.leaves(plain)
    if leaves and all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves):
        return Row("measurement", describe(plain))
    return Row("measurement", describe(plain), "return floating-point arrays, by `jnp.asarray(x, float)`", True)


def deterministic(first: Any, second: Any) -> Row:
    """Whether two calls agree."""
    if gap(first, second) <= VALUE_GAP:
        return Row("deterministic", "yes")
    return Row(
        "deterministic", "no", "return what is measured without noise; say what noise there is by `noise=`", True
    )


def traceable(call: AnyCallable, first: Any) -> Row:
    """Whether it compiles, and is then the same function."""
    remedy = "use `jnp` for NumPy, `jnp.where` or `jax.lax.cond` for `if`, and no `float()` of what is measured"
    return _same("compiled, jax.jit", call, first, remedy)


def batched(call: AnyCallable, first: Any) -> Row:
    """Whether it maps over measurements, and is then the same function."""
    remedy = "write it for one signal and one measurement, of JAX's own operations, without an axis of batches"
    return _same("mapped, jax.vmap", call, first, remedy)


def _same(what: str, call: AnyCallable, first: Any, remedy: str) -> Row:
    """Whether a transformed forward model can be called at all, and gives what it gives as it is."""
    try:
        found = call()
    except Exception as error:
        return Row(what, f"no: {_short(error)}", remedy, True)
    if gap(found, first) > VALUE_GAP:
        return Row(what, "yes, with another value", "keep no state, and draw nothing at random, in it", True)
    return Row(what, "yes")


def _short(error: Exception) -> str:
    return shorten(summary(error), 70)


def finite(measured: Any) -> Row:
    """Whether measurements of random signals are finite."""
    each = jnp.stack([jnp.all(jnp.isfinite(x.reshape(BATCH, -1)), 1) for x in jax.tree.leaves(measured)])
    number = int(jnp.sum(jnp.all(each, 0)))
    remedy = "let signals be any numbers of size about one: by `jnp.exp` what is positive, by a sigmoid what is bounded"
    return Row("finite", f"{number} of {BATCH} random signals", "" if number == BATCH else remedy, number < BATCH)


def dependent(one: Any, other: Any) -> Row:
    """Whether measurements change with the signal."""
    if gap(one, other) > 0:
        return Row("depends on the signal", "yes")
    return Row("depends on the signal", "no", "let the measurement say something of the signal", True)


def slopes(subject: Subject) -> list[Row]:
    """Derivatives in both modes beside finite differences."""
    flat, unravel = zeros_of(subject.signal)
    places, directions = jr.normal(jr.key(2), (2, POINTS, flat.size), flat.dtype)
    model = lambda s, index: ravel_pytree(subject.forward(unravel(s), subject.params_of(index)))[0]

    @jax.jit
    def differences(index):
        s, v = places[index], directions[index]
        one = lambda h: (model(s + h * v, index) - model(s - h * v, index)) / (2 * h)
        return jax.lax.map(one, jnp.asarray(STEPS, flat.dtype))

    def along(mode: Callable) -> Callable:
        """The derivative by a mode, times unit vectors."""
        return jax.jit(lambda index, units: mode(lambda s: model(s, index), places[index], directions[index], units))

    wanted = [differences(index) for index in range(POINTS)]
    remedies = (
        "measurement space asks for it: write it of operations that JAX differentiates",
        "only affine forward models need it, for their exact start: do without `jax.custom_vjp` there",
    )
    modes = (along(_reverse), along(_forward))
    return [_slope(*row, wanted) for row in zip((REVERSE, FORWARD), modes, remedies, strict=True)]


def _reverse(model, place, direction, units):
    pull_back = jax.vjp(model, place)[1]
    return jax.vmap(lambda unit: pull_back(unit)[0] @ direction)(units)


def _forward(model, place, direction, units):
    return units @ jax.jvp(model, (place,), (direction,))[1]


def _slope(what: str, along: Callable, remedy: str, wanted: list) -> Row:
    gaps, slopes = [], []
    for index, differences in enumerate(wanted):
        lengths = jnp.linalg.norm(differences, axis=1)
        units = differences / jnp.where(lengths > 0, lengths, 1)[:, None]
        try:
            found = along(index, units)
        except Exception as error:
            return Row(what, f"no: {_short(error)}", remedy)
        scale = jnp.abs(found) + lengths
        gaps.append(float(jnp.min(jnp.abs(found - lengths) / jnp.where(scale > 0, scale, 1))))
        slopes.append(found)
    if not np.all(np.isfinite(gaps)):
        return Row(what, "not finite", f"{remedy}; `sqrt`, `norm` and `log` have none at 0")
    if not any(bool(jnp.any(x != 0)) for x in slopes):
        return Row(what, "zero", f"{remedy}; rounding, comparisons and integers have none")
    off = float(np.median(gaps))
    if off > SLOPE_GAP:
        return Row(what, f"{off:.0%} off differences", "correct the rule of `jax.custom_vjp` or `custom_jvp`", True)
    return Row(what, f"as differences, to {max(off, 1e-6):.0e}")


def identifiable(subject: Subject, affine: bool) -> Row:
    """How many directions of signal space all measurements together see."""
    what, size = SEEN, count_entries(subject.signal)
    measurements = f"{subject.number} measurements" if subject.number > 1 else "one measurement"
    if size > LARGEST:
        return Row(what, f"not looked at: {size} entries, of at most {LARGEST}")
    try:
        rank = identifiability(subject.forward, subject.signals(1 if affine else 4), subject.params).rank
    except Exception as error:
        return Row(what, f"not looked at: {_short(error)}")
    remedy = "what no measurement sees is not learned: vary the parameters more, or leave it out of the signal"
    return Row(what, f"{rank} of {size} directions seen by {measurements}", "" if rank == size else remedy)


def speed(call: AnyCallable) -> Row:
    """The time of one of a batch of measurements, compiled."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    seconds = min(times) / BATCH
    remedy = "training calls it hundreds of times for each record of a round: make it cheaper, or the signal smaller"
    found = f"{seconds * 1e6:.3g} µs a measurement, of {BATCH} at a time"
    return Row("time", found, remedy if seconds > SLOW else "")


def gap(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value; 0 where both are NaN."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return float("inf")
    known = [
        (np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    ]
    if any(a.shape != b.shape for a, b in known):
        return float("inf")
    largest = max(float(np.max(np.abs(b), initial=0, where=np.isfinite(b))) for _, b in known)
    gaps = [np.where(a == b, 0, np.abs(a - b)) for a, b in known]
    return max(float(np.max(np.nan_to_num(x), initial=0)) for x in gaps) / (largest or 1)
