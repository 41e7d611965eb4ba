"""Phase retrieval: intensities of Fourier transforms, whose phases are lost.

All are `|F(w ⊙ x)|²`, with the unitary Fourier transform `F` and something known, `w`, that the light passes: an empty
frame around the image, a mask, a probe. They are intensities and not magnitudes: smooth at zero, and what detectors
count.
"""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._checks import check_integer, shown
from .._custom_types import Params
from .._forward.base import AbstractForwardModel
from ._fourier import centred_fft2


@final
class FourierIntensity(AbstractForwardModel):
    r"""The intensities `|F x|²` of the Fourier transform of an image in an empty frame. It takes no parameters.

    The image `(height, width)` is real or complex, and zeros are put around it. The measurement is real, `oversampling`
    times as high and as wide, with the zero frequency in the middle, at half the size rounded down. `F` is unitary: the
    intensities sum to `Σ |x|²`.

    Some images have the same intensities, and no measurement tells them apart: $x$ times a phase
    $e^{i \varphi}$ (a sign, if it is real); $x$ moved within its empty borders, or without a frame around its edges;
    and the conjugate of $x$ turned by 180 degrees. With an oversampling of 2 nearly every image has no others. A
    posterior has a mode for each of them.

    Give `signal=` to the problem, as intensities do not tell whether an image is complex. Counts of photons are
    [`stochinv.PoissonNoise`][] with a positive `background`.

    **Arguments:**

    - `oversampling`: how much larger the frame is than the image, an integer of at least 1; 1 for no frame.

    **Raises:**

    `ValueError` if it is not.

    ??? cite "Source"

        Shechtman et al. 2015, "Phase retrieval with application to optical imaging: a contemporary overview".
    """

    oversampling: int = 2

    def __check_init__(self) -> None:
        check_integer("FourierIntensity: `oversampling`", self.oversampling)

    def __call__(self, signal: Inexact[Array, "height width"], params: Params) -> Float[Array, "rows columns"]:
        _check_image("FourierIntensity", signal)
        margins = [(0, (self.oversampling - 1) * size) for size in signal.shape]
        return _intensity(jnp.pad(signal, margins))


@final
class CodedDiffraction(AbstractForwardModel):
    """The intensities `|F(mask ⊙ x)|²` of the Fourier transform of a masked image.

    The parameters are the mask, real or complex, of the image's shape `(height, width)`. Several masks are several
    views of one image. The image is real or complex; the measurement is real, of the same shape, with the zero
    frequency at `(height // 2, width // 2)`. `F` is unitary.

    Of the symmetries of [`stochinv.forward.FourierIntensity`][] masks leave one, unless they have the symmetry
    themselves: a phase, the same for all pixels. With a few random masks no other image has the same intensities.

    Give `signal=` to the problem, as intensities do not tell whether an image is complex.

    ??? cite "Source"

        Candès, Li and Soltanolkotabi 2015, "Phase retrieval from coded diffraction patterns".
    """

    def __call__(self, signal: Inexact[Array, "height width"], params: Params) -> Float[Array, "height width"]:
        _check_image("CodedDiffraction", signal)
        if params is None or jnp.shape(params) != signal.shape:
            raise ValueError(
                f"CodedDiffraction: `params` must be a mask of the signal's shape {signal.shape}, got {shown(params)}; "
                "give several masks as several views."
            )
        return _intensity(signal * jnp.asarray(params))


@final
class Ptychography(AbstractForwardModel):
    """The intensities `|F(probe ⊙ patch)|²` of the Fourier transform of a patch of an object, seen through a probe.

    The parameters are the row and the column of the patch's top left pixel in the object, integers of shape `(2,)`; a
    patch that would leave the object is moved inside. Several positions, whose patches overlap, are several views. The
    object `(height, width)` is real or complex; the measurement is real, of the probe's shape, with the zero frequency
    at half of it, rounded down. `F` is unitary.

    Of the symmetries of [`stochinv.forward.FourierIntensity`][] a known probe leaves one, unless it has the symmetry
    itself: a phase, the same for all pixels. What no patch has in it, or where the probe is dark, is not measured.

    Give `signal=` to the problem, as intensities do not tell how large the object is.

    **Arguments:**

    - `probe`: real or complex, of shape `(rows, columns)`, at most that of the object.

    **Raises:**

    `ValueError` if it has another shape.

    ??? cite "Source"

        Rodenburg and Faulkner 2004, "A phase retrieval algorithm for shifting illumination".
    """

    probe: Inexact[Array, "rows columns"]

    def __check_init__(self) -> None:
        if jnp.ndim(self.probe) != 2:
            raise ValueError(
                f"Ptychography: `probe` must have the shape (rows, columns), got {jnp.shape(self.probe)}; reshape it."
            )

    def __call__(self, signal: Inexact[Array, "height width"], params: Params) -> Float[Array, "rows columns"]:
        _check_image("Ptychography", signal)
        if params is None or jnp.shape(params) != (2,) or not jnp.issubdtype(jnp.result_type(params), jnp.integer):
            raise ValueError(
                f"Ptychography: `params` must be the row and the column of a patch, two integers, got {shown(params)}; "
                "give several places as several views."
            )
        if any(patch > size for patch, size in zip(self.probe.shape, signal.shape, strict=True)):
            raise ValueError(
                f"Ptychography: `probe` of shape {self.probe.shape} must not be larger than the signal, of shape "
                f"{signal.shape}; crop it."
            )
        return _intensity(self.probe * jax.lax.dynamic_slice(signal, (params[0], params[1]), self.probe.shape))


def _check_image(name, signal):
    if signal.ndim != 2:
        raise ValueError(
            f"{name}: the signal must be of shape `(height, width)`, got {signal.shape}; leave out its channels."
        )


def _intensity(field):
    transform = centred_fft2(field)
    return jnp.real(transform) ** 2 + jnp.imag(transform) ** 2
