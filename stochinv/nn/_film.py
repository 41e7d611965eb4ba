"""How an embedding conditions a network: feature-wise linear modulation.

Features `h` become `h · (1 + γ) + β` with `γ, β` affine in a vector that is computed once per call,
`u = silu(A e + a)`, from the network's embedding `e` (Perez et al. 2018, "FiLM: Visual Reasoning with a General
Conditioning Layer"). The hidden layer `u` lets an embedding that is raw numbers condition the network as well as a
learned one does.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import Linear


class Conditioning(eqx.Module):
    """The hidden layer between a network's embedding and all of its modulations."""

    linear: Linear

    def __init__(self, embedding_size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `embedding_size`: size of the embedding, at least 1.
        - `key`: a JAX random key for the weights.
        """
        self.linear = Linear(embedding_size, embedding_size, key=key)

    def __call__(self, embedding: Float[Array, " embedding_size"]) -> Float[Array, " embedding_size"]:
        """**Arguments:**

        - `embedding`: vector of shape `(embedding_size,)`.

        **Returns:**

        Vector of the same shape.
        """
        return jax.nn.silu(self.linear(embedding))


class FiLM(eqx.Module):
    """Scales and shifts each feature by amounts that are affine in a vector."""

    linear: Linear

    def __init__(self, embedding_size: int, size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `embedding_size`: size of the conditioning vector, at least 1.
        - `size`: number of features to modulate, at least 1.
        - `key`: a JAX random key for the weights.
        """
        self.linear = Linear(embedding_size, 2 * size, key=key)

    def __call__(
        self, x: Float[Array, "*axes size"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "*axes size"]:
        """**Arguments:**

        - `x`: features, of shape `(..., size)`.
        - `condition`: vector of shape `(embedding_size,)`.

        **Returns:**

        Array of the shape of `x`.
        """
        scale, shift = jnp.split(self.linear(condition), 2)
        return x * (1 + scale) + shift
