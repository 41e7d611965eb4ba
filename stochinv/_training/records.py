r"""The records of a fit in signal space: measurements alone, and records whose signals are known."""

from collections.abc import Callable
from typing import Any, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from .._checks import check_arrays, check_finite, check_instance
from .._complex import parts_structure, view_as_parts
from .._coordinates import Coordinates
from .._custom_types import AnyCallable, Key, Signal, Structure, summary
from .._data_info import check_counted, check_structure, describe
from .._forward.base import measures_stack
from .._pairs import Pairs, in_coordinates
from .._simulated import Region, Simulated, holds_signals, simulate_pairs
from .._structure import count_entries, same_structure
from .._view import View, check_signal, count, first, structure, view_mask
from .checks import FILL, check_number_of_records
from .plan import batch_size_of
from .prepare import check_output, known_signal, measured_structure

# The covariance of the signal is kept in full.
LARGEST_SIGNAL = 2048
# The most numbers of what the contexts of all the records say that a simulator makes for a round: 1 GB.
LARGEST_ROUND = 2**28


@final
class Records(eqx.Module):
    """Records in memory, checked.

    **Arguments:**

    - `views`: their measurements, with a mask; leading (record, views) axes.
    - `signals`: the signals of the last of them, as many as are known, or `None`.
    - `source`: a callable from a key and a region, or `None`, to the [`stochinv.Pairs`][] of a round, of which these
        are one; `None` where they are the same in all rounds.
    - `observed`: what was measured, where rounds narrow the signals down to what is possible given it, or `None`.
    """

    views: View
    signals: Signal | None
    source: AnyCallable | None = None
    observed: View | None = None

    @property
    def unknown(self) -> int:
        """How many records have no known signal."""
        return count(self.views) - (0 if self.signals is None else count(self.signals))

    def told(self) -> dict[str, View]:
        """What tells a run from others besides the records."""
        return {} if self.observed is None else {"observed": self.observed}

    def in_coordinates(self, coordinates: Coordinates) -> "Records":
        """Those of signals' coordinates, and of real measurements."""
        source = None if self.source is None else eqx.Partial(simulate_in_coordinates, self.source, coordinates)
        views, observed = (cast(View, view_as_parts(x)) for x in (self.views, self.observed))
        signals = None if self.signals is None else coordinates.from_signal(self.signals)
        return Records(views, signals, source, observed)

    def repeated(self, times: int) -> "Records":
        """Those whose signals are unknown so many times each, and the others once."""
        index = jnp.arange(count(self.views))
        index = jnp.concatenate([*[index[: self.unknown]] * times, index[self.unknown :]])
        return Records(jax.tree.map(lambda x: x[index], self.views), self.signals)

    def hold_out(self, number: int, key: Key) -> tuple["Records", "Records | None"]:
        """All but some of the records whose signals are unknown, or of all where there are none, chosen at random; and
        these, if there are any.

        **Arguments:**

        - `number`: how many are held out.
        - `key`: a PRNG key.
        """
        if not number:
            return self, None
        total, unknown = count(self.views), self.unknown
        order = jr.permutation(key, unknown or total)
        kept = jnp.concatenate([jnp.sort(order[number:]), jnp.arange(unknown, total) if unknown else order[:0]])
        of = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
        if unknown:
            return Records(of(self.views, kept), self.signals), Records(of(self.views, order[:number]), None)
        rest, out = (Records(of(self.views, i), of(self.signals, i)) for i in (kept, order[:number]))
        return rest, out


def as_records(
    problem: Any, data: Any, known: Any, batch_size: int | None, of_round: Callable[[Structure], int], key: Key
) -> tuple[Structure, Records]:
    """The structure of the signal, and the records that a user gave.

    **Arguments:**

    - `problem`: a [`stochinv.StochasticInverseProblem`][].
    - `data`: a `View`, `Pairs` or `Simulated`.
    - `known`: `Pairs`, or `None`.
    - `batch_size`: the number of records in a batch, `None` for the default.
    - `of_round`: the number of records that a round takes, for the structure of a signal.
    - `key`: a PRNG key.

    **Raises:**

    `ValueError` if they do not fit together or the forward model.
    """
    if known is not None:
        check_instance("`known`", known, Pairs, "`Pairs(signal, view)`, or None")
        if holds_signals(data):
            raise ValueError(
                f"`known` goes with `data` whose signals are unknown, but `data` is a {type(data).__name__}; put all "
                "pairs into `data`."
            )
    if isinstance(data, Simulated):
        return simulated_records(problem, data, batch_size, of_round, key)
    batch_size = 1 if batch_size is None else batch_size
    if isinstance(data, Pairs):
        check_pairs("data", data, problem, batch_size)
        signal, data = find_signal(problem, one_of(data.view), structure(first(data.signal))), as_arrays(data)
        Coordinates(signal, problem.support).check("data.signal", data.signal)
        return signal, Records(data.view, data.signal)
    check_views("data", data, problem, batch_size)
    views = as_masked(data)
    if known is None:
        return find_signal(problem, one_of(data)), Records(views, None)
    check_pairs("known", known, problem, 1)
    signal, known = find_signal(problem, one_of(data), structure(first(known.signal))), as_arrays(known)
    Coordinates(signal, problem.support).check("known.signal", known.signal)
    remedy = "give known records like those of `data`, with missing views masked out"
    check_structure("known.view[0]", first(known.view), structure(first(views)), remedy)
    return signal, Records(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), views, known.view), known.signal)


def simulated_records(
    problem: Any, data: Simulated, batch_size: int | None, of_round: Callable[[Structure], int], key: Key
) -> tuple[Structure, Records]:
    """The records of a simulator: those of its first round.

    A round has as many as its steps take, each of which is new, or as many as `LARGEST_ROUND` lets be.
    """
    known = draw_structure("Simulated: `prior`", data.prior)
    check_signal(known)
    if problem.signal is not None:
        check_same_signal(known, problem.signal)
    params = structure(data.one)
    one = View(measured_structure(problem.forward, known, params), params)
    signal = find_signal(problem, one, known)
    real = parts_structure(signal)
    entries, measured = (count_entries(parts_structure(x)) for x in (signal, one.observation))
    measured *= sizes[0] if (sizes := [x.shape[1] for x in jax.tree.leaves(data.params)]) else 1
    most = LARGEST_ROUND // (entries * min(entries, measured))
    number = max(batch_size_of(batch_size, real, None), min(of_round(real), most))
    coordinates = Coordinates(signal, problem.support)
    source = eqx.Partial(simulate_pairs, data, problem.forward, problem.noise, number, coordinates)
    pairs = eqx.filter_jit(source)(key)
    check_finite("Simulated: prior", pairs.signal, "draw finite signals")
    coordinates.check("Simulated: prior", pairs.signal)
    check_finite("forward", pairs.view.observation, "measure the prior's draws by finite numbers")
    return signal, Records(pairs.view, pairs.signal, source, data.observed)


def simulate_in_coordinates(source: AnyCallable, coordinates: Coordinates, key: Key, region: Region | None) -> Pairs:
    return in_coordinates(source(key, region), coordinates)


def draw_structure(name: str, law: AnyCallable) -> Structure:
    """The structure of what a law draws."""
    try:
        return eqx.filter_eval_shape(law, jr.key(0))
    except Exception as error:
        raise ValueError(f"{name} fails to draw from a key ({summary(error)}); give one that JAX can trace.") from error


def as_masked(views: View) -> View:
    """Records of views as arrays, with a mask."""
    return jax.tree.map(jnp.asarray, View(views.observation, views.params, np.asarray(jax.vmap(view_mask)(views))))


def as_arrays(pairs: Pairs) -> Pairs:
    return Pairs(jax.tree.map(jnp.asarray, pairs.signal), as_masked(pairs.view))


def check_pairs(name: str, pairs: Pairs, problem: Any, batch_size: int):
    """Records of signals and views: as many signals as records of views, finite."""
    check_arrays(f"{name}.signal", pairs.signal)
    check_views(f"{name}.view", pairs.view, problem, batch_size)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(pairs.signal)]
    number = count(pairs.view)
    if not shapes or any(shape[:1] != (number,) for shape in shapes):
        raise ValueError(
            f"`{name}.signal` has arrays of shapes {shapes}, but `{name}.view` has {number} records; give every array "
            "one signal per record."
        )
    check_finite(f"{name}.signal", pairs.signal, "leave their records out")


def check_views(name: str, data: View, problem: Any, batch_size: int):
    """Records of one or more views each: numbers, with record and views axes, finite where they count."""
    check_arrays(name, data)
    check_number_of_records(name, data, batch_size)
    shapes = [jnp.shape(x) for x in jax.tree.leaves((data.observation, data.params))]
    if any(len(shape) < 2 for shape in shapes) or len({shape[:2] for shape in shapes}) != 1 or shapes[0][1] == 0:
        raise ValueError(
            f"`{name}` has arrays of shapes {shapes}, but all must have the same leading (record, views) axes; give a "
            "record of one measurement a views axis of length 1, `x[:, None]`."
        )
    if data.mask is not None and np.shape(data.mask) != shapes[0][:2]:
        raise ValueError(f"`{name}.mask` has shape {np.shape(data.mask)}, but must have the shape {shapes[0][:2]}.")
    if measures_stack(problem.forward):
        raise ValueError("`forward` is a `MultiView`, but in signal space views are stacked already; give that of one.")
    check_counted(name, data, FILL)
    for path, x in jtu.tree_flatten_with_path(data.observation)[0]:
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            raise ValueError(
                f"`{name}.observation{jtu.keystr(path)}` is {jnp.result_type(x)}, but measurements must be "
                "floating-point arrays; use `.astype(jnp.float32)`."
            )


def one_of(data: View) -> View:
    """The structure of one view."""
    return structure(jax.tree.map(lambda x: x[0, 0], View(data.observation, data.params)))


def find_signal(problem: Any, one: View, known: Structure | None = None) -> Structure:
    """The structure of the signal, with which `forward` measures: as given, as that of known signals, or as the forward
    model knows it from the structure of a view."""
    if problem.signal is None and known is not None:
        signal = known
    else:
        signal = known_signal(problem, one.observation, one.params)
    if known is not None:
        check_same_signal(known, signal)
    check_signal(signal)
    size = count_entries(parts_structure(signal))
    if size > LARGEST_SIGNAL:
        raise ValueError(
            f"`signal` has {size} entries, but signal space takes up to {LARGEST_SIGNAL}; deal the views by "
            "`roles=RandomViews(...)`, to train in measurement space."
        )
    problem.noise.check(parts_structure(one.observation))
    check_output(problem.forward, signal, one.params, one.observation)
    return signal


def check_same_signal(known: Structure, signal: Structure):
    if not same_structure(known, signal):
        raise ValueError(f"The known signals are {describe(known)}, but `signal` is {describe(signal)}; change one.")
