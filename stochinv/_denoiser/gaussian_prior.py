r"""A network around the exact answer for a Gaussian signal.

For an affine forward model and `s ~ N(m, L Lᵀ)`, the law of the signal given the context and the noisy target is
Gaussian with mean `m'` and covariance `L' L'ᵀ`. They follow by one update per scalar measurement `h·s + r ε` with
value `y` (Potter's square-root form of the Kalman filter; Maybeck 1979, "Stochastic models, estimation and control",
section 7.3):

`φ = Lᵀ h`, `a = 1 / (φ·φ + r²)`, `m ← m + a (y − h·m) L φ`, `L ← L − a / (1 + √(a r²)) L φ φᵀ`,

which is a projection for `r = 0`. The signals `ŝ = m' + L' u`, with `u` from a network, then vary where measurements
leave them free and nowhere else: every one explains a context without noise exactly, and the target as far as its noise
level tells it.
"""

import math
from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import Context, Observation, Params, Structure
from .._data_info import Units
from .._forward.base import AbstractForwardModel, as_multi_view
from .._frozen import Frozen
from .._noise import AbstractNoise
from .._schedule import NoiseLevel
from .._view import is_view, view_mask
from .flatten import Flatten
from .network import AbstractEncoder, Features


@final
class GaussianPrior(AbstractEncoder):
    """Encodes measurements of a vector signal by what they say of a Gaussian signal.

    The first estimate is the conditional mean and the uncertainty a root of the conditional covariance, of a Gaussian
    whose mean and root are trained with the network. For affine forward models, and signals and measurements of up to
    some hundred entries: the cost is quadratic in the former and linear in the latter.

    **Arguments:**

    - `forward`: the forward model, affine in the signal.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `flatten`: the [`stochinv.Flatten`][] that encodes the rest of the network's input.
    - `scale`: the standard deviation that the signal's entries start with, in raw units.
    - `noise`: the Gaussian noise of measurements.
    - `units`: the [`stochinv.Units`][] of measurements.
    """

    forward: Frozen
    signal: Structure
    flatten: Flatten
    scale: float
    mean: Float[Array, " n"]
    root: Float[Array, "n n"]

    def __init__(
        self,
        forward: AbstractForwardModel,
        signal: Structure,
        flatten: Flatten,
        *,
        scale: float = 1.0,
        noise: AbstractNoise,
        units: Units,
    ):
        self.forward = Frozen((forward, noise, units))
        self.signal = signal
        self.flatten = flatten
        size = sum(x.size for x in jax.tree.leaves(signal))
        dtype = jnp.result_type(*jax.tree.leaves(signal))
        # What is trained is in units of `scale`, so that no unit of the signal is too small or large for a step.
        self.scale = scale
        self.mean = jnp.zeros(size, dtype)
        self.root = jnp.eye(size, dtype=dtype)

    @property
    def num_features(self) -> int:
        """How many entries the network's input has beyond those of `flatten`."""
        return self.mean.size + (self.root.size if self.root.size <= 256 else self.mean.size)

    def _rows(self, measure, observation):
        """The matrix of a measurement, and the observed value less that of the signal that is zero."""
        zeros, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.signal))
        _, _, units = self.forward.value
        flat = lambda s: ravel_pytree(units.standardise(measure(unravel(self.scale * s))))[0]
        value, linear = jax.linearize(flat, zeros)
        matrix = jax.vmap(linear, out_axes=1)(jnp.eye(zeros.size, dtype=zeros.dtype))
        return matrix, ravel_pytree(observation)[0] - value

    def __call__(self, noisy: Observation, level: NoiseLevel, context: Context, params: Params) -> Features:
        forward, noise, units = self.forward.value

        def spread(o):
            """The variance of the noise of each entry, in standardised units."""
            return ravel_pytree(jax.tree.map(lambda n, s: (n / s) ** 2, noise.std(o), units.unit(o)))[0]

        parts = []
        if is_view(context):
            stack = as_multi_view(forward)
            rows, observed = self._rows(lambda s: stack(s, context.params), context.observation)
            mask = view_mask(context)
            keep = jax.vmap(lambda o, m: jax.tree.map(lambda x: jnp.full(x.shape, m), o))(context.observation, mask)
            keep = ravel_pytree(keep)[0]
            parts.append((jnp.where(keep[:, None], rows, 0), jnp.where(keep, observed, 0), spread(context.observation)))
        scaled = jax.tree.map(lambda x: x / level.alpha, noisy)
        rows, observed = self._rows(lambda s: forward(s, params), scaled)
        parts.append((rows, observed, spread(noisy) + (level.sigma / level.alpha) ** 2))
        rows, observed, variances = (jnp.concatenate(x) for x in zip(*parts, strict=True))
        white, shrinkage = condition(rows @ self.root, observed - rows @ self.mean, variances)
        estimate, root = self.mean + self.root @ white, self.root @ shrinkage
        features = self.flatten(noisy, level, context, params)
        size = jnp.max(jnp.linalg.norm(self.root, axis=0))
        covariance = root @ root.T / size**2
        geometry = jnp.ravel(root / size) if root.size <= 256 else jnp.diag(covariance)
        network_input = jnp.concatenate([features.network_input, estimate / size, geometry])
        return Features(network_input, self.scale * estimate, self.scale * root, shrinkage.T)


def signal_scale(forward: AbstractForwardModel, signal: Structure, params: Params, units: Units) -> float:
    """How large the entries of a signal are, if measurements vary as much as those of `N(0, scale² I)` would.

    **Arguments:**

    - `forward`: the forward model.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `params`: the parameters of one measurement, from which it is told.
    - `units`: the [`stochinv.Units`][] of measurements.
    """
    stds = [float(x) for x in jax.tree.leaves(units.std)]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signal)
    drawn = jax.tree.map(lambda x: jr.normal(jr.key(0), x.shape, x.dtype), signal)
    vary = jax.jit(lambda: jax.tree.map(lambda a, b: a - b, forward(drawn, params), forward(zeros, params)))()
    # In standardised units, so that no square is out of range.
    square = [jnp.mean((x / s) ** 2) for x, s in zip(jax.tree.leaves(vary), stds, strict=True)]
    size = math.sqrt(float(sum(square)) / len(square))
    return 1 / size if size > 0 else 1.0


def condition(rows: Any, observed: Any, variances: Any) -> tuple[Any, Any]:
    """Mean and root of the covariance of `s ~ N(0, I)`, given measurements `rows @ s` with independent noise."""

    def update(carry, measurement):
        mean, root = carry
        row, value, variance = measurement
        image = root.T @ row
        total = image @ image + variance
        # A row that earlier ones determine says nothing new; rounding leaves some 1e-14 of its variance.
        known = total <= 1e-10 * (row @ row)
        gain = jnp.where(known, 0, 1 / jnp.where(known, 1, total))
        noisy = variance > 0
        share = jnp.where(noisy, jnp.sqrt(jnp.where(noisy, gain * variance, 1)), 0)
        gained = root @ image
        mean = mean + gain * (value - row @ mean) * gained
        root = root - gain / (1 + share) * jnp.outer(gained, image)
        return (mean, root), None

    size = rows.shape[1]
    start = jnp.zeros(size, rows.dtype), jnp.eye(size, dtype=rows.dtype)
    (mean, root), _ = jax.lax.scan(update, start, (rows, observed, variances))
    return mean, root
