r"""Training in signal space: expectation maximisation from measurements alone.

Records `c_i` hold one or more measurements each. A round has two steps:

- **M**: the denoiser learns from pairs of the signals drawn last and contexts that are simulated afresh from them, at
  the parameters of other records and with a random number of views.
- **E**: for every record a signal is drawn given its measurements, or several where there are few records. Of few
  entries, and where the network alone says what measurements say, the draw is corrected by the likelihood: it is chosen
  from fresh draws and the signal that the record has. Round by round that is a Markov chain, whose law is right however
  blunt the network is.

The first signals are draws of the best Gaussian given the measurements where the forward model is affine, and otherwise
of a Gaussian that the user guesses. Many short rounds do better than a few long ones; the last is long, for what the
network learns of the signals, and begins with their law told by a mixture (see `law_of_draws`).
"""

import dataclasses
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from .._chunks import CHUNK, in_chunks
from .._custom_types import AnyCallable, Key, Signal, summary
from .._data_info import DataInfo, check_structure, describe, measure_units, witness
from .._denoiser.evidence import Measured
from .._grid import is_costly
from .._mixture import Mixture
from .._problem_base import context_units, encode_again, encode_context
from .._sampler.exponential_adams import ExponentialAdams
from .._sampler.importance import view_of
from .._sampling import OF_ROUNDS, corrects_rounds, sampler_of_rounds
from .._schedule import NoiseLevel
from .._signal_problem import SignalProblem
from .._structure import count_entries, same_structure
from .._view import Example, View, count, structure, take_views
from ..nn import signal_denoiser
from .contexts import simulated_context
from .gaussian_start import Start, find_start, first_signal
from .known_signals import AbstractRounds, encode_records
from .law_of_draws import find_law, no_law, with_law
from .plan import Plan
from .probe import is_affine
from .records import Records
from .residual import residual, root_mean_square
from .shrinkage import shrink, shrinks

# The most numbers that are kept of what contexts say: 1 GB in single precision.
LARGEST_BANK = 2**28
# For how many rounds at least signals are learned from that are candidates next time, and how many small signals.
ACTIVE_ROUNDS, LEAST_ACTIVE = 8, 4096
# How many signals at most are drawn for few records.
MOST_REPEATED = 2**14
# How often they are drawn anew before the last round, if there is time.
LAST_PASSES = 2
# How much the error of an entry counts that was not measured in a record, and that the network drew itself.
UNSEEN = 0.1


def prepare_signals(
    problem: Any, records: Records, signal: Any, start: Any, standardise: bool, key: Key
) -> tuple[Any, Start | None]:
    """A problem that knows the structure and the units of its data, and has a denoiser; and where it starts, which is
    `None` where it was trained before.

    **Arguments:**

    - `problem`: a [`stochinv.StochasticInverseProblem`][].
    - `records`: the training records.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `start`: a callable from a key to a signal, from whose law to start, or `None`.
    - `standardise`: whether measurements are standardised.
    - `key`: a PRNG key.
    """
    data = records.views
    if problem.data_info is not None:
        return trained_before(problem, data), None
    probe_key, start_key, denoiser_key = jr.split(key, 3)
    first = jax.tree.map(lambda x: x[0], data)
    params = jax.tree.map(lambda x: x[0], first.params)
    affine = is_affine(problem.forward, signal, params, probe_key)
    units = measure_units(data.observation, standardise=standardise)
    begin = find_start(problem, records, signal, units, start, affine, start_key)
    seen = witness(problem.forward, signal, params)
    told = (begin.coordinates, affine, seen, units, begin.form, begin.mixture)
    info = DataInfo(signal, None, structure(first), *told)
    denoiser = problem.denoiser
    if denoiser is None:
        denoiser = signal_denoiser(problem.forward, signal, info, noise=problem.noise, key=denoiser_key)
    problem = dataclasses.replace(problem, denoiser=denoiser, signal=signal, data_info=info)
    check_denoiser(problem.noised, first)
    return problem, begin


def trained_before(problem: Any, data: View) -> Any:
    """A problem whose training goes on, in the units that its denoiser knows.

    **Raises:**

    `ValueError` if it was not trained in signal space, or if the data are not like those of before.
    """
    info = problem.data_info
    if info.context_units is None:
        raise ValueError(
            "The problem was trained in measurement space, where denoisers take other arguments; make a new "
            "`StochasticInverseProblem`, or give `roles`."
        )
    record = jax.tree.map(lambda x: x[0], data)
    check_structure("data[0]", record, info.context, "go on with data like those of the first fit")
    return problem


def check_denoiser(problem: Any, views: View):
    """Raises a `ValueError` if a denoiser does not make a signal of a noised one and a stack of views."""
    level = NoiseLevel(jnp.ones(()), jnp.ones(()))
    try:
        denoised = eqx.filter_eval_shape(
            lambda signal, views: problem.denoiser(signal, level, encode_context(problem, views), None, key=None),
            problem.signal,
            views,
        )
    except Exception as error:
        raise ValueError(
            f"`denoiser` fails on a noised signal and a context of views ({summary(error)}); in signal space it must "
            "be a callable (noisy, level, context, None, *, key) -> signal; give `None` to have one made."
        ) from error
    if not same_structure(denoised, problem.signal):
        raise ValueError(
            f"`denoiser` returns {describe(denoised)}, but `signal` is {describe(problem.signal)}; change one."
        )


def repeat_records(problem: Any, records: Records, plan: Plan, batch_size: int) -> Records:
    """Few records so often that a round draws as many signals as take as long as its steps.

    From one signal of each a network would learn these by heart.
    """
    _, cost = sampler_of_rounds(problem)
    times = min(plan.length * batch_size // cost, MOST_REPEATED) // max(records.unknown, 1)
    return records.repeated(times) if records.unknown and times > 1 else records


class Rounds(AbstractRounds):
    """The rounds of expectation maximisation: what their steps train on.

    For affine forward models and Gaussian noise, what contexts say of a Gaussian signal is decomposed once for all
    rounds: it depends on the parameters alone. Up to `LARGEST_BANK` numbers of it are kept.

    **Arguments:**

    - `problem`: the prepared problem of signals.
    - `records`: the training records. Signals that are known are not drawn.
    - `begin`: where the first signals are drawn from, or `None` to have the denoiser draw them, which was trained
        before.
    - `guess`: a callable from a key to a signal, for the first signals, or `None`.
    - `key`: a PRNG key.
    - `plan`: which steps are in which round.
    - `batch_size`: the number of records in a step. A round draws no more signals than take as long as its steps.
    - `held_out`: records whose signals tell by how much the network's correction is to be shrunk, or `None`.
    """

    def __init__(
        self,
        problem: Any,
        records: Records,
        begin: Start | None,
        guess: AnyCallable | None,
        key: Key,
        plan: Plan,
        batch_size: int,
        held_out: Records | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.plan = plan
        self._data, self._known, self._begin, self._guess, self._key = records.views, records.signals, begin, guess, key
        sampler, cost = sampler_of_rounds(problem)
        self._renew = OF_ROUNDS.renew if corrects_rounds(problem) else None
        self._plain = sampler if self._renew is None else ExponentialAdams()
        self._number, self._total = records.unknown, count(records.views)
        self._drawn = min(self._number, max(CHUNK, plan.length * batch_size // cost))
        self._bank = None
        if problem.data_info.affine and problem.measurement_noise.every_level:
            self._bank = eqx.filter_jit(self._make_bank)(problem, self._data, jr.fold_in(key, 1))
        self._weights = None
        if problem.data_info.form == "diagonal":
            known = jnp.arange(self._total) >= self._number
            self._weights = eqx.filter_jit(weigh)(problem, self._data, known)
        self._simulate = eqx.filter_jit(self._simulate_traced)
        self._draw = eqx.filter_jit(self._draw_traced)
        self._held_out = self._held_weights = None
        if held_out is not None and shrinks(problem.denoiser, problem.signal):
            self._held_out = held_out.views
            if self._weights is not None:
                nothing = jnp.zeros(count(held_out.views), bool)
                self._held_weights = eqx.filter_jit(weigh)(problem, held_out.views, nothing)
        self._draw_again = eqx.filter_jit(self._draw_again_traced)
        # Whether the first signals are drawn given what was measured.
        self._informed = guess is None and (begin is None or begin.gaussian is not None or begin.form == "laplace")
        # In this order; those that stay candidates can be learned from for longer.
        self._order = jr.permutation(jr.fold_in(key, 2), self._number)
        active = self._drawn if self._renew is None else ACTIVE_ROUNDS * self._drawn
        self._active = min(self._number, active if is_costly(problem.signal) else max(LEAST_ACTIVE, active))
        everything = jnp.arange(self._number)
        views = self._with_held_out(jax.tree.map(lambda x: x[: self._number], self._data), self._held_out)
        if begin is None and guess is None:
            first, _ = self._draw(problem, begin, views, None, jr.fold_in(key, 4))
        else:
            first = eqx.filter_jit(self._first)(problem, views, begin, jr.fold_in(key, 0))
        self.kept: Any = Drawn(*self._apart(first), everything, jnp.zeros((), jnp.int32), no_law(problem))

    def _with_held_out(self, records, held_out):
        """Records with those that are held out last."""
        if self._held_out is None:
            return records
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), records, held_out)

    def _apart(self, signals):
        """Drawn signals, and those of records that are held out."""
        if self._held_out is None:
            return signals, None
        split = count(signals) - count(self._held_out)
        return jax.tree.map(lambda x: x[:split], signals), jax.tree.map(lambda x: x[split:], signals)

    def renewed(self, problem: Any) -> Any:
        return with_law(problem, self.kept.law)

    def finish(self, problem: Any) -> Any:
        if self._held_out is None:
            return problem
        return shrink(problem, self.kept.held_out, self._held_weights, self._held_out, jr.fold_in(self._key, 6))

    @property
    def signals(self) -> Signal:
        """What is learned from: a signal for each record, those that are known last."""
        drawn = jax.tree.map(lambda x: x[self.kept.latest], self.kept.signals)
        if self._known is None:
            return drawn
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, self._known)

    def _make_bank(self, problem, data, key):
        """Encoded contexts of the number and parameters of views that steps train on, whatever was measured."""
        order_key, deal_key = jr.split(key)
        size = count_entries(problem.signal)
        entries = count_entries(data.observation) // self._total
        each = size if problem.data_info.form == "diagonal" else size * min(size, entries)
        most = max(CHUNK, LARGEST_BANK // each)
        order = jr.permutation(order_key, self._total)[:most]
        deal = simulated_context(problem).deal
        views = jax.vmap(deal)(take_views(data, order), jr.split(deal_key, order.size))
        return in_chunks(lambda view: encode_context(problem, view), views)

    def _first(self, problem, data, begin, key):
        """Draws of the law to start from, or of the best Gaussian given the measurements."""
        keys = jr.split(key, count(data))
        if self._guess is not None:
            return jax.vmap(self._guess)(keys)
        one = lambda inputs: first_signal(begin, _measured(problem), problem.signal, *inputs)
        return begin.clip(in_chunks(one, (data, keys)))

    def records(self, problem: Any, number: int) -> Example:
        """What steps train on: the signals, and contexts simulated from them for the time `number = 0, 1, …`."""
        key = jr.fold_in(self._key, 2 * number + 3)
        weights = self._weights
        if weights is not None:
            weights = weights[jnp.append(self.kept.latest, jnp.arange(self._number, self._total))]
        return self._simulate(problem, self.signals, weights, self._data, self._bank, key)

    def _simulate_traced(self, problem, signals, weights, data, bank, key):
        roles = simulated_context(problem)
        if bank is None:
            return Example(encode_records(problem, roles(signals, data, key=key)), View(signals, weights), None)
        order_key, noise_key = jr.split(key)
        order = jr.permutation(order_key, self._total)
        number = jax.tree.leaves(bank)[0].shape[0]
        signals, weights = jax.tree.map(lambda x: x[order[:number]], (signals, weights))

        def one(inputs):
            signal, encoded, key = inputs
            view = roles.observe(signal, view_of(encoded), key)
            return encode_again(problem, encoded, view)

        return Example(in_chunks(one, (signals, bank, jr.split(noise_key, number))), View(signals, weights), None)

    def draw(self, problem: Any, number: int, *, last: bool) -> list[float]:
        """Draws records' signals anew, for the time `number = 1, 2, …`.

        No more than take as long as the steps of the round that they are for, which may be the `last`: those whose turn
        it is, in random order. Others are learned from for some rounds where their signals are candidates next time,
        and else they stand in for the others, whose signals were drawn when the denoiser knew less: which record a
        signal came from does not matter.

        **Returns:**

        The root mean square by which they miss the given measurements, in standard deviations of the noise.
        """
        key = jr.fold_in(self._key, 2 * number + 2)
        most = max(self.plan.steps // self.plan.length - number, 1) if last else 1
        passes = LAST_PASSES if last and self._renew is not None else 1
        times, residuals = min(passes * -(-self._number // self._drawn), most), []
        for turn in range(times):
            index = self._order[(self.kept.count + jnp.arange(self._drawn)) % self._number]
            given = (problem, self._begin, self._held_out, self._data, self.kept)
            self.kept, found = self._draw_again(*given, index, jr.fold_in(key, turn))
            residuals.append(float(found))
        known = self._number if self._informed else int(self.kept.count)
        active = min(max(self._active, times * self._drawn), known, self._number)
        latest = self._order[(self.kept.count - 1 - jnp.arange(self._number) % active) % self._number]
        self.kept = dataclasses.replace(self.kept, latest=latest)
        if last and self.kept.law is not None:
            law = find_law(problem, self.signals, jr.fold_in(self._key, 7))
            self.kept = dataclasses.replace(self.kept, law=law)
        return [math.sqrt(sum(x**2 for x in residuals) / times)]

    def _draw_again_traced(self, problem, begin, held_out_views, data, kept, index, key):
        present = self._with_held_out(jax.tree.map(lambda x: x[index], kept.signals), kept.held_out)
        if not self._informed:
            # No candidate: an exact network would weigh it like any other.
            guessed = kept.count + jnp.arange(count(present)) < self._number
            present = jax.vmap(lambda guessed, x: jax.tree.map(lambda x: jnp.where(guessed, jnp.nan, x), x))(
                guessed, present
            )
        views = self._with_held_out(take_views(data, index), held_out_views)
        drawn, residual = self._draw_traced(problem, begin, views, present, key)
        drawn, held_out = self._apart(drawn)
        signals = jax.tree.map(lambda x, new: x.at[index].set(new), kept.signals, drawn)
        return Drawn(signals, held_out, kept.latest, kept.count + index.size, kept.law), residual

    def _draw_traced(self, problem, begin, views, present, key):
        """Signals of records given their views, where their present signals are known candidates among others."""
        measured = _measured(problem)

        def one(inputs):
            view, present, key = inputs
            context = encode_context(problem, view)
            start_key, key = jr.split(key)
            if present is None or self._renew is None:
                present = self._plain(problem, context, None, key=start_key).signal
            signal = present if self._renew is None else self._renew(problem, context, present, key)
            return signal, residual(problem, measured, signal, view_of(context))

        drawn, (squares, counts) = in_chunks(one, (views, present, jr.split(key, count(views))))
        drawn = drawn if begin is None else begin.clip(drawn)
        return drawn, root_mean_square(squares, counts)


def _measured(problem):
    return Measured(problem.measure, problem.measurement_noise, context_units(problem))


def weigh(problem: SignalProblem, data: View, known: Bool[Array, " records"]) -> Float[Array, "records n"]:
    """How much the errors of each record's entries count: in full where they were measured, or the signal is known."""

    def one(inputs):
        view, known = inputs
        values = encode_context(problem, view).values
        return jnp.where(known, 1.0, UNSEEN + (1 - UNSEEN) * values / (1 + values))

    return in_chunks(one, (data, known))


class Drawn(eqx.Module):
    """The signals of all records, as they were drawn last.

    **Arguments:**

    - `signals`: one of each record whose signal is not known.
    - `held_out`: one of each record that is held out, `None` where none is.
    - `latest`: the records of those that are learned from, repeated to as many as there are.
    - `count`: how many were drawn since the first.
    - `law`: the mixture of Gaussians that was found of them, see [`stochinv._training.law_of_draws`][]; `None` where
        there is no room for one.
    """

    signals: Signal
    held_out: Signal | None
    latest: Int[Array, " records"]
    count: Int[Array, ""]
    law: Mixture | None
