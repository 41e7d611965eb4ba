r"""Why a step of training was not finite: looks at each stage from the data to the loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool

from .._custom_types import PyTree
from .._problem_base import standardise_example
from .state import State, deal


def diagnose(state: State, batch: Any) -> str:
    """What is the matter, and what to do about it.

    **Arguments:**

    - `state`: the state before the step that failed.
    - `batch`: its records, or `None` where they are not known any more.
    """
    remedy = "lower the learning rate, or look for infinite derivatives in `forward`"
    if batch is None:
        return f"{remedy}, and for NaN in later batches of `data`"
    data, signals, measured = _stages(state, batch)
    number = len(signals)
    if not jnp.all(data):
        return f"{int(jnp.sum(~data))} of {number} records hold NaN or infinite numbers; remove or fill them"
    if not jnp.all(signals):
        return f"`denoiser` returns NaN or infinite signals for {int(jnp.sum(~signals))} of {number} records; {remedy}"
    if not jnp.all(measured):
        return (
            f"`forward` returns NaN or infinite measurements of {int(jnp.sum(~measured))} of {number} signals that the "
            "denoiser draws; make it finite for every signal, for instance by clipping"
        )
    return f"`forward` may have infinite derivatives at signals that the denoiser draws; {remedy}"


@eqx.filter_jit
def _stages(state, batch):
    """Whether data, the denoiser's signals at pure noise and their measurements are finite, record by record."""

    def one(record, key):
        deal_key, noise_key, draw_key = jr.split(key, 3)
        problem = state.problem
        example = standardise_example(problem, deal(record, state.roles, deal_key))
        target = example.target.observation
        level = jax.tree.map(lambda x: x.astype(jax.tree.leaves(target)[0].dtype), problem.schedule.level(1.0))
        noisy = jax.tree.map(lambda x: level.sigma * jr.normal(noise_key, x.shape, x.dtype), target)
        signal = problem.denoiser(noisy, level, example.context, example.target.params, key=draw_key)
        measured = problem.forward(signal, example.target.params)
        return all_finite(record), all_finite(signal), all_finite(measured)

    number = jax.tree.leaves(batch)[0].shape[0]
    return jax.vmap(one)(batch, jr.split(jr.fold_in(state.key, state.count), number))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers of a PyTree of arrays are finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.asarray(True)
