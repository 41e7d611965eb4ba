r"""Averages of the parameters over training.

The average after step `n` is `θ̄_n = β_n θ̄_{n−1} + (1 − β_n) θ_n` with `β_1 = 0`, so that it never contains the
initialisation.
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_number
from .._custom_types import FloatScalar, PyTree


class AbstractEMA(eqx.Module):
    """An average of the parameters over training."""

    @abc.abstractmethod
    def decay(self, step: Int[Array, ""]) -> FloatScalar:
        """The share `β_n` that the average keeps at step `n = 1, 2, …`; 0 at the first."""

    def update(self, average: PyTree, params: PyTree, step: Int[Array, ""]) -> PyTree:
        """The average after step `step`."""
        keep = self.decay(step)
        mix = lambda a, p: (a + (1 - keep).astype(a.dtype) * (p - a)).astype(a.dtype)
        return jax.tree.map(mix, average, params)


@final
class PowerEMA(AbstractEMA):
    """The power-function average, `β_n = (1 − 1/n)^(γ + 1)`: its width is a fixed share of the training so far.

    **Arguments:**

    - `gamma`: `γ > −1`; 6.94 averages over 10 % of the training (relative standard deviation), 16.97 over 5 %.

    ??? cite "Source"

        Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3.1.
    """

    gamma: float = 6.94

    def __check_init__(self) -> None:
        check_number("PowerEMA: `gamma`", self.gamma, "a number greater than -1", lambda x: x > -1)

    def decay(self, step: Int[Array, ""]) -> FloatScalar:
        return (1 - 1 / step) ** (self.gamma + 1)


@final
class ExponentialEMA(AbstractEMA):
    """The exponential average `Σ δ^(n−k) θ_k`, normalised (bias-corrected): `β_n = δ (1 − δ^(n−1)) / (1 − δ^n)`.

    **Arguments:**

    - `rate`: `δ`, strictly between 0 and 1.
    """

    rate: float = 0.999

    def __check_init__(self) -> None:
        check_number("ExponentialEMA: `rate`", self.rate, "a number strictly between 0 and 1", lambda x: 0 < x < 1)

    def decay(self, step: Int[Array, ""]) -> FloatScalar:
        log_rate = jnp.log(jnp.asarray(self.rate))
        return self.rate * jnp.expm1(log_rate * (step - 1)) / jnp.expm1(log_rate * step)
