r"""Draws from a trained problem: checks, the choice of a sampler, and chunks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._checks import check_integer, check_key
from ._custom_types import AnyCallable, Context, Key, Params
from ._data_info import check_measurement
from ._problem_base import AbstractProblem, encode_context, trained_denoiser
from ._sampler.ancestral import Ancestral
from ._sampler.base import AbstractSampler, Sample, as_sampler
from ._sampler.exponential_adams import ExponentialAdams
from ._sampler.importance import ImportanceSampling

# The largest signal, in entries, whose draws are chosen by importance weights.
LARGEST_CORRECTED = 16
# Signals with more entries are images, whose networks are dear.
LARGEST_VECTOR = 256


def corrects(problem: AbstractProblem) -> bool:
    """Whether draws given a context are chosen by importance weights."""
    return problem.likelihood_known and sum(x.size for x in jax.tree.leaves(problem.signal)) <= LARGEST_CORRECTED


def default_sampler(problem: AbstractProblem, *, given: bool = True) -> AbstractSampler:
    """The sampler that suits a problem, as [`stochinv.StochasticInverseProblem.sample`][] says.

    **Arguments:**

    - `problem`: the problem of what is noised.
    - `given`: whether there is a context; without one there is no likelihood to correct draws by.
    """
    if given and corrects(problem):
        return ImportanceSampling()
    if not problem.noise.every_level:
        return Ancestral(1)
    return Ancestral() if problem.objective.stochastic else ExponentialAdams()


def sampler_of_rounds(problem: AbstractProblem) -> tuple[AbstractSampler, int]:
    """The sampler of expectation maximisation's rounds, whose draws are learned from, not looked at, and on how many
    records training takes as long as one draw."""
    size = sum(x.size for x in jax.tree.leaves(problem.signal))
    if corrects(problem):
        return ImportanceSampling(), 3 * (size + 1)
    steps = 8 if size > LARGEST_VECTOR else 24
    return ExponentialAdams(steps), steps // 3


def sample(
    problem: AbstractProblem,
    context: Context,
    params: Params,
    *,
    key: Key,
    sampler: AbstractSampler | AnyCallable | None,
    num_samples: int | None,
    chunk_size: int,
) -> Sample:
    """What `problem.sample` does, with all its defaults filled in."""
    problem = problem.noised
    trained_denoiser(problem)
    check_key(key)
    if num_samples is not None:
        check_integer("`num_samples`", num_samples)
    check_integer("`chunk_size`", chunk_size)
    sampler = default_sampler(problem, given=context is not None) if sampler is None else as_sampler(sampler)
    check_measurement("params", params)
    context, params = problem.as_context(context), jax.tree.map(jnp.asarray, params)
    keys = key if num_samples is None else jr.split(key, num_samples)
    return _sample(problem, sampler, context, params, keys, None if num_samples is None else chunk_size)


@eqx.filter_jit
def _sample(problem, sampler, context, params, keys, chunk_size):
    context = encode_context(problem, context)
    draw = lambda key: sampler(problem, context, params, key=key)
    if chunk_size is None:
        return draw(keys)
    if keys.shape[0] <= chunk_size:
        return jax.vmap(draw)(keys)
    return jax.lax.map(draw, keys, batch_size=chunk_size)
