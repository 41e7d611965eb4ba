r"""The denoiser of signal space that is made where none is given."""

from typing import cast

import jax
import jax.random as jr

from .._custom_types import Key, Structure
from .._data_info import DataInfo, Units
from .._denoiser.gaussian_residual import GaussianResidual
from .._forward.base import AbstractForwardModel
from .._noise import AbstractNoise
from .._whitening import Whitening
from ._embedding import NoiseEmbedding
from ._mlp import MLP

_EMBEDDING_SIZE = 128


def signal_denoiser(
    forward: AbstractForwardModel, signal: Structure, info: DataInfo, *, noise: AbstractNoise, key: Key
) -> GaussianResidual:
    """A perceptron that corrects the exact denoiser of a Gaussian signal.

    **Arguments:**

    - `forward`, `noise`: the forward model and the noise of measurements.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `info`: the [`stochinv.DataInfo`][] of a fit in signal space.
    - `key`: a PRNG key.
    """
    network_key, embedding_key = jr.split(key)
    size = sum(x.size for x in jax.tree.leaves(signal))
    view = info.context
    given = sum(x.size for x in jax.tree.leaves((view.observation, view.params, view.mask)))
    width = 128 if size <= 16 else 512
    network = MLP(3 * size + given, size, embedding_size=_EMBEDDING_SIZE, width=width, key=network_key)
    return GaussianResidual(
        cast(Whitening, info.units),
        signal,
        forward,
        noise,
        cast(Units, info.context_units),
        affine=info.affine,
        network=network,
        embedding=NoiseEmbedding(_EMBEDDING_SIZE, key=embedding_key),
    )
