r"""A denoiser for warps: from a source frame and the noisy frame after it to a displacement field.

A convolutional trunk sees both at the field's resolution, a cell of `scale × scale` pixels as one. If asked to, it also
sees how well each displacement `δ` of a cell would explain the noisy frame, the log-likelihood

    L(δ) = −½ Σ_p (o_t(p) / α − x(p + δ))² / (σ² / α² + ρ²)

summed over the pixels of a cell and its neighbours, with an allowance `ρ` for what no displacement explains; a softmax
over `δ` with a Gaussian prior then gives the first estimate of the field, and how uncertain it is. At pure noise that
is the prior.

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

_MISMATCH = 0.2
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
    - `radius`: the largest displacement, in pixels, that is matched with the noisy frame; 0 matches none, which is
        enough where all training and sampling is from pure noise, `t = 1`.
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
    radius: int
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
        radius: int = 0,
        spread: float = 1.0,
        key: Key,
    ) -> None:
        check_positive(channels=channels, scale=scale, width=width, depth=depth, latent_size=latent_size)
        if width % _GROUPS:
            raise ValueError(f"`width` is {width}, but it has to be a multiple of {_GROUPS}: round it up.")
        if margin < 0 or radius < 0 or not std > 0 or not spread > 0:
            raise ValueError(
                "FlowDenoiser: `margin` and `radius` must be at least 0, `std` and `spread` positive, got "
                f"{margin}, {radius}, {std} and {spread}."
            )
        keys = jr.split(key, 9)
        features = 2 * scale**2 * channels + (0 if radius == 0 else (2 * radius + 1) ** 2 + 3)
        self.embedding = NoiseEmbedding(width, key=keys[0])
        self.conditioning = Conditioning(width, key=keys[1])
        self.stem = Linear(features, width, key=keys[2])
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
        self.radius = radius
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
        features = [cells(inner), cells(scaled)]
        estimate, uncertainty = 0.0, self.spread
        if self.radius > 0:
            match, estimate, uncertainty = self._match(noisy, level, source)
            features += [match, estimate / self.spread, uncertainty / self.spread]
        h = self.stem(jnp.concatenate(features, -1))
        condition = self.conditioning(self.embedding(level.log_snr))
        for block in self.blocks:
            h = block(h, condition)

        code = jnp.zeros(self.latent_size, h.dtype) if key is None else jr.normal(key, (self.latent_size,), h.dtype)
        code = jax.nn.silu(self.code(jnp.concatenate([code, jnp.mean(h, (0, 1))])))
        h = jax.nn.silu(self.first_film(self.inward(h), code))
        h = h + jax.nn.silu(self.second_film(self.hidden(h), code))
        return estimate + uncertainty * self.outward(h)

    def _match(self, noisy, level, source):
        """Log-likelihoods of displacements of each cell, their mean and their standard deviation."""
        radius, margin = self.radius, self.margin
        height, width, _ = noisy.shape
        # Grey values alone: a third of the work, and almost all of what tells displacements apart.
        observed = jnp.mean(noisy, -1) / level.alpha
        grey = jnp.pad(jnp.mean(source, -1), max(radius - margin, 0), mode="edge")
        start = max(margin - radius, 0)
        offsets = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(2 * radius + 1)], indexing="ij"), -1).reshape(-1, 2)
        shifted = jax.vmap(lambda offset: jax.lax.dynamic_slice(grey, offset + start, (height, width)))(offsets)
        squares = jnp.moveaxis((observed - shifted) ** 2, 0, -1)
        squares = pad_to_multiple(squares, self.scale)
        rows, columns = squares.shape[0] // self.scale, squares.shape[1] // self.scale
        cells = squares.reshape(rows, self.scale, columns, self.scale, -1).sum((1, 3))
        around = jnp.pad(cells, ((1, 1), (1, 1), (0, 0)), mode="edge")
        pooled = sum(around[i : i + rows, j : j + columns] for i in range(3) for j in range(3))
        variance = level.sigma**2 / level.alpha**2 / noisy.shape[-1] + _MISMATCH**2
        steps = (offsets - radius).astype(noisy.dtype)
        logits = -0.5 * pooled / variance - 0.5 * jnp.sum(steps**2, -1) / self.spread**2
        logits = jax.nn.log_softmax(logits)
        weights = jnp.exp(logits)
        mean = weights @ steps
        deviation = jnp.sqrt(0.5 * jnp.maximum(weights @ jnp.sum(steps**2, -1) - jnp.sum(mean**2, -1), 0.01))
        return jnp.clip(logits / 5, -2, 0), mean, deviation[..., None]
