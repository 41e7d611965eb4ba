r"""What a context says of a Gaussian signal.

In coordinates `z` in which the best Gaussian is white, measurements `c = f(s, φ) + noise` through an affine forward
model with `A = ∂f/∂z` and the noise's covariance `R` say of the signal

`Λ = Aᵀ R⁻¹ A`,  `b = Aᵀ R⁻¹ (c − f(m, φ))`,

summed over the views that count, `m` being the signal of `z = 0`. `Λ = E diag(λ) Eᵀ` is decomposed once per context.
Where measurements have fewer entries than the signal, `E` has as few columns; where each entry measures one entry of
the signal alone, as masks and windows do, `Λ` is diagonal.
"""

import abc
from typing import Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, FloatScalar, Observation, PyTree, Signal
from .._data_info import AbstractUnits
from .._forward.base import AbstractForwardModel
from .._noise import AbstractNoise
from .._structure import count_entries
from .._view import View, num_views, view_mask
from .least_squares import levenberg_marquardt

# The least noise that a measurement is taken to have, in its standard deviations: without any, `Λ` would be infinite.
LEAST_NOISE = 1e-3
# From the best of how many other signals than the mean the most likely one is sought.
OTHER_STARTS = 64
# Eigenvalues of `Λ` below this share of the largest are lost to rounding.
ROUNDING = 1e-6

Form = Literal["diagonal", "dense", "laplace", "nothing"]


class AbstractEvidence(eqx.Module):
    """What a context says of a Gaussian signal, and the context: `view`, its measurements in standardised units.

    `values` are the eigenvalues `λ`. It is worth one measurement `y = √λ Eᵀ z + ε` of standard normal noise along each
    eigenvector.
    """

    view: eqx.AbstractVar[View]
    values: eqx.AbstractVar[Float[Array, " k"]]

    @abc.abstractmethod
    def estimate(self, precision: FloatScalar, shift: Float[Array, " n"]) -> Float[Array, " n"]:
        """`(p I + Λ)⁻¹ (b + shift)` for a scalar `p`."""

    @abc.abstractmethod
    def apply(self, function: AnyCallable, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """`E diag(h(λ)) Eᵀ x` for a function `h` of eigenvalues."""

    @abc.abstractmethod
    def diagonal(self, function: AnyCallable) -> Float[Array, " n"]:
        """The diagonal of `E diag(h(λ)) Eᵀ`."""

    @abc.abstractmethod
    def mean_square(self, function: AnyCallable) -> FloatScalar:
        """The mean of the diagonal of `W E diag(h(λ)) Eᵀ Wᵀ`, `W` being the matrix that evidence was asked for with."""

    @abc.abstractmethod
    def measure(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """`√λ Eᵀ x`."""

    @abc.abstractmethod
    def transpose(self, y: Float[Array, " k"]) -> Float[Array, " n"]:
        """`E √λ y`, the transpose of `measure`."""

    @abc.abstractmethod
    def misfit(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """`y − √λ Eᵀ x`; 0 where nothing was measured."""

    @abc.abstractmethod
    def update(self, view: View, shift: Float[Array, " n"]) -> "AbstractEvidence":
        """That of other measurements with the same parameters, mask and noise, for which `b` is `shift`."""


@final
class DenseEvidence(AbstractEvidence):
    """That of any measurements.

    **Arguments:**

    - `view`: the context.
    - `vectors`, `values`: the columns of `E` whose eigenvalues are not zero, and these. Columns of zeros fill up.
    - `shift`: `Eᵀ b`.
    - `squares`: the mean squares of the columns of `W E`, and that of all columns of `W`, times `n`.
    """

    view: View
    vectors: Float[Array, "n k"]
    values: Float[Array, " k"]
    shift: Float[Array, " k"]
    squares: tuple[Float[Array, " k"], FloatScalar]

    def estimate(self, precision: FloatScalar, shift: Float[Array, " n"]) -> Float[Array, " n"]:
        along = self.vectors.T @ shift
        # What is measured well is told apart from the rest before it is scaled: `b` can be very large.
        inside = (self.shift + along) / (precision + self.values) - along / precision
        return shift / precision + self.vectors @ inside

    def apply(self, function: AnyCallable, x: Float[Array, " n"]) -> Float[Array, " n"]:
        rest = function(jnp.zeros((), x.dtype))
        return rest * x + self.vectors @ ((function(self.values) - rest) * (self.vectors.T @ x))

    def diagonal(self, function: AnyCallable) -> Float[Array, " n"]:
        rest = function(jnp.zeros((), self.values.dtype))
        return rest + self.vectors**2 @ (function(self.values) - rest)

    def mean_square(self, function: AnyCallable) -> FloatScalar:
        rest = function(jnp.zeros((), self.values.dtype))
        return rest * self.squares[1] + self.squares[0] @ (function(self.values) - rest)

    def measure(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        return jnp.sqrt(self.values) * (self.vectors.T @ x)

    def transpose(self, y: Float[Array, " k"]) -> Float[Array, " n"]:
        return self.vectors @ (jnp.sqrt(self.values) * y)

    def misfit(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        return _misfit(self.values, self.shift, self.vectors.T @ x)

    def update(self, view: View, shift: Float[Array, " n"]) -> "DenseEvidence":
        shift = jnp.where(self.values > 0, self.vectors.T @ shift, 0)
        return DenseEvidence(view, self.vectors, self.values, shift, self.squares)


@final
class DiagonalEvidence(AbstractEvidence):
    """That of measurements of single entries of the signal.

    **Arguments:**

    - `view`: the context.
    - `values`: `λ`, one for each entry of the signal.
    - `shift`: `b`.
    """

    view: View
    values: Float[Array, " n"]
    shift: Float[Array, " n"]

    def estimate(self, precision: FloatScalar, shift: Float[Array, " n"]) -> Float[Array, " n"]:
        return (self.shift + shift) / (precision + self.values)

    def apply(self, function: AnyCallable, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return function(self.values) * x

    def diagonal(self, function: AnyCallable) -> Float[Array, " n"]:
        return function(self.values)

    def mean_square(self, function: AnyCallable) -> FloatScalar:
        return jnp.mean(function(self.values))

    def measure(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.sqrt(self.values) * x

    def transpose(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.sqrt(self.values) * y

    def misfit(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return _misfit(self.values, self.shift, x)

    def update(self, view: View, shift: Float[Array, " n"]) -> "DiagonalEvidence":
        return DiagonalEvidence(view, self.values, shift)


def as_rows(evidence: AbstractEvidence, size: int) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
    """`B` and `y` of the measurement `y = B z + ε` of standard normal noise that a context is worth, `z` having `size`
    entries."""
    dtype = evidence.values.dtype
    rows = jax.vmap(evidence.transpose)(jnp.eye(evidence.values.size, dtype=dtype))
    return rows, evidence.misfit(jnp.zeros(size, dtype))


def _misfit(values, shift, along):
    seen = values > 0
    return jnp.where(seen, (shift - values * along) / jnp.sqrt(jnp.where(seen, values, 1)), 0)


class Measured(eqx.Module):
    """How signals are measured: what is known without training.

    **Arguments:**

    - `forward`: the forward model.
    - `noise`: the noise of measurements.
    - `units`: the [`stochinv.Units`][] of measurements.
    """

    forward: AbstractForwardModel
    noise: AbstractNoise
    units: AbstractUnits

    def expect(self, signal: Signal, views: View) -> tuple[Observation, PyTree]:
        """The mean of each view of a signal, and the noise's standard deviation around it, whose size must be known.

        Where a signal predicts what cannot be, such as a negative rate, it is the deviation for what was measured.

        **Arguments:**

        - `signal`: a signal in raw units.
        - `views`: a stack of views in raw units.
        """
        positive = lambda n, other: jnp.where(n > 0, n, other)

        def one(observation, params):
            clean = self.forward(signal, params)
            std = jax.tree.map(positive, self.noise.std(clean), self.noise.std(observation))
            least = jax.tree.map(lambda unit: LEAST_NOISE * unit, self.units.unit(observation))
            return self.noise.mean(clean), jax.tree.map(jnp.maximum, std, least)

        return jax.vmap(one, axis_size=num_views(views))(views.observation, views.params)

    def misfit(self, signal: AnyCallable, views: View, least: float = LEAST_NOISE) -> AnyCallable:
        """The difference of measured and predicted values in standard deviations of the noise, as a function of
        coordinates, with an axis of views and one of entries.

        The deviations are those for what was measured, so that the function is affine if the forward model is.

        **Arguments:**

        - `signal`: from coordinates to a signal in raw units.
        - `views`: a stack of views, its measurements in standardised units. Those that do not count are 0.
        - `least`: the least noise, in standardised units.
        """
        flat = lambda o: jax.vmap(lambda x: ravel_pytree(x)[0])(o)
        raw = jax.vmap(self.units.destandardise)(views.observation)
        relative = lambda o: jax.tree.map(jnp.divide, self.noise.std(o), self.units.unit(o))
        scale = 1 / jnp.maximum(flat(jax.vmap(relative)(raw)), least)
        scale = jnp.where(view_mask(views)[:, None], scale, 0)
        observed = flat(views.observation)

        def function(z):
            known = signal(z)
            measure = lambda p: ravel_pytree(self.units.standardise(self.forward(known, p)))[0]
            return scale * (observed - jax.vmap(measure, axis_size=num_views(views))(views.params))

        return function

    def shift(self, signal: AnyCallable, zeros: Float[Array, " n"], views: View) -> Float[Array, " n"]:
        """`b` of views through an affine forward model, in coordinates that start at `zeros`."""
        rest, pull_back = jax.vjp(self.misfit(signal, views), zeros)
        return -pull_back(rest)[0]

    def rows(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View, least: float = LEAST_NOISE
    ) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
        """The matrix `R^(−1/2) A` of an affine forward model, and `R^(−1/2) (c − f(m, φ))`."""

        def one(observation, params, counts):
            view = jax.tree.map(lambda x: x[None], View(observation, params, counts))
            rest, pull_back = jax.vjp(lambda z: self.misfit(signal, view, least)(z)[0], zeros)
            return -jax.vmap(pull_back)(jnp.eye(rest.size, dtype=rest.dtype))[0], rest

        matrix, rest = jax.vmap(one)(views.observation, views.params, view_mask(views))
        return matrix.reshape(-1, zeros.size), rest.ravel()

    def precision(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View
    ) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        """`Λ` and `b` of views through an affine forward model, in coordinates that start at `zeros`."""
        misfit = lambda z: jnp.ravel(self.misfit(signal, views)(z))
        rest, linear = jax.linearize(misfit, zeros)
        matrix = jax.vmap(linear, out_axes=1)(jnp.eye(zeros.size, dtype=zeros.dtype))
        return matrix.T @ matrix, -matrix.T @ rest

    def laplace(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View
    ) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        """`Λ` and `b` of any forward model, linearised at the most likely signal that Gauss-Newton steps find from the
        best of some signals.

        An estimate that does not explain what was measured is trusted less, by the square of its misfit.
        """
        misfit = lambda z: jnp.ravel(self.misfit(signal, views)(z))
        # Always the same: what a context says is a function of it.
        others = np.random.default_rng(0).normal(size=(OTHER_STARTS, zeros.size))
        starts = jnp.concatenate([zeros[None], jnp.asarray(others, zeros.dtype)])
        cost = jnp.sum(jax.vmap(misfit)(starts) ** 2, 1) + jnp.sum(starts**2, 1)
        found, rest, matrix = levenberg_marquardt(misfit, starts[jnp.nanargmin(cost)])
        known = jnp.sum(view_mask(views)) * (rest.size // num_views(views))
        trust = 1 / jnp.maximum(jnp.sum(rest**2) / jnp.maximum(known, 1), 1) ** 2
        precision = trust * matrix.T @ matrix
        shift = precision @ found - trust * matrix.T @ rest
        good = jnp.all(jnp.isfinite(precision)) & jnp.all(jnp.isfinite(shift))
        return jnp.where(good, precision, 0), jnp.where(good, shift, 0)

    def diagonal(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View, least: float = LEAST_NOISE
    ) -> DiagonalEvidence:
        """The evidence of views through an affine forward model for which `Λ` is diagonal."""
        rest, linear = jax.linearize(self.misfit(signal, views, least), zeros)
        transpose = jax.linear_transpose(linear, zeros)
        return DiagonalEvidence(views, transpose(linear(jnp.ones_like(zeros)))[0], -transpose(rest)[0])

    def evidence(
        self,
        form: Form,
        signal: AnyCallable,
        zeros: Float[Array, " n"],
        views: View,
        matrix: Float[Array, "n n"] | None = None,
    ) -> DenseEvidence | DiagonalEvidence:
        """What views say of a signal, by whichever way suits the forward model; `matrix` is `W`, by default the
        identity."""
        if form == "nothing":
            return nothing(views, zeros)
        if form == "diagonal":
            return self.diagonal(signal, zeros, views)
        entries = count_entries(views.observation)
        if form == "dense" and entries < zeros.size:
            return thin(views, *self.rows(signal, zeros, views), matrix)
        precision, shift = (self.laplace if form == "laplace" else self.precision)(signal, zeros, views)
        values, vectors = jnp.linalg.eigh(precision)
        kept = values > ROUNDING * values[-1]
        values, shift = jnp.where(kept, values, 0), jnp.where(kept, vectors.T @ shift, 0)
        return DenseEvidence(views, vectors, values, shift, mean_squares(vectors, matrix))


def nothing(views: View, zeros: Float[Array, " n"]) -> DenseEvidence:
    """The evidence of views of which it is left to a network what they say: none."""
    value = jnp.zeros(1, zeros.dtype)
    vectors = jnp.zeros((zeros.size, 1), zeros.dtype)
    return DenseEvidence(views, vectors, value, value, mean_squares(vectors, None))


def thin(
    views: View, rows: Float[Array, "m n"], rest: Float[Array, " m"], matrix: Float[Array, "n n"] | None = None
) -> DenseEvidence:
    """The evidence of fewer entries than the signal has, in `m² n + 10 m³` operations."""
    values, vectors = jnp.linalg.eigh(rows @ rows.T)
    kept = values > ROUNDING * values[-1]
    values = jnp.where(kept, values, 0)
    along = rows.T @ jnp.where(kept, vectors / jnp.sqrt(jnp.where(kept, values, 1)), 0)
    shift = jnp.sqrt(values) * (vectors.T @ rest)
    return DenseEvidence(views, along, values, shift, mean_squares(along, matrix))


def mean_squares(
    vectors: Float[Array, "n k"], matrix: Float[Array, "n n"] | None
) -> tuple[Float[Array, " k"], FloatScalar]:
    """`squares` of [`DenseEvidence`][] for `W`, or the identity."""
    if matrix is None:
        return jnp.mean(vectors**2, 0), jnp.ones((), vectors.dtype)
    return jnp.mean((matrix @ vectors) ** 2, 0), jnp.mean(jnp.sum(matrix**2, 1))
