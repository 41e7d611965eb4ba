"""How an embedding conditions a network: feature-wise linear modulation.

Features `h` become `h · (1 + γ) + β` with `γ, β` affine in a vector that is computed once per call,
`u = silu(A e + a)`, from the network's embedding `e` (Perez et al. 2018, "FiLM: Visual Reasoning with a General
Conditioning Layer"). The hidden layer `u` lets an embedding that is raw numbers condition the network as well as a
learned one does.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import Linear


class Conditioning(eqx.Module):
    """The hidden layer between a network's embedding and all of its modulations."""

    linear: Linear

    def __init__(self, embedding_size: int, *, key: PRNGKeyArray) -> None:
        self.linear = Linear(embedding_size, embedding_size, key=key)

    def __call__(self, embedding: Float[Array, " embedding_size"]) -> Float[Array, " embedding_size"]:
        return jax.nn.silu(self.linear(embedding))


class FiLM(eqx.Module):
    """Scales and shifts each feature by amounts that are affine in a vector."""

    linear: Linear

    def __init__(self, embedding_size: int, size: int, *, key: PRNGKeyArray) -> None:
        self.linear = Linear(embedding_size, 2 * size, key=key)

    def __call__(
        self, x: Float[Array, "*axes size"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "*axes size"]:
        scale, shift = self.scale_and_shift(condition)
        return x * scale + shift

    def scale_and_shift(
        self, condition: Float[Array, " embedding_size"]
    ) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
        """`1 + γ` and `β`, by a product each: XLA's loops over pixels are slow where they read halves of one vector."""
        half = lambda i: jax.tree.map(lambda x: jnp.split(x, 2, axis=-1)[i], self.linear)(condition)
        return 1 + half(0), half(1)


class ModulatedLayer(eqx.Module):
    """A hidden layer with a shortcut, `h + W silu(FiLM(U h, e))`, where `U` is a matrix or a convolution."""

    inward: Callable[[Array], Array]
    film: FiLM
    outward: Linear

    def __init__(
        self, make_inward: Callable[..., Callable[[Array], Array]], size: int, *, embedding_size: int, key: PRNGKeyArray
    ) -> None:
        keys = jr.split(key, 3)
        self.inward = make_inward(size, size, use_bias=False, key=keys[0])
        self.film = FiLM(embedding_size, size, key=keys[1])
        self.outward = Linear(size, size, key=keys[2])

    def __call__(
        self, x: Float[Array, "*axes size"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "*axes size"]:
        return x + self.outward(jax.nn.silu(self.film(self.inward(x), condition)))
