r"""The reverse-time process of a problem as terms that any diffrax solver takes.

With churn `χ ∈ [0, 1]`, `do = [a o − ½ (1 + χ²) g² ∇ log p_t(o | c)] dt + χ g dw̄` runs from `t = 1` to `t = 0`. It is
solved *forward in* `s = 1 − t`, since diffrax's stochastic Runge-Kutta methods do not support negative steps.
"""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, Context, Key, Params
from .._noise import noise_level
from .base import mean_observation


def reverse_drift(
    problem: Any, context: Context, params: Params, keys: Key | None, unravel: AnyCallable, churn: float | Array
) -> dfx.ODETerm:
    """The drift of the reverse process in `s = 1 − t`, on raveled measurements."""

    def vector_field(s, flat, args):
        t = 1 - s
        noisy = unravel(flat)
        level = noise_level(problem.schedule, t, flat)
        mean, _ = ravel_pytree(mean_observation(problem, noisy, level, context, params, keys))
        noise, _ = ravel_pytree(problem.noise_scale(noisy, full=True))
        score = (level.alpha * mean - flat) / (level.sigma**2 + (level.alpha * noise) ** 2)
        drift = problem.schedule.drift(t).astype(flat.dtype)
        diffusion = problem.schedule.diffusion(t).astype(flat.dtype)
        return 0.5 * (1 + churn**2) * diffusion**2 * score - drift * flat

    return dfx.ODETerm(vector_field)


def reverse_diffusion(problem: Any, churn: float | Array, path: dfx.AbstractBrownianPath) -> dfx.ControlTerm:
    """The diffusion `χ g` of the reverse process in `s = 1 − t`, on raveled measurements."""

    def diffusion(s, flat, args) -> lx.DiagonalLinearOperator:
        scale = churn * problem.schedule.diffusion(1 - s).astype(flat.dtype)
        return lx.DiagonalLinearOperator(jnp.broadcast_to(scale, flat.shape))

    return dfx.ControlTerm(diffusion, path)


def solve(
    terms: Any,
    solver: dfx.AbstractSolver,
    flat: Float[Array, " n"],
    times: Float[Array, " num_steps"],
    *,
    controller: dfx.AbstractStepSizeController | None,
    adjoint: dfx.AbstractAdjoint,
    max_steps: int,
) -> Float[Array, " n"]:
    """Solves from `s = 0` to `s = 1`: on the grid of `times`, or adaptively where a controller is given."""
    fixed = controller is None
    if fixed and times.shape[0] == 1:
        return flat
    solution = dfx.diffeqsolve(
        terms,
        solver,
        t0=0.0,
        t1=1.0,
        dt0=None if fixed else 0.01,
        y0=flat,
        stepsize_controller=dfx.StepTo(ts=1 - times) if fixed else controller,
        adjoint=adjoint,
        max_steps=times.shape[0] if fixed else max_steps,
        # On a fixed grid nothing can fail that would not show in the answer, and checking costs time at each step.
        throw=not fixed,
    )
    return solution.ys[-1]
