r"""What a report looks at: draws, predictions and residuals of held-out records, as plain arrays.

Where draws are corrected by importance weights, they are chosen of proposals in random order, as many as one by one:
then they are independent as far as the proposals are, which tests by exchangeability ask for, and few repeat.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._chunks import in_chunks
from .._custom_types import Key, PyTree
from .._data_info import standardise_view
from .._denoiser.evidence import Measured
from .._instrument import effective_number
from .._noise import is_sized
from .._pairs import simulate_views
from .._problem_base import context_units, encode_context
from .._sampler.importance import ImportanceSampling, systematic
from .._sampling import corrects, sample, sample_many
from .._training.watch import hold_out
from .._view import View, num_views, view_mask

# How many records are worked on at once; draws whose residuals are looked at; proposals for each draw, and to tell how
# likely a record is.
CHUNK, RESIDUAL_DRAWS, PROPOSALS, LIKELY_PROPOSALS = 16, 4, 4, 32
# Where signals have no density: how many draws of the prior there are, and to how many of them, measured, a record is
# compared.
PRIOR_DRAWS, PRIOR_PREDICTIONS = 512, 63
OPTIONS: dict[str, Any] = {"sampler": None, "chunk_size": 1024}


class Residuals(NamedTuple):
    """What draws given all measurements of a record say of their means and noise; PyTrees of raw units.

    `predicted` and `std` have leading axes `(records, draws, views)`, `observed` and `mask` `(records, views)`.
    """

    predicted: PyTree
    observed: PyTree
    std: PyTree
    mask: Bool[Array, "records views"]


class HeldOut(NamedTuple):
    """What a posterior says of held-out records.

    **Arguments:**

    - `predicted`, `unseen`: predictions of a measurement that was not given, noise included, and that measurement; in
        standardised units, shapes `(records, draws, entries)` and `(records, entries)`.
    - `given`: what was given for these predictions, shape `(records, numbers)`; 0 where nothing was.
    - `residuals`: what draws given all measurements leave of these, or `None` where the noise's size is not known.
    - `drawn`, `signals`, `measured`: draws given all measurements of a record, the true signal, or `None` twice, and
        these measurements.
    - `likely`, `usual`: how likely each record is, and records that the learned prior makes: logarithms of densities,
        or negative distances to the nearest records that the prior makes.
    - `effective`: the effective sample size per draw of each record; `None` where draws are not weighted.
    """

    predicted: Float[Array, "records draws entries"]
    unseen: Float[Array, "records entries"]
    given: Float[Array, "records numbers"]
    residuals: Residuals | None
    drawn: Float[Array, "records draws size"] | None
    signals: Float[Array, "records size"] | None
    measured: Float[Array, "records numbers"]
    likely: Float[np.ndarray, " records"]
    usual: Float[np.ndarray, " simulated"]
    effective: Float[Array, " records"] | None


def look(problem: Any, views: View, signals: PyTree | None, num_samples: int, key: Key) -> HeldOut:
    """Draws all that a report looks at.

    **Arguments:**

    - `problem`: the trained problem of signals.
    - `views`: records of measurements, with a mask, of real and imaginary parts.
    - `signals`: the coordinates of their true signals, or `None`.
    - `num_samples`: how many draws there are of each posterior.
    - `key`: a PRNG key.
    """
    split_key, given_key, all_key, noise_key, prior_key, likely_key = jr.split(key, 6)
    given, unseen = jax.jit(hold_out)(views, split_key)
    effective, likely = None, None
    if corrects(problem):
        predicting = _weighted(problem, given, given_key, num_samples)[0]
        drawn, effective, likely = _weighted(problem, views, all_key, num_samples)
    else:
        predicting, drawn = (
            sample_many(problem, v, None, key=k, num_samples=num_samples, **OPTIONS).signal
            for v, k in ((given, given_key), (views, all_key))
        )
    predicted, flat = _predict(problem, predicting, unseen, noise_key)
    if likely is None:
        likely, usual = _likely_by_distance(problem, views, prior_key, likely_key)
    else:
        made = _made_by_prior(problem, views, prior_key)
        likely, usual = np.asarray(likely), np.asarray(_weighted(problem, made, likely_key, LIKELY_PROPOSALS // 4)[2])
    flatten = jax.vmap(lambda x: ravel_pytree(x)[0])
    return HeldOut(
        predicted=predicted,
        unseen=flat,
        given=_numbers(problem, given),
        residuals=_residuals(problem, views, jax.tree.map(lambda x: x[:, :RESIDUAL_DRAWS], drawn)),
        drawn=None if signals is None else jax.vmap(flatten)(drawn),
        signals=None if signals is None else flatten(signals),
        measured=_numbers(problem, views),
        likely=likely,
        usual=usual,
        effective=effective,
    )


@eqx.filter_jit
def _weighted(problem, views, key, num_samples):
    """Draws given each record, their effective sample size per proposal, and how likely the record is."""

    def one(inputs):
        view, key = inputs
        propose_key, choice_key, order_key = jr.split(key, 3)
        context = encode_context(problem, problem.as_context(view))
        proposals, log_weights = ImportanceSampling().propose(problem, context, propose_key, PROPOSALS * num_samples)
        index = systematic(log_weights, jr.uniform(order_key, log_weights.shape), choice_key, num_samples)
        # As many for all records, simulated or not: the logarithm of a mean depends on their number.
        some = log_weights[:LIKELY_PROPOSALS]
        likely = jax.nn.logsumexp(some) - jnp.log(some.size)
        return jax.tree.map(lambda x: x[index], proposals), effective_number(log_weights) / log_weights.size, likely

    number = jax.tree.leaves(views)[0].shape[0]
    return in_chunks(one, (views, jr.split(key, number)), CHUNK)


@eqx.filter_jit
def _predict(problem, signals, unseen, key):
    """Predictions of one view of each record, noise included, and the view; raveled, in standardised units."""
    flat = lambda observation: ravel_pytree(context_units(problem).standardise(observation))[0]

    def one(inputs):
        signals, view, key = inputs
        keys = jr.split(key, jax.tree.leaves(signals)[0].shape[0])
        measure = lambda s, k: flat(problem.measurement_noise.sample(k, problem.measure(s, view.params)))
        return jax.vmap(measure)(signals, keys), flat(view.observation)

    return in_chunks(one, (signals, unseen, jr.split(key, jax.tree.leaves(unseen)[0].shape[0])), CHUNK)


@eqx.filter_jit
def _numbers(problem, views):
    """The measurements of records, raveled and in standardised units, 0 where there are none."""

    def one(view):
        flat = jax.vmap(lambda x: ravel_pytree(x)[0])(standardise_view(context_units(problem), view).observation)
        return jnp.where(view_mask(view)[:, None], flat, 0).ravel()

    return jax.vmap(one)(views)


def _residuals(problem, views, drawn):
    one = jax.tree.map(lambda x: x[0, 0], views.observation)
    if problem.measurement_noise.exact or not is_sized(problem.measurement_noise, one):
        return None
    return _explained(problem, views, drawn)


@eqx.filter_jit
def _explained(problem, views, drawn):
    measured = Measured(problem.measure, problem.measurement_noise, context_units(problem))

    def one(inputs):
        view, signals = inputs
        # What is masked may be anything.
        view = problem.as_context(view)
        predicted, std = jax.vmap(lambda signal: measured.expect(signal, view))(signals)
        return Residuals(predicted, view.observation, std, view_mask(view))

    return in_chunks(one, (views, drawn), CHUNK)


def _made_by_prior(problem, views, key):
    """Records that the learned prior makes, measured as these are."""
    signal_key, noise_key = jr.split(key)
    number = jax.tree.leaves(views)[0].shape[0]
    signals = sample(problem, None, None, key=signal_key, num_samples=number, **OPTIONS).signal
    return _measure(problem, signals, views, jr.split(noise_key, number))


@eqx.filter_jit
def _measure(problem, signals, views, keys):
    def one(signal, view, key):
        noise, number = problem.measurement_noise, num_views(view)
        made = simulate_views(problem.measure, noise, signal, view.params, number, key)
        return View(made.observation, view.params, view.mask)

    return jax.vmap(one)(signals, views, keys)


def _likely_by_distance(problem, views, key, choice_key):
    """The negative distance of each record to the third nearest of some that the learned prior makes, measured as it
    is; and one such distance for a record that the prior made."""
    signal_key, noise_key = jr.split(key)
    signals = sample(problem, None, None, key=signal_key, num_samples=PRIOR_DRAWS, **OPTIONS).signal
    number = jax.tree.leaves(views)[0].shape[0]
    index = jr.randint(choice_key, (number, PRIOR_PREDICTIONS), 0, PRIOR_DRAWS)
    return tuple(np.asarray(x) for x in _distances(problem, views, signals, index, noise_key))


@eqx.filter_jit
def _distances(problem, views, signals, index, key):
    def one(inputs):
        view, index, key = inputs
        many = jax.tree.map(lambda x: jnp.broadcast_to(x, (PRIOR_PREDICTIONS, *x.shape)), view)
        made = _measure(problem, jax.tree.map(lambda x: x[index], signals), many, jr.split(key, PRIOR_PREDICTIONS))
        rows = jnp.concatenate([_numbers(problem, jax.tree.map(lambda x: x[None], view)), _numbers(problem, made)])
        spread = jnp.std(rows, 0)
        rows = rows / jnp.where(spread > 0, spread, 1)
        # Both of the first two, the record and one that the prior made, among all the others.
        squares = jax.vmap(lambda row: jnp.sum((rows - row) ** 2, 1))(rows[:2])
        return -jnp.sqrt(jnp.sort(squares.at[:, :2].set(jnp.inf), 1)[:, 2])

    number = index.shape[0]
    found = in_chunks(one, (views, index, jr.split(key, number)), CHUNK)
    return found[:, 0], found[:, 1]
