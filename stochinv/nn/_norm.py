"""Normalisation to zero mean and unit variance, computed in single precision at least.

`y = (x − mean) / √(var + ε)`, where the statistics are over all pixels of a group of channels (Wu & He 2018, "Group
Normalization") or over the features of one token (Ba et al. 2016, "Layer Normalization"). Half-precision inputs are
normalised in `float32` and cast back, because sums over thousands of pixels exhaust an 8-bit mantissa.
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._misc import check_divides, check_positive, check_shape


class GroupNorm(eqx.Module):
    """Group normalisation of one channels-last image; with `affine` each channel is scaled and shifted."""

    weight: Float[Array, " channels"] | None
    bias: Float[Array, " channels"] | None
    channels: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, groups: int = 8, *, eps: float = 1e-5, affine: bool = True):
        check_positive(channels=channels, groups=groups)
        check_divides("groups", groups, "channels", channels)
        self.weight = jnp.ones(channels) if affine else None
        self.bias = jnp.zeros(channels) if affine else None
        self.channels = channels
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        check_shape(self, x=(x, ("height", "width", self.channels)))
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = y - self._group_mean(jnp.mean(y, axis=(0, 1)))
        variance = self._group_mean(jnp.mean(jnp.square(centred), axis=(0, 1)))
        y = centred * lax.rsqrt(variance + self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight + self.bias
        return y.astype(x.dtype)

    def _group_mean(self, per_channel: Float[Array, " channels"]) -> Float[Array, " channels"]:
        means = jnp.mean(per_channel.reshape(self.groups, -1), axis=1)
        return jnp.repeat(means, self.channels // self.groups)


def layer_norm(x: Float[Array, "*axes size"], *, eps: float = 1e-5) -> Float[Array, "*axes size"]:
    """Layer normalisation over the last axis, without learned scale and shift."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps)).astype(x.dtype)
