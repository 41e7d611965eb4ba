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
from .._denoiser.gaussian_residual import Measured
from .._pairs import Pairs, SimulatedContext
from .._problem_base import context_units, encode_context
from .._sampler.importance import view_of
from .._sampling import corrects, default_sampler
from .._schedule import NoiseLevel
from .._signal_problem import SignalProblem
from .._structure import same_structure
from .._view import Example, View, structure, view_mask
from .._whitening import Whitening, whitening
from ..nn import signal_denoiser
from .gaussian import CHUNK, GAUSSIAN_ROUNDS, best_gaussian, condition, in_chunks
from .probe import is_affine

# The most numbers that the evidence of the records may take from which the Gaussian is found.
LARGEST_EVIDENCE = 2**26
# A corrected draw of a signal with n entries takes as long as the training on some 3 (n + 1) records.
CORRECTION = 3


def prepare_signals(problem: Any, data: View, signal: Any, start: Any, standardise: bool, key: Key) -> Any:
    """A problem that knows the structure and the units of its data, and has a denoiser.

    **Arguments:**

    - `problem`: a [`stochinv.StochasticInverseProblem`][].
    - `data`: records of views, with a mask.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `start`: a callable from a key to a signal, from whose law to start, or `None`.
    - `standardise`: whether measurements are standardised.
    - `key`: a PRNG key.
    """
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
    elif affine and problem.noise.every_level:
        scale = signal_scale(problem.forward, signal, params, units)
        coordinates = gaussian_start(Measured(problem.forward, problem.noise, units), signal, scale, data, start_key)
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


def gaussian_start(measured: Measured, signal: Any, scale: float, data: View, key: Key) -> Whitening:
    """The best Gaussian of measurements through an affine forward model, `scale` being about its size."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signal))
    number = jax.tree.leaves(data)[0].shape[0]
    most = min(number, max(256, LARGEST_EVIDENCE // flat.size**2))

    @jax.jit
    def find(data, key):
        chosen = jr.permutation(key, number)[:most]
        views = standardise_view(measured.units, jax.tree.map(lambda x: x[chosen], data))
        one = lambda view: measured.affine_evidence(lambda z: unravel(scale * z), flat, view)
        precision, shift = in_chunks(one, views)
        return best_gaussian(precision, shift, GAUSSIAN_ROUNDS)

    return jax.jit(whitening)(*find(data, key), scale)


class Rounds:
    """The rounds of expectation maximisation: what their steps train on.

    **Arguments:**

    - `problem`: the prepared problem of signals.
    - `data`: records of views, with a mask.
    - `start`: a callable from a key to a signal, for the first signals, or `None`.
    - `key`: a PRNG key.
    - `length`: the number of optimiser steps in a round.
    - `batch_size`: the number of records in a step. Where draws are corrected, a round draws no more signals, of
        records chosen at random, than take as long as its steps.
    - `trained`: whether the denoiser was trained before, and draws the first signals itself.
    """

    def __init__(
        self,
        problem: Any,
        data: View,
        start: AnyCallable | None,
        key: Key,
        length: int,
        batch_size: int,
        *,
        trained: bool = False,
    ):
        self.length = length
        self._data, self._start, self._key = data, start, key
        self._roles = SimulatedContext(problem.measure, problem.measurement_noise)
        self._sampler = default_sampler(problem)
        self._number = self._drawn = jax.tree.leaves(data)[0].shape[0]
        if corrects(problem):
            size = sum(x.size for x in jax.tree.leaves(problem.signal))
            self._drawn = min(self._number, max(length * batch_size // (CORRECTION * (size + 1)), CHUNK))
        self._simulate = eqx.filter_jit(self._simulate_traced)
        self._draw = eqx.filter_jit(self._draw_traced)
        self._measured = Measured(problem.measure, problem.measurement_noise, context_units(problem))
        self._given = eqx.filter_jit(self._encode)(problem, data)
        if trained:
            self.draw(problem, 0)
        else:
            self.signals: Signal = eqx.filter_jit(self._first)(problem, data, jr.fold_in(key, 0))

    def _encode(self, problem, views):
        return in_chunks(lambda view: encode_context(problem, view), views)

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
        return Example(self._encode(problem, examples.context), examples.target)

    def draw(self, problem: Any, number: int) -> float:
        """Draws the records' signals anew, for round `number = 1, 2, …`.

        Where not all are, those that are repeat: which record a signal came from does not matter to training.

        **Returns:**

        The root mean square by which they miss the given measurements, in standard deviations of the noise.
        """
        self.signals, residual = self._draw(problem, self._given, jr.fold_in(self._key, 2 * number))
        return float(residual)

    def _draw_traced(self, problem, given, key):
        def one(inputs):
            context, key = inputs
            signal = self._sampler(problem, context, None, key=key).signal
            return signal, residual(problem, self._measured, signal, view_of(context))

        chosen_key, draw_key = jr.split(key)
        chosen = jnp.arange(self._number)
        if self._drawn < self._number:
            chosen = jr.permutation(chosen_key, self._number)[: self._drawn]
        given = jax.tree.map(lambda x: x[chosen], given)
        signals, (squares, counts) = in_chunks(one, (given, jr.split(draw_key, self._drawn)))
        repeated = jnp.arange(self._number) % self._drawn
        signals = jax.tree.map(lambda x: x[repeated], signals)
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
