r"""A simulator with a prior as training data: signals are drawn from the prior, and measured.

Where one measurement alone matters, the prior is narrowed down to where that measurement's posterior is, round by
round. Inside a region that holds all of the posterior, a truncated prior has the same posterior as the whole one, so
that nothing has to be weighted (Deistler et al. 2022). The region is a box along the principal axes of draws of the
posterior; signals are drawn from the prior until they are in it.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ._checks import check_arrays, check_callable, check_finite, check_instance
from ._coordinates import Coordinates
from ._custom_types import AnyCallable, Key, Params, PyTree, Signal, Structure
from ._data_info import AbstractUnits
from ._forward.base import AbstractForwardModel
from ._lazy import is_distribution
from ._noise import AbstractNoise
from ._pairs import Pairs, simulate_views
from ._structure import count_entries
from ._view import View

# By how much of its width a region is wider than the draws it is made of, to either side.
MARGIN = 0.25
# How often a signal is drawn to be in a region; one that is not is learned from all the same, as the posterior of what
# was observed stays what it is.
MOST_TRIES = 1000


@final
class Simulated(eqx.Module):
    """A simulator whose signals have a known prior, as data for [`stochinv.StochasticInverseProblem.fit`][].

    Every round of training draws fresh signals and simulates measurements of them, by the problem's forward model and
    noise. Inference is amortised: one network is the posterior of every context, as in neural posterior estimation.

    With `observed` it is sequential instead: after each round signals are drawn from that part of the prior alone which
    `observed` leaves possible, and so more of them are like what is looked for. The posterior given `observed` is then
    learned from fewer simulations; given anything else, or nothing, it is that of the truncated prior.

    **Arguments:**

    - `prior`: a NumPyro distribution, or a callable from a PRNG key to a signal in raw units.
    - `params`: the parameters of measurements, arrays with leading (record, views) axes. Each signal drawn is measured
        with those of a random record. `None` for those of `observed`, or, without it, for a forward model without
        parameters, and one measurement each.
    - `observed`: what was measured, a [`stochinv.View`][] with a leading views axis, or `None`.

    **Raises:**

    `ValueError` if the prior cannot draw, or if the parameters do not share their leading axes.

    ??? cite "Source"

        Papamakarios and Murray 2016, "Fast ε-free inference of simulation models with Bayesian conditional density
        estimation"; Deistler, Gonçalves and Macke 2022, "Truncated proposals for scalable and hassle-free
        simulation-based inference"; Cranmer, Brehmer and Louppe 2020, "The frontier of simulation-based inference", for
        the field.
    """

    prior: AnyCallable
    params: Params
    observed: View | None

    def __init__(self, prior: AnyCallable, params: Params = None, *, observed: View | None = None) -> None:
        self.prior = as_law("Simulated: `prior`", prior)
        if observed is not None:
            check_instance("Simulated: `observed`", observed, View, "a `View(observation, params)`, or None")
            if params is None:
                params = jax.tree.map(lambda x: jnp.asarray(x)[None], observed.params)
        self.params = params
        self.observed = observed

    def __check_init__(self) -> None:
        check_arrays("Simulated: params", self.params)
        check_finite("Simulated: params", self.params, "remove their records")
        shapes = [jnp.shape(x) for x in jax.tree.leaves(self.params)]
        if any(len(x) < 2 or 0 in x[:2] for x in shapes) or len({x[:2] for x in shapes}) > 1:
            raise ValueError(
                f"Simulated: `params` has arrays of shapes {shapes}, but all must have the same leading (record, views)"
                " axes; give parameters of one measurement each a views axis of length 1, `x[:, None]`."
            )

    def __repr__(self) -> str:
        shapes = [jnp.shape(x)[:2] for x in jax.tree.leaves(self.params)][:1]
        given = "without parameters" if not shapes else f"parameters of {shapes[0][0]} records of {shapes[0][1]} views"
        return f"Simulated({given}{'' if self.observed is None else ', for one observation'})"

    @property
    def one(self) -> PyTree:
        """The parameters of one measurement."""
        return jax.tree.map(lambda x: x[0, 0], self.params)


class Region(eqx.Module):
    """A box of signals, along axes of its own.

    **Arguments:**

    - `units`: the coordinates in which it is a box.
    - `axes`: its axes, in columns.
    - `low`, `high`: its corners, in coordinates along these.
    """

    units: AbstractUnits
    axes: Float[Array, "n n"]
    low: Float[Array, " n"]
    high: Float[Array, " n"]

    def holds(self, signal: Signal) -> Bool[Array, ""]:
        """Whether a signal, by its coordinates in raw units, is inside."""
        along = ravel_pytree(self.units.standardise(signal))[0] @ self.axes
        return jnp.all((self.low <= along) & (along <= self.high))


def everywhere(units: AbstractUnits, signal: Structure) -> Region:
    """The region that holds every signal."""
    size = count_entries(signal)
    like = jnp.result_type(*jax.tree.leaves(signal))
    return Region(units, jnp.eye(size, dtype=like), jnp.full(size, -jnp.inf, like), jnp.full(size, jnp.inf, like))


def region_of(units: AbstractUnits, signals: Signal) -> Region:
    """The region of some draws, and of `MARGIN` of its widths around them: of Gaussian draws it holds all but some
    millionths of their law.

    **Arguments:**

    - `units`: the coordinates in which it is a box.
    - `signals`: draws in raw units, with a leading axis.
    """
    flat = jax.vmap(lambda signal: ravel_pytree(units.standardise(signal))[0])(signals)
    axes = jnp.linalg.eigh(jnp.cov(flat.T).reshape(flat.shape[1], -1))[1]
    along = flat @ axes
    low, high = jnp.min(along, 0), jnp.max(along, 0)
    margin = MARGIN * (high - low)
    return Region(units, axes, low - margin, high + margin)


def simulate_pairs(
    simulated: Simulated,
    forward: AbstractForwardModel,
    noise: AbstractNoise,
    number: int,
    coordinates: Coordinates,
    key: Key,
    region: Region | None = None,
) -> Pairs:
    """Draws signals, and measures each.

    **Arguments:**

    - `simulated`: the prior, and the parameters of measurements.
    - `forward`, `noise`: the forward model and the noise of measurements.
    - `number`: how many signals.
    - `coordinates`: those of signals.
    - `key`: a PRNG key.
    - `region`: where signals are to be, if that can be had in `MOST_TRIES`; `None` for everywhere.
    """
    signal_key, choice_key, noise_key = jr.split(key, 3)
    draw = simulated.prior if region is None else eqx.Partial(draw_inside, simulated.prior, coordinates, region)
    signals: Signal = jax.vmap(draw)(jr.split(signal_key, number))
    sizes = [x.shape[:2] for x in jax.tree.leaves(simulated.params)]
    records, views = sizes[0] if sizes else (1, 1)
    index = jr.randint(choice_key, (number,), 0, records)
    params = jax.tree.map(lambda x: jnp.asarray(x)[index], simulated.params)
    measure = lambda signal, params, key: simulate_views(forward, noise, signal, params, views, key)
    return Pairs(signals, jax.vmap(measure)(signals, params, jr.split(noise_key, number)))


def draw_inside(prior: AnyCallable, coordinates: Coordinates, region: Region, key: Key) -> Signal:
    """The first draw of a prior that is in a region."""

    def again(state):
        key, signal, tries = state
        return ~region.holds(coordinates.from_signal(signal)) & (tries < MOST_TRIES)

    def draw(state):
        key, _, tries = state
        key, draw_key = jr.split(key)
        return key, prior(draw_key), tries + 1

    return jax.lax.while_loop(again, draw, draw((key, None, jnp.zeros((), int))))[1]


def as_law(name: str, law: Any) -> AnyCallable:
    """A law that a user gave as a callable from a key to a draw.

    **Raises:**

    `ValueError` if it is neither a NumPyro distribution nor a callable.
    """
    if is_distribution(law):
        return eqx.Partial(draw_from, law)
    check_callable(name, law, "a NumPyro distribution or a callable from a key to a signal")
    return law


def draw_from(law: Any, key: Key) -> Signal:
    return law.sample(key)


def holds_signals(data: Any) -> bool:
    """Whether training data hold or simulate signals, so that none has to be found."""
    return isinstance(data, Pairs | Simulated)
