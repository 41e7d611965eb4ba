"""The affine map on the last axis.

`y = x W + b`, with `W` of shape `(in, out)`: on `(..., in)` arrays this is one matrix product whatever the leading axes
are, and `jax.vmap` adds its batch to them.

Every weight of this subpackage is drawn uniformly on `[−√(3/n), √(3/n)]`, `n` the number of inputs that one output sums
over, so that the output has the variance of the input (LeCun et al. 1998, "Efficient BackProp", section 4.6). Biases
start at zero, and so do whole layers that are to do nothing at first.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._misc import check_positive


def fan_in_uniform(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Float[Array, "*shape"]:
    """Weights of variance `1 / fan_in`, uniformly distributed."""
    limit = math.sqrt(3 / fan_in)
    return jr.uniform(key, shape, minval=-limit, maxval=limit)


class Linear(eqx.Module):
    """Affine map on the last axis of an array."""

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"] | None

    def __init__(
        self, in_size: int, out_size: int, *, use_bias: bool = True, zero_init: bool = False, key: PRNGKeyArray
    ) -> None:
        """**Arguments:**

        - `in_size`: size of the last axis of the input, at least 1.
        - `out_size`: size of the last axis of the output, at least 1.
        - `use_bias`: whether to add a bias.
        - `zero_init`: whether the weight starts at zero rather than at random.
        - `key`: a JAX random key for the weight.

        **Raises:** `ValueError` if a size is not positive.
        """
        check_positive(in_size=in_size, out_size=out_size)
        shape = (in_size, out_size)
        if zero_init:
            self.weight = jnp.zeros(shape)
        else:
            self.weight = fan_in_uniform(key, shape, in_size)
        self.bias = jnp.zeros(out_size) if use_bias else None

    def __call__(self, x: Float[Array, "*axes in_size"]) -> Float[Array, "*axes out_size"]:
        """**Arguments:**

        - `x`: array of shape `(..., in_size)`; it is cast to the weight's type.

        **Returns:**

        Array of shape `(..., out_size)` in the weight's type.
        """
        y = x.astype(self.weight.dtype) @ self.weight
        return y if self.bias is None else y + self.bias
