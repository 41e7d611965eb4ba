r"""The denoiser of signal space that is made where none is given."""

from typing import cast

import jax
import jax.numpy as jnp
import jax.random as jr

from .._custom_types import Key, Structure
from .._data_info import DataInfo, Units
from .._denoiser.correction import ImageCorrection, VectorCorrection
from .._denoiser.evidence import Form
from .._denoiser.gaussian_residual import GaussianResidual
from .._denoiser.network import is_image
from .._forward.base import AbstractForwardModel
from .._frozen import Frozen
from .._noise import AbstractNoise
from .._sampling import LARGEST_VECTOR
from .._whitening import Whitening
from ._embedding import NoiseEmbedding
from ._mlp import MLP
from ._unet import UNet

_EMBEDDING_SIZE = 128
# What the network is told of each pixel.
_PARTS = 5


def signal_denoiser(
    forward: AbstractForwardModel, signal: Structure, info: DataInfo, *, noise: AbstractNoise, key: Key
) -> GaussianResidual:
    """A network that corrects the exact denoiser of a Gaussian signal: a U-Net on blocks of 2×2 pixels for an image of
    more than 256 entries, a perceptron for any other signal.

    **Arguments:**

    - `forward`, `noise`: the forward model and the noise of measurements.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `info`: the [`stochinv.DataInfo`][] of a fit in signal space.
    - `key`: a PRNG key.
    """
    network_key, embedding_key = jr.split(key)
    size = sum(x.size for x in jax.tree.leaves(signal))
    options = {"embedding_size": _EMBEDDING_SIZE, "key": network_key}
    leaves = jax.tree.leaves(signal)
    if size > LARGEST_VECTOR and len(leaves) == 1 and is_image(signal):
        height, width, channels = leaves[0].shape
        root = None
        if info.form == "dense":
            root = cast(Whitening, info.units).root
            root = root / jnp.sqrt(jnp.mean(jnp.sum(root**2, 1)))
        parts = _PARTS if root is None else _PARTS + 2
        unet = UNet(parts * channels, channels, channels=(32, 64), patch=2, **options)
        network = ImageCorrection(unet, height, width, Frozen(root))
    else:
        view = info.context
        given = sum(x.size for x in jax.tree.leaves((view.observation, view.params, view.mask)))
        network = VectorCorrection(MLP(3 * size + given, size, width=128 if size <= 16 else 512, **options))
    return GaussianResidual(
        info.units,
        signal,
        forward,
        noise,
        cast(Units, info.context_units),
        form=cast(Form, info.form),
        network=network,
        embedding=NoiseEmbedding(_EMBEDDING_SIZE, key=embedding_key),
    )
