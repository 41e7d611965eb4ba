"""Convolution, down- and upsampling of channels-last images, and of sequences and volumes.

One image is `(height, width, channels)`, a sequence `(length, channels)`, a volume `(depth, height, width, channels)`.
A convolution is computed on `x[None]` with XLA's `NHWC`/`HWIO` layouts. Under `jax.vmap` the batch then merges into
that leading axis, and one call of the layout that CPUs and GPUs like best remains. The usual channels-first layer costs
many times more on CPU inside `jax.lax.scan` or `jax.lax.while_loop`, which is where samplers call networks.

Resolution changes by rearranging pixels, not by strided or transposed convolutions:

- down: 2×2 blocks of pixels become channels, then a 1×1 convolution mixes them. This is precisely a 2×2 convolution of
  stride 2, computed as one matrix product;
- up: each pixel is repeated twice along all axes (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts", on
  why not by transposed convolution).
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import fan_in_uniform
from ._misc import SPACE, check_positive, check_shape

# XLA's names of channels-last layouts, by the number of spatial axes.
_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


class Conv(eqx.Module):
    """Convolution (cross-correlation) of one channels-last image of `dims` spatial axes, 1 to 3.

    Zeros are added around the image so that the output has `ceil(size / stride)` pixels along each axis, as XLA's
    `"SAME"` does. The image is cast to the weight's type.
    """

    weight: Float[Array, "*kernel in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        dims: int = 2,
        stride: int = 1,
        use_bias: bool = True,
        zero_init: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        if dims not in SPACE:
            raise ValueError(f"`dims` is {dims!r}; pass 1 for sequences, 2 for images or 3 for volumes.")
        shape = (*(dims * (kernel_size,)), in_channels, out_channels)
        if zero_init:
            self.weight = jnp.zeros(shape)
        else:
            self.weight = fan_in_uniform(key, shape, kernel_size**dims * in_channels)
        self.bias = jnp.zeros(out_channels) if use_bias else None
        self.stride = stride

    def __call__(self, x: Float[Array, "*space in_channels"]) -> Float[Array, "*new_space out_channels"]:
        *kernel, in_channels, _ = self.weight.shape
        check_shape(self, x=(x, (*SPACE[len(kernel)], in_channels)))
        y = lax.conv_general_dilated(
            x.astype(self.weight.dtype)[None],
            self.weight,
            window_strides=len(kernel) * (self.stride,),
            padding="SAME",
            dimension_numbers=_LAYOUTS[len(kernel)],
        )[0]
        return y if self.bias is None else y + self.bias


def pad_to_multiple(x: Float[Array, "*space channels"], multiple: int) -> Float[Array, "*new_space channels"]:
    """Repeats the last pixels of each axis until all sizes are multiples of a number; the old image comes first."""
    pads = [(0, -size % multiple) for size in x.shape[:-1]]
    return jnp.pad(x, [*pads, (0, 0)], mode="edge")


def blocks_to_channels(x: Float[Array, "*space channels"], size: int) -> Float[Array, "*blocks block_channels"]:
    """Gathers every block of pixels, `size` wide along each axis, into one pixel; `size` divides all sizes."""
    *space, channels = x.shape
    dims = len(space)
    x = x.reshape(*(part for n in space for part in (n // size, size)), channels)
    x = x.transpose(*range(0, 2 * dims, 2), *range(1, 2 * dims, 2), 2 * dims)
    return x.reshape(*(n // size for n in space), size**dims * channels)


def channels_to_blocks(x: Float[Array, "*blocks block_channels"], size: int) -> Float[Array, "*space channels"]:
    """Spreads every pixel over a block, `size` wide along each axis: undoes `blocks_to_channels`."""
    *blocks, block_channels = x.shape
    dims = len(blocks)
    x = x.reshape(*blocks, *(dims * (size,)), block_channels // size**dims)
    x = x.transpose(*(axis for i in range(dims) for axis in (i, dims + i)), 2 * dims)
    return x.reshape(*(n * size for n in blocks), -1)


def upsample_nearest(x: Float[Array, "*space channels"]) -> Float[Array, "*new_space channels"]:
    """Doubles the resolution by repeating every pixel."""
    *space, channels = x.shape
    wide = x.reshape(*(part for n in space for part in (n, 1)), channels)
    wide = jnp.broadcast_to(wide, (*(part for n in space for part in (n, 2)), channels))
    return wide.reshape(*(2 * n for n in space), channels)
