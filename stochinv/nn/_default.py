r"""The network denoiser that is made where none is given."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._complex import parts_structure
from .._custom_types import Key, Structure
from .._data_info import DataInfo, describe
from .._denoiser.back_projection import BackProjection, count_channels, forward_gain
from .._denoiser.flatten import Flatten
from .._denoiser.network import AbstractEncoder, NetworkDenoiser, is_image, signal_scale
from .._forward.base import AbstractForwardModel
from .._frozen import trainable
from .._structure import count_entries
from .._view import first_view, is_view
from ..forward._camera import Camera
from ..forward._volume import VolumeRenderer
from ..forward._volume_voxels import VoxelField
from ._embedding import NoiseEmbedding
from ._lifting import LiftingDenoiser
from ._linear import Linear
from ._mlp import MLP
from ._unet import UNet

_EMBEDDING_SIZE = 128


def default_denoiser(
    forward: AbstractForwardModel,
    signal: Structure,
    info: DataInfo,
    *,
    width: int | None = None,
    latent_size: int = 64,
    key: Key,
) -> NetworkDenoiser | LiftingDenoiser:
    """A network denoiser for the shapes of a problem's data.

    The images of a [`stochinv.forward.VolumeRenderer`][] get a transformer whose features are lifted into the signal's
    voxels. Images measured by an affine forward model get a U-Net on back-projected measurements; every other signal
    gets an MLP on flattened measurements.

    **Arguments:**

    - `forward`: the forward model.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal.
    - `info`: the [`stochinv.DataInfo`][] of the data.
    - `width`: the channels of the U-Net's first level (32 by default), or the width of the MLP (256, or 128 for at most
        16 entries of a signal) or of the transformer (192).
    - `latent_size`: the length of the latent code that draws are made with; the transformer has one of its own.
    - `key`: a PRNG key.

    **Returns:**

    A [`stochinv.NetworkDenoiser`][] in the dtype of the signal, or a [`stochinv.nn.LiftingDenoiser`][].

    **Raises:**

    `ValueError` for a signal too large for an MLP, more than 65,536 entries, and for a `VolumeRenderer` without a
    camera or with another signal than a cube of voxels.
    """
    if isinstance(forward, VolumeRenderer):
        return _lifting_denoiser(signal, info, width=width, key=key)
    network_key, embedding_key, view_key, latent_key = jr.split(key, 4)
    if info.affine and is_image(signal):
        parts = _image_parts(forward, signal, info, width=width, key=network_key)
    else:
        keys = {"key": network_key, "view_key": view_key}
        parts = _vector_parts(forward, signal, info, width=width, latent_size=latent_size, **keys)
    dtype = jnp.result_type(*jax.tree.leaves(signal))
    embedding = NoiseEmbedding(_EMBEDDING_SIZE, key=embedding_key)
    encoder, network, embedding = (_cast(part, dtype) for part in (parts.encoder, parts.network, embedding))
    return NetworkDenoiser(
        encoder,
        network,
        embedding,
        embedding_size=_EMBEDDING_SIZE,
        signal=signal,
        latent_size=latent_size,
        latent=parts.latent,
        shift=parts.shift,
        scale=parts.scale,
        key=latent_key,
    )


class _Parts(NamedTuple):
    """What differs between denoisers of images and of vectors."""

    encoder: AbstractEncoder
    network: UNet | MLP
    latent: Literal["embedding", "input"]
    shift: float = 0.0
    scale: float = 1.0


def _lifting_denoiser(signal, info, *, width, key):
    """Lifts features of images into the voxels of the signal."""
    if not isinstance(info.params, Camera) or not isinstance(signal, VoxelField) or len(set(signal.density.shape)) > 1:
        raise ValueError(
            "The default network of a `VolumeRenderer` makes a cubic `VoxelField` of the images of a `Camera`, but the "
            f"signal is {describe(signal)} and the parameters are a {type(info.params).__name__}; give a `denoiser`."
        )
    return LiftingDenoiser(
        info.observation.shape,
        resolution=signal.density.shape[0],
        lower=signal.lower,
        upper=signal.upper,
        density_scale=signal.density_scale,
        width=192 if width is None else width,
        key=key,
    )


def _image_parts(forward, signal, info, *, width, key):
    """A U-Net on back-projected measurements."""
    gain = forward_gain(forward, signal, info.params)
    channels = 32 if width is None else width
    network = UNet(
        count_channels(signal, info.context),
        sum(x.shape[-1] for x in jax.tree.leaves(signal)),
        embedding_size=_EMBEDDING_SIZE,
        channels=(channels, 2 * channels, 4 * channels),
        key=key,
    )
    encoder = BackProjection(forward, signal, gain=gain)
    shift, scale = _average(info.units.mean) / gain, _average(info.units.std) / gain
    return _Parts(encoder, network, "embedding", shift, scale)


def _vector_parts(forward, signal, info, *, width, latent_size, key, view_key):
    """An MLP on flattened measurements."""
    size = _entries(signal)
    if size > 65_536:
        raise ValueError(
            f"The default network of a signal {describe(signal)} would be an MLP with {size} outputs; give a "
            "`denoiser`."
        )
    if width is None:
        width = 128 if size <= 16 else 256
    context, context_size, view_network = info.context, _entries(info.context), None
    if is_view(context):
        one = first_view((context.observation, context.params))
        view_network = eqx.nn.MLP(_entries(one), width, width, 1, jax.nn.silu, key=view_key)
        context_size = width + 1
    features = _entries(info.observation) + _entries(info.params) + context_size
    network = MLP(features + latent_size, size, embedding_size=_EMBEDDING_SIZE, width=width, key=key)
    if not info.affine:
        # A signal of zeros may be a place without a slope: intensities, for one, are squares.
        network = eqx.tree_at(lambda n: n.linear_out, network, Linear(width, size, key=jr.fold_in(key, 1)))
    scale = 1.0
    if info.affine and info.witness is not None:
        scale = signal_scale(forward, signal, info.witness.params, info.units)
    return _Parts(Flatten(view_network), network, "input", scale=scale)


def _cast(module, dtype):
    arrays, rest = eqx.partition(module, trainable(module))
    return eqx.combine(jax.tree.map(lambda x: x.astype(dtype), arrays), rest)


def _entries(tree):
    return count_entries(parts_structure(tree))


def _average(tree):
    leaves = jax.tree.leaves(tree)
    return float(sum(leaves)) / len(leaves)
