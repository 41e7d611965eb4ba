import jax.numpy as jnp
from jaxtyping import Array, Complex, Inexact


def centred_fft2(image: Inexact[Array, "*batch height width"]) -> Complex[Array, "*batch height width"]:
    """The unitary Fourier transform of images whose origin is the pixel `(height // 2, width // 2)`.

    So is that of the transform: its entry there is the mean times `√(height · width)`.
    """
    axes = (-2, -1)
    return jnp.fft.fftshift(jnp.fft.fft2(jnp.fft.ifftshift(image, axes), norm="ortho"), axes)
