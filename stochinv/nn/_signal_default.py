r"""The denoiser of signal space that is made where none is given."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._complex import parts_structure
from .._custom_types import Key, Structure
from .._data_info import DataInfo, Units
from .._denoiser.correction import LARGEST_COVARIANCE, ImageCorrection, VectorCorrection
from .._denoiser.evidence import Form
from .._denoiser.gaussian_residual import GaussianResidual
from .._forward.base import AbstractForwardModel
from .._frozen import Frozen
from .._grid import grid_of, is_convolved, is_large
from .._noise import AbstractNoise
from .._structure import count_entries
from .._whitening import Whitening
from ._embedding import NoiseEmbedding
from ._mlp import MLP
from ._unet import UNet

# That of vectors is short: the noise level is one number, and the layers that it passes would take most of the time.
_EMBEDDING_SIZE, _EMBEDDING_SIZE_OF_VECTORS = 128, 32
_VIEW_SIZE = 64
# What the network is told of each pixel.
_PARTS = 5


def signal_denoiser(
    forward: AbstractForwardModel, signal: Structure, info: DataInfo, *, noise: AbstractNoise, key: Key
) -> GaussianResidual:
    """A network that corrects the exact denoiser of a Gaussian signal: a U-Net for an image, a sequence or a volume of
    more than 256 entries, on blocks of two pixels along each axis, and for a sequence of at least 32 times; a
    perceptron for any other signal.

    **Arguments:**

    - `forward`, `noise`: the forward model and the noise of measurements.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `info`: the [`stochinv.DataInfo`][] of a fit in signal space.
    - `key`: a PRNG key.
    """
    network_key, embedding_key = jr.split(key)
    size = count_entries(signal)
    grid = grid_of(signal)
    # A U-Net sees of a context what it says of a Gaussian signal, and nothing else.
    if grid is not None and is_convolved(signal) and (is_large(signal) or (info.affine and noise.every_level)):
        *space, channels = grid
        root = None
        if info.form == "dense":
            root = cast(Whitening, info.units).root
            root = root / jnp.sqrt(jnp.mean(jnp.sum(root**2, 1)))
        parts = _PARTS if root is None else _PARTS + 2
        options = {"dims": len(space), "embedding_size": _EMBEDDING_SIZE, "key": network_key}
        patch = 2 if is_large(signal) else 1
        unet = UNet(parts * channels, channels, channels=(32, 64), patch=patch, **options)
        network, embedding = ImageCorrection(unet, grid, Frozen(root)), _EMBEDDING_SIZE
    else:
        network, embedding = _vector_correction(size, info, noise, network_key), _EMBEDDING_SIZE_OF_VECTORS
    return GaussianResidual(
        info.units,
        signal,
        forward,
        noise,
        cast(Units, info.context_units),
        form=cast(Form, info.form),
        network=network,
        embedding=NoiseEmbedding(embedding, key=embedding_key),
        mixture=info.mixture,
    )


def _vector_correction(size, info, noise, key):
    network_key, view_key = jr.split(key)
    inputs, view_network = VectorCorrection.num_inputs(size), None
    if size > LARGEST_COVARIANCE or not (info.affine and noise.every_level):
        one = sum(
            x.size // x.shape[0]
            for x in jax.tree.leaves(parts_structure((info.context.observation, info.context.params)))
        )
        view_network = eqx.nn.MLP(one, _VIEW_SIZE, _VIEW_SIZE, 1, jax.nn.silu, key=view_key)
        inputs += _VIEW_SIZE + 1
    width = 128 if size <= 16 else 512
    network = MLP(inputs, size, embedding_size=_EMBEDDING_SIZE_OF_VECTORS, width=width, key=network_key)
    return VectorCorrection(network, view_network)
