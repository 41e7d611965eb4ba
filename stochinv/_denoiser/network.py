r"""The preconditioned network denoiser.

An encoder turns the noisy target, the context and the parameters into the input of a network and, where it can, into
a first estimate of the signal; the network is told the noise level and, for a draw, a latent code; its output is
scaled by how uncertain the first estimate is and added to it:

`ŝ = shift + scale · (estimate + uncertainty · network(features, embedding(log SNR) + W z))`.

It is the preconditioning of Karras et al. 2022 (section 5), with the first estimate in the place of the skip
connection.
"""

import abc
import math
from typing import Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, Context, Key, Observation, Params, PyTree, Signal, Structure
from .._data_info import Units
from .._schedule import NoiseLevel
from .base import AbstractDenoiser


class Features(eqx.Module):
    """What an encoder makes of the measurements.

    **Arguments:**

    - `network_input`: an image `(H, W, channels)` or a vector.
    - `estimate`: a first estimate of the standardised signal, in the shape of the network's output or a scalar.
    - `uncertainty`: the standard deviation left around it, likewise.
    """

    network_input: Float[Array, "..."]
    estimate: Float[Array, "..."]
    uncertainty: Float[Array, "..."]


class AbstractEncoder(eqx.Module):
    """Turns measurements into the input of a network."""

    @abc.abstractmethod
    def __call__(self, noisy: Observation, level: NoiseLevel, context: Context, params: Params) -> Features:
        """Encodes the arguments of a denoiser, see [`stochinv.AbstractDenoiser`][]."""


@final
class NetworkDenoiser(AbstractDenoiser):
    """A denoiser made of an encoder and a network.

    With a key it draws a latent code `z ~ N(0, I)`; without one `z = 0`. The code is appended to the input of a network
    of vectors, or added, times a matrix, to the embedding of the noise level, which every network takes, or to a second
    one for its later layers. Several draws from the same measurements (a `jax.vmap` over keys) share all that does not
    depend on `z`.

    Where the encoder's uncertainty is a vector, the leading entries of `z` are also added to the network's output, if
    there are enough: a network of zeros then draws from the Gaussian that the encoder describes.

    **Arguments:**

    - `encoder`: an [`stochinv.AbstractEncoder`][].
    - `network`: a callable `(input, embedding) -> output`, such as those of `stochinv.nn`.
    - `embedding`: a callable from the log-SNR to a vector.
    - `embedding_size`: the length of that vector.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal. The network's output is an image whose channels are those of
        all leaves of the signal, or a vector with all their entries.
    - `latent_size`: the length of `z`; 0 for a denoiser that is deterministic even with a key.
    - `latent`: where `z` enters: `"embedding"`; `"embedding_up"` for a network `(input, embedding, embedding_up)` such
        as [`stochinv.nn.UNet`][], whose draws share its way down; or `"input"` for a network of vectors, whose input is
        then longer by `latent_size`, which trains faster.
    - `shift`, `scale`: the mean and the standard deviation of the signal's entries, as far as they are known.
    - `key`: a PRNG key for the weights.
    """

    encoder: AbstractEncoder
    network: AnyCallable
    embedding: AnyCallable
    latent_weight: Float[Array, "latent embedding"] | None
    latent_size: int = eqx.field(static=True)
    latent: str = eqx.field(static=True)
    signal: Structure
    shift: float
    scale: float

    def __init__(
        self,
        encoder: AbstractEncoder,
        network: AnyCallable,
        embedding: AnyCallable,
        *,
        embedding_size: int,
        signal: Structure,
        latent_size: int = 64,
        latent: Literal["embedding", "embedding_up", "input"] = "embedding",
        shift: float = 0.0,
        scale: float = 1.0,
        key: Key,
    ) -> None:
        self.encoder = encoder
        self.network = network
        self.embedding = embedding
        if latent not in ("embedding", "embedding_up", "input"):
            raise ValueError(
                f'NetworkDenoiser: `latent` must be "embedding", "embedding_up" or "input", got {latent!r}.'
            )
        self.latent_size = latent_size
        self.latent = latent
        self.latent_weight = None
        if latent != "input":
            dtype = jnp.result_type(*jax.tree.leaves(signal))
            scale_of_z = 1 / max(latent_size, 1) ** 0.5
            self.latent_weight = scale_of_z * jr.normal(key, (latent_size, embedding_size), dtype)
        self.signal = signal
        self.shift = shift
        self.scale = scale

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        features = self.encoder(noisy, level, context, params)
        network_input, embedding = features.network_input, self.embedding(level.log_snr)
        code = jnp.zeros((self.latent_size,), network_input.dtype)
        if key is not None:
            code = jr.normal(key, code.shape, code.dtype)
        if self.latent_weight is None:
            output = self.network(jnp.concatenate([network_input, code]), embedding)
        else:
            shifted = embedding + code @ self.latent_weight
            embeddings = (embedding, shifted) if self.latent == "embedding_up" else (shifted,)
            output = self.network(network_input, *embeddings)
        if features.uncertainty.ndim == 1 and self.latent_size >= output.size:
            output = output + code[: output.size]
        output = self.shift + self.scale * (features.estimate + features.uncertainty * output)
        return split_signal(output, self.signal)


def is_image(signal: Structure) -> bool:
    """Whether every leaf of a signal is an image `(H, W, channels)`, all of the same size."""
    leaves = jax.tree.leaves(signal)
    return all(x.ndim == 3 and x.shape[:2] == leaves[0].shape[:2] for x in leaves)


def split_signal(output: Float[Array, "..."], signal: Structure) -> Signal:
    """A network's output as a signal: the channels of an image, or the entries of a vector, shared out over
    the leaves."""
    leaves, treedef = jax.tree.flatten(signal)
    sizes = [x.shape[-1] if output.ndim == 3 else x.size for x in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = [output[..., end - size : end].reshape(x.shape) for x, size, end in zip(leaves, sizes, ends, strict=True)]
    return jax.tree.unflatten(treedef, [p.astype(x.dtype) for p, x in zip(parts, leaves, strict=True)])


def signal_scale(forward: AnyCallable, signal: Structure, params: PyTree, units: Units) -> float:
    """How large the entries of a signal are, if measurements vary as much as those of `N(0, scale² I)` would.

    It is told from the parameters of one measurement, and from the units of all.
    """
    stds = [float(x) for x in jax.tree.leaves(units.std)]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signal)
    drawn = jax.tree.map(lambda x: jr.normal(jr.key(0), x.shape, x.dtype), signal)
    measure = lambda forward, params: jax.tree.map(jnp.subtract, forward(drawn, params), forward(zeros, params))
    vary = eqx.filter_jit(measure)(forward, params)
    # In standardised units, so that no square is out of range.
    square = [jnp.mean((x / s) ** 2) for x, s in zip(jax.tree.leaves(vary), stds, strict=True)]
    size = math.sqrt(float(sum(square)) / len(square))
    return 1 / size if size > 0 else 1.0
