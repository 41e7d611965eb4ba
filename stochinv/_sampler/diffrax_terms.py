r"""The reverse-time process of a problem as terms that any diffrax solver takes.

With churn `χ ∈ [0, 1]`, `do = [a o − ½ (1 + χ²) g² ∇ log p_t(o | c)] dt + χ g dw̄` runs from `t = 1` to `t = 0`. It is
solved *forward in* `s = 1 − t`, since diffrax's stochastic Runge-Kutta methods do not support negative steps.

What is solved for is `y = o_t / n`, `n = √(α² + σ²)`, whose size is that of standardised measurements at all times:
a variance-exploding `o_t` shrinks by orders of magnitude, which is stiff in `t`. With `α̂ = α/n`, `σ̂ = σ/n` and the
log-SNR `λ`, which is that of `o_t`, the drift and the diffusion of `y` are those of a variance-preserving process,
`â = ½ σ̂² dλ/dt` and `ĝ² = −σ̂² dλ/dt`, hence

`dy = ½ ĝ² [y + (1 + χ²) ∇ log p̂_t(y | c)] ds + χ ĝ dw`.
"""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_instance, check_integer
from .._custom_types import AnyCallable, BrownianPath, Context, Keys, Params, Solver, StepSizeController
from .._noising import noise_level
from .._schedule import AbstractNoiseSchedule, NoiseLevel
from .base import mean_observation


def check_solve(name: str, sampler: Any):
    """Raises a `ValueError` if what a sampler of the class `name` passes on to diffrax is not of its kind."""
    check_instance(f"{name}: `solver`", sampler.solver, dfx.AbstractSolver, "a diffrax solver such as `diffrax.Heun()`")
    if sampler.stepsize_controller is not None:
        wanted = "a diffrax controller such as `diffrax.PIDController(rtol=1e-3, atol=1e-4)`, or None"
        kind = dfx.AbstractStepSizeController
        check_instance(f"{name}: `stepsize_controller`", sampler.stepsize_controller, kind, wanted)
    check_integer(f"{name}: `max_steps`", sampler.max_steps)
    check_integer(f"{name}: `num_draws`", sampler.num_draws)


def reverse_drift(
    problem: Any, context: Context, params: Params, keys: Keys | None, unravel: AnyCallable, churn: float | Array
) -> dfx.ODETerm:
    """The drift of the reverse process in `s = 1 − t`, on raveled and rescaled measurements."""

    def vector_field(s, flat, args):
        level, size, diffusion = _coefficients(problem.schedule, 1 - s, flat)
        noisy = unravel(size * flat)
        unscaled = NoiseLevel(size * level.alpha, size * level.sigma)
        mean, _ = ravel_pytree(mean_observation(problem, noisy, unscaled, context, params, keys))
        variance = problem.noise.total_variance(level, noisy, problem.units.unit(noisy))
        variance, _ = ravel_pytree(jax.tree.map(lambda v, x: jnp.broadcast_to(v, x.shape), variance, noisy))
        score = (level.alpha * mean - flat) / variance
        return 0.5 * diffusion**2 * (flat + (1 + churn**2) * score)

    return dfx.ODETerm(vector_field)


def reverse_diffusion(problem: Any, churn: float | Array, path: BrownianPath) -> dfx.ControlTerm:
    """The diffusion `χ ĝ` of the reverse process in `s = 1 − t`, on raveled and rescaled measurements."""

    def diffusion(s, flat, args) -> lx.DiagonalLinearOperator:
        _, _, scale = _coefficients(problem.schedule, 1 - s, flat)
        return lx.DiagonalLinearOperator(jnp.broadcast_to(churn * scale, flat.shape))

    return dfx.ControlTerm(diffusion, path)


def _coefficients(schedule, t, like):
    """`(α̂, σ̂)`, the size `n` and the diffusion `ĝ`."""
    level = noise_level(schedule, t, like)
    size = jnp.sqrt(level.alpha**2 + level.sigma**2)
    diffusion = (schedule.diffusion(t) / size).astype(size.dtype)
    # Without the barrier XLA computes these scalars anew for every entry of the vectors that they scale.
    return jax.lax.optimization_barrier((NoiseLevel(level.alpha / size, level.sigma / size), size, diffusion))


def solve(
    terms: Any,
    solver: Solver,
    flat: Float[Array, " n"],
    times: Float[Array, " num_steps"],
    schedule: AbstractNoiseSchedule,
    *,
    controller: StepSizeController | None,
    adjoint: dfx.AbstractAdjoint,
    max_steps: int,
) -> Float[Array, " n"]:
    """Solves from `s = 0` to `s = 1`: on the grid of `times`, or adaptively where a controller is given.

    Takes and returns raveled measurements `o_t`, not rescaled.
    """
    fixed = controller is None
    if fixed and times.shape[0] == 1:
        return flat
    _, first_size, _ = _coefficients(schedule, 1.0, flat)
    _, last_size, _ = _coefficients(schedule, 0.0, flat)
    solution = dfx.diffeqsolve(
        terms,
        solver,
        t0=0.0,
        t1=1.0,
        dt0=None if fixed else 0.01,
        y0=flat / first_size,
        stepsize_controller=dfx.StepTo(ts=1 - times) if fixed else controller,
        adjoint=adjoint,
        max_steps=times.shape[0] if fixed else max_steps,
        # On a fixed grid nothing can fail that would not show in the answer, and checking costs time at each step.
        throw=not fixed,
    )
    assert solution.ys is not None
    return last_size * solution.ys[-1]
