r"""Magnetic resonance imaging: samples of the Fourier transform of a complex image, seen by several coils.

With the pixel `p ∈ Z²` counted from `(height // 2, width // 2)`, a coil of sensitivity `c` measures of the image `s`

`y(k) = Σ_p exp(−i k · p) c(p) s(p) / √(height · width)`

at positions `k` in radians per pixel. At `k = 2π (j / height, l / width)`, with integers `j` and `l`, these are the
entries of the unitary discrete Fourier transform.
"""

import math
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Complex, Float, Inexact, Int

from .._checks import check_instance, check_integer, shown
from .._custom_types import Params, Structure
from .._forward.base import AbstractLinearForwardModel
from ._fourier import centred_fft2
from ._nufft import nufft2, nufftax_core


class MRIScan(NamedTuple):
    """What is measured of k-space, and by which coils: the parameters of a measurement.

    Those of several measurements stack along leading axes.

    **Arguments:**

    - `samples`: which samples of k-space, as the forward model says.
    - `sensitivities`: those of the coils, complex and of shape `(coils, height, width)`, where they differ between
        measurements. `None` if they are the forward model's.
    """

    samples: Int[ArrayLike, "..."] | Float[ArrayLike, "..."]
    sensitivities: Inexact[ArrayLike, "..."] | None = None


@final
class CartesianMRI(AbstractLinearForwardModel):
    """K-space on its grid: lines, or single samples, of the Fourier transform of a complex image, seen by coils.

    The parameters are an [`stochinv.forward.MRIScan`][]. Its `samples` are indices: of shape `(lines,)` those of whole
    rows, or of shape `(samples, 2)` the row and the column of each sample. Phases are encoded along the height, so that
    a row is what the scanner reads at a time. Samples outside of the grid are measured as NaN.

    The transform of the image that a coil sees is centred and unitary:
    `fftshift(fft2(ifftshift(image), norm="ortho"))`. The row `j` is the vertical frequency `j - height // 2` in cycles
    per field of view.

    A signal has the shape `(height, width)`, and is complex (a real one will do). Networks see its real and its
    imaginary part as two channels. A measurement is complex, of shape `(coils, lines, width)`, or `(coils, samples)`
    for single samples.

    The noise of a problem, such as `noise=τ`, is as [`stochinv.GaussianNoise`][] says: `τ` is the standard deviation of
    the real part of each entry, and of the imaginary part, so that the complex entry has the variance `2 τ²`. As the
    transform is unitary, it is the same in k-space as in a coil's image. Noise is independent between coils: whiten
    those for which it is not.

    **Arguments:**

    - `shape`: `(height, width)` of the image, in pixels.
    - `sensitivities`: of shape `(coils, height, width)`, where they are the same for all measurements. `None` if the
        parameters of each measurement hold them, or if one coil sees all pixels alike.

    **Raises:**

    `ValueError` if a shape is wrong, or if both forward model and parameters have sensitivities.

    ??? cite "Source"

        Pruessmann et al. 1999, "SENSE: sensitivity encoding for fast MRI".
    """

    shape: tuple[int, int]
    sensitivities: Inexact[Array, "coils height width"] | None = None

    def __check_init__(self) -> None:
        _check_image("CartesianMRI", self.shape, self.sensitivities)

    def __call__(self, signal: Inexact[Array, "height width"], params: Params) -> Complex[Array, "coils ..."]:
        _check_scan("CartesianMRI", params, jnp.integer, "integers of shape (lines,) or (samples, 2)")
        samples = jnp.asarray(params.samples)
        if samples.ndim != 1:
            _check_pairs("CartesianMRI", samples, "(lines,) or (samples, 2)")
        spectra = centred_fft2(_seen_by_coils("CartesianMRI", signal, self.shape, self.sensitivities, params))
        indices = (slice(None), *jnp.atleast_2d(samples.T))
        return spectra.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """An image of `shape` in the dtype of the measurement."""
        return jax.ShapeDtypeStruct(self.shape, observation.dtype)


@final
class NonCartesianMRI(AbstractLinearForwardModel):
    r"""K-space anywhere: samples of the Fourier transform of a complex image along any trajectory, seen by coils.

    The parameters are an [`stochinv.forward.MRIScan`][]. Its `samples` are positions of shape `(samples, 2)`, vertical
    and horizontal, in radians per pixel. Those outside of $[-\pi, \pi)$ are taken modulo $2\pi$, as pixels allow. A
    position of $j$ cycles per field of view is $2\pi j / \mathrm{height}$ or $2\pi j / \mathrm{width}$: there the
    measurement is that of [`stochinv.forward.CartesianMRI`][], whose signals, coils and noise are the same. It is
    complex, of shape `(coils, samples)`. What rounding to single precision leaves is an error of about $10^{-7}$ of the
    largest entries for every pixel of height or width, and $10^{-6}$ at least.

    It needs [nufftax](https://nufftax.readthedocs.io/): `pip install 'stochinv[mri]'`.

    **Arguments:**

    - `shape`, `sensitivities`: as of [`stochinv.forward.CartesianMRI`][].

    **Raises:**

    `ValueError` as there; `ImportError` if nufftax is missing.

    ??? cite "Source"

        The fast transform: Barnett, Magland and af Klinteberg 2019, "A parallel nonuniform fast Fourier transform
        library based on an 'exponential of semicircle' kernel".
    """

    shape: tuple[int, int]
    sensitivities: Inexact[Array, "coils height width"] | None = None

    def __check_init__(self) -> None:
        _check_image("NonCartesianMRI", self.shape, self.sensitivities)
        nufftax_core()

    def __call__(self, signal: Inexact[Array, "height width"], params: Params) -> Complex[Array, "coils samples"]:
        _check_scan("NonCartesianMRI", params, jnp.floating, "floating-point numbers of shape (samples, 2)")
        samples = jnp.asarray(params.samples)
        _check_pairs("NonCartesianMRI", samples, "(samples, 2)")
        images = _seen_by_coils("NonCartesianMRI", signal, self.shape, self.sensitivities, params)
        return nufft2(images, samples) / math.sqrt(math.prod(self.shape))

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """An image of `shape` in the dtype of the measurement."""
        return jax.ShapeDtypeStruct(self.shape, observation.dtype)


def _seen_by_coils(name, signal, shape, sensitivities, scan):
    """The complex images that the coils see, of shape `(coils, height, width)`."""
    if signal.shape != shape:
        raise ValueError(
            f"{name}: the signal must be of shape {shape}, got {signal.shape}; give its (height, width) as `shape`."
        )
    if sensitivities is not None and scan.sensitivities is not None:
        raise ValueError(
            f"{name}: `sensitivities` are given to the forward model, and again in `params`, of shape "
            f"{jnp.shape(scan.sensitivities)}; give either."
        )
    coils = sensitivities if scan.sensitivities is None else scan.sensitivities
    if coils is not None:
        _check_coils(name, shape, coils)
        signal = signal * jnp.asarray(coils)
    images = signal.reshape(-1, *shape)
    return images.astype(jnp.result_type(images, jnp.complex64))


def _check_image(name, shape, sensitivities):
    if len(shape) != 2:
        raise ValueError(f"{name}: `shape` must be (height, width), got {shown(shape)}; a signal has no channel axis.")
    for size in shape:
        check_integer(f"{name}: `shape`", size)
    if sensitivities is not None:
        _check_coils(name, shape, sensitivities)


def _check_coils(name, shape, sensitivities):
    got = jnp.shape(sensitivities)
    if len(got) != 3 or got[1:] != shape:
        raise ValueError(
            f"{name}: `sensitivities` must have the shape (coils, height, width) with an image of {shape}, got {got}; "
            "one coil needs that axis too."
        )


def _check_scan(name, params, kind, wanted):
    check_instance(f"{name}: `params`", params, MRIScan, "an `MRIScan`, which holds the samples")
    dtype = jnp.result_type(params.samples)
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(f"{name}: `samples` must be {wanted}, got {dtype}; convert them.")


def _check_pairs(name, samples, wanted):
    if samples.ndim != 2 or samples.shape[1] != 2:
        raise ValueError(f"{name}: `samples` must have the shape {wanted}, got {samples.shape}; reshape them.")
