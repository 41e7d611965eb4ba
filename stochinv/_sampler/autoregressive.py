from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_instance
from .._custom_types import Context, Key, Params
from .._denoiser.base import decode, encode
from .._forward.base import as_multi_view, measures_stack
from .._view import View, is_view, num_views, view_mask
from .base import AbstractIndependentSampler, AbstractSampler, Sample


@final
class Autoregressive(AbstractIndependentSampler):
    """Draws several target measurements one after the other, each appended to the context of the next.

    The context is a [`stochinv.View`][] with a mask and room for the targets: a stack with at least as many
    masked-out entries as there are targets but the last. `params` has a leading axis, one entry per target. With
    measurement noise, what is appended is a noisy measurement.

    The answer's signal is that of the last target, drawn given all the others; its observation is the stack of its
    measurements at all the targets' parameters.

    **Arguments:**

    - `sampler`: the sampler of one target.
    """

    sampler: AbstractSampler

    def __check_init__(self) -> None:
        check_instance("Autoregressive: `sampler`", self.sampler, AbstractSampler, "a sampler such as `Ancestral()`")
        if isinstance(self.sampler, Autoregressive):
            raise ValueError("Autoregressive: `sampler` must draw one target; it is an Autoregressive itself.")

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        num_targets, context = _num_targets(params), decode(problem.denoiser, context)
        if not is_view(context):
            raise ValueError(
                f"Autoregressive: `context` must be a `View` with a views axis, got {type(context).__name__}."
            )
        if measures_stack(problem.forward):
            raise ValueError("Autoregressive: the forward model must measure one view, but it is a `MultiView`.")
        mask = view_mask(context)
        capacity = num_views(context)
        mask = eqx.error_if(
            mask,
            jnp.sum(mask) + num_targets - 1 > capacity,
            f"Autoregressive: `context` has {capacity} entries, too few unused ones for {num_targets - 1} further "
            "views; give a longer stack whose unused entries are masked out.",
        )

        def step(context, inputs):
            target_params, key = inputs
            sample_key, noise_key = jr.split(key)
            sample = self.sampler(problem, encode(problem.denoiser, context), target_params, key=sample_key)
            observation = problem.units.standardise(problem.noise.sample(noise_key, sample.observation))
            slot = jnp.argsort(view_mask(context), stable=True)[0]
            put = lambda stack, x: stack.at[slot].set(x)
            appended = View(
                jax.tree.map(put, context.observation, observation),
                jax.tree.map(put, context.params, target_params),
                put(view_mask(context), True),
            )
            return appended, sample.signal

        context = View(context.observation, context.params, mask)
        keys = jr.split(key, num_targets)
        leading = jax.tree.map(lambda x: x[:-1], params)
        context, _ = jax.lax.scan(step, context, (leading, keys[:-1]))
        last = jax.tree.map(lambda x: x[-1], params)
        signal = self.sampler(problem, encode(problem.denoiser, context), last, key=keys[-1]).signal
        return Sample(signal, as_multi_view(problem.forward)(signal, params))


def _num_targets(params: Params) -> int:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("Autoregressive: `params` must have a leading axis, one entry per target, but it is empty.")
    return leaves[0].shape[0]
