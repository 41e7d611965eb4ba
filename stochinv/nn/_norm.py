"""Normalisation to zero mean and unit variance, computed in single precision at least.

`y = (x − mean) / √(var + ε)`, where the statistics are over all pixels of a group of channels (Wu & He 2018, "Group
Normalization") or over the features of one token (Ba et al. 2016, "Layer Normalization"). Half-precision inputs are
normalised in `float32` and cast back, because sums over thousands of pixels exhaust an 8-bit mantissa.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ._misc import SPACE, check_divides, check_positive, check_shape

# For functions of pixels around a `GroupNorm`: the gradient keeps their arguments and the moments, and computes the
# rest again, which takes less time than to write and to read it.
keep_moments = partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("moments"))


class GroupNorm(eqx.Module):
    """Group normalisation of one channels-last image, sequence or volume; with `affine` each channel is scaled and
    shifted."""

    weight: Float[Array, " channels"] | None
    bias: Float[Array, " channels"] | None
    channels: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, groups: int = 8, *, eps: float = 1e-5, affine: bool = True) -> None:
        check_positive(channels=channels, groups=groups)
        check_divides("groups", groups, "channels", channels)
        self.weight = jnp.ones(channels) if affine else None
        self.bias = jnp.zeros(channels) if affine else None
        self.channels = channels
        self.groups = groups
        self.eps = eps

    def __call__(
        self,
        x: Float[Array, "*space channels"],
        scale: Float[Array, " channels"] | None = None,
        shift: Float[Array, " channels"] | None = None,
    ) -> Float[Array, "*space channels"]:
        """The normalised image, scaled and shifted by the given amounts or else by the learned ones."""
        check_shape(self, x=(x, (*SPACE[x.ndim - 1], self.channels)))
        scale, shift = self.weight if scale is None else scale, self.bias if shift is None else shift
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = y - self._group_mean(y)
        gain = lax.rsqrt(self._group_mean(jnp.square(centred)) + self.eps)
        y = centred * (gain if scale is None else gain * scale)
        if shift is not None:
            y = y + shift
        return y.astype(x.dtype)

    def _group_mean(self, x: Float[Array, "*space channels"]) -> Float[Array, " channels"]:
        """Of each group, repeated for its channels."""
        means = jnp.mean(jnp.mean(x, axis=tuple(range(x.ndim - 1))).reshape(self.groups, -1), axis=1)
        # By a matrix product, whose result XLA stores: what else repeats, it would compute again for every pixel.
        repeat = np.kron(np.eye(self.groups), np.ones(self.channels // self.groups)).astype(x.dtype)
        return checkpoint_name(jnp.matmul(means, repeat, precision=lax.Precision.HIGHEST), "moments")


def layer_norm(x: Float[Array, "*axes size"], *, eps: float = 1e-5) -> Float[Array, "*axes size"]:
    """Layer normalisation over the last axis, without learned scale and shift."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps)).astype(x.dtype)
