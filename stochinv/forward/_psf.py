r"""Point spread functions: what an instrument makes of one bright point.

Each is a kernel for [`stochinv.forward.Blur`][], square, of an odd number of pixels and with the sum 1: light that
falls outside of it is put inside. Values are those at the centres of pixels. All are differentiable in their
parameters, and these may be traced; then nothing checks their ranges.

A lens with a circular pupil images a point as `|U|²`. With `u` the squared radius in the pupil, from 0 to 1,

`U(r) = ∫ exp(i φ(u)) J₀(κ r √u) du`,  `φ(u) = 2π d √3 (2u − 1)`,  `κ = π c / 2`

for a defocus of `d` waves and a cut-off frequency of `c` times Nyquist's, `r` in pixels. The integrand has no edge in
`u`, so Gauss's nodes give single precision with few of them, and `J₀` is a mean over directions,

`J₀(k √(x² + y²)) = (2/π) ∫ cos(k x cos θ) cos(k y sin θ) dθ`,  `θ` from 0 to `π/2`,

of products of a function of `x` and one of `y`: the amplitude is one product of matrices.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_integer, check_number
from .._custom_types import FloatScalarLike

# How far `pupil_psf` has enough nodes for, in waves.
MOST_DEFOCUS = 3.0


def gaussian_psf(std: FloatScalarLike, size: int) -> Float[Array, "size size"]:
    """A Gaussian point spread function, `exp(−r² / (2 std²))` up to a factor.

    Its parameters may be part of the signal, where an instrument is not known well. A signal with an image and the
    logarithm of a blur's width is measured by

    ```python
    blur = si.forward.Blur()
    forward = lambda s, _: blur(s["image"], si.forward.gaussian_psf(jnp.exp(s["log_std"]), 15))
    ```

    **Arguments:**

    - `std`: the standard deviation in pixels, above 0; below about 0.5, pixels are too coarse for it.
    - `size`: of the kernel in pixels, odd; some 8 times `std` hold all of it.

    **Returns:**

    Shape `(size, size)`.

    **Raises:**

    `ValueError` if an argument is out of its range.
    """
    check_number("gaussian_psf: `std`", std, "a number of pixels above 0", lambda x: x > 0)
    return _normalised(jnp.exp(-_squared_radii("gaussian_psf", size) / (2 * jnp.square(std))))


def moffat_psf(fwhm: FloatScalarLike, beta: FloatScalarLike, size: int) -> Float[Array, "size size"]:
    """Moffat's point spread function, of stars seen through the atmosphere: `(1 + (r / w)²)^(−beta)` up to a factor.

    **Arguments:**

    - `fwhm`: the full width at half of the maximum, `2 w √(2^(1 / beta) − 1)`, in pixels, above 0: what is called the
        seeing.
    - `beta`: how fast the wings fall, above 1; about 2.5 to 5 for stars, and a Gaussian for large ones.
    - `size`: of the kernel in pixels, odd.

    **Returns:**

    Shape `(size, size)`. Wings reach far: of the light, `(1 + (R / w)²)^(1 − beta)` falls beyond a radius `R`.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Moffat (1969), "A theoretical investigation of focal stellar images in the photographic emulsion and application
        to photographic photometry", Astronomy and Astrophysics 3, equation 7.
    """
    check_number("moffat_psf: `fwhm`", fwhm, "a number of pixels above 0", lambda x: x > 0)
    check_number("moffat_psf: `beta`", beta, "a number above 1", lambda x: x > 1)
    squared_width = jnp.square(fwhm) / (4 * jnp.expm1(math.log(2) / jnp.asarray(beta)))
    return _normalised(jnp.exp(-beta * jnp.log1p(_squared_radii("moffat_psf", size) / squared_width)))


def pupil_psf(defocus: FloatScalarLike, size: int, cutoff: FloatScalarLike = 1.0) -> Float[Array, "size size"]:
    """What a lens with a circular pupil makes of a point, in light that is not coherent; Airy's pattern in focus.

    By scalar diffraction, without polarisation: for numerical apertures up to about 0.7 of the index of refraction.

    **Arguments:**

    - `defocus`: the root mean square of the defocus in the pupil, in waves, between −3 and 3. Its phase is
        `2π · defocus · √3 (2ρ² − 1)` in radians at the share `ρ` of the pupil's radius. Both signs give the same image.
    - `size`: of the kernel in pixels, odd.
    - `cutoff`: the highest frequency that the lens passes, in units of Nyquist's frequency (half a cycle per pixel),
        above 0 and at most 1. It is `4 · NA · pixel / wavelength`, `NA` the numerical aperture and `pixel` its size at
        the object. Where pixels are too coarse for 1, take smaller ones, and [`stochinv.forward.Downsample`][] what
        they measure.

    **Returns:**

    Shape `(size, size)`. In focus the first dark ring has a radius of `2.44 / cutoff` pixels.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Goodman (2017), *Introduction to Fourier Optics*, chapter 7, for an incoherent image under an aberration. Noll
        (1976), "Zernike polynomials and atmospheric turbulence", JOSA 66, table I, for the polynomial of defocus.
    """
    in_range = lambda x: abs(x) <= MOST_DEFOCUS
    check_number("pupil_psf: `defocus`", defocus, f"between -{MOST_DEFOCUS:g} and {MOST_DEFOCUS:g} waves", in_range)
    check_number("pupil_psf: `cutoff`", cutoff, "above 0 and at most 1", lambda x: 0 < x <= 1)
    _check_size("pupil_psf", size)
    squared, weights = _gauss(30 + size // 4)
    angles = (np.arange(10 + size // 3) + 0.5) / (10 + size // 3) * np.pi / 2
    radii, offsets = np.sqrt(squared)[:, None, None], np.arange(size // 2 + 1)
    phases = lambda component: cutoff * jnp.asarray(np.pi / 2 * radii * component[:, None] * offsets)
    by_row, by_column = jnp.cos(phases(np.sin(angles))), jnp.cos(phases(np.cos(angles)))
    phase = defocus * jnp.asarray(2 * np.pi * np.sqrt(3) * (2 * squared - 1))
    parts = jnp.stack([jnp.cos(phase), jnp.sin(phase)]) * jnp.asarray(weights / len(angles))
    amplitude = jnp.einsum("ak,kty,ktx->ayx", parts, by_row, by_column, precision="highest")
    quadrant = jnp.sum(amplitude**2, 0)
    mirrored = np.abs(np.arange(size) - size // 2)
    return _normalised(quadrant[mirrored][:, mirrored])


def _gauss(number):
    """Nodes between 0 and 1 and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(number)
    return (nodes + 1) / 2, weights / 2


def _check_size(name, size):
    check_integer(f"{name}: `size`", size)
    if size % 2 == 0:
        raise ValueError(f"{name}: `size` must be odd, so that a pixel is in the middle, got {size}; add 1.")


def _squared_radii(name, size):
    _check_size(name, size)
    squares = jnp.square(jnp.arange(size, dtype=jnp.result_type(float)) - size // 2)
    return squares[:, None] + squares


def _normalised(kernel):
    return kernel / jnp.sum(kernel)
