r"""A denoiser for warps: from a source frame and the noisy frame after it to a displacement field.

A convolutional trunk sees both at the field's resolution, a cell of `scale × scale` pixels as one.

The latent code enters behind the trunk: what does not depend on it is computed once for all draws, and a small
perceptron makes the displacement of every cell from its features and the code. A code is shared by all cells, so that
cells that look alike move alike.
"""

from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import Context, Key
from .._denoiser.base import AbstractDenoiser
from .._schedule import NoiseLevel
from ._conv import blocks_to_channels, pad_to_multiple
from ._embedding import NoiseEmbedding
from ._film import Conditioning, FiLM
from ._linear import Linear
from ._misc import check_positive
from ._unet import ResidualBlock

_GROUPS = 8


@final
class FlowDenoiser(AbstractDenoiser):
    """Displacement fields for [`stochinv.forward.Warp`][] with one frame, from frames of any size.

    With a key it is a draw, by a latent code `z ~ N(0, I)`; without one `z = 0`.

    **Arguments:**

    - `channels`: channels of a frame, at least 1.
    - `scale`, `margin`: those of the warp. Sizes of frames that `scale` does not divide are padded inside.
    - `mean`, `std`: of the grey values, in the units of the source frame.
    - `width`: features of a cell; a multiple of 8.
    - `depth`: residual blocks of the trunk, at least 1.
    - `latent_size`: the length of `z`, at least 1.
    - `spread`: how large displacements are expected to be, in pixels.
    - `key`: a PRNG key for the weights.
    """

    embedding: NoiseEmbedding
    conditioning: Conditioning
    stem: Linear
    blocks: tuple[ResidualBlock, ...]
    code: Linear
    inward: Linear
    first_film: FiLM
    hidden: Linear
    second_film: FiLM
    outward: Linear
    scale: int
    margin: int
    mean: float
    std: float
    latent_size: int
    spread: float

    def __init__(
        self,
        channels: int,
        *,
        scale: int,
        margin: int = 0,
        mean: float = 0.0,
        std: float = 1.0,
        width: int = 64,
        depth: int = 2,
        latent_size: int = 16,
        spread: float = 1.0,
        key: Key,
    ) -> None:
        check_positive(channels=channels, scale=scale, width=width, depth=depth, latent_size=latent_size)
        if width % _GROUPS:
            raise ValueError(f"`width` is {width}, but it has to be a multiple of {_GROUPS}: round it up.")
        if margin < 0 or not std > 0 or not spread > 0:
            raise ValueError(
                "FlowDenoiser: `margin` must be at least 0, `std` and `spread` positive, got "
                f"{margin}, {std} and {spread}."
            )
        keys = jr.split(key, 9)
        self.embedding = NoiseEmbedding(width, key=keys[0])
        self.conditioning = Conditioning(width, key=keys[1])
        self.stem = Linear(2 * scale**2 * channels, width, key=keys[2])
        self.blocks = tuple(
            ResidualBlock(width, dims=2, embedding_size=width, groups=_GROUPS, key=k) for k in jr.split(keys[3], depth)
        )
        self.code = Linear(latent_size + width, width, key=keys[4])
        self.inward = Linear(width, width, key=keys[5])
        self.first_film = FiLM(width, width, key=keys[6])
        self.hidden = Linear(width, width, key=keys[7])
        last_key, film_key = jr.split(keys[8])
        self.second_film = FiLM(width, width, key=film_key)
        self.outward = Linear(width, 2, key=last_key)
        self.scale = scale
        self.margin = margin
        self.mean = mean
        self.std = std
        self.latent_size = latent_size
        self.spread = spread

    def __call__(
        self,
        noisy: Float[Array, "height width channels"],
        level: NoiseLevel,
        context: Context,
        params: Float[Array, "source_height source_width channels"],
        *,
        key: Key | None = None,
    ) -> Float[Array, "rows columns 2"]:
        source = (params - self.mean) / self.std
        height, width, _ = noisy.shape
        inner = source[self.margin : self.margin + height, self.margin : self.margin + width]
        cells = lambda image: blocks_to_channels(pad_to_multiple(image, self.scale), self.scale)
        scaled = noisy / jnp.sqrt(level.alpha**2 + level.sigma**2)
        h = self.stem(jnp.concatenate([cells(inner), cells(scaled)], -1))
        condition = self.conditioning(self.embedding(level.log_snr))
        for block in self.blocks:
            h = block(h, condition)

        code = jnp.zeros(self.latent_size, h.dtype) if key is None else jr.normal(key, (self.latent_size,), h.dtype)
        code = jax.nn.silu(self.code(jnp.concatenate([code, jnp.mean(h, (0, 1))])))
        h = jax.nn.silu(self.first_film(self.inward(h), code))
        h = h + jax.nn.silu(self.second_film(self.hidden(h), code))
        return self.spread * self.outward(h)
