"""Convolution, down- and upsampling of channels-last images.

One image is `(height, width, channels)`. A convolution is computed on `x[None]` with XLA's `NHWC`/`HWIO` layouts. Under
`jax.vmap` the batch then merges into that leading axis, and one call of the layout that CPUs and GPUs like best
remains. The usual channels-first layer costs many times more on CPU inside `jax.lax.scan` or `jax.lax.while_loop`,
which is where samplers call networks.

Resolution changes by rearranging pixels, not by strided or transposed convolutions:

- down: 2×2 blocks of pixels become channels, then a 1×1 convolution mixes them. This is precisely a 2×2 convolution of
  stride 2, computed as one matrix product;
- up: each pixel is repeated twice along both axes (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts", on
  why not by transposed convolution).
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import fan_in_uniform
from ._misc import check_positive, check_shape


class Conv2d(eqx.Module):
    """2-D convolution (cross-correlation) of one channels-last image.

    Zeros are added around the image so that the output has `ceil(size / stride)` pixels along each axis, as XLA's
    `"SAME"` does. The image is cast to the weight's type.
    """

    weight: Float[Array, "kernel kernel in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        use_bias: bool = True,
        zero_init: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        if zero_init:
            self.weight = jnp.zeros(shape)
        else:
            self.weight = fan_in_uniform(key, shape, kernel_size**2 * in_channels)
        self.bias = jnp.zeros(out_channels) if use_bias else None
        self.stride = stride

    def __call__(
        self, x: Float[Array, "height width in_channels"]
    ) -> Float[Array, "new_height new_width out_channels"]:
        check_shape(self, x=(x, ("height", "width", self.weight.shape[2])))
        y = lax.conv_general_dilated(
            x.astype(self.weight.dtype)[None],
            self.weight,
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
        return y if self.bias is None else y + self.bias


def pad_to_multiple(
    x: Float[Array, "height width channels"], multiple: int
) -> Float[Array, "new_height new_width channels"]:
    """Repeats the last row and column until both sizes are multiples of a number; the old image is top left."""
    height, width, _ = x.shape
    pads = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    return jnp.pad(x, pads, mode="edge")


def blocks_to_channels(
    x: Float[Array, "height width channels"], size: int
) -> Float[Array, "rows columns block_channels"]:
    """Gathers every `size × size` block of pixels into one pixel; `size` divides height and width."""
    height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(rows, size, columns, size, channels)
    return x.transpose(0, 2, 1, 3, 4).reshape(rows, columns, size**2 * channels)


def channels_to_blocks(
    x: Float[Array, "rows columns block_channels"], size: int
) -> Float[Array, "height width channels"]:
    """Spreads every pixel over a `size × size` block: undoes `blocks_to_channels`."""
    rows, columns, block_channels = x.shape
    x = x.reshape(rows, columns, size, size, block_channels // size**2)
    return x.transpose(0, 2, 1, 3, 4).reshape(rows * size, columns * size, -1)


def upsample_nearest(x: Float[Array, "height width channels"]) -> Float[Array, "new_height new_width channels"]:
    """Doubles the resolution by repeating every pixel."""
    height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, channels))
    return x.reshape(2 * height, 2 * width, channels)
