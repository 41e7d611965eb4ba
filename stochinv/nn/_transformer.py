"""Transformer on the patches of an image, modulated by an embedding (DiT).

The image is cut into `p × p` patches, each a token. A block updates the tokens twice,

    h ← h + g₁ · attention(norm(h) · (1 + γ₁) + β₁)
    h ← h + g₂ · perceptron(norm(h) · (1 + γ₂) + β₂)

with `γ, β, g` affine in the embedding's hidden layer and zero at first, so that a fresh block is the identity
("adaLN-Zero": Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748). Positions are
learned, from a start of sinusoids.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import SelfAttention
from ._conv import blocks_to_channels, channels_to_blocks, pad_to_multiple
from ._embedding import sinusoidal_features
from ._film import Conditioning
from ._linear import Linear
from ._misc import check_divides, check_positive, check_shape
from ._norm import layer_norm

_HIDDEN_RATIO = 4


def grid_positions(rows: int, columns: int, size: int) -> Float[Array, "tokens size"]:
    """Sinusoidal features of the row and the column of every cell of a grid, row by row; padded by zeros."""
    num_periods = size // 4
    if num_periods == 0:
        return jnp.zeros((rows * columns, size))
    of = lambda n: sinusoidal_features(jnp.arange(float(n)), longest=4.0 * n, shortest=4.0, num_periods=num_periods)
    shape = (rows, columns, 2 * num_periods)
    features = [jnp.broadcast_to(of(rows)[:, None], shape), jnp.broadcast_to(of(columns), shape)]
    features = jnp.concatenate(features, axis=-1).reshape(rows * columns, 4 * num_periods)
    return jnp.pad(features, ((0, 0), (0, size - 4 * num_periods)))


class TransformerBlock(eqx.Module):
    """Self-attention, then a perceptron on each token, both with adaLN-Zero."""

    modulation: Linear
    attention: SelfAttention
    hidden: Linear
    out: Linear

    def __init__(self, width: int, *, embedding_size: int, heads: int, key: PRNGKeyArray) -> None:
        keys = jr.split(key, 4)
        self.modulation = Linear(embedding_size, 6 * width, zero_init=True, key=keys[0])
        self.attention = SelfAttention(width, heads=heads, key=keys[1])
        self.hidden = Linear(width, _HIDDEN_RATIO * width, key=keys[2])
        self.out = Linear(_HIDDEN_RATIO * width, width, key=keys[3])

    def __call__(
        self, x: Float[Array, "tokens width"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "tokens width"]:
        scale1, shift1, gate1, scale2, shift2, gate2 = jnp.split(self.modulation(condition), 6)
        x = x + gate1 * self.attention(layer_norm(x) * (1 + scale1) + shift1)
        h = self.hidden(layer_norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self.out(jax.nn.gelu(h))


class PatchTransformer(eqx.Module):
    """Transformer on the patches of one channels-last image of a fixed size.

    Sizes that the patches do not divide are padded inside, by repeating the last row and column, and the output is
    cropped. A fresh network returns zeros.
    """

    conditioning: Conditioning
    embed: Linear
    positions: Float[Array, "tokens width"]
    blocks: tuple[TransformerBlock, ...]
    modulation: Linear
    unembed: Linear
    in_channels: int = eqx.field(static=True)
    image_size: tuple[int, int] = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)
    checkpoint: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_size: tuple[int, int],
        patch_size: int = 4,
        embedding_size: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        checkpoint: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `in_channels`, `out_channels`: channels of the input and of the output image, at least 1.
        - `image_size`: height and width of the images in pixels, at least 1.
        - `patch_size`: height and width of a patch in pixels, at least 1. The cost of attention grows with its fourth
            inverse power.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `width`: features of a token, at least 1.
        - `depth`: number of blocks, at least 1.
        - `heads`: number of attention heads; divides `width`.
        - `checkpoint`: whether the gradient computes each block once more instead of keeping what was inside it.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive, `image_size` is not a pair, or `heads` does not divide
            `width`.
        """
        if len(image_size) != 2:
            raise ValueError(
                f"`image_size` is {image_size}, but it has to be a pair: pass `image_size=(height, width)`."
            )
        height, columns = image_size
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            patch_size=patch_size,
            embedding_size=embedding_size,
            width=width,
            depth=depth,
            heads=heads,
            **{"image_size[0]": height, "image_size[1]": columns},
        )
        check_divides("heads", heads, "width", width)
        keys = jr.split(key, 5)
        self.conditioning = Conditioning(embedding_size, key=keys[0])
        self.embed = Linear(patch_size**2 * in_channels, width, key=keys[1])
        self.positions = grid_positions(-(-height // patch_size), -(-columns // patch_size), width)
        self.blocks = tuple(
            TransformerBlock(width, embedding_size=embedding_size, heads=heads, key=k) for k in jr.split(keys[2], depth)
        )
        self.modulation = Linear(embedding_size, 2 * width, zero_init=True, key=keys[3])
        self.unembed = Linear(width, patch_size**2 * out_channels, zero_init=True, key=keys[4])
        self.in_channels = in_channels
        self.image_size = (height, columns)
        self.patch_size = patch_size
        self.embedding_size = embedding_size
        self.checkpoint = checkpoint

    def __call__(
        self, x: Float[Array, "height width in_channels"], embedding: Float[Array, " embedding_size"]
    ) -> Float[Array, "height width out_channels"]:
        """**Arguments:**

        - `x`: image of shape `(*image_size, in_channels)`.
        - `embedding`: conditioning vector of shape `(embedding_size,)`.

        **Returns:**

        Image of shape `(*image_size, out_channels)` in the parameters' type.

        **Raises:** `ValueError` if an input has another rank or size.
        """
        check_shape(self, x=(x, (*self.image_size, self.in_channels)), embedding=(embedding, (self.embedding_size,)))
        height, width = self.image_size
        condition = self.conditioning(embedding)
        patches = blocks_to_channels(pad_to_multiple(x, self.patch_size), self.patch_size)
        rows, columns, _ = patches.shape
        h = self.embed(patches).reshape(rows * columns, -1) + self.positions
        h = self._transform(h, condition)
        scale, shift = jnp.split(self.modulation(condition), 2)
        h = self.unembed(layer_norm(h) * (1 + scale) + shift)
        y = channels_to_blocks(h.reshape(rows, columns, -1), self.patch_size)
        return y[:height, :width]

    def _transform(self, h, condition):
        if not self.checkpoint:
            for block in self.blocks:
                h = block(h, condition)
            return h
        # A loop, from which compilers cannot take what is computed again for something that is kept.
        blocks = jax.tree.map(lambda *x: jnp.stack(x), *self.blocks)
        return jax.lax.scan(jax.checkpoint(lambda h, block: (block(h, condition), None)), h, blocks)[0]
