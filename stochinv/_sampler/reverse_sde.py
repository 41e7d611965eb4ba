from typing import Any, final

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_number, shown
from .._custom_types import AnyCallable, BrownianPath, Context, Key, Params, Solver, StepSizeController
from .base import AbstractIndependentSampler, Sample, draw_keys, final_sample, initial_noisy
from .brownian import FixedStepBrownianPath
from .diffrax_terms import check_solve, reverse_diffusion, reverse_drift, solve
from .grid import AbstractTimeGrid, UniformLogSNR, check_grid, visited

# Of a `diffrax.VirtualBrownianTree`, in `t`.
_TOLERANCE = 1e-3


@final
class ReverseSDE(AbstractIndependentSampler):
    """The reverse-time stochastic differential equation, solved by diffrax.

    Every solver of stochastic differential equations with additive noise in diffrax can be used. `churn` scales the
    noise that is added on the way: 1 is the reverse of the noising process, 0 the probability-flow ODE; the marginals
    are the same for all.

    **Arguments:**

    - `num_steps`, `grid`, `stepsize_controller`, `max_steps`, `num_draws`: as of [`stochinv.ProbabilityFlow`][].
    - `solver`: the diffrax solver.
    - `churn`: `χ ∈ [0, 1]`.
    - `brownian_path`: a diffrax class of Brownian paths. `diffrax.UnsafeBrownianPath` (whose increments are here
        drawn at once per step, in law the same) is fast, for fixed steps and
        without reverse-mode differentiation; `diffrax.VirtualBrownianTree` serves for both, and is slower.

    ??? cite "Source"

        Anderson 1982; Song et al. 2021, equation 6; the family with churn: Zhang and Chen 2023, "Fast sampling of
        diffusion models with exponential integrator", equation 6.
    """

    num_steps: int = 64
    solver: Solver = dfx.ShARK()
    churn: float | Float[Array, ""] = 1.0
    grid: AbstractTimeGrid | AnyCallable = UniformLogSNR()
    brownian_path: type[BrownianPath] = dfx.UnsafeBrownianPath
    stepsize_controller: StepSizeController | None = None
    max_steps: int = 4096
    num_draws: int = 16

    def __check_init__(self) -> None:
        check_grid("ReverseSDE", self.grid, self.num_steps)
        check_solve("ReverseSDE", self)
        check_number("ReverseSDE: `churn`", self.churn, "a number between 0 and 1", lambda x: 0 <= x <= 1)
        path = self.brownian_path
        if not isinstance(path, type) or not issubclass(path, dfx.AbstractBrownianPath):
            raise ValueError(
                f"ReverseSDE: `brownian_path` must be a diffrax class of Brownian paths, got {shown(path)}; give "
                "`diffrax.UnsafeBrownianPath` or `diffrax.VirtualBrownianTree`."
            )
        if self.stepsize_controller is not None and self.brownian_path is dfx.UnsafeBrownianPath:
            raise ValueError(
                "ReverseSDE: adaptive steps (`stepsize_controller`) may be rejected and tried again, which "
                "`UnsafeBrownianPath` does not support; use `brownian_path=diffrax.VirtualBrownianTree`."
            )

    def _path(self, flat, key):
        shape = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        needed = getattr(self.solver, "minimal_levy_area", dfx.BrownianIncrement)
        kinds = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)
        levy_area = next(kind for kind in kinds if issubclass(kind, needed))
        if self.brownian_path is dfx.VirtualBrownianTree:
            return dfx.VirtualBrownianTree(0.0, 1.0, _TOLERANCE, shape, key, levy_area)
        path: Any = FixedStepBrownianPath if self.brownian_path is dfx.UnsafeBrownianPath else self.brownian_path
        return path(shape=shape, key=key, levy_area=levy_area)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        start_key, path_key, draws_key, final_key = jr.split(key, 4)
        times = visited(self.grid, problem.schedule, self.num_steps)
        flat, unravel = ravel_pytree(initial_noisy(problem, params, times[0], start_key))
        keys = draw_keys(problem, self.num_draws, draws_key)
        churn = jnp.asarray(self.churn, flat.dtype)
        drift = reverse_drift(problem, context, params, keys, unravel, churn)
        diffusion = reverse_diffusion(problem, churn, self._path(flat, path_key))
        unsafe = self.brownian_path is dfx.UnsafeBrownianPath
        flat = solve(
            dfx.MultiTerm(drift, diffusion),
            self.solver,
            flat,
            times,
            problem.schedule,
            controller=self.stepsize_controller,
            adjoint=dfx.ForwardMode() if unsafe else dfx.RecursiveCheckpointAdjoint(),
            max_steps=self.max_steps,
        )
        return final_sample(problem, unravel(flat), times[-1], context, params, final_key)
