r"""How well measurements that training does not see are predicted, round by round.

Where draws are corrected by importance weights, the mean weight of a record's proposals is how likely the learned prior
makes all its measurements, `p(c) = ∫ p(c | s) q(s) ds`: the quantity that expectation maximisation makes larger. The
score is its negative logarithm, averaged over all records but the twentieth part for which it is largest.

Elsewhere each record of several measurements gives all but one of them as its context, and the score is the energy
score by which the one that is left is predicted, noise included. A record of one measurement gives none: its prediction
by the prior tells less, and rounds go on for longer. No prediction has a better expected score of either kind than the
exact posterior's (Gneiting and Raftery 2007), and central intervals of exact posteriors hold as many as their level
says.
"""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import FloatScalar, Key, Signal
from .._objective.rules import EnergyRule
from .._problem_base import context_units, encode_context
from .._ranks import fractional_ranks
from .._sampler.importance import ImportanceSampling
from .._sampling import corrects, sampler_of_rounds
from .._view import View, take_views, view_mask

LEVELS = (0.5, 0.8, 0.9)
# Of the records one in twenty is held out, no more than these, and none of fewer.
SHARE, MOST, FEWEST = 20, 128, 8
# How many draws predict each measurement, how many proposals tell how likely a record is, and how many records are
# drawn for at once.
DRAWS, PROPOSALS, CHUNK = 8, 8, 16
# By how much the best score must fall, and in how many rounds: an energy score relatively, the logarithm of a density
# by a number. And how many rounds there are at least where most records give no context.
LEAST_GAIN, LEAST_LOG_GAIN, PATIENCE, FEWEST_BLUNT = 0.005, 0.003, 3, 6
# Where draws have kept to the given data, where they have left them, in standard deviations of the noise; and by how
# much coverage may be off.
CLOSE, FAR, BAND = 1.2, 1.5, 0.08


def hold_out(views: View, key: Key) -> tuple[View, View]:
    """Records of views without one each, chosen at random of those that count, and these."""
    mask = jax.vmap(view_mask)(views)
    chosen = jnp.argmax(jnp.where(mask, jr.uniform(key, mask.shape), -1), 1)
    rest = mask & (jnp.arange(mask.shape[1]) != chosen[:, None])
    unseen = jax.vmap(take_views)(View(views.observation, views.params), chosen)
    return View(views.observation, views.params, rest), unseen


def predict(problem: Any, signals: Signal, unseen: View, key: Key) -> dict[str, Float[Array, "..."]]:
    """How draws of a signal predict one measurement: their energy score, in standardised units, and how much of it
    central intervals hold.

    **Arguments:**

    - `problem`: the trained problem of signals.
    - `signals`: draws in raw units, with a leading axis.
    - `unseen`: one view.
    - `key`: a PRNG key.
    """
    noise_key, spread_key = jr.split(key)
    flat = lambda observation: ravel_pytree(context_units(problem).standardise(observation))[0]
    number, observed = jax.tree.leaves(signals)[0].shape[0], flat(unseen.observation)
    one = lambda s, k: flat(problem.measurement_noise.sample(k, problem.measure(s, unseen.params)))
    predicted = jax.vmap(one)(signals, jr.split(noise_key, number))
    rank = fractional_ranks(predicted, observed, key=spread_key)
    inside = jnp.stack([jnp.mean(jnp.abs(2 * rank - 1) <= level) for level in LEVELS])
    return {"energy": EnergyRule()((predicted,), (observed,)), "inside": inside}


def number_held_out(records: int, batch_size: int) -> int:
    """How many of so many records are held out; none where they are few, or a batch would not be left."""
    number = min(MOST, records // SHARE)
    return number if number >= FEWEST and records - number >= batch_size else 0


class Watch:
    """Records that are held out of training, and how well they are predicted.

    **Arguments:**

    - `problem`: the prepared problem of signals.
    - `views`: their measurements, with a mask; leading (record, views) axes.
    - `key`: a PRNG key.
    """

    def __init__(self, problem: Any, views: View, key: Key) -> None:
        self._sampler, _ = sampler_of_rounds(problem)
        self._weighs = corrects(problem)
        split_key, self._key = jr.split(key)
        self._views = views
        self._given, self._unseen = jax.jit(hold_out)(views, split_key)
        blunt = not self._weighs and float(jnp.mean(jnp.any(self._given.mask, 1))) < 0.5
        self._fewest = FEWEST_BLUNT if blunt else PATIENCE + 1
        self._weigh = eqx.filter_jit(self._weigh_traced)
        self._predict = eqx.filter_jit(self._predict_traced)

    def look(self, problem: Any) -> tuple[float, list[float] | None]:
        """The mean score of a trained problem, and the shares in intervals of `LEVELS` where measurements are
        predicted.

        **Arguments:**

        - `problem`: the trained problem of signals.
        """
        if self._weighs:
            return float(self._weigh(problem, self._views, self._key)), None
        score, inside = self._predict(problem, self._given, self._unseen, self._key)
        return float(score), inside.tolist()

    def settled(self, scores: list[float]) -> bool:
        """Whether the scores of all rounds so far say that further ones gain nothing."""
        return has_settled(scores, self._fewest, logarithmic=self._weighs)

    def _predict_traced(self, problem, given, unseen, key):
        def one(inputs):
            given, unseen, key = inputs
            draw_key, predict_key = jr.split(key)
            context = encode_context(problem, given)
            drawn = self._sampler.many(problem, context, None, key=draw_key, num_samples=DRAWS, chunk_size=DRAWS)
            return predict(problem, drawn.signal, unseen, predict_key)

        number = jax.tree.leaves(unseen)[0].shape[0]
        found = in_chunks(one, (given, unseen, jr.split(key, number)), CHUNK)
        return jnp.mean(found["energy"]), jnp.mean(found["inside"], 0)

    def _weigh_traced(self, problem, views, key):
        keys = jr.split(key, jax.tree.leaves(views)[0].shape[0])
        found = in_chunks(lambda inputs: log_evidence(problem, *inputs), (views, keys), CHUNK)
        # All proposals of a record may miss: then the mean would be that record's.
        return -jnp.mean(jnp.sort(found)[found.size // SHARE :])


def log_evidence(problem: Any, views: View, key: Key) -> FloatScalar:
    """How likely the learned prior makes the views of a record, the logarithm of their density in raw units, by the
    mean weight of some proposals.

    **Arguments:**

    - `problem`: the trained problem of signals.
    - `views`: the views.
    - `key`: a PRNG key.
    """
    _, log_weights = ImportanceSampling().propose(problem, encode_context(problem, views), key, PROPOSALS)
    return jax.nn.logsumexp(log_weights) - jnp.log(PROPOSALS)


def lost_track(residual: list[float], coverage: list[list[float]]) -> str | None:
    """What is wrong with the rounds so far: draws left the given data, or became too sure, where they were not, or they
    are far from the data and come no nearer."""
    if len(residual) > PATIENCE and min(residual) > FAR and min(residual[-PATIENCE:]) > 0.95 * residual[-PATIENCE - 1]:
        return (
            f"draws miss the given measurements by {residual[-1]:.2f} standard deviations of the noise and come no "
            "nearer, so that rounds learn their own errors; leave `denoiser` out to have one that keeps to the data, "
            "or check `forward` and `noise`"
        )
    if any(x < CLOSE for x in residual[:-1]) and residual[-1] > FAR:
        return (
            f"draws miss the given measurements by {residual[-1]:.2f} standard deviations of the noise, more than in "
            "rounds before; check `forward` and `noise`, or take the result of fewer `rounds`"
        )
    held = [inside[-1] for inside in coverage]
    if any(x > LEVELS[-1] - BAND for x in held[:-1]) and held[-1] < LEVELS[-1] - 2 * BAND:
        return (
            f"intervals of {LEVELS[-1]:.0%} hold {held[-1]:.0%} of held-out measurements, fewer than in rounds before; "
            "check `noise`, give more records, or take the result of fewer `rounds`"
        )
    return None


def warn_never_close(residual: list[float]):
    """Warns where the draws of all rounds were far from the given data."""
    if residual and min(residual) > CLOSE and residual[-1] > FAR:
        warnings.warn(
            f"The signals that were learned from miss their own measurements by {residual[-1]:.2f} standard deviations "
            "of the noise; train for longer, leave `denoiser` out to have one that keeps to them, or check `forward` "
            "and `noise`.",
            stacklevel=7,
        )


def has_settled(scores: list[float], fewest: int, *, logarithmic: bool) -> bool:
    """Whether the scores of rounds, in order, no longer fall: none of the last `PATIENCE` is lower than the best before
    by `LEAST_GAIN` of it, or by `LEAST_LOG_GAIN` if it is a logarithm, of `fewest` rounds or more."""
    if len(scores) < max(fewest, PATIENCE + 1):
        return False
    best = min(scores[:-PATIENCE])
    return min(scores[-PATIENCE:]) > best - (LEAST_LOG_GAIN if logarithmic else LEAST_GAIN * best)
