r"""Noise schedules.

A measurement `o` is noised to `o_t = α(t) o + σ(t) ε`, `ε ~ N(0, I)`, for `t ∈ [0, 1]`. A schedule gives `α` and
`σ`; everything else follows from them. The stochastic process with these marginals is
`do = a(t) o dt + g(t) dw` with

- `a = d log α / dt` (the *drift*),
- `g² = dσ²/dt − 2 a σ² = −σ² dλ/dt` (the squared *diffusion*), where `λ = log α²/σ²` is the log signal-to-noise
  ratio, which falls in `t` (Kingma et al. 2021, "Variational diffusion models", equations 2 and 31;
  Song et al. 2021, "Score-based generative modeling through SDEs").

Every schedule here is confined to a range `[log_snr_min, log_snr_max]`, so that neither `α` nor `σ` is ever 0: time is
mapped affinely onto the part of the underlying schedule that lies in it. At `t = 1` the default noise is 148 times
the signal, so that the sampler's start does not depend on the data.
"""

import abc
import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import check_instance, check_number, plain, shown
from ._custom_types import ArrayLike, FloatScalar, FloatScalarLike

# Beyond it `α` or `σ` would be 0 in single precision.
LARGEST_LOG_SNR = 80


class NoiseLevel(eqx.Module):
    """How noisy a measurement is: `o_t = alpha o + sigma ε`. It is all that a denoiser is told about `t`.

    **Arguments:**

    - `alpha`: the scale of the measurement, positive.
    - `sigma`: the standard deviation of the noise in standardised units, positive.
    """

    alpha: Float[ArrayLike, "..."]
    sigma: Float[ArrayLike, "..."]

    @property
    def log_snr(self) -> Float[Array, "..."]:
        """The log signal-to-noise ratio `log α²/σ²`."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))


class AbstractNoiseSchedule(eqx.Module):
    """The noise schedule `α(t)`, `σ(t)`, `t ∈ [0, 1]`, with the log-SNR falling in `t`.

    A new schedule defines `alpha` and `sigma` for a scalar `t`; the rest is derived. Both must be positive and
    differentiable on all of `[0, 1]`.
    """

    @abc.abstractmethod
    def alpha(self, t: FloatScalarLike) -> FloatScalar:
        """The scale `α(t) > 0` of the measurement at time `t ∈ [0, 1]`."""

    @abc.abstractmethod
    def sigma(self, t: FloatScalarLike) -> FloatScalar:
        """The standard deviation `σ(t) > 0` of the noise at time `t ∈ [0, 1]`."""

    def level(self, t: FloatScalarLike) -> NoiseLevel:
        """The [`stochinv.NoiseLevel`][] at time `t`."""
        return NoiseLevel(self.alpha(t), self.sigma(t))

    def log_snr(self, t: FloatScalarLike) -> FloatScalar:
        """The log signal-to-noise ratio `λ(t) = log α²/σ²`."""
        return self.level(t).log_snr

    def drift(self, t: FloatScalarLike) -> FloatScalar:
        """The drift coefficient `a(t) = d log α/dt` of the noising process."""
        t = jnp.asarray(t, jnp.result_type(float))
        return jax.grad(lambda t: jnp.log(self.alpha(t)))(t)

    def diffusion(self, t: FloatScalarLike) -> FloatScalar:
        """The diffusion coefficient `g(t) = σ √(−dλ/dt)` of the noising process."""
        t = jnp.asarray(t, jnp.result_type(float))
        return self.sigma(t) * jnp.sqrt(-jax.grad(self.log_snr)(t))

    def inverse(self, log_snr: FloatScalarLike) -> FloatScalar:
        """The time at which the log signal-to-noise ratio takes a value.

        **Arguments:**

        - `log_snr`: the value; outside the schedule's range the nearer end of `[0, 1]` is returned.

        **Returns:**

        `t ∈ [0, 1]`, by bisection to the precision of the number format; differentiable in `log_snr`.
        """
        dtype = jnp.result_type(float)
        log_snr = jnp.asarray(log_snr, dtype)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            noisier = self.log_snr(middle) < log_snr
            return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

        bits = jnp.finfo(dtype).nmant + 2
        ends = (jnp.zeros((), dtype), jnp.ones((), dtype))
        low, high = jax.lax.stop_gradient(jax.lax.fori_loop(0, bits, halve, ends))
        t = 0.5 * (low + high)
        slope = jax.lax.stop_gradient(jax.grad(self.log_snr)(t))
        correction = (log_snr - jax.lax.stop_gradient(log_snr)) / slope
        return jnp.clip(t, 0.0, 1.0) + correction


def _check_finite(schedule: AbstractNoiseSchedule):
    """Whether all settings of a schedule are finite numbers; not arrays, since they are used before tracing."""
    for name, value in vars(schedule).items():
        check_number(f"{type(schedule).__name__}: `{name}`", value, "a finite number", arrays=False)


def _check_log_snr(name: str, log_snr_min: float, log_snr_max: float):
    for key, value in (("log_snr_min", log_snr_min), ("log_snr_max", log_snr_max)):
        if abs(value) > LARGEST_LOG_SNR:
            raise ValueError(
                f"{name}: `{key}` must lie within ±{LARGEST_LOG_SNR}, got {shown(value)}; 12.5 is hardly any noise."
            )
    if not log_snr_min < log_snr_max:
        raise ValueError(f"{name}: `log_snr_min` must be below `log_snr_max`, got {log_snr_min} and {log_snr_max}.")


@final
class VariancePreserving(AbstractNoiseSchedule):
    """`α² = exp(−B(u))`, `σ² = 1 − α²`, `B(u) = β_min u + ½ (β_max − β_min) u²`, `u = u₀ + (1 − u₀) t`.

    The schedule of DDPM (Ho et al. 2020) in continuous time (Song et al. 2021, equation 32), started at the `u₀`
    at which the log-SNR is `log_snr_max`. With the default `β` the noise at `t = 1` is 152 times the signal.

    **Arguments:**

    - `beta_min`, `beta_max`: the noising rate at `u = 0` and `u = 1`; `0 < beta_min < beta_max`.
    - `log_snr_max`: the log-SNR at `t = 0`; 12.5 is noise of 0.002 of the signal.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    log_snr_max: float = 12.5

    def __check_init__(self) -> None:
        _check_finite(self)
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"VariancePreserving: must have 0 < `beta_min` < `beta_max`, got {self.beta_min} and {self.beta_max}."
            )
        total = 0.5 * (self.beta_min + self.beta_max)
        if total > LARGEST_LOG_SNR:
            raise ValueError(
                f"VariancePreserving: `beta_min` and `beta_max` must have a mean of at most {LARGEST_LOG_SNR}, got "
                f"{self.beta_min} and {self.beta_max}."
            )
        _check_log_snr("VariancePreserving", -math.log(math.expm1(total)), self.log_snr_max)

    def _integral(self, t):
        # B(u₀) = log(1 + exp(−λ_max)), and the root of the quadratic in its cancellation-free form.
        start = math.log1p(math.exp(-self.log_snr_max))
        slope = self.beta_max - self.beta_min
        u0 = 2 * start / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * start))
        u = u0 + (1 - u0) * jnp.asarray(t)
        return self.beta_min * u + 0.5 * slope * u**2

    def alpha(self, t: FloatScalarLike) -> FloatScalar:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: FloatScalarLike) -> FloatScalar:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))


@final
class VarianceExploding(AbstractNoiseSchedule):
    """`α = 1`, `σ = σ_min (σ_max / σ_min)^t` (Song et al. 2021, equation 30).

    **Arguments:**

    - `sigma_min`, `sigma_max`: the noise at `t = 0` and `t = 1`, in standard deviations of the data;
        `0 < sigma_min < sigma_max`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 150.0

    def __check_init__(self) -> None:
        _check_finite(self)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VarianceExploding: must have 0 < `sigma_min` < `sigma_max`, got {self.sigma_min} and "
                f"{self.sigma_max}."
            )
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if abs(2 * math.log(value)) > LARGEST_LOG_SNR:
                raise ValueError(f"VarianceExploding: `{name}` must lie between 1e-17 and 1e17, got {value}.")

    def alpha(self, t: FloatScalarLike) -> FloatScalar:
        return jnp.ones_like(jnp.asarray(t, jnp.result_type(float)))

    def sigma(self, t: FloatScalarLike) -> FloatScalar:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return jnp.exp(low + (high - low) * jnp.asarray(t))


@final
class CosineSchedule(AbstractNoiseSchedule):
    """`α = cos θ`, `σ = sin θ`, with the angle `θ` linear in `t` (Nichol and Dhariwal 2021; confined in log-SNR as in
    Hoogeboom et al. 2023, "Simple diffusion").

    **Arguments:**

    - `log_snr_min`, `log_snr_max`: the log-SNR at `t = 1` and `t = 0`.
    """

    log_snr_min: float = -10.0
    log_snr_max: float = 12.5

    def __check_init__(self) -> None:
        _check_finite(self)
        _check_log_snr("CosineSchedule", self.log_snr_min, self.log_snr_max)

    def _angle(self, t):
        start = math.atan(math.exp(-0.5 * self.log_snr_max))
        # The end is π/2 − `rest`; sin and cos of angles near π/2 keep their precision this way.
        rest = math.atan(math.exp(0.5 * self.log_snr_min))
        return start, rest, jnp.asarray(t)

    def alpha(self, t: FloatScalarLike) -> FloatScalar:
        start, rest, t = self._angle(t)
        return jnp.sin(rest * t + (0.5 * math.pi - start) * (1 - t))

    def sigma(self, t: FloatScalarLike) -> FloatScalar:
        start, rest, t = self._angle(t)
        return jnp.sin(start * (1 - t) + (0.5 * math.pi - rest) * t)


@final
class RectifiedFlow(AbstractNoiseSchedule):
    """`α = 1 − u`, `σ = u`, `u` linear in `t` (Liu et al. 2023; Lipman et al. 2023), confined in log-SNR.

    **Arguments:**

    - `log_snr_min`, `log_snr_max`: the log-SNR at `t = 1` and `t = 0`.
    """

    log_snr_min: float = -10.0
    log_snr_max: float = 12.5

    def __check_init__(self) -> None:
        _check_finite(self)
        _check_log_snr("RectifiedFlow", self.log_snr_min, self.log_snr_max)

    def alpha(self, t: FloatScalarLike) -> FloatScalar:
        t = jnp.asarray(t)
        end = 1 / (1 + math.exp(-0.5 * self.log_snr_min))
        return end * t + (1 - t) / (1 + math.exp(-0.5 * self.log_snr_max))

    def sigma(self, t: FloatScalarLike) -> FloatScalar:
        t = jnp.asarray(t)
        start = 1 / (1 + math.exp(0.5 * self.log_snr_max))
        return start * (1 - t) + t / (1 + math.exp(0.5 * self.log_snr_min))


def as_schedule(schedule: Any) -> AbstractNoiseSchedule:
    """The schedule that a user gave.

    **Raises:**

    `ValueError` if it is none, or a class.
    """
    check_instance("`schedule`", schedule, AbstractNoiseSchedule, "a noise schedule such as `CosineSchedule()`")
    return plain(schedule)
