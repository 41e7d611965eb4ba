"""Residual perceptron on vectors, modulated by an embedding.

    h ← V x + b
    h ← h + W silu(FiLM(U h, e))        (`depth` times)
    y = A h + a

with `FiLM` after Perez et al. 2018 (arXiv:1709.07871). There is no normalisation: it would remove the size of the
features, which tells low-dimensional vectors apart. The straight path from `x` to `y` represents linear maps, which
denoisers tend to where the noise is very small or very large.
"""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._film import Conditioning, ModulatedLayer
from ._linear import Linear
from ._misc import check_positive, check_shape


class MLP(eqx.Module):
    """Residual perceptron for one vector, conditioned by an embedding.

    A fresh network returns zeros.
    """

    conditioning: Conditioning
    linear_in: Linear
    layers: tuple[ModulatedLayer, ...]
    linear_out: Linear
    in_size: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __init__(
        self, in_size: int, out_size: int, *, embedding_size: int, width: int = 256, depth: int = 3, key: PRNGKeyArray
    ) -> None:
        """**Arguments:**

        - `in_size`: size of the input vector, at least 1.
        - `out_size`: size of the output vector, at least 1.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `width`: number of hidden features, at least 1.
        - `depth`: number of hidden layers, at least 1.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive.
        """
        check_positive(in_size=in_size, out_size=out_size, embedding_size=embedding_size, width=width, depth=depth)
        condition_key, in_key, layers_key, out_key = jr.split(key, 4)
        self.conditioning = Conditioning(embedding_size, key=condition_key)
        self.linear_in = Linear(in_size, width, key=in_key)
        self.layers = tuple(
            ModulatedLayer(Linear, width, embedding_size=embedding_size, key=k) for k in jr.split(layers_key, depth)
        )
        self.linear_out = Linear(width, out_size, zero_init=True, key=out_key)
        self.in_size = in_size
        self.embedding_size = embedding_size

    def __call__(
        self, x: Float[Array, " in_size"], embedding: Float[Array, " embedding_size"]
    ) -> Float[Array, " out_size"]:
        """**Arguments:**

        - `x`: vector of shape `(in_size,)`.
        - `embedding`: conditioning vector of shape `(embedding_size,)`.

        **Returns:**

        Vector of shape `(out_size,)` in the parameters' type.

        **Raises:** `ValueError` if an input has another rank or size.
        """
        check_shape(self, x=(x, (self.in_size,)), embedding=(embedding, (self.embedding_size,)))
        condition = self.conditioning(embedding)
        h = self.linear_in(x)
        for layer in self.layers:
            h = layer(h, condition)
        return self.linear_out(h)
