r"""How well measurements that training does not see are predicted, round by round.

Each record of several measurements gives all but one of them as its context, and the one that is left is predicted,
noise included. A record of one measurement gives none: its prediction by the prior tells less, and rounds go on for
longer. No prediction has a better expected energy score than the exact
posterior's (Gneiting and Raftery 2007), and central intervals of exact posteriors hold as many as their level says.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import Key, Signal
from .._objective.rules import EnergyRule
from .._problem_base import context_units, encode_context
from .._sampling import sampler_of_rounds
from .._view import View, take_views, view_mask

LEVELS = (0.5, 0.8, 0.9)
# Of the records one in twenty is held out, no more than these, and none of fewer.
SHARE, MOST, FEWEST = 20, 128, 8
# How many draws predict each measurement, and how many records are drawn for at once.
DRAWS, CHUNK = 8, 16
# By how much, relatively, the best score must fall, and in how many rounds; and how many there are at least where most
# records give no context.
LEAST_GAIN, PATIENCE, FEWEST_BLUNT = 0.005, 2, 6
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
    rank = (jnp.sum(predicted < observed, 0) + jr.uniform(spread_key, observed.shape)) / (number + 1)
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

    def __init__(self, problem: Any, views: View, key: Key):
        self._sampler, _ = sampler_of_rounds(problem)
        split_key, self._key = jr.split(key)
        self._given, self._unseen = jax.jit(hold_out)(views, split_key)
        blunt = float(jnp.mean(jnp.any(self._given.mask, 1))) < 0.5
        self._fewest = FEWEST_BLUNT if blunt else PATIENCE + 1
        self._look = eqx.filter_jit(self._look_traced)

    def look(self, problem: Any) -> tuple[float, list[float]]:
        """The mean energy score of a trained problem's predictions, and the shares in intervals of `LEVELS`.

        **Arguments:**

        - `problem`: the trained problem of signals.
        """
        energy, inside = self._look(problem, self._given, self._unseen, self._key)
        return float(energy), inside.tolist()

    def settled(self, scores: list[float]) -> bool:
        """Whether the scores of all rounds so far say that further ones gain nothing."""
        return has_settled(scores, self._fewest)

    def _look_traced(self, problem, given, unseen, key):
        def one(inputs):
            views, unseen, key = inputs
            draw_key, predict_key = jr.split(key)
            context = encode_context(problem, views)
            draw = lambda key: self._sampler(problem, context, None, key=key).signal
            return predict(problem, jax.vmap(draw)(jr.split(draw_key, DRAWS)), unseen, predict_key)

        number = jax.tree.leaves(unseen)[0].shape[0]
        found = in_chunks(one, (given, unseen, jr.split(key, number)), CHUNK)
        return jnp.mean(found["energy"]), jnp.mean(found["inside"], 0)


def lost_track(residual: list[float], coverage: list[list[float]]) -> str | None:
    """What is wrong with the rounds so far, if draws left the given data, or became too sure, where they were not."""
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


def has_settled(scores: list[float], fewest: int) -> bool:
    """Whether the scores of rounds, in order, no longer fall: none of the last `PATIENCE` is lower than the best before
    by `LEAST_GAIN`, of `fewest` rounds or more."""
    if len(scores) < max(fewest, PATIENCE + 1):
        return False
    return min(scores[-PATIENCE:]) > (1 - LEAST_GAIN) * min(scores[:-PATIENCE])
