r"""Measurements of an image by an affine forward model, put where they belong in the image.

For `o = A s + b` with a stack of context views and a noisy target, the back-projections `A_iᵀ (o_i − b)` are images. So
are the coverages `A_iᵀ A_i 1`, and their ratio is an image in the units of the signal: the pixels themselves for a crop
or a mask, nearest-neighbour upsampling for downsampling.
"""

from typing import Any, final

import jax
import jax.numpy as jnp

from .._custom_types import Context, FloatScalarLike, Observation, Params, Structure
from .._forward.base import AbstractForwardModel, as_multi_view
from .._frozen import Frozen
from .._schedule import NoiseLevel
from .._structure import count_entries
from .._view import is_view, view_mask
from .flatten import flatten
from .network import AbstractEncoder, Features

# Beyond this the estimate is not relied on: it bounds how far the network's output is scaled down.
_LARGEST_SNR = 25.0


@final
class BackProjection(AbstractEncoder):
    """Encodes views of an image through an affine forward model as images, for a network of images.

    Channels, for each of the target and the context: the back-projection and its coverage. Vector-valued
    contexts that are not views become constant channels. The first estimate is the mean of the two, weighted by their
    signal-to-noise ratios, as for independent pixels of unit variance.

    **Arguments:**

    - `forward`: the forward model.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal: images `(H, W, channels)`.
    - `gain`: how large the forward model makes a signal of ones.
    """

    forward: Frozen
    signal: Structure
    gain: float

    def __init__(self, forward: AbstractForwardModel, signal: Structure, *, gain: FloatScalarLike = 1.0) -> None:
        self.forward = Frozen(forward)
        self.signal = signal
        self.gain = float(gain)

    def _back_project(self, measure, observation, weights):
        """The back-projection of a measurement in the units of the signal, and its coverage between 0 and 1."""
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.signal)
        ones = jax.tree.map(jnp.ones_like, zeros)
        _, linear = jax.linearize(measure, zeros)
        transpose = jax.linear_transpose(linear, zeros)
        weigh = lambda o: jax.tree.map(jnp.multiply, o, weights)
        # Divided by the gain once before and once after, since its square may be out of range; the barrier keeps the
        # compiler from taking both together.
        scaled = lambda o: jax.lax.optimization_barrier(jax.tree.map(lambda x: x / self.gain, o))
        project = lambda o: jnp.concatenate(jax.tree.leaves(scaled(transpose(weigh(o))[0])), axis=-1)
        coverage = project(scaled(linear(ones)))
        limit = 1e-3 * jnp.max(jnp.abs(coverage), initial=1e-12)
        image = project(observation) * coverage / (coverage**2 + limit**2)
        return image, jnp.clip(coverage, 0, 1)

    def __call__(self, noisy: Observation, level: NoiseLevel, context: Context, params: Params) -> Features:
        forward = self.forward.value
        full = jax.tree.map(jnp.ones_like, noisy)
        size = jnp.sqrt(level.alpha**2 + level.sigma**2)
        target, target_coverage = self._back_project(lambda s: forward(s, params), noisy, full)
        target_snr = jnp.minimum((level.alpha / level.sigma) ** 2, _LARGEST_SNR) * target_coverage
        channels = [target / size, target_coverage]
        total, weighted = 1 + target_snr, target_snr * target / level.alpha
        if is_view(context):
            mask = view_mask(context)
            weights = jax.tree.map(
                lambda x: jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x.shape).astype(x.dtype),
                context.observation,
            )
            stack = as_multi_view(forward)
            given, coverage = self._back_project(lambda s: stack(s, context.params), context.observation, weights)
            channels += [given, coverage]
            snr = _LARGEST_SNR * coverage
            total, weighted = total + snr, weighted + snr * given
        elif context is not None:
            constants = flatten(context, target)
            channels.append(jnp.broadcast_to(constants, (*target.shape[:2], constants.size)))
        return Features(jnp.concatenate(channels, -1), weighted / total, 1 / jnp.sqrt(total))


def count_channels(signal: Structure, context: Any) -> int:
    """How many channels a [`stochinv.BackProjection`][] has, for a signal and a context of given structures."""
    channels = sum(x.shape[-1] for x in jax.tree.leaves(signal))
    if is_view(context):
        return 4 * channels
    return 2 * channels + count_entries(context)


def forward_gain(forward: AbstractForwardModel, signal: Structure, params: Structure) -> float:
    """The mean of a measurement of ones, less that of zeros; 1 where it depends on the parameters or is near 0.

    Parameters are unknown here, so zeros stand in for them.
    """
    at = lambda x: forward(
        jax.tree.map(lambda s: jnp.full(s.shape, x, s.dtype), signal),
        jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params),
    )
    slopes = [a - b for a, b in zip(jax.tree.leaves(at(1.0)), jax.tree.leaves(at(0.0)), strict=True)]
    gain = abs(float(jnp.mean(jnp.stack([jnp.mean(x) for x in slopes]))))
    largest = max(float(jnp.max(jnp.abs(x), initial=0.0)) for x in slopes)
    return gain if gain > 1e-6 * largest else 1.0
