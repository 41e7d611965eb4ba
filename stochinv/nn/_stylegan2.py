r"""StyleGAN2: a mapping network, and a synthesis network of modulated convolutions.

A modulated convolution scales the channels of its input by a *style* $s$ made from the latent code, and normalises its
output as if that input had independent entries of unit variance,

$$
y_o = d_o \sum_i w_{oi} * (s_i x_i),
\qquad
d_o = \left(\sum_{i,k} (s_i w_{oik})^2 + 10^{-8}\right)^{-1/2} .
$$

With the style on the activations instead of the weights, one weight serves a whole batch.

Every resolution adds an image of its own to the upsampled one of the resolution below (*skip architecture*). All of it
follows Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN" (sections 2 and 4, appendix B).
Names and scales of tensors are those of NVIDIA's PyTorch implementations, so that their files fit.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._misc import check_positive, check_shape
from ._transposed import correlate, transposed_convolution
from ._weights import AbstractGenerator, Tensor


def _lrelu(x):
    """Leaky rectifier that keeps the second moment."""
    return math.sqrt(2) * jax.nn.leaky_relu(x, 0.2)


class EqualisedLinear(eqx.Module):
    """An affine map whose weights are scaled where they are used, so that all of them learn at one rate."""

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]
    rate: float = eqx.field(static=True)

    def __init__(self, in_size: int, out_size: int, *, bias: float = 0.0, rate: float = 1.0, key: PRNGKeyArray) -> None:
        self.weight = jr.normal(key, (in_size, out_size)) / rate
        self.bias = jnp.full(out_size, bias / rate)
        self.rate = rate

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        return x @ (self.weight * (self.rate / math.sqrt(self.weight.shape[0]))) + self.rate * self.bias


class Mapping(eqx.Module):
    """From the latent code $z$ to the intermediate one, $w$."""

    layers: tuple[EqualisedLinear, ...]
    mean: Float[Array, " latent"]

    def __init__(self, latent_size: int, depth: int, *, key: PRNGKeyArray) -> None:
        keys = jr.split(key, depth)
        self.layers = tuple(EqualisedLinear(latent_size, latent_size, rate=0.01, key=k) for k in keys)
        self.mean = jnp.zeros(latent_size)

    def __call__(self, latent: Float[Array, " latent"]) -> Float[Array, " latent"]:
        w = latent * jax.lax.rsqrt(jnp.mean(latent**2) + 1e-8)
        for layer in self.layers:
            w = _lrelu(layer(w))
        return w


def modulated_convolution(
    x: Float[Array, "height width in_channels"],
    weight: Float[Array, "kernel kernel in_channels out_channels"],
    style: Float[Array, " in_channels"],
    *,
    demodulate: bool = True,
    up: bool = False,
) -> Float[Array, "rows columns out_channels"]:
    """A convolution with its input's channels scaled by a style, and its output's normalised.

    **Arguments:**

    - `x`: the image.
    - `weight`: the kernel, of odd size, 3 where `up`.
    - `style`: a factor per input channel.
    - `demodulate`: whether the output is normalised.
    - `up`: whether the resolution is doubled, by a transposed convolution and a smoothing filter.

    **Returns:**

    An image of the same size, or of twice that.
    """
    x = x * style
    y = _smooth(transposed_convolution(x, weight), 1, 1) if up else correlate(x, weight, weight.shape[0] // 2)
    if demodulate:
        y = y * jax.lax.rsqrt(jnp.sum((weight * style[:, None]) ** 2, (0, 1, 2)) + 1e-8)
    return y


def upsample_smooth(x: Float[Array, "height width channels"]) -> Float[Array, "rows columns channels"]:
    """Doubles the resolution with the binomial filter `[1, 3, 3, 1]`."""
    height, width, channels = x.shape
    stuffed = jnp.pad(x[:, None, :, None], ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))
    return _smooth(stuffed.reshape(2 * height, 2 * width, channels), 2, 1)


def _smooth(x, before, after):
    """The binomial filter along both axes, with a gain of 2 for each; as shifts, which are fast everywhere."""
    for axis in (0, 1):
        pads = [(0, 0)] * 3
        pads[axis] = (before, after)
        size = x.shape[axis] + before + after - 3
        padded = jnp.pad(x, pads)
        shifted = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(4)]
        x = (shifted[0] + 3 * shifted[1] + 3 * shifted[2] + shifted[3]) / 4
    return x


class StyledConvolution(eqx.Module):
    """A modulated 3×3 convolution with noise and a leaky rectifier."""

    affine: EqualisedLinear
    weight: Float[Array, "kernel kernel in_channels out_channels"]
    bias: Float[Array, " out_channels"]
    noise: Float[Array, "height width"]
    noise_strength: Float[Array, ""]
    up: bool = eqx.field(static=True)

    def __init__(
        self, w_size: int, in_channels: int, out_channels: int, size: int, *, up: bool, key: PRNGKeyArray
    ) -> None:
        keys = jr.split(key, 3)
        self.affine = EqualisedLinear(w_size, in_channels, bias=1.0, key=keys[0])
        self.weight = jr.normal(keys[1], (3, 3, in_channels, out_channels))
        self.bias = jnp.zeros(out_channels)
        self.noise = jr.normal(keys[2], (size, size))
        self.noise_strength = jnp.zeros(())
        self.up = up

    def __call__(
        self, x: Float[Array, "height width in_channels"], w: Float[Array, " w"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns out_channels"]:
        y = modulated_convolution(x, self.weight, self.affine(w), up=self.up)
        noise = self.noise if key is None else jr.normal(key, self.noise.shape, y.dtype)
        return _lrelu(y + self.noise_strength * noise[..., None] + self.bias)


class ToRGB(eqx.Module):
    """A modulated 1×1 convolution to the channels of the image."""

    affine: EqualisedLinear
    weight: Float[Array, "1 1 in_channels out_channels"]
    bias: Float[Array, " out_channels"]

    def __init__(self, w_size: int, in_channels: int, out_channels: int, *, key: PRNGKeyArray) -> None:
        keys = jr.split(key)
        self.affine = EqualisedLinear(w_size, in_channels, bias=1.0, key=keys[0])
        self.weight = jr.normal(keys[1], (1, 1, in_channels, out_channels))
        self.bias = jnp.zeros(out_channels)

    def __call__(
        self, x: Float[Array, "height width in_channels"], w: Float[Array, " w"]
    ) -> Float[Array, "height width out_channels"]:
        style = self.affine(w) / math.sqrt(self.weight.shape[2])
        return modulated_convolution(x, self.weight, style, demodulate=False) + self.bias


class Block(eqx.Module):
    """One resolution: its convolutions (one at the lowest, two elsewhere) and its image."""

    convolutions: tuple[StyledConvolution, ...]
    to_rgb: ToRGB

    def __init__(
        self, w_size: int, in_channels: int | None, channels: int, size: int, image_channels: int, *, key: PRNGKeyArray
    ) -> None:
        keys = jr.split(key, 3)
        last = StyledConvolution(w_size, channels, channels, size, up=False, key=keys[1])
        if in_channels is None:
            self.convolutions = (last,)
        else:
            first = StyledConvolution(w_size, in_channels, channels, size, up=True, key=keys[0])
            self.convolutions = (first, last)
        self.to_rgb = ToRGB(w_size, channels, image_channels, key=keys[2])


class StyleGAN2Generator(AbstractGenerator):
    """StyleGAN2, from latent codes `z ~ N(0, I)` or `w` to images of a power of two in size.

    `mapping` leads from `z` to `w`, and `mapping.mean` is the mean of `w`. `synthesis` starts from `w`. With that space
    as the space of signals the forward model is

        Generator(gan.synthesis, jax.ShapeDtypeStruct((512,), jnp.float32), mean=gan.mapping.mean)

    Weights are read from the state dictionary of NVIDIA's generators of this architecture, without labels.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN".
    """

    mapping: Mapping
    constant: Float[Array, "4 4 channels"]
    blocks: tuple[Block, ...]
    by_order: ClassVar[bool] = False

    def __init__(
        self,
        size: int = 256,
        *,
        latent_size: int = 512,
        mapping_depth: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
        image_channels: int = 3,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `size`: height and width of the images in pixels, a power of two from 8 on.
        - `latent_size`: the length of `z` and of `w`.
        - `mapping_depth`: the layers of the mapping network.
        - `channel_base`, `channel_max`: at a resolution of `r` pixels there are `min(channel_base / r, channel_max)`
            channels. 32768 makes the large network, usual for images of 512 pixels and more.
        - `image_channels`: channels of the image.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive, or `size` is no power of two.
        """
        check_positive(
            size=size,
            latent_size=latent_size,
            mapping_depth=mapping_depth,
            channel_base=channel_base,
            channel_max=channel_max,
            image_channels=image_channels,
        )
        if size < 8 or size & (size - 1):
            raise ValueError(f"`size` is {size}, but it has to be a power of two from 8 on: resize the images.")
        keys = jr.split(key, 3)
        sizes = [2**i for i in range(2, size.bit_length())]
        channels = [min(channel_base // s, channel_max) for s in sizes]
        check_positive(**{f"channel_base // {size}": channels[-1]})
        self.mapping = Mapping(latent_size, mapping_depth, key=keys[0])
        self.constant = jr.normal(keys[1], (4, 4, channels[0]))
        self.blocks = tuple(
            Block(latent_size, before, after, s, image_channels, key=k)
            for before, after, s, k in zip(
                [None, *channels[:-1]], channels, sizes, jr.split(keys[2], len(sizes)), strict=True
            )
        )

    @property
    def latent(self) -> jax.ShapeDtypeStruct:
        mean = self.mapping.mean
        return jax.ShapeDtypeStruct(mean.shape, mean.dtype)

    @property
    def num_styles(self) -> int:
        """How many styles an image has: one per convolution, and one for the last image."""
        return 2 * len(self.blocks)

    def __call__(
        self, latent: Float[Array, " latent"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "size size channels"]:
        """**Arguments:**

        - `latent`: the latent code `z`, shape `(latent_size,)`.
        - `key`: as in `synthesis`.

        **Returns:**

        An image, about in `[−1, 1]`.
        """
        check_shape(self, latent=(latent, self.latent.shape))
        return self.synthesis(self.mapping(latent), key=key)

    def synthesis(
        self, w: Float[Array, "*styles latent"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "size size channels"]:
        """The image of an intermediate latent code.

        **Arguments:**

        - `w`: the code, of shape `(latent_size,)`, or `(num_styles, latent_size)` for one of its own per style.
        - `key`: a JAX random key for fresh noise inputs; without one they are the constants of the file, as a forward
            model needs.

        **Returns:**

        An image, about in `[−1, 1]`.
        """
        if w.ndim == 1:
            w = jnp.broadcast_to(w, (self.num_styles, *w.shape))
        check_shape(self, w=(w, (self.num_styles, *self.latent.shape)))
        x, image, number = self.constant, None, 0
        for block in self.blocks:
            for convolution in block.convolutions:
                x = convolution(x, w[number], key=None if key is None else jr.fold_in(key, number))
                number += 1
            # The style of an image is that of the next convolution.
            own = block.to_rgb(x, w[number])
            image = own if image is None else upsample_smooth(image) + own
        assert image is not None
        return image

    def mean_latent(self, key: PRNGKeyArray, num_samples: int = 10_000) -> Float[Array, " latent"]:
        """The mean of `w` from draws of `z ~ N(0, I)`, for weights that come without `mapping.mean`."""
        draws = jax.lax.map(
            lambda k: self.mapping(jr.normal(k, self.latent.shape)), jr.split(key, num_samples), batch_size=1000
        )
        return jnp.mean(draws, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Names as in NVIDIA's state dictionaries: `mapping.fc0.weight`, `synthesis.b8.conv1.affine.bias`, ..."""
        found = {"mapping.w_avg": Tensor(lambda g: g.mapping.mean)}
        found["synthesis.b4.const"] = Tensor(lambda g: g.constant, (1, 2, 0))

        def linear(name: str, where: Callable):
            found[f"{name}.weight"] = Tensor(lambda g: where(g).weight, (1, 0))
            found[f"{name}.bias"] = Tensor(lambda g: where(g).bias)

        def convolution(name: str, where: Callable):
            linear(f"{name}.affine", lambda g: where(g).affine)
            found[f"{name}.weight"] = Tensor(lambda g: where(g).weight, (2, 3, 1, 0))
            found[f"{name}.bias"] = Tensor(lambda g: where(g).bias)

        for i in range(len(self.mapping.layers)):
            linear(f"mapping.fc{i}", lambda g, i=i: g.mapping.layers[i])
        for i, block in enumerate(self.blocks):
            prefix = f"synthesis.b{4 * 2**i}"
            for j in range(len(block.convolutions)):
                name = f"{prefix}.conv{j + 2 - len(block.convolutions)}"
                where = lambda g, i=i, j=j: g.blocks[i].convolutions[j]
                convolution(name, where)
                found[f"{name}.noise_const"] = Tensor(lambda g, where=where: where(g).noise)
                found[f"{name}.noise_strength"] = Tensor(lambda g, where=where: where(g).noise_strength)
            convolution(f"{prefix}.torgb", lambda g, i=i: g.blocks[i].to_rgb)
        return found
