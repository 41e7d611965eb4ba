from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import check_number, is_integer, shown
from .._custom_types import AnyCallable, Context, Key, Params
from .._noising import noise_level, numbered_key, scaled_normal
from .base import AbstractIndependentSampler, Sample, final_sample, initial_noisy
from .grid import AbstractTimeGrid, UniformLogSNR, check_grid, visited


@final
class Ancestral(AbstractIndependentSampler):
    """From noise level to noise level by the Gaussian bridge `q(o_u | o_t, ô)` to the denoised measurement.

    `o_u = α_u ô + √(σ_u² − ς²) (o_t − α_t ô)/σ_t + ς ε` with `ς = η σ_u √(1 − SNR_t/SNR_u)`. With `eta = 1` it is
    DDPM's ancestral step, with `eta = 0` DDIM's.

    With a *stochastic* denoiser that draws from `p(s | o_t, c)`, every bridge is exact, for any `eta` and **any number
    of steps, one included**. With a deterministic one it is of first order in the step, and of second order with
    `order = 2`: then `ô` is extrapolated, as a linear function of the log-SNR of its last two values, to the middle
    of the step. Fresh noise undoes a denoiser's errors of before, which the probability-flow ODE carries to the end:
    a network of images that was trained for a short time drew better with it than with
    [`stochinv.ExponentialAdams`][]. Standard deviations of a Gaussian are 5 % too wide with 12 steps, 1 % with 48.

    **Arguments:**

    - `num_steps`: how many noise levels are visited, `t = 0` included: the number of denoiser evaluations.
    - `eta`: `η ∈ [0, 1]`, the share of fresh noise.
    - `grid`: the time grid, `(schedule, num_steps) -> times`.
    - `order`: 1, or 2 for a deterministic denoiser.

    ??? cite "Source"

        Ho et al. 2020, equation 7; Song et al. 2021, "Denoising diffusion implicit models", equation 12;
        De Bortoli et al. 2025, "Distributional diffusion models with scoring rules"; Lu et al. 2022,
        "DPM-Solver++", where order 2 with `eta = 1` is SDE-DPM-Solver++(2M).
    """

    num_steps: int = 32
    eta: float | Float[Array, ""] = 1.0
    grid: AbstractTimeGrid | AnyCallable = UniformLogSNR()
    order: int = 1

    def __check_init__(self) -> None:
        if not is_integer(self.order) or self.order not in (1, 2):
            raise ValueError(f"Ancestral: `order` must be 1 or 2, got {shown(self.order)}.")
        check_grid("Ancestral", self.grid, self.num_steps)
        check_number("Ancestral: `eta`", self.eta, "a number between 0 and 1", lambda x: 0 <= x <= 1)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        if self.order == 2 and problem.objective.stochastic:
            raise ValueError("Ancestral: `order` is 2, but the denoiser draws signals; leave it out: order 1 is exact.")
        start_key, final_key, *step_keys = jr.split(key, 5)
        times = visited(self.grid, problem.schedule, self.num_steps)
        noisy = initial_noisy(problem, params, times[0], start_key)

        def step(carry, inputs):
            (noisy, before), (t, u, reach, index) = carry, inputs
            # Keys of all steps, made in advance, would be the only memory that grows with their number.
            denoise_key, measurement_key, bridge_key = (numbered_key(x, index) for x in step_keys)
            now, then = noise_level(problem.schedule, t, noisy), noise_level(problem.schedule, u, noisy)
            draw_key = denoise_key if problem.objective.stochastic else None
            observation = problem.denoise(noisy, now, context, params, key=draw_key).observation
            measured = problem.measured(
                noisy, now, observation, key=measurement_key if problem.objective.stochastic else None
            )
            fresh = self.eta * then.sigma * jnp.sqrt(-jnp.expm1(now.log_snr - then.log_snr))
            kept = jnp.sqrt(then.sigma**2 - fresh**2) / now.sigma
            ahead = jax.tree.map(lambda o, b: (o + reach * (o - b)).astype(o.dtype), measured, before)
            bridge = lambda o, x, e: then.alpha * o + kept * (x - now.alpha * o) + e
            noisy = jax.tree.map(bridge, ahead, noisy, scaled_normal(noisy, fresh, bridge_key))
            return (noisy, measured), None

        if self.num_steps > 1:
            indices = jnp.arange(self.num_steps - 1, dtype=jnp.uint32)
            steps = jnp.diff(jax.vmap(problem.schedule.log_snr)(times))
            reach = jnp.zeros_like(steps)
            if self.order == 2:
                reach = reach.at[1:].set(0.5 * steps[1:] / steps[:-1])
            (noisy, _), _ = jax.lax.scan(step, (noisy, noisy), (times[:-1], times[1:], reach, indices))
        return final_sample(problem, noisy, times[-1], context, params, final_key)
