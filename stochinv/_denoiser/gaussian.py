r"""The exact denoiser of a linear-Gaussian problem.

For `s ~ N(m, P)`, `o = A s + b + τ η` and a context `c = C s + d + τ η'` of other views, the law of the signal given
the context is `N(m_c, P_c)`, and given a noisy target as well it is Gaussian with mean

`m_c + P_c Aᵀ α (α² A P_c Aᵀ + (σ² + α² τ²) I)⁻¹ (o_t − α (A m_c + b))`.

A draw is had without a factorisation per noise level (Matheron's rule): draw `(s*, c*, o_t*)` from the prior and
correct `s*` by the same gains, applied to `c − c*` and `o_t − o_t*`.
"""

from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_instance
from .._custom_types import AnyCallable, Context, FloatScalarLike, Key, Observation, Params, PyTree, Signal
from .._forward.base import AbstractForwardModel, as_forward_model, as_multi_view
from .._schedule import NoiseLevel
from .._view import View, view_mask
from .base import AbstractDenoiser


@final
class GaussianDenoiser(AbstractDenoiser):
    """The exact denoiser for a Gaussian signal and an affine forward model.

    It returns `E[s | o_t, c]` for `key=None`, and an exact draw from `p(s | o_t, c)` for a key. Measurements are
    in the units of `forward`: the problem must not standardise.

    **Arguments:**

    - `forward`: the forward model, affine in the signal.
    - `mean`: the mean of the signal, a PyTree of arrays.
    - `covariance`: the covariance of the raveled signal, positive semi-definite, shape `(n, n)`.
    - `noise`: the standard deviation `τ ≥ 0` of the noise on measurements (target and context views).
    """

    forward: AbstractForwardModel
    mean: PyTree
    root: Float[Array, "n n"]
    noise: Float[Array, ""]

    def __init__(
        self,
        forward: AbstractForwardModel | AnyCallable,
        mean: Signal,
        covariance: Float[Array, "n n"],
        *,
        noise: FloatScalarLike = 0.0,
    ) -> None:
        size = ravel_pytree(mean)[0].size
        if covariance.shape != (size, size):
            raise ValueError(
                f"GaussianDenoiser: `covariance` must be ({size}, {size}) for a signal with {size} entries, "
                f"got {covariance.shape}."
            )
        eigenvalues, eigenvectors = jnp.linalg.eigh(covariance)
        self.forward = as_forward_model(forward)
        self.mean = mean
        self.root = eigenvectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))
        self.noise = jnp.asarray(noise, covariance.dtype)

    def _affine(self, function):
        mean, unravel = ravel_pytree(self.mean)
        flat = lambda s: ravel_pytree(function(unravel(s)))[0]
        return jax.jacfwd(flat)(mean), flat(mean)

    def _context_rows(self, context: Context):
        """The matrix, value at the mean, observed value and noise of the context."""
        check_instance("GaussianDenoiser: the context", context, View, "a `stochinv.View`, or None")
        forward = as_multi_view(self.forward)
        matrix, predicted = self._affine(lambda s: forward(s, context.params))
        keep = jax.vmap(lambda o, m: jax.tree.map(lambda x: jnp.full(x.shape, m), o))(
            context.observation, view_mask(context)
        )
        keep = ravel_pytree(keep)[0]
        observed = jnp.where(keep, ravel_pytree(context.observation)[0], 0)
        return matrix * keep[:, None], predicted * keep, observed, self.noise * keep

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        mean, unravel = ravel_pytree(self.mean)
        noisy, _ = ravel_pytree(noisy)
        matrix, predicted = self._affine(lambda s: self.forward(s, params))
        covariance = self.root @ self.root.T
        signal = mean
        if key is not None:
            signal_key, context_key, target_key = jr.split(key, 3)
            signal = mean + self.root @ jr.normal(signal_key, mean.shape, mean.dtype)
        if context is not None:
            rows, at_mean, observed, noise = self._context_rows(context)
            cross = covariance @ rows.T
            gain = cross @ jnp.linalg.pinv(rows @ cross + jnp.diag(noise**2), hermitian=True)
            expected = at_mean + rows @ (signal - mean)
            if key is not None:
                expected = expected + noise * jr.normal(context_key, expected.shape, expected.dtype)
            signal = signal + gain @ (observed - expected)
            covariance = covariance - gain @ cross.T
        # Filter factors on the eigenbasis keep float32 precision at small noise, and do not depend on the level.
        eigenvalues, basis = jnp.linalg.eigh(matrix @ covariance @ matrix.T)
        alpha, variance = level.alpha, level.sigma**2 + (level.alpha * self.noise) ** 2
        factors = alpha / (alpha**2 * jnp.maximum(eigenvalues, 0) + variance)
        expected = alpha * (predicted + matrix @ (signal - mean))
        if key is not None:
            expected = expected + jnp.sqrt(variance) * jr.normal(target_key, expected.shape, expected.dtype)
        signal = signal + covariance @ matrix.T @ (basis @ (factors * (basis.T @ (noisy - expected))))
        return unravel(signal)
