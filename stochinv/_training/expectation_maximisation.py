r"""Training in signal space: expectation maximisation from measurements alone.

Records `c_i` hold one or more measurements each. A round has two steps:

- **M**: the denoiser learns from pairs of the signals drawn last and contexts that are simulated afresh from them, at
  the parameters of other records and with a random number of views.
- **E**: for every record a signal is drawn given its measurements, corrected by the likelihood where that is possible.

The first signals are draws of the best Gaussian given the measurements where the forward model is affine, and otherwise
of a Gaussian that the user guesses. Many short rounds do better than a few long ones.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._chunks import CHUNK, in_chunks
from .._custom_types import AnyCallable, Key, Signal, summary
from .._data_info import (
    DataInfo,
    check_structure,
    describe,
    destandardise_view,
    measure_units,
    witness,
)
from .._denoiser.evidence import Measured
from .._pairs import SimulatedContext
from .._problem_base import context_units, encode_again, encode_context
from .._sampler.importance import view_of
from .._sampling import sampler_of_rounds
from .._schedule import NoiseLevel
from .._signal_problem import SignalProblem
from .._structure import same_structure
from .._view import Example, View, structure, take_views, view_mask
from ..nn import signal_denoiser
from .gaussian_start import Start, find_start, first_signal
from .known_signals import AbstractRounds, encode_records
from .probe import is_affine
from .records import Records, count

# The most numbers that are kept of what contexts say: 1 GB in single precision.
LARGEST_BANK = 2**28


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
    info = DataInfo(signal, None, structure(first), begin.coordinates, affine, seen, units, begin.form)
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
    - `length`: the number of optimiser steps in a round.
    - `batch_size`: the number of records in a step. A round draws no more signals than take as long as its steps.
    """

    def __init__(
        self,
        problem: Any,
        records: Records,
        begin: Start | None,
        guess: AnyCallable | None,
        key: Key,
        length: int,
        batch_size: int,
    ):
        self.length = length
        self._data, self._known, self._begin, self._guess, self._key = records.views, records.signals, begin, guess, key
        self._roles = SimulatedContext(problem.measure, problem.measurement_noise)
        self._sampler, cost = sampler_of_rounds(problem)
        self._number, self._total = records.unknown, count(records.views)
        self._drawn = min(self._number, max(CHUNK, length * batch_size // cost))
        self._measured = Measured(problem.measure, problem.measurement_noise, context_units(problem))
        self._bank = None
        if problem.data_info.affine and problem.measurement_noise.every_level:
            self._bank = eqx.filter_jit(self._make_bank)(problem, self._data, jr.fold_in(key, 1))
        self._simulate = eqx.filter_jit(self._simulate_traced)
        self._draw = eqx.filter_jit(self._draw_traced)
        if begin is None and guess is None:
            self.signals: Signal = None
            self.draw(problem, 0, everything=True)
        else:
            unknown = jax.tree.map(lambda x: x[: self._number], self._data)
            self.signals = self._with_known(eqx.filter_jit(self._first)(problem, unknown, begin, jr.fold_in(key, 0)))

    def _with_known(self, drawn):
        """The signals of all records."""
        if self._known is None:
            return drawn
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, self._known)

    def _make_bank(self, problem, data, key):
        """Encoded contexts of the number and parameters of views that steps train on, whatever was measured."""
        order_key, deal_key = jr.split(key)
        size = sum(x.size for x in jax.tree.leaves(problem.signal))
        entries = sum(x.size for x in jax.tree.leaves(data.observation)) // self._total
        each = size if problem.data_info.form == "diagonal" else size * min(size, entries)
        most = max(CHUNK, LARGEST_BANK // each)
        order = jr.permutation(order_key, self._total)[:most]
        views = jax.vmap(self._roles.deal)(take_views(data, order), jr.split(deal_key, order.size))
        return in_chunks(lambda view: encode_context(problem, view), views)

    def _first(self, problem, data, begin, key):
        """Draws of the law to start from, or of the best Gaussian given the measurements."""
        keys = jr.split(key, self._number)
        if self._guess is not None:
            return jax.vmap(self._guess)(keys)
        one = lambda inputs: first_signal(begin, self._measured, problem.signal, *inputs)
        return begin.clip(in_chunks(one, (data, keys)))

    def records(self, problem: Any, number: int) -> Example:
        """What the steps of round `number = 0, 1, …` train on: the signals, and contexts simulated from them."""
        return self._simulate(problem, self.signals, self._data, self._bank, jr.fold_in(self._key, 2 * number + 3))

    def _simulate_traced(self, problem, signals, data, bank, key):
        if bank is None:
            return Example(encode_records(problem, self._roles(signals, data, key=key)), View(signals), None)
        order_key, noise_key = jr.split(key)
        order = jr.permutation(order_key, self._total)
        number = jax.tree.leaves(bank)[0].shape[0]
        signals = jax.tree.map(lambda x: x[order[:number]], signals)

        def one(inputs):
            signal, encoded, key = inputs
            view = self._roles.observe(signal, view_of(encoded), key)
            return encode_again(problem, encoded, view)

        return Example(in_chunks(one, (signals, bank, jr.split(noise_key, number))), View(signals), None)

    def draw(self, problem: Any, number: int, *, everything: bool = False) -> list[float]:
        """Draws records' signals anew, for round `number = 1, 2, …`.

        No more, of records chosen at random, than take as long as the round's steps. They stand in for the others,
        whose signals were drawn when the denoiser knew less: which record a signal came from does not matter.

        **Returns:**

        The root mean square by which they miss the given measurements, in standard deviations of the noise.
        """
        key, draw_key = jr.split(jr.fold_in(self._key, 2 * number + 2))
        index = jr.permutation(key, self._number)[: self._number if everything else self._drawn]
        drawn, residual = self._draw(problem, self._data, index, draw_key)
        self.signals = self._with_known(drawn)
        return [float(residual)]

    def _draw_traced(self, problem, data, index, key):
        def one(inputs):
            view, key = inputs
            context = encode_context(problem, view)
            signal = self._sampler(problem, context, None, key=key).signal
            return signal, residual(problem, self._measured, signal, view_of(context))

        drawn, (squares, counts) = in_chunks(one, (take_views(data, index), jr.split(key, index.size)))
        drawn = drawn if self._begin is None else self._begin.clip(drawn)
        repeated = jnp.arange(self._number) % index.size
        signals = jax.tree.map(lambda x: x[repeated], drawn)
        return signals, jnp.sqrt(jnp.sum(squares) / jnp.maximum(jnp.sum(counts), 1))


def residual(
    problem: SignalProblem, measured: Measured, signal: Signal, views: View
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of squares by which a signal misses views, in standard deviations of the noise, and of how many entries.

    Both are 0 where the size of the noise is not known.
    """
    raw = destandardise_view(context_units(problem), views)
    if measured.noise.std(jax.tree.map(lambda x: x[0], raw.observation)) is None:
        return jnp.zeros(()), jnp.zeros(())
    misfit = measured.misfit(lambda _: signal, views)(None)
    mask = view_mask(views)
    return jnp.sum(misfit**2), jnp.sum(mask) * (misfit.size / mask.size)
