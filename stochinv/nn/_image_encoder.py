"""From an image to a vector, conditioned by an embedding.

Blocks of pixels become the channels of a coarse image; residual blocks, each of them a 3×3 convolution modulated by the
embedding, halve its resolution until 4 pixels are left along the shorter axis; what is left is flattened, and mapped to
the output.
"""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._conv import Conv, blocks_to_channels, pad_to_multiple
from ._film import Conditioning, ModulatedLayer
from ._linear import Linear
from ._misc import check_positive, check_shape


class ImageEncoder(eqx.Module):
    """Convolutional network from one channels-last image of a fixed size to a vector.

    A fresh network returns zeros.
    """

    conditioning: Conditioning
    embed: Linear
    blocks: tuple[ModulatedLayer, ...]
    downs: tuple[Linear, ...]
    linear_out: Linear
    in_channels: int = eqx.field(static=True)
    image_size: tuple[int, int] = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_size: int,
        *,
        image_size: tuple[int, int],
        patch_size: int = 4,
        embedding_size: int,
        channels: int = 96,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `in_channels`: channels of the image, at least 1.
        - `out_size`: length of the vector, at least 1.
        - `image_size`: height and width of the image in pixels.
        - `patch_size`: side of the blocks of pixels that become channels, at least 1.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `channels`: channels of the coarse image, at least 1; they double, up to four times as many, whenever its
            resolution halves.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive.
        """
        height, width = image_size
        check_positive(
            in_channels=in_channels,
            out_size=out_size,
            patch_size=patch_size,
            embedding_size=embedding_size,
            channels=channels,
            **{"image_size[0]": height, "image_size[1]": width},
        )
        rows, columns = -(-height // patch_size), -(-width // patch_size)
        sizes = [channels]
        while min(rows, columns) >= 8:
            rows, columns = -(-rows // 2), -(-columns // 2)
            sizes.append(min(2 * sizes[-1], 4 * channels))
        keys = jr.split(key, 5)
        self.conditioning = Conditioning(embedding_size, key=keys[0])
        self.embed = Linear(patch_size**2 * in_channels, channels, key=keys[1])
        self.blocks = tuple(
            ModulatedLayer(Conv, size, embedding_size=embedding_size, key=k)
            for size, k in zip(sizes, jr.split(keys[2], len(sizes)), strict=True)
        )
        self.downs = tuple(
            Linear(4 * size, size_below, key=k)
            for size, size_below, k in zip(sizes[:-1], sizes[1:], jr.split(keys[3], len(sizes) - 1), strict=True)
        )
        self.linear_out = Linear(rows * columns * sizes[-1], out_size, zero_init=True, key=keys[4])
        self.in_channels = in_channels
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.embedding_size = embedding_size

    def __call__(
        self, x: Float[Array, "height width in_channels"], embedding: Float[Array, " embedding_size"]
    ) -> Float[Array, " out_size"]:
        """**Arguments:**

        - `x`: image of shape `(*image_size, in_channels)`.
        - `embedding`: conditioning vector of shape `(embedding_size,)`.

        **Returns:**

        Vector of shape `(out_size,)` in the parameters' type.

        **Raises:** `ValueError` if an input has another rank or size.
        """
        check_shape(self, x=(x, (*self.image_size, self.in_channels)), embedding=(embedding, (self.embedding_size,)))
        condition = self.conditioning(embedding)
        h = self.embed(blocks_to_channels(pad_to_multiple(x, self.patch_size), self.patch_size))
        for block, down in zip(self.blocks[:-1], self.downs, strict=True):
            h = down(blocks_to_channels(pad_to_multiple(block(h, condition), 2), 2))
        return self.linear_out(jax.nn.silu(self.blocks[-1](h, condition)).ravel())
