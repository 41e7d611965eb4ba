r"""Samplers: from noise to a signal, through a trained problem."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_callable, plain
from .._chunks import over_keys
from .._custom_types import AnyCallable, Context, FloatScalar, Key, Keys, Observation, Params, Signal
from .._noising import noise_level, scaled_normal
from .._schedule import NoiseLevel


class Sample(eqx.Module):
    """A signal together with its noise-free measurement.

    **Arguments:**

    - `signal`: the signal `ŝ`.
    - `observation`: `f(ŝ, φ)`.
    """

    signal: Signal
    observation: Observation


class AbstractSampler(eqx.Module):
    """Draws signals, and the target measurements they explain, given the context.

    Samplers work on standardised measurements; `problem.sample` standardises and compiles. Most are written for one
    sample: [`stochinv.AbstractIndependentSampler`][].
    """

    @abc.abstractmethod
    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        """Draws one sample.

        **Arguments:**

        - `problem`: a [`stochinv.StochasticInverseProblem`][] with a denoiser.
        - `context`: the context, its measurements in standardised units.
        - `params`: the parameters `φ` of the target measurement.
        - `key`: a PRNG key.

        **Returns:**

        A [`stochinv.Sample`][] in raw units: the signal, and `forward(signal, params)`.
        """

    @abc.abstractmethod
    def many(
        self, problem: Any, context: Context, params: Params, *, key: Key, num_samples: int, chunk_size: int
    ) -> Sample:
        """Draws samples given one context.

        It compiles what it calls by itself, with programs for any number of samples where it can. Draws are in random
        order: the first of more than were asked for may be taken.

        **Arguments:**

        - `problem`, `context`, `params`, `key`: as of one sample.
        - `num_samples`: how many.
        - `chunk_size`: how many signals are drawn at once.

        **Returns:**

        A [`stochinv.Sample`][] whose arrays have a leading axis.
        """


class AbstractIndependentSampler(AbstractSampler):
    """A sampler of one signal at a time: implement `__call__`."""

    def many(
        self, problem: Any, context: Context, params: Params, *, key: Key, num_samples: int, chunk_size: int
    ) -> Sample:
        return over_keys(_draw, (self, problem, context, params), jr.split(key, num_samples), chunk_size)


@eqx.filter_jit
def _draw(sampler, problem, context, params, keys):
    return jax.vmap(lambda key: sampler(problem, context, params, key=key))(keys)


def initial_noisy(problem: Any, params: Params, t: FloatScalar, key: Key) -> Observation:
    """A draw from `N(0, α² + σ²)`, the law of a standardised noisy measurement before anything is known of it."""
    observation = problem.observation_structure(params)
    level = noise_level(problem.schedule, t, observation)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), observation)
    return scaled_normal(zeros, jnp.sqrt(level.alpha**2 + level.sigma**2), key)


def draw_keys(problem: Any, num_draws: int, key: Key) -> Keys | None:
    """The keys of the draws over which a stochastic denoiser is averaged; `None` for a deterministic one.

    They are the same at every noise level, so that a solver sees a smooth vector field.
    """
    return jr.split(key, num_draws) if problem.objective.stochastic else None


def mean_observation(
    problem: Any, noisy: Observation, level: NoiseLevel, context: Context, params: Params, keys: Keys | None
) -> Observation:
    """`E[f(s, φ) | o_t, c]` in standardised units, averaged over the draws of a stochastic denoiser."""
    if keys is None:
        return problem.denoise(noisy, level, context, params).observation
    draws = jax.vmap(lambda key: problem.denoise(noisy, level, context, params, key=key).observation)(keys)
    return jax.tree.map(lambda x: jnp.mean(x, 0), draws)


def final_sample(
    problem: Any, noisy: Observation, t: FloatScalar, context: Context, params: Params, key: Key
) -> Sample:
    """The answer: the signal behind the last noisy measurement, and what it looks like."""
    level = noise_level(problem.schedule, t, noisy)
    draw_key = key if problem.objective.stochastic else None
    signal = problem.denoise(noisy, level, context, params, key=draw_key).signal
    return Sample(signal, problem.forward(signal, params))


@final
class SamplerFunction(AbstractIndependentSampler):
    """A callable with the arguments of a sampler as one.

    **Arguments:**

    - `function`: the callable `(problem, context, params, *, key) -> Sample`.
    """

    function: AnyCallable

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        return self.function(problem, context, params, key=key)


def as_sampler(sampler: Any) -> AbstractSampler:
    """The sampler that a user gave: an instance, or a callable.

    **Raises:**

    `ValueError` if it is neither, or a class.
    """
    if isinstance(sampler, AbstractSampler):
        return plain(sampler)
    check_callable("`sampler`", sampler, "a sampler such as `Ancestral()`, or None")
    return SamplerFunction(sampler)
