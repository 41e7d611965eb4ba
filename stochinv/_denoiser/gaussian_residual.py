r"""A network that corrects the exact denoiser of a Gaussian signal.

In coordinates in which the best Gaussian is white, `s = m + W z`, measurements `c = f(s, φ) + noise` through an affine
forward model with `A = ∂f/∂z` and the noise's covariance `R` say of the signal

`Λ = Aᵀ R⁻¹ A`,  `b = Aᵀ R⁻¹ (c − f(m, φ))`,

summed over the views that count, and with the noised signal `z_t = α z + σ ε`

`P = I + Λ + (α²/σ²) I`,  `E[z | z_t, c] = g = P⁻¹ (b + (α/σ²) z_t)`,

if `z` is Gaussian. The denoised signal is `g + P^(−1/2) r` with the network's output `r`, whose last layer starts at
zero: an untrained network is the Gaussian's exact answer, and errors `P^(1/2) (ẑ − z)` have size 1 at all noise levels,
given any context. `Λ` is decomposed once per context, `Λ = E diag(λ) Eᵀ`, and all else are products with `E`.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._custom_types import AnyCallable, Context, Key, Observation, Params, Signal, Structure
from .._data_info import AbstractUnits
from .._forward.base import AbstractForwardModel
from .._frozen import Frozen
from .._noise import AbstractNoise
from .._schedule import NoiseLevel
from .._view import View, num_views, view_mask
from .._whitening import Whitening
from .base import AbstractEncodingDenoiser
from .flatten import flatten

# The least noise that a measurement is taken to have, in its standard deviations: without any, `Λ` would be infinite.
LEAST_NOISE = 1e-3


class GaussianEvidence(eqx.Module):
    """What a context says of a Gaussian signal, and the context.

    **Arguments:**

    - `view`: the context, its measurements in standardised units.
    - `vectors`, `values`: `E` and `λ`.
    - `shift`: `b`.
    """

    view: View
    vectors: Float[Array, "n n"]
    values: Float[Array, " n"]
    shift: Float[Array, " n"]

    def scaled(self, scales: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
        """`E diag(scales) Eᵀ x`."""
        return self.vectors @ (scales * (self.vectors.T @ x))


@final
class GaussianResidual(AbstractEncodingDenoiser):
    """The exact denoiser of a Gaussian signal, corrected by a network.

    Costs some `n² (entries measured) + 10 n³` operations per context for a signal of `n` entries. A forward model that
    is not affine is linearised where Gauss-Newton steps find the most likely signal. Noise of unknown size leaves `Λ`
    and `b` at zero: then the network alone says what the context says.

    **Arguments:**

    - `whitening`: the coordinates in which the signal is noised.
    - `signal`: the `jax.ShapeDtypeStruct`s of a signal.
    - `forward`, `noise`, `units`: the forward model, the noise, and the units of measurements.
    - `affine`: whether the forward model is affine.
    - `network`: a callable `(input, embedding) -> output` on vectors, which starts at zero.
    - `embedding`: a callable from the log-SNR to a vector.
    """

    known: Frozen
    signal: Structure
    affine: bool = eqx.field(static=True)
    network: AnyCallable
    embedding: AnyCallable

    def __init__(
        self,
        whitening: Whitening,
        signal: Structure,
        forward: AbstractForwardModel,
        noise: AbstractNoise,
        units: AbstractUnits,
        *,
        affine: bool,
        network: AnyCallable,
        embedding: AnyCallable,
    ):
        self.known = Frozen((whitening, Measured(forward, noise, units)))
        self.signal = signal
        self.affine = affine
        self.network = network
        self.embedding = embedding

    def encode(self, context: Context) -> PyTree:
        whitening, measured = self.known.value
        zeros = jnp.zeros_like(whitening.mean)
        if measured.noise.std(_first_raw(measured.units, context)) is None:
            return GaussianEvidence(context, jnp.eye(zeros.size, dtype=zeros.dtype), zeros, zeros)
        evidence = measured.affine_evidence if self.affine else measured.laplace_evidence
        precision, shift = evidence(self._signal, zeros, context)
        values, vectors = jnp.linalg.eigh(precision)
        return GaussianEvidence(context, vectors, jnp.maximum(values, 0), shift)

    def _signal(self, flat):
        """The signal in raw units behind raveled whitened coordinates."""
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.signal)
        return self.known.value[0].destandardise(ravel_pytree(zeros)[1](flat))

    def _residual(self, noisy, level, context):
        """`g`, the eigenvalues of `P`, and `r`."""
        values = 1 + context.values + (level.alpha / level.sigma) ** 2
        estimate = context.scaled(1 / values, context.shift + level.alpha / level.sigma**2 * noisy)
        spread = jnp.sqrt(context.vectors**2 @ (1 / values))
        size = jnp.sqrt(level.alpha**2 + level.sigma**2)
        parts = [noisy / size, estimate, jnp.log(spread), features(context.view, noisy)]
        return estimate, values, self.network(jnp.concatenate(parts), self.embedding(level.log_snr))

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        estimate, values, output = self._residual(ravel_pytree(noisy)[0], level, context)
        return self._signal(estimate + context.scaled(1 / jnp.sqrt(values), output))

    def normalised_error(
        self, noisy: Observation, level: NoiseLevel, context: PyTree, clean: Observation
    ) -> Float[Array, " n"]:
        estimate, values, output = self._residual(ravel_pytree(noisy)[0], level, context)
        return output + context.scaled(jnp.sqrt(values), estimate - ravel_pytree(clean)[0])


def _first_raw(units: AbstractUnits, views: View) -> Observation:
    return units.destandardise(jax.tree.map(lambda x: x[0], views.observation))


def features(view: View, like: Float[Array, " n"]) -> Float[Array, " features"]:
    """A stack of views as one vector: measurements and parameters, zero where they do not count, and the mask."""
    mask = view_mask(view)
    rows = jax.vmap(lambda o, p: jnp.concatenate([flatten(o, like), flatten(p, like)]))(view.observation, view.params)
    return jnp.concatenate([jnp.ravel(jnp.where(mask[:, None], rows, 0)), mask.astype(like.dtype)])


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

    def misfit(self, signal: AnyCallable, views: View) -> AnyCallable:
        """The difference of measured and predicted values in standard deviations of the noise, as a function of
        coordinates.

        **Arguments:**

        - `signal`: from coordinates to a signal in raw units.
        - `views`: a stack of views, its measurements in standardised units. Those that do not count are 0.
        """
        flat = lambda o: jax.vmap(lambda x: ravel_pytree(x)[0])(o)
        raw = jax.vmap(self.units.destandardise)(views.observation)
        relative = lambda o: jax.tree.map(jnp.divide, self.noise.std(o), self.units.unit(o))
        scale = 1 / jnp.maximum(flat(jax.vmap(relative)(raw)), LEAST_NOISE)
        scale = jnp.where(view_mask(views)[:, None], scale, 0)
        observed = flat(views.observation)

        def function(z):
            known = signal(z)
            measure = lambda p: ravel_pytree(self.units.standardise(self.forward(known, p)))[0]
            return jnp.ravel(scale * (observed - jax.vmap(measure, axis_size=num_views(views))(views.params)))

        return function

    def affine_evidence(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View
    ) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        """`Λ` and `b` of views through an affine forward model, in coordinates that start at `zeros`."""
        rest, linear = jax.linearize(self.misfit(signal, views), zeros)
        matrix = jax.vmap(linear, out_axes=1)(jnp.eye(zeros.size, dtype=zeros.dtype))
        return matrix.T @ matrix, -matrix.T @ rest

    def laplace_evidence(
        self, signal: AnyCallable, zeros: Float[Array, " n"], views: View
    ) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        """`Λ` and `b` of any forward model, linearised at the most likely signal that Gauss-Newton steps find.

        An estimate that does not explain what was measured is trusted less, by the square of its misfit.
        """
        misfit = self.misfit(signal, views)
        found, rest, matrix = levenberg_marquardt(misfit, zeros)
        known = jnp.sum(view_mask(views)) * (rest.size // num_views(views))
        trust = 1 / jnp.maximum(jnp.sum(rest**2) / jnp.maximum(known, 1), 1) ** 2
        precision = trust * matrix.T @ matrix
        shift = precision @ found - trust * matrix.T @ rest
        good = jnp.all(jnp.isfinite(precision)) & jnp.all(jnp.isfinite(shift))
        return jnp.where(good, precision, 0), jnp.where(good, shift, 0)


def levenberg_marquardt(
    misfit: AnyCallable, start: Float[Array, " n"], *, num_steps: int = 12, step: float = 0.01
) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, "m n"]]:
    """The least squares of a misfit and of a standard normal's: `‖r(z)‖² + ‖z‖²`, by damped Gauss-Newton steps.

    Derivatives are central differences: a forward model need not be differentiable, and is compiled once.

    **Returns:**

    The best point, and the misfit and its Jacobian there.
    """
    identity = jnp.eye(start.size, dtype=start.dtype)

    def evaluate(z):
        around = jnp.concatenate([z[None], z + step * identity, z - step * identity])
        values = jax.vmap(misfit)(around)
        ahead, behind = values[1 : start.size + 1], values[start.size + 1 :]
        return values[0], (ahead - behind).T / (2 * step)

    def advance(carry, _):
        best, trial, damping = carry
        rest, matrix = evaluate(trial)
        cost = jnp.sum(rest**2) + jnp.sum(trial**2)
        better = cost < best[0]
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), (cost, trial, rest, matrix), best)
        damping = jnp.where(better, damping / 5, damping * 4)
        _, z, rest, matrix = best
        normal = matrix.T @ matrix + identity
        normal = normal + damping * jnp.diag(jnp.diag(normal))
        return (best, z - jnp.linalg.solve(normal, matrix.T @ rest + z), damping), None

    shapes = jax.eval_shape(evaluate, start)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    first = (jnp.asarray(jnp.inf, start.dtype), start, *nothing)
    (best, _, _), _ = jax.lax.scan(advance, (first, start, jnp.asarray(0.1, start.dtype)), None, length=num_steps)
    return best[1:]
