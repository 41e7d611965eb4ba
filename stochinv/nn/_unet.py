"""U-Net: a convolutional network from images to images of the same size, from sequences to sequences, or from volumes.

Levels `0, 1, …` halve the resolution and, as a rule, widen. On the way down, each level keeps its last features; on the
way up they join the upsampled features of the level below (Ronneberger et al. 2015, "U-Net", arXiv:1505.04597):

    level 0     conv ─ blocks ───────────────────────────── + ─ blocks ─ conv
                         └─ down                       up ──┘
    level 1                   blocks ─────────── + ─ blocks
                                └─ down     up ──┘
    level 2                          blocks ─ attention ─ blocks

`+` adds two 1×1 convolutions, one of each (which is a 1×1 convolution of them both, stacked): at the finest level, 3×3
convolutions of stacks would cost most of all. Of sequences and volumes, kernels and blocks are as wide along one axis
or three.

Blocks are pre-activation residual blocks modulated by the embedding, as in Dhariwal & Nichol 2021, "Diffusion Models
Beat GANs", appendix A. The last convolution of each block and of the network starts at zero.
"""

from collections.abc import Callable, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import SelfAttention
from ._conv import Conv, blocks_to_channels, channels_to_blocks, pad_to_multiple, upsample_nearest
from ._film import Conditioning, FiLM
from ._linear import Linear
from ._misc import SPACE, check_divides, check_positive, check_shape
from ._norm import GroupNorm, keep_moments


class ResidualBlock(eqx.Module):
    """Two 3×3 convolutions with a shortcut, modulated between them; `groups` divides `channels`."""

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    film: FiLM
    conv2: Conv

    def __init__(self, channels: int, *, dims: int, embedding_size: int, groups: int, key: PRNGKeyArray) -> None:
        keys = jr.split(key, 3)
        self.norm1 = GroupNorm(channels, groups)
        self.conv1 = Conv(channels, channels, dims=dims, key=keys[0])
        self.norm2 = GroupNorm(channels, groups, affine=False)
        self.film = FiLM(embedding_size, channels, key=keys[1])
        self.conv2 = Conv(channels, channels, dims=dims, zero_init=True, key=keys[2])

    def __call__(
        self, x: Float[Array, "*space channels"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "*space channels"]:
        scale, shift = self.film.scale_and_shift(condition)
        h = self.conv1(keep_moments(lambda x: jax.nn.silu(self.norm1(x)))(x))
        return x + self.conv2(keep_moments(lambda h: jax.nn.silu(self.norm2(h, scale, shift)))(h))


class AttentionBlock(eqx.Module):
    """Self-attention among all pixels, with a shortcut."""

    norm: GroupNorm
    attention: SelfAttention

    def __init__(self, channels: int, *, groups: int, heads: int, key: PRNGKeyArray) -> None:
        self.norm = GroupNorm(channels, groups)
        self.attention = SelfAttention(channels, heads=heads, zero_init=True, key=key)

    def __call__(self, x: Float[Array, "*space channels"]) -> Float[Array, "*space channels"]:
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        return x + self.attention(tokens).reshape(x.shape)


class Blocks(eqx.Module):
    """Residual blocks, one after the other."""

    blocks: tuple[ResidualBlock, ...]
    checkpoint: bool = eqx.field(static=True)

    def __init__(self, number: int, channels: int, *, checkpoint: bool, key: PRNGKeyArray, **sizes: int) -> None:
        self.checkpoint = checkpoint
        self.blocks = tuple(ResidualBlock(channels, key=k, **sizes) for k in jr.split(key, number))

    def __call__(
        self, x: Float[Array, "*space channels"], condition: Float[Array, " embedding_size"]
    ) -> Float[Array, "*space channels"]:
        for block in self.blocks:
            x = (eqx.filter_checkpoint(block) if self.checkpoint else block)(x, condition)
        return x


class Level(eqx.Module):
    """One resolution but the lowest: what is computed there on the way down and on the way up."""

    down_blocks: Blocks
    to_coarse: Linear
    from_coarse: Linear
    skip: Linear
    up_blocks: Blocks

    def __init__(
        self, make_blocks: Callable[..., Blocks], channels: int, coarse_channels: int, *, dims: int, key: PRNGKeyArray
    ) -> None:
        keys = jr.split(key, 5)
        self.down_blocks = make_blocks(channels, key=keys[0])
        self.to_coarse = Linear(2**dims * channels, coarse_channels, key=keys[1])
        self.from_coarse = Linear(coarse_channels, channels, use_bias=False, key=keys[2])
        self.skip = Linear(channels, channels, key=keys[3])
        self.up_blocks = make_blocks(channels, key=keys[4])

    def down(
        self, x: Float[Array, "*space channels"], condition: Float[Array, " embedding_size"]
    ) -> tuple[Float[Array, "*space channels"], Float[Array, "*coarse_space coarse"]]:
        """The features that this level keeps, and those at half the resolution."""
        kept = self.down_blocks(x, condition)
        return kept, self.to_coarse(blocks_to_channels(kept, 2))

    def up(
        self,
        kept: Float[Array, "*space channels"],
        coarse: Float[Array, "*coarse_space coarse"],
        condition: Float[Array, " embedding_size"],
    ) -> Float[Array, "*space channels"]:
        """Joins what was kept with what comes from half the resolution."""
        # A 1×1 convolution commutes with repeating pixels, and is cheaper before.
        return self.up_blocks(self.skip(kept) + upsample_nearest(self.from_coarse(coarse)), condition)


class UNet(eqx.Module):
    """U-Net for one channels-last image, sequence or volume of any size, conditioned by an embedding.

    Sizes that do not halve evenly are padded inside, by repeating the last pixels, and the output is cropped. A
    fresh network returns zeros.
    """

    conditioning: Conditioning
    conv_in: Conv
    levels: tuple[Level, ...]
    middle: Blocks
    attention: AttentionBlock | None
    middle_after: Blocks
    norm_out: GroupNorm
    conv_out: Conv
    in_channels: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)
    dims: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        embedding_size: int,
        channels: Sequence[int] = (32, 64, 128),
        patch: int = 1,
        blocks: int = 1,
        attention: bool = True,
        groups: int = 8,
        heads: int = 4,
        checkpoint: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `in_channels`, `out_channels`: channels of the input and of the output image, at least 1.
        - `dims`: spatial axes: 1 for sequences, 2 for images, 3 for volumes.
        - `embedding_size`: size of the conditioning vector, at least 1.
        - `channels`: channels of each level, finest first; multiples of `groups`. Each level after the first halves the
            resolution.
        - `patch`: how many pixels wide the blocks are that the network works on, at least 1. Time of images falls with
            its square, but for the first and the last convolution.
        - `blocks`: residual blocks of each level, on the way down and again on the way up, at least 1.
        - `attention`: whether the pixels of the lowest level attend to each other.
        - `groups`: groups of channels that are normalised together, at least 1.
        - `heads`: number of attention heads; divides `channels[-1]`.
        - `checkpoint`: whether the gradient computes each residual block once more instead of keeping what was inside
            it. The compiler of CPUs undoes this.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive, `channels` is empty, or `groups` or `heads` do not divide
            what they part, or `dims` is not 1, 2 or 3.
        """
        channels = _checked_levels(channels, groups)
        check_positive(in_channels=in_channels, out_channels=out_channels, embedding_size=embedding_size)
        check_positive(blocks=blocks, heads=heads, patch=patch)
        sizes = {"dims": dims, "embedding_size": embedding_size, "groups": groups}
        make_blocks = partial(Blocks, blocks, checkpoint=checkpoint, **sizes)
        condition_key, in_key, attention_key, out_key, levels_key = jr.split(key, 5)
        *level_keys, lowest_key = jr.split(levels_key, len(channels))
        before_key, after_key = jr.split(lowest_key)
        self.conditioning = Conditioning(embedding_size, key=condition_key)
        self.conv_in = Conv(patch**dims * in_channels, channels[0], dims=dims, key=in_key)
        self.levels = tuple(
            Level(make_blocks, size, coarse, dims=dims, key=k)
            for size, coarse, k in zip(channels[:-1], channels[1:], level_keys, strict=True)
        )
        self.middle = make_blocks(channels[-1], key=before_key)
        self.attention = None
        if attention:
            check_divides("heads", heads, "channels[-1]", channels[-1])
            self.attention = AttentionBlock(channels[-1], groups=groups, heads=heads, key=attention_key)
        self.middle_after = make_blocks(channels[-1], key=after_key)
        self.norm_out = GroupNorm(channels[0], groups)
        self.conv_out = Conv(channels[0], patch**dims * out_channels, dims=dims, zero_init=True, key=out_key)
        self.in_channels, self.embedding_size = in_channels, embedding_size
        self.dims, self.patch = dims, patch

    def __call__(
        self,
        x: Float[Array, "*space in_channels"],
        embedding: Float[Array, " embedding_size"],
        embedding_up: Float[Array, " embedding_size"] | None = None,
    ) -> Float[Array, "*space out_channels"]:
        """**Arguments:**

        - `x`: image of shape `(height, width, in_channels)`, sequence of `(length, in_channels)` or volume of `(depth,
            height, width, in_channels)`, by `dims`, of any size.
        - `embedding`: conditioning vector of shape `(embedding_size,)`.
        - `embedding_up`: that of the layers after the attention and of the way up, `embedding` by default. What comes
            before does not depend on it, and is computed once for several of them under `jax.vmap`.

        **Returns:**

        The same with `out_channels` in the parameters' type.

        **Raises:** `ValueError` if an input has another rank or size.
        """
        shape = (*SPACE[self.dims], self.in_channels)
        check_shape(self, x=(x, shape), embedding=(embedding, (self.embedding_size,)))
        condition = self.conditioning(embedding)
        padded = pad_to_multiple(x, self.patch * 2 ** len(self.levels))
        h = self.conv_in(blocks_to_channels(padded, self.patch))
        kept = []
        for level in self.levels:
            finer, h = level.down(h, condition)
            kept.append(finer)
        h = self.middle(h, condition)
        if self.attention is not None:
            h = self.attention(h)
        if embedding_up is not None:
            condition = self.conditioning(embedding_up)
        h = self.middle_after(h, condition)
        for level, finer in zip(reversed(self.levels), reversed(kept), strict=True):
            h = level.up(finer, h, condition)
        y = self.conv_out(keep_moments(lambda h: jax.nn.silu(self.norm_out(h)))(h))
        return channels_to_blocks(y, self.patch)[tuple(slice(size) for size in x.shape[:-1])]


def _checked_levels(channels: Sequence[int], groups: int) -> tuple[int, ...]:
    if len(channels) == 0:
        raise ValueError("`channels` is empty: give the channels of at least one level, such as `channels=(32, 64)`.")
    check_positive(groups=groups)
    for level, size in enumerate(channels):
        check_positive(**{f"channels[{level}]": size})
        check_divides("groups", groups, f"channels[{level}]", size)
    return tuple(channels)
