"""Multi-head self-attention over a set of tokens.

`softmax(Q Kᵀ / √d) V` for each head, `d` the features of one head (Vaswani et al. 2017, "Attention Is All You Need",
section 3.2). Heads come first in every product, which is the order that batched matrix products are fastest in on CPU.
The softmax is computed in single precision at least.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import Linear


class SelfAttention(eqx.Module):
    """Multi-head self-attention, every token to all; `heads` divides `size`. `zero_init` is of the output map."""

    to_qkv: Linear
    to_out: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, *, heads: int, zero_init: bool = False, key: PRNGKeyArray) -> None:
        qkv_key, out_key = jr.split(key)
        self.to_qkv = Linear(size, 3 * size, use_bias=False, key=qkv_key)
        self.to_out = Linear(size, size, zero_init=zero_init, key=out_key)
        self.heads = heads

    def __call__(self, x: Float[Array, "tokens size"]) -> Float[Array, "tokens size"]:
        tokens, size = x.shape
        qkv = self.to_qkv(x).reshape(tokens, 3, self.heads, size // self.heads)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        scores = jnp.matmul(
            query / math.sqrt(size // self.heads),
            key.transpose(0, 2, 1),
            preferred_element_type=jnp.promote_types(qkv.dtype, jnp.float32),
        )
        attended = jax.nn.softmax(scores, axis=-1).astype(value.dtype) @ value
        return self.to_out(attended.transpose(1, 0, 2).reshape(tokens, size))
