r"""Time grids: which noise levels a sampler visits, from `t = 1` down to `t = 0`."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_callable, check_integer, check_number
from .._custom_types import AnyCallable
from .._schedule import AbstractNoiseSchedule


class AbstractTimeGrid(eqx.Module):
    """Which noise levels a sampler visits. Any callable of the same signature may stand in for one."""

    @abc.abstractmethod
    def __call__(self, schedule: AbstractNoiseSchedule, num_steps: int) -> Float[Array, " num_steps"]:
        """The times of a schedule that are visited.

        **Arguments:**

        - `schedule`: the noise schedule.
        - `num_steps`: the number of noise levels, at least 1.

        **Returns:**

        Falling times, from 1 to 0; for `num_steps=1` it is 1 alone.
        """


def _from_log_snr(schedule, log_snr):
    times = jax.vmap(schedule.inverse)(log_snr)
    return times.at[-1].set(0.0).at[0].set(1.0)


def _fractions(num_steps):
    # Compiled, `arange(n) / (n - 1)` becomes a product with the reciprocal, whose last entry need not be 1.
    return jnp.linspace(0.0, 1.0, num_steps)


@final
class UniformTime(AbstractTimeGrid):
    """Equal steps in `t`: the same as equal steps in the log-SNR for [`stochinv.VarianceExploding`][] alone."""

    def __call__(self, schedule: AbstractNoiseSchedule, num_steps: int) -> Float[Array, " num_steps"]:
        return 1 - _fractions(num_steps)


@final
class UniformLogSNR(AbstractTimeGrid):
    """Equal steps in the log-SNR: the same ratio of noise to signal from step to step (Lu et al. 2022)."""

    def __call__(self, schedule: AbstractNoiseSchedule, num_steps: int) -> Float[Array, " num_steps"]:
        start, end = schedule.log_snr(1.0), schedule.log_snr(0.0)
        return _from_log_snr(schedule, start + (end - start) * _fractions(num_steps))


@final
class Karras(AbstractTimeGrid):
    """Equal steps in `(σ/α)^(1/ρ)` (Karras et al. 2022, equation 5).

    **Arguments:**

    - `rho`: positive; larger spends more steps at low noise.
    """

    rho: float = 7.0

    def __check_init__(self) -> None:
        check_number("Karras: `rho`", self.rho, "positive and finite", lambda x: x > 0)

    def __call__(self, schedule: AbstractNoiseSchedule, num_steps: int) -> Float[Array, " num_steps"]:
        root = lambda t: jnp.exp(-schedule.log_snr(t) / (2 * self.rho))
        start, end = root(1.0), root(0.0)
        return _from_log_snr(schedule, -2 * self.rho * jnp.log(start + (end - start) * _fractions(num_steps)))


def check_grid(name: str, grid: Any, num_steps: Any):
    """Raises a `ValueError` if the grid or the number of steps of a sampler of the class `name` is none."""
    check_integer(f"{name}: `num_steps`", num_steps)
    check_callable(f"{name}: `grid`", grid, "a time grid such as `UniformLogSNR()`")


def visited(grid: AnyCallable, schedule: AbstractNoiseSchedule, num_steps: int) -> Float[Array, " num_steps"]:
    """The times of a grid.

    **Raises:**

    `ValueError` if they are not as many as asked for.
    """
    times = jnp.asarray(grid(schedule, num_steps))
    if times.shape != (num_steps,) or not jnp.issubdtype(times.dtype, jnp.floating):
        raise ValueError(
            f"`grid` returns {times.dtype}{list(times.shape)} for {num_steps} steps; return {num_steps} falling times "
            "from 1 to 0."
        )
    return times
