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
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import AnyCallable, Key, Signal, summary
from .._data_info import (
    DataInfo,
    check_structure,
    describe,
    destandardise_view,
    measure_units,
    standardise_view,
    witness,
)
from .._denoiser.gaussian_prior import signal_scale
from .._denoiser.gaussian_residual import LEAST_NOISE, Measured
from .._pairs import Pairs, SimulatedContext
from .._problem_base import context_units, encode_context
from .._sampler.importance import view_of
from .._sampling import default_sampler
from .._schedule import NoiseLevel
from .._signal_problem import SignalProblem
from .._structure import same_structure
from .._view import Example, View, structure, view_mask
from .._whitening import Whitening, whitening
from ..nn import signal_denoiser
from .gaussian import GAUSSIAN_ROUNDS, best_gaussian, condition
from .known_signals import AbstractRounds, encode_records
from .probe import is_affine
from .records import Records, count

# The most numbers that the evidence of the records may take from which the Gaussian is found.
LARGEST_EVIDENCE = 2**26


def prepare_signals(problem: Any, records: Records, signal: Any, start: Any, standardise: bool, key: Key) -> Any:
    """A problem that knows the structure and the units of its data, and has a denoiser.

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
        return trained_before(problem, data)
    probe_key, start_key, denoiser_key = jr.split(key, 3)
    first = jax.tree.map(lambda x: x[0], data)
    params = jax.tree.map(lambda x: x[0], first.params)
    affine = is_affine(problem.forward, signal, params, probe_key)
    units = measure_units(data.observation, standardise=standardise)
    coordinates = standard_normal(signal)
    if start is not None:
        coordinates = gaussian_of(start, start_key)
    elif affine and problem.noise.every_level and records.unknown:
        scale = signal_scale(problem.forward, signal, params, units)
        coordinates = gaussian_start(Measured(problem.forward, problem.noise, units), signal, scale, records, start_key)
    elif records.signals is not None:
        coordinates = gaussian_of_signals(records.signals)
    seen = witness(problem.forward, signal, params)
    info = DataInfo(signal, None, structure(first), coordinates, affine, seen, units)
    denoiser = problem.denoiser
    if denoiser is None:
        denoiser = signal_denoiser(problem.forward, signal, info, noise=problem.noise, key=denoiser_key)
    problem = dataclasses.replace(problem, denoiser=denoiser, signal=signal, data_info=info)
    check_denoiser(problem.noised, first)
    return problem


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


def standard_normal(signal: Any) -> Whitening:
    """Signals as they are: the start where nothing is known."""
    flat, _ = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signal))
    return whitening(flat, jnp.eye(flat.size, dtype=flat.dtype))


def gaussian_of(start: AnyCallable, key: Key) -> Whitening:
    """The Gaussian with the moments of a law."""

    @jax.jit
    def find(key):
        draws = jax.vmap(lambda k: ravel_pytree(start(k))[0])(jr.split(key, 4096))
        mean, scale = jnp.mean(draws, 0), jnp.max(jnp.std(draws, 0))
        return whitening(mean / scale, jnp.atleast_2d(jnp.cov((draws - mean) / scale, rowvar=False)), scale)

    return find(key)


@jax.jit
def gaussian_of_signals(signals: Signal) -> Whitening:
    """The Gaussian with the moments of known signals, as many of which as a signal has entries are shrunk to a ball."""
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(signals)
    number, size = flat.shape
    mean, spread = jnp.mean(flat, 0), jnp.sqrt(jnp.mean(jnp.var(flat, 0)))
    spread = jnp.where(spread > 0, spread, 1)
    white = (flat - mean) / spread
    covariance = (white.T @ white + size * jnp.eye(size, dtype=flat.dtype)) / (number + size)
    return whitening(mean / spread, covariance, spread)


def gaussian_start(measured: Measured, signal: Any, scale: float, records: Records, key: Key) -> Whitening:
    """The best Gaussian of measurements through an affine forward model, `scale` being about its size.

    A known signal counts as a measurement of all its entries, with next to no noise.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signal))
    number, unknown = count(records.views), records.unknown
    most = min(number, max(256, LARGEST_EVIDENCE // flat.size**2))

    def evidence(inputs):
        view, known, exact = inputs
        precision, shift = measured.affine_evidence(lambda z: unravel(scale * z), flat, view)
        sure = jnp.eye(flat.size, dtype=flat.dtype) / LEAST_NOISE**2
        return jnp.where(exact, sure, precision), jnp.where(exact, sure @ known, shift)

    @jax.jit
    def find(records, key):
        chosen = jr.permutation(key, number)[:most]
        views = standardise_view(measured.units, jax.tree.map(lambda x: x[chosen], records.views))
        known = jnp.zeros((number, flat.size), flat.dtype)
        if records.signals is not None:
            known = known.at[unknown:].set(jax.vmap(lambda x: ravel_pytree(x)[0])(records.signals) / scale)
        precision, shift = in_chunks(evidence, (views, known[chosen], chosen >= unknown))
        return best_gaussian(precision, shift, GAUSSIAN_ROUNDS)

    data = Records(records.views, records.signals)
    return jax.jit(whitening)(*find(data, key), scale)


class Rounds(AbstractRounds):
    """The rounds of expectation maximisation: what their steps train on.

    **Arguments:**

    - `problem`: the prepared problem of signals.
    - `records`: the training records. Signals that are known are not drawn.
    - `start`: a callable from a key to a signal, for the first signals, or `None`.
    - `key`: a PRNG key.
    - `length`: the number of optimiser steps in a round.
    - `trained`: whether the denoiser was trained before, and draws the first signals itself.
    """

    def __init__(
        self, problem: Any, records: Records, start: AnyCallable | None, key: Key, length: int, *, trained: bool = False
    ):
        self.length = length
        self._data, self._known, self._start, self._key = records.views, records.signals, start, key
        self._roles = SimulatedContext(problem.measure, problem.measurement_noise)
        self._sampler = default_sampler(problem)
        self._number = records.unknown
        self._simulate = eqx.filter_jit(self._simulate_traced)
        self._draw = eqx.filter_jit(self._draw_traced)
        self._measured = Measured(problem.measure, problem.measurement_noise, context_units(problem))
        unknown = jax.tree.map(lambda x: x[: self._number], self._data)
        self._given = eqx.filter_jit(encode_records)(problem, unknown)
        if trained:
            self.draw(problem, 0)
        else:
            drawn = eqx.filter_jit(self._first)(problem, unknown, jr.fold_in(key, 0))
            self.signals: Signal = self._with_known(drawn)

    def _with_known(self, drawn):
        """The signals of all records."""
        if self._known is None:
            return drawn
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, self._known)

    def _first(self, problem, data, key):
        """Draws of the law to start from, or of the best Gaussian given the measurements."""
        keys = jr.split(key, self._number)
        if self._start is not None:
            return jax.vmap(self._start)(keys)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), problem.signal)
        flat, unravel = ravel_pytree(zeros)
        signal = lambda z: problem.units.destandardise(unravel(z))

        def one(inputs):
            view, key = inputs
            z = jr.normal(key, flat.shape, flat.dtype)
            if problem.data_info.affine and self._measured.noise.every_level:
                view = standardise_view(self._measured.units, view)
                z = condition(*self._measured.affine_evidence(signal, flat, view), z)
            return signal(z)

        return in_chunks(one, (data, keys))

    def records(self, problem: Any, number: int) -> Example:
        """What the steps of round `number = 0, 1, …` train on: the signals, and contexts simulated from them."""
        return self._simulate(problem, self.signals, self._data, jr.fold_in(self._key, 2 * number + 1))

    def _simulate_traced(self, problem, signals, data, key):
        examples = self._roles(Pairs(signals, data), key=key)
        return Example(encode_records(problem, examples.context), examples.target)

    def draw(self, problem: Any, number: int) -> list[float]:
        """Draws all signals that are unknown anew, for round `number = 1, 2, …`.

        **Returns:**

        The root mean square by which they miss the given measurements, in standard deviations of the noise.
        """
        drawn, residual = self._draw(problem, self._given, jr.fold_in(self._key, 2 * number))
        self.signals = self._with_known(drawn)
        return [float(residual)]

    def _draw_traced(self, problem, given, key):
        def one(inputs):
            context, key = inputs
            signal = self._sampler(problem, context, None, key=key).signal
            return signal, residual(problem, self._measured, signal, view_of(context))

        signals, (squares, counts) = in_chunks(one, (given, jr.split(key, self._number)))
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
