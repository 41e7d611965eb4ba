from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._lazy import optional


def nufftax_core() -> Any:
    """The package that has the parts of a non-uniform Fourier transform."""
    return optional("nufftax.core", "NonCartesianMRI needs nufftax", "mri")


def nufft2(
    images: Complex[Array, "coils height width"], positions: Float[Array, "samples 2"]
) -> Complex[Array, "coils samples"]:
    r"""The sums `Σ_p exp(−i k · p) x(p)` over the pixels `p` of images, counted from their centre.

    They are read off the Fourier transform of the padded image, by interpolation with a kernel for which the image was
    corrected before. nufftax has all but the interpolation: its own computes where a sample's window begins more than
    once, and under `jax.jit` the results, rounded differently, can be two, so that samples near the points of its grid
    come out wrong.

    **Arguments:**

    - `images`: the images.
    - `positions`: `k`, vertical and horizontal, in radians per pixel.
    """
    core = nufftax_core()
    kernel = core.compute_kernel_params(1e-6)
    rows, columns = (2 * max(size, kernel.nspread) for size in images.shape[1:])
    series = lambda size: core.kernel_fourier_series(size, kernel.nspread, kernel.beta, kernel.c, dtype=positions.dtype)
    padded = core.deconvolve_pad_2d(images, series(columns), series(rows), columns, rows)
    row_indices, row_weights = _window(core, kernel, positions[:, 0], rows)
    column_indices, column_weights = _window(core, kernel, positions[:, 1], columns)
    near = jnp.fft.fft2(padded)[:, row_indices[:, :, None], column_indices[:, None, :]]
    return jnp.einsum("csij,si,sj->cs", near, row_weights, column_weights)


def _window(core, kernel, positions, size):
    """The points of a periodic grid of even size around each position, and the kernel there."""
    # One product, whose rounding is the same wherever a compiler computes it again.
    scaled = positions * np.asarray(size / (2 * np.pi), positions.dtype)
    first = jnp.ceil(scaled).astype(int) - kernel.nspread // 2
    indices = first[:, None] + jnp.arange(kernel.nspread)
    weights = core.es_kernel(indices.astype(scaled.dtype) - scaled[:, None], kernel.beta, kernel.c)
    return (indices + size // 2) % size, weights
