"""U-Net: a convolutional network from images to images of the same size.

Levels `0, 1, …` halve the resolution and, as a rule, widen. On the way down, each level keeps its last features; on the
way up they join the upsampled features of the level below (Ronneberger et al. 2015, "U-Net", arXiv:1505.04597):

    level 0     conv ─ blocks ───────────────────────────── + ─ blocks ─ conv
                         └─ down                       up ──┘
    level 1                   blocks ─────────── + ─ blocks
                                └─ down     up ──┘
    level 2                          blocks ─ attention ─ blocks

`+` adds two 1×1 convolutions, one of each (which is a 1×1 convolution of them both, stacked): at the finest level, 3×3
convolutions of stacks would cost most of all.

Blocks are pre-activation residual blocks modulated by the embedding, as in Dhariwal & Nichol 2021, "Diffusion Models
Beat GANs", appendix A. The last convolution of each block and of the network starts at zero.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import SelfAttention
from ._conv import Conv2d, blocks_to_channels, pad_to_multiple, upsample_nearest
from ._film import Conditioning, FiLM
from ._linear import Linear
from ._misc import check_divides, check_positive, check_shape
from ._norm import GroupNorm


class ResidualBlock(eqx.Module):
    """Two 3×3 convolutions with a shortcut, modulated between them."""

    norm1: GroupNorm
    conv1: Conv2d
    norm2: GroupNorm
    film: FiLM
    conv2: Conv2d

    def __init__(self, channels: int, *, embedding_size: int, groups: int, key: PRNGKeyArray):
        """**Arguments:**

        - `channels`: channels of the image; a multiple of `groups`.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `groups`: groups of channels that are normalised together, at least 1.
        - `key`: a JAX random key for the weights.
        """
        keys = jr.split(key, 3)
        self.norm1 = GroupNorm(channels, groups)
        self.conv1 = Conv2d(channels, channels, key=keys[0])
        self.norm2 = GroupNorm(channels, groups, affine=False)
        self.film = FiLM(embedding_size, channels, key=keys[1])
        self.conv2 = Conv2d(channels, channels, zero_init=True, key=keys[2])

    def __call__(
        self, x: Float[Array, "height width channels"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "height width channels"]:
        """**Arguments:**

        - `x`: image of shape `(height, width, channels)`.
        - `condition`: vector of shape `(embedding_size,)`.

        **Returns:**

        Image of the same shape.
        """
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        return x + self.conv2(jax.nn.silu(self.film(self.norm2(h), condition)))


class AttentionBlock(eqx.Module):
    """Self-attention among all pixels, with a shortcut."""

    norm: GroupNorm
    attention: SelfAttention

    def __init__(self, channels: int, *, groups: int, heads: int, key: PRNGKeyArray):
        """**Arguments:**

        - `channels`: channels of the image; a multiple of `groups` and of `heads`.
        - `groups`: groups of channels that are normalised together, at least 1.
        - `heads`: number of attention heads, at least 1.
        - `key`: a JAX random key for the weights.
        """
        self.norm = GroupNorm(channels, groups)
        self.attention = SelfAttention(channels, heads=heads, zero_init=True, key=key)

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        """**Arguments:**

        - `x`: image of shape `(height, width, channels)`.

        **Returns:**

        Image of the same shape.
        """
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        return x + self.attention(tokens).reshape(x.shape)


class UNet(eqx.Module):
    """U-Net for one channels-last image of any size, conditioned by an embedding.

    Sizes that do not halve evenly are padded inside, by repeating the last row and column, and the output is cropped. A
    fresh network returns zeros.
    """

    conditioning: Conditioning
    conv_in: Conv2d
    down_blocks: tuple[tuple[ResidualBlock, ...], ...]
    downs: tuple[Linear, ...]
    middle: tuple[ResidualBlock, ...]
    attention: AttentionBlock | None
    middle_after: tuple[ResidualBlock, ...]
    ups: tuple[Linear, ...]
    skips: tuple[Linear, ...]
    up_blocks: tuple[tuple[ResidualBlock, ...], ...]
    norm_out: GroupNorm
    conv_out: Conv2d
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_size: int,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        attention: bool = True,
        groups: int = 8,
        heads: int = 4,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`: channels of the input image, at least 1.
        - `out_channels`: channels of the output image, at least 1.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `channels`: channels of each level, finest first; multiples of `groups`. Each level after the first halves the
            resolution.
        - `blocks`: residual blocks of each level, on the way down and again on the way up, at least 1.
        - `attention`: whether the pixels of the lowest level attend to each other.
        - `groups`: groups of channels that are normalised together, at least 1.
        - `heads`: number of attention heads; divides `channels[-1]`.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive, `channels` is empty, or `groups` or `heads` do not divide
            what they part.
        """
        channels = tuple(channels)
        if len(channels) == 0:
            raise ValueError(
                "`channels` is empty: give the channels of at least one level, such as `channels=(32, 64)`."
            )
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            embedding_size=embedding_size,
            blocks=blocks,
            groups=groups,
            heads=heads,
        )
        for level, size in enumerate(channels):
            check_positive(**{f"channels[{level}]": size})
            check_divides("groups", groups, f"channels[{level}]", size)
        if attention:
            check_divides("heads", heads, "channels[-1]", channels[-1])

        condition_key, in_key, attention_key, out_key, levels_key = jr.split(key, 5)
        level_keys = jr.split(levels_key, len(channels))

        def make_blocks(size: int, key: PRNGKeyArray) -> tuple[ResidualBlock, ...]:
            return tuple(
                ResidualBlock(size, embedding_size=embedding_size, groups=groups, key=k) for k in jr.split(key, blocks)
            )

        down_blocks, downs, ups, skips, up_blocks = [], [], [], [], []
        finer_levels = zip(channels[:-1], channels[1:], level_keys[:-1], strict=True)
        for size, size_below, level_key in finer_levels:
            keys = jr.split(level_key, 5)
            down_blocks.append(make_blocks(size, keys[0]))
            downs.append(Linear(4 * size, size_below, key=keys[1]))
            ups.append(Linear(size_below, size, use_bias=False, key=keys[2]))
            skips.append(Linear(size, size, key=keys[3]))
            up_blocks.append(make_blocks(size, keys[4]))
        before_key, after_key = jr.split(level_keys[-1])

        self.conditioning = Conditioning(embedding_size, key=condition_key)
        self.conv_in = Conv2d(in_channels, channels[0], key=in_key)
        self.down_blocks = tuple(down_blocks)
        self.downs = tuple(downs)
        self.middle = make_blocks(channels[-1], before_key)
        if attention:
            self.attention = AttentionBlock(channels[-1], groups=groups, heads=heads, key=attention_key)
        else:
            self.attention = None
        self.middle_after = make_blocks(channels[-1], after_key)
        self.ups = tuple(ups)
        self.skips = tuple(skips)
        self.up_blocks = tuple(up_blocks)
        self.norm_out = GroupNorm(channels[0], groups)
        self.conv_out = Conv2d(channels[0], out_channels, zero_init=True, key=out_key)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.embedding_size = embedding_size

    def __call__(
        self,
        x: Float[Array, "height width in_channels"],
        embedding: Float[Array, " embedding_size"],
        embedding_up: Float[Array, " embedding_size"] | None = None,
    ) -> Float[Array, "height width out_channels"]:
        """**Arguments:**

        - `x`: image of shape `(height, width, in_channels)`, any height and width.
        - `embedding`: conditioning vector of shape `(embedding_size,)`.
        - `embedding_up`: that of the layers after the attention and of the way up, `embedding` by default. What comes
            before does not depend on it, and is computed once for several of them under `jax.vmap`.

        **Returns:**

        Image of shape `(height, width, out_channels)` in the parameters' type.

        **Raises:** `ValueError` if an input has another rank or size.
        """
        check_shape(self, x=(x, ("height", "width", self.in_channels)), embedding=(embedding, (self.embedding_size,)))
        height, width, _ = x.shape
        condition = self.conditioning(embedding)
        h = self.conv_in(pad_to_multiple(x, 2 ** len(self.downs)))

        kept = []
        for blocks, down in zip(self.down_blocks, self.downs, strict=True):
            for block in blocks:
                h = block(h, condition)
            kept.append(h)
            h = down(blocks_to_channels(h, 2))

        for block in self.middle:
            h = block(h, condition)
        if self.attention is not None:
            h = self.attention(h)
        if embedding_up is not None:
            condition = self.conditioning(embedding_up)
        for block in self.middle_after:
            h = block(h, condition)

        way_up = zip(self.ups, self.skips, self.up_blocks, kept, strict=True)
        for up, skip, blocks, finer in reversed(list(way_up)):
            # A 1×1 convolution commutes with repeating pixels, and is cheaper before.
            h = skip(finer) + upsample_nearest(up(h))
            for block in blocks:
                h = block(h, condition)

        return self.conv_out(jax.nn.silu(self.norm_out(h)))[:height, :width]
