r"""The network denoiser that is made where none is given."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._custom_types import Key, Structure
from .._data_info import DataInfo, describe
from .._denoiser.back_projection import BackProjection, count_channels, forward_gain
from .._denoiser.flatten import Flatten
from .._denoiser.gaussian_prior import GaussianPrior
from .._denoiser.network import NetworkDenoiser, is_image
from .._forward.base import AbstractForwardModel
from .._frozen import trainable
from .._noise import AbstractNoise, GaussianNoise
from .._view import View
from ._embedding import NoiseEmbedding
from ._linear import Linear
from ._mlp import MLP
from ._unet import UNet

# Conditioning a Gaussian costs some `(entries of the signal)² (entries measured)` operations per record.
LARGEST_GAUSSIAN = 64


def default_denoiser(
    forward: AbstractForwardModel,
    signal: Structure,
    info: DataInfo,
    *,
    width: int | None = None,
    latent_size: int = 64,
    noise: AbstractNoise = GaussianNoise(),
    key: Key,
) -> NetworkDenoiser:
    """A network denoiser for the shapes of a problem's data.

    Images measured by an affine forward model get a U-Net on back-projected measurements; every other signal gets an
    MLP on flattened measurements, which for small signals and affine forward models corrects the exact answer for a
    Gaussian signal.

    **Arguments:**

    - `forward`: the forward model.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `info`: the [`stochinv.DataInfo`][] of the data.
    - `width`: the channels of the U-Net's first level (32 by default) or the width of the MLP (256, or 128 for at most
        16 entries of a signal).
    - `latent_size`: the least length of the latent code that draws are made with.
    - `noise`: the noise of measurements, as in [`stochinv.StochasticInverseProblem`][].
    - `key`: a PRNG key.

    **Returns:**

    A [`stochinv.NetworkDenoiser`][], in the dtype of the signal.

    **Raises:**

    `ValueError` for a signal too large for an MLP, more than 65,536 entries.
    """
    network_key, embedding_key, view_key, latent_key = jr.split(key, 4)
    dtype = jnp.result_type(*jax.tree.leaves(signal))
    embedding_size = 128
    embedding = NoiseEmbedding(embedding_size, key=embedding_key)
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(signal))
    entries = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    shift, scale, latent = 0.0, 1.0, "embedding"
    if info.affine and is_image(signal):
        gain = forward_gain(forward, signal, info.params)
        encoder = BackProjection(forward, signal, gain=gain)
        channels = 32 if width is None else width
        network = UNet(
            count_channels(signal, info.context),
            sum(x.shape[-1] for x in jax.tree.leaves(signal)),
            embedding_size=embedding_size,
            channels=(channels, 2 * channels, 4 * channels),
            key=network_key,
        )
        shift, scale = _average(info.units.mean) / gain, _average(info.units.std) / gain
    else:
        if size > 65_536:
            raise ValueError(
                f"The default network of a signal {describe(signal)} would be an MLP with {size} outputs; give a "
                "`denoiser`."
            )
        if width is None:
            width = 128 if size <= 16 else 256
        view_network, context_size = None, entries(info.context)
        if isinstance(info.context, View):
            one = lambda tree: sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(tree))
            view_size = one(info.context.observation) + one(info.context.params)
            view_network = eqx.nn.MLP(view_size, width, width, 1, jax.nn.silu, key=view_key)
            context_size = width + 1
        encoder = Flatten(view_network)
        features = entries(info.observation) + entries(info.params) + context_size
        measured = entries(info.observation)
        if isinstance(info.context, View):
            measured += entries(info.context.observation)
        small = size <= LARGEST_GAUSSIAN and measured <= LARGEST_GAUSSIAN
        if info.affine and small and noise.every_level:
            encoder = GaussianPrior(
                forward, signal, encoder, scale=_average(info.units.std), noise=noise, units=info.units
            )
            features += encoder.num_features
            latent_size = max(latent_size, size)
        latent = "input"
        features += latent_size
        network = MLP(features, size, embedding_size=embedding_size, width=width, key=network_key)
        if not info.affine:
            # A signal of zeros may be a place without a slope: intensities, for one, are squares.
            start = Linear(width, size, key=jr.fold_in(network_key, 1))
            network = eqx.tree_at(lambda n: n.linear_out, network, start)

    def cast(module):
        arrays, rest = eqx.partition(module, trainable(module))
        return eqx.combine(jax.tree.map(lambda x: x.astype(dtype), arrays), rest)

    return NetworkDenoiser(
        cast(encoder),
        cast(network),
        cast(embedding),
        embedding_size=embedding_size,
        signal=signal,
        latent_size=latent_size,
        latent=latent,
        shift=shift,
        scale=scale,
        key=latent_key,
    )


def _average(tree):
    leaves = jax.tree.leaves(tree)
    return float(sum(leaves)) / len(leaves)
