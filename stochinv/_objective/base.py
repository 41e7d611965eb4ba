r"""Objectives: what a denoiser is trained to minimise, from measurements alone."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree

from .._checks import check_callable
from .._custom_types import FloatScalar, Key
from .._forward.base import as_multi_view
from .._structure import count_entries, zeros_of
from .._view import Example, is_view

# The largest signal, in entries, whose measurements' rank is computed.
LARGEST_RANK = 128


class AbstractObjective(eqx.Module):
    """The training loss of one record.

    `stochastic` says what the trained denoiser is: `False` for a conditional mean, called with `key=None`; `True` for a
    sampler, called with a key. Samplers of the problem follow it.
    """

    stochastic: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        """The loss of one record.

        **Arguments:**

        - `problem`: the [`stochinv.StochasticInverseProblem`][] that is trained.
        - `example`: one record, its measurements in standardised units.
        - `key`: a PRNG key.

        **Returns:**

        The loss, and a dictionary of scalars to report beside it.
        """

    @abc.abstractmethod
    def check(self, problem: Any, example: Example) -> None:
        """Refuses, or warns of, problems and records for which this loss does not give the posterior.

        **Arguments:**

        - `problem`: the [`stochinv.StochasticInverseProblem`][] to be trained, its denoiser not yet made.
        - `example`: one record in raw units.

        **Raises:**

        `ValueError` with the condition that is not met.
        """


def check_functions(name: str, objective: Any):
    """Raises a `ValueError` if what an objective calls cannot be called.

    **Arguments:**

    - `name`: that of the objective's class.
    - `objective`: an objective with `weighting`, `sample_time` and `regulariser`.
    """
    check_callable(f"{name}: `weighting`", objective.weighting, "a callable such as `snr_weight`")
    check_callable(f"{name}: `sample_time`", objective.sample_time, "a callable such as `uniform_time`")
    if objective.regulariser is not None:
        wanted = "a callable (signal, params) -> scalar, or None"
        check_callable(f"{name}: `regulariser`", objective.regulariser, wanted)


def check_novel(problem: Any, example: Example):
    """Raises a `ValueError` if measurements are noisy and none is there to score without the target's noise."""
    if example.novel is None and not problem.noise.exact:
        raise ValueError(
            f"`noise` is {problem.noise}, so novel measurements are needed, since the target's own noise cannot tell "
            "the signal; give `Example.novel`, or `roles` with `novel=1`."
        )


def left_open(problem: Any, example: Example) -> bool:
    """Whether a context and a target of one record leave directions of the signal open, by counting, and for small
    signals by the rank of the measurements' derivative at a random signal."""
    if not is_view(example.context) and example.context is not None:
        return False
    flat, unravel = zeros_of(problem.signal)
    measured = (example.target.observation, None if example.context is None else example.context.observation)
    if count_entries(measured) < flat.size:
        return True
    if flat.size > LARGEST_RANK:
        return False

    def measure(flat, forward, target, context):
        parts = [forward(unravel(flat), target.params)]
        if context is not None:
            parts.append(as_multi_view(forward)(unravel(flat), context.params))
        return ravel_pytree(parts)[0]

    drawn = jr.normal(jr.key(0), flat.shape, flat.dtype)
    derivative = eqx.filter_jit(jax.jacrev(measure))(drawn, problem.forward, example.target, example.context)
    return int(jnp.linalg.matrix_rank(derivative, rtol=1e-4)) < flat.size
