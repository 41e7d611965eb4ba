r"""Draws from a trained problem: checks, the choice of a sampler, and chunks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._custom_types import AnyCallable, Context, Key, Params
from ._data_info import check_context, check_finite
from ._problem_base import AbstractProblem, trained_denoiser
from ._sampler.ancestral import Ancestral
from ._sampler.base import AbstractSampler, Sample, as_sampler
from ._sampler.exponential_adams import ExponentialAdams
from ._view import is_integer


def default_sampler(problem: AbstractProblem) -> AbstractSampler:
    """The sampler that suits what an objective trains: bridges of exact draws, or few steps of the ODE."""
    if not problem.noise.every_level:
        return Ancestral(1)
    return Ancestral() if problem.objective.stochastic else ExponentialAdams()


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
    trained_denoiser(problem)
    check_key(key)
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value is not None and (not is_integer(value) or value < 1):
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    sampler = default_sampler(problem) if sampler is None else as_sampler(sampler)
    context, params = jax.tree.map(jnp.asarray, (context, params))
    check_context(problem.data_info, context)
    check_finite("params", params, "give the parameters of a measurement")
    keys = key if num_samples is None else jr.split(key, num_samples)
    return _sample(problem, sampler, context, params, keys, None if num_samples is None else chunk_size)


@eqx.filter_jit
def _sample(problem, sampler, context, params, keys, chunk_size):
    context = problem.units.standardise_context(context)
    draw = lambda key: sampler(problem, context, params, key=key)
    if chunk_size is None:
        return draw(keys)
    if keys.shape[0] <= chunk_size:
        return jax.vmap(draw)(keys)
    return jax.lax.map(draw, keys, batch_size=chunk_size)


def check_key(key: Any):
    """Raises a `ValueError` if `key` is not one PRNG key.

    Both kinds that JAX has are: typed keys, and the arrays of two numbers of earlier days.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1
    if not (typed and key.ndim == 0) and not old:
        raise ValueError(f"`key` must be one PRNG key such as `jax.random.key(0)`, got {_short(key)}.")


def _short(value):
    return f"an array of shape {value.shape}" if isinstance(value, jax.Array) else repr(value)[:80]
