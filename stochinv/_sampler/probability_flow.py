from typing import Any, final

import diffrax as dfx
import jax.random as jr
from jax.flatten_util import ravel_pytree

from .._custom_types import AnyCallable, Context, Key, Params, Solver, StepSizeController
from .base import AbstractIndependentSampler, Sample, draw_keys, final_sample, initial_noisy
from .diffrax_terms import check_solve, reverse_drift, solve
from .grid import AbstractTimeGrid, UniformLogSNR, check_grid, visited


@final
class ProbabilityFlow(AbstractIndependentSampler):
    """The probability-flow ODE, solved by diffrax.

    Every solver of ordinary differential equations in diffrax can be used. The answer is a deterministic
    function of the starting noise.

    **Arguments:**

    - `num_steps`: how many noise levels are visited, `t = 0` included: `num_steps − 1` solver steps and a last
        denoising.
    - `solver`: the diffrax solver.
    - `grid`: the time grid, `(schedule, num_steps) -> times`.
    - `stepsize_controller`: a diffrax controller for adaptive steps, instead of the grid.
    - `max_steps`: the largest number of adaptive steps; more raise an error.
    - `num_draws`: how many draws of a stochastic denoiser are averaged per evaluation.

    ??? cite "Source"

        Song et al. 2021, "Score-based generative modeling through stochastic differential equations", section 4.3.
    """

    num_steps: int = 32
    solver: Solver = dfx.Heun()
    grid: AbstractTimeGrid | AnyCallable = UniformLogSNR()
    stepsize_controller: StepSizeController | None = None
    max_steps: int = 4096
    num_draws: int = 16

    def __check_init__(self) -> None:
        check_grid("ProbabilityFlow", self.grid, self.num_steps)
        check_solve("ProbabilityFlow", self)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        start_key, draws_key, final_key = jr.split(key, 3)
        times = visited(self.grid, problem.schedule, self.num_steps)
        flat, unravel = ravel_pytree(initial_noisy(problem, params, times[0], start_key))
        keys = draw_keys(problem, self.num_draws, draws_key)
        flat = solve(
            reverse_drift(problem, context, params, keys, unravel, 0.0),
            self.solver,
            flat,
            times,
            problem.schedule,
            controller=self.stepsize_controller,
            adjoint=dfx.RecursiveCheckpointAdjoint(),
            max_steps=self.max_steps,
        )
        return final_sample(problem, unravel(flat), times[-1], context, params, final_key)
