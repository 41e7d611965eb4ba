r"""Few evaluations of the probability-flow ODE: an exponential Adams predictor-corrector.

In `y = o_t / α` and the noise-to-signal ratio `r = σ/α` the flow is `dy/dr = (y − D(y, r)) / r` with the denoised
measurement `D`, hence exactly

`y' = (r'/r) y + r' ∫ D d(1/r)`   from `r` to `r' < r`.

With measurement noise `D` is the mean of the noisy measurement, `problem.measured`.

`D` is interpolated by a polynomial through its last values, as in DPM-Solver++ (Lu et al. 2022), but in the variable
`v = log(1 + ρ/r)` instead of `log(1/r)`. Where the noise exceeds all structure of the data, `D` is linear in `1/r`, and
so in `v`; where it is small, `v` is `log(1/r)` up to a constant. The integral keeps its exponential form,
`r' ∫ D d(1/r) = (1 + r'/ρ) ∫ D e^(v − v') dv`, and `ρ → ∞` gives `log(1/r)` back. With equal steps `h` in `v` and the
moments `I_m = h ∫₀¹ e^(−h(1 − θ)) θ^m dθ`, the predictor uses `D_n, D_{n−1}, D_{n−2}` and the corrector, at no further
evaluation of `D`, `D_{n+1}, D_n, D_{n−1}` (Zhao et al. 2023, "UniPC", has such a corrector in `log(1/r)`). With steps
longer than 0.8 (fewer than about 13) one value less is more accurate in both.

`ρ` should be at least four times the largest principal standard deviation of standardised measurements. Four times the
root of their number of entries always is.
"""

from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._checks import check_integer
from .._custom_types import Context, Key, Params
from .._noising import noise_level, scaled_normal
from .._structure import count_entries
from .base import AbstractIndependentSampler, Sample, draw_keys, final_sample, mean_observation


@final
class ExponentialAdams(AbstractIndependentSampler):
    """The probability-flow ODE in few steps, by an exponential Adams predictor-corrector.

    Its noise levels are spaced evenly in `v = log(1 + ρ/r)`, `r = σ/α`, between those of the schedule at 1 and 0, with
    `ρ` four times the root of the number of entries of a measurement. The answer is a deterministic function of the
    starting noise.

    **Arguments:**

    - `num_steps`: how many noise levels are visited, `t = 0` included: the number of denoiser evaluations.
    - `num_draws`: how many draws of a stochastic denoiser are averaged per evaluation.
    """

    num_steps: int = 24
    num_draws: int = 16

    def __check_init__(self) -> None:
        check_integer("ExponentialAdams: `num_steps`", self.num_steps)
        check_integer("ExponentialAdams: `num_draws`", self.num_draws)

    def _times(self, schedule, knee):
        """The visited times and the step in `v`."""
        ends = jnp.log1p(knee * jnp.exp(0.5 * jnp.stack([schedule.log_snr(1.0), schedule.log_snr(0.0)])))
        step = (ends[1] - ends[0]) / max(self.num_steps - 1, 1)
        v = ends[0] + step * jnp.arange(self.num_steps)
        times = jax.vmap(schedule.inverse)(2 * jnp.log(jnp.expm1(v) / knee))
        return times.at[-1].set(0.0).at[0].set(1.0), step

    def _weights(self, step):
        """Predictor and corrector weights for one, two and three values of the denoised measurement."""
        # Gauss-Legendre: the moments' recursion cancels in single precision.
        nodes, weights = np.polynomial.legendre.leggauss(12)
        theta, weights = 0.5 * (nodes + 1), 0.5 * weights
        kernel = weights * step * jnp.exp(-step * (1 - theta))
        i0, i1, i2 = jnp.sum(kernel), jnp.sum(kernel * theta), jnp.sum(kernel * theta**2)
        zero = jnp.zeros_like(i0)
        predictor = [
            [i0, zero, zero],
            [1.5 * i0, -0.5 * i0, zero],
            [i0 + 1.5 * i1 + 0.5 * i2, -2 * i1 - i2, 0.5 * (i1 + i2)],
        ]
        corrector = [[i1, i0 - i1, zero], [0.5 * (i1 + i2), i0 - i2, 0.5 * (i2 - i1)]]
        return jnp.stack([jnp.stack(row) for row in predictor]), jnp.stack([jnp.stack(row) for row in corrector])

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        start_key, draws_key, final_key = jr.split(key, 3)
        structure = problem.observation_structure(params)
        knee = 4 * count_entries(structure) ** 0.5
        times, step = self._times(problem.schedule, knee)
        keys = draw_keys(problem, self.num_draws, draws_key)
        ratio = jnp.exp(-0.5 * jax.vmap(problem.schedule.log_snr)(times))

        def denoise(y, t):
            level = noise_level(problem.schedule, t, y)
            noisy = jax.tree.map(lambda x: level.alpha * x, y)
            return problem.measured(noisy, level, mean_observation(problem, noisy, level, context, params, keys))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure)
        y = scaled_normal(zeros, ratio[0].astype(jnp.result_type(*jax.tree.leaves(zeros))), start_key)
        if self.num_steps > 1:
            # A step of DDIM from infinite noise: the start does not have to be larger than the data's mean.
            first = denoise(y, times[0])
            y = jax.tree.map(jnp.add, y, first)
            predictor, corrector = self._weights(step)
            index = jnp.arange(self.num_steps - 1)
            most = jnp.where(step <= 0.8, 2, 1)
            scale = (1 + ratio[1:] / knee)[:, None]
            predict = scale * predictor[jnp.minimum(index, most)]
            correct = scale * corrector[jnp.minimum(index, most - 1)]
            shrink = ratio[1:] / ratio[:-1]

            def combine(weights, shrink, y, *past):
                add = lambda y, *ds: shrink * y + sum(w * d for w, d in zip(weights, ds, strict=True))
                return jax.tree.map(lambda y, *ds: add(y, *ds).astype(y.dtype), y, *past)

            def advance(carry, inputs):
                y, (d0, d1, d2) = carry
                t, shrink, predict, correct = inputs
                new = denoise(combine(predict, shrink, y, d0, d1, d2), t)
                return (combine(correct, shrink, y, new, d0, d1), (new, d0, d1)), None

            # The last step is predicted only: the answer is the evaluation at its end.
            body = (times[1:-1], shrink[:-1], predict[:-1], correct[:-1])
            (y, past), _ = jax.lax.scan(advance, (y, (first, zeros, zeros)), body)
            y = combine(predict[-1], shrink[-1], y, *past)
        level = noise_level(problem.schedule, times[-1], y)
        noisy = jax.tree.map(lambda x: level.alpha * x, y)
        return final_sample(problem, noisy, times[-1], context, params, final_key)
