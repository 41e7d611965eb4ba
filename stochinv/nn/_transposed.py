r"""Transposed convolution with stride 2, by an ordinary one.

Each output pixel is a sum over at most $2 \times 2$ input pixels, with one of four parts of the kernel according to the
parities of its row and column. So it is one convolution with four times as many channels, whose output is interleaved.
XLA's own way, zeros between the pixels, is many times slower on a CPU.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def transposed_convolution(
    x: Float[Array, "height width in_channels"], weight: Float[Array, "kernel kernel in_channels out_channels"]
) -> Float[Array, "rows columns out_channels"]:
    """Every input pixel adds a multiple of the kernel to the output, two pixels apart.

    **Arguments:**

    - `x`: the image.
    - `weight`: the kernel, of 2 to 4 pixels.

    **Returns:**

    An image of `2 · (size − 1) + kernel` pixels along each axis.
    """
    height, width, size_in = x.shape
    kernel, _, _, size_out = weight.shape
    weight = jnp.pad(weight, ((0, 4 - kernel), (0, 4 - kernel), (0, 0), (0, 0)))
    # Of tap `2 t + a` the parity `a` goes to the channels; `t` runs against the pixels.
    taps = weight.reshape(2, 2, 2, 2, size_in, size_out)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    y = correlate(x, taps.reshape(2, 2, size_in, 4 * size_out), 1).reshape(height + 1, width + 1, 2, 2, size_out)
    y = y.transpose(0, 2, 1, 3, 4).reshape(2 * height + 2, 2 * width + 2, size_out)
    return y[: 2 * (height - 1) + kernel, : 2 * (width - 1) + kernel]


def correlate(
    x: Float[Array, "height width in_channels"],
    weight: Float[Array, "kernel kernel in_channels out_channels"],
    margin: int,
) -> Float[Array, "rows columns out_channels"]:
    """Convolution with stride 1 and a margin of zeros around the image."""
    pads = ((margin, margin), (margin, margin))
    return lax.conv_general_dilated(x[None], weight, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
