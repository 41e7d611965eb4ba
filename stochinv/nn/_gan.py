r"""Generators of images that are small enough to train and to run on a CPU.

Weights come from files, see [`stochinv.nn.load_weights`][].
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import Linear, fan_in_uniform
from ._misc import check_positive, check_shape
from ._transposed import correlate, transposed_convolution
from ._weights import AbstractGenerator, Tensor

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "tanh": jnp.tanh,
}


class MLPGenerator(AbstractGenerator):
    """A perceptron from a latent code to an image: rectified hidden layers, and a hyperbolic tangent in the end."""

    layers: tuple[Linear, ...]
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    by_order: ClassVar[bool] = True

    def __init__(
        self,
        latent_size: int = 64,
        hidden_sizes: Sequence[int] = (256, 256),
        *,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `latent_size`: the length of the latent code.
        - `hidden_sizes`: the widths of the hidden layers.
        - `image_shape`: `(height, width, channels)`.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive.
        """
        height, width, channels = image_shape
        check_positive(latent_size=latent_size, height=height, width=width, channels=channels)
        check_positive(**{f"hidden_sizes[{i}]": n for i, n in enumerate(hidden_sizes)})
        sizes = (latent_size, *hidden_sizes, height * width * channels)
        keys = jr.split(key, len(sizes) - 1)
        self.layers = tuple(Linear(n, m, key=k) for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
        self.image_shape = image_shape

    @property
    def latent(self) -> jax.ShapeDtypeStruct:
        weight = self.layers[0].weight
        return jax.ShapeDtypeStruct(weight.shape[:1], weight.dtype)

    def __call__(self, latent: Float[Array, " latent"]) -> Float[Array, "height width channels"]:
        """**Arguments:**

        - `latent`: the latent code, shape `(latent_size,)`.

        **Returns:**

        An image of shape `image_shape`, in `[−1, 1]`.
        """
        check_shape(self, latent=(latent, self.latent.shape))
        for layer in self.layers[:-1]:
            latent = jax.nn.relu(layer(latent))
        return jnp.tanh(self.layers[-1](latent)).reshape(self.image_shape)

    def tensors(self) -> dict[str, Tensor]:
        """One weight and one bias per layer."""
        found = {}
        for i in range(len(self.layers)):
            found[f"{i}.weight"] = Tensor(lambda g, i=i: g.layers[i].weight, (1, 0))
            found[f"{i}.bias"] = Tensor(lambda g, i=i: g.layers[i].bias)
        return found


class BatchNorm(eqx.Module):
    """Batch normalisation by the statistics of a finished training."""

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.weight, self.variance = jnp.ones(channels), jnp.ones(channels)
        self.bias, self.mean = jnp.zeros(channels), jnp.zeros(channels)
        self.eps = eps

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        return (x - self.mean) * (self.weight * jax.lax.rsqrt(self.variance + self.eps)) + self.bias


class GeneratorLayer(eqx.Module):
    """A convolution of one of three kinds, batch normalisation or a bias, and an activation."""

    weight: Float[Array, "kernel kernel in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    norm: BatchNorm | None
    kind: str = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        activation: str,
        *,
        norm: bool,
        use_bias: bool,
        key: PRNGKeyArray,
    ) -> None:
        size = 3 if kind == "same" else 4
        inputs = {"project": in_channels, "same": 9 * in_channels, "up": 4 * in_channels}[kind]
        self.weight = fan_in_uniform(key, (size, size, in_channels, out_channels), inputs)
        self.bias = jnp.zeros(out_channels) if use_bias else None
        self.norm = BatchNorm(out_channels) if norm else None
        self.kind = kind
        self.activation = activation

    def __call__(self, x: Float[Array, "height width in_channels"]) -> Float[Array, "rows columns out_channels"]:
        if self.kind == "project":
            x = jnp.einsum("c,hwco->hwo", x[0, 0], self.weight)
        else:
            x = (
                correlate(x, self.weight, 1)
                if self.kind == "same"
                else transposed_convolution(x, self.weight)[1:-1, 1:-1]
            )
        if self.bias is not None:
            x = x + self.bias
        return ACTIVATIONS[self.activation](x if self.norm is None else self.norm(x))


class DCGANGenerator(AbstractGenerator):
    """A convolutional generator with batch normalisation by the statistics of a finished training.

    Every layer but the last is normalised. The last has no normalisation.

    Source: Radford et al. 2016, "Unsupervised representation learning with deep convolutional generative adversarial
    networks", section 3.
    """

    layers: tuple[GeneratorLayer, ...]
    by_order: ClassVar[bool] = True

    def __init__(
        self,
        latent_size: int = 100,
        layers: Sequence[tuple[Literal["project", "same", "up"], int, str]] = (
            ("project", 512, "relu"),
            ("up", 256, "relu"),
            ("up", 128, "relu"),
            ("up", 64, "relu"),
            ("up", 3, "tanh"),
        ),
        *,
        use_bias: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `latent_size`: the length of the latent code.
        - `layers`: kind, channels and activation of each layer. `"project"` makes a 4×4 image of the latent code, and
            comes first; `"up"` doubles the resolution by a 4×4 kernel, and `"same"` keeps it, with a 3×3 kernel.
            Activations are `"identity"`, `"relu"`, `"leaky_relu"` (slope 0.2) and `"tanh"`.
        - `use_bias`: whether the last layer has a bias.
        - `key`: a JAX random key for the weights.

        **Raises:** `ValueError` if a size is not positive, or a kind or an activation is unknown or out of place.
        """
        kinds = [kind for kind, _, _ in layers]
        if kinds[:1] != ["project"] or not set(kinds[1:]) <= {"same", "up"}:
            raise ValueError(
                f'`layers` are of the kinds {kinds}: the first has to be "project", and every other "same" or "up".'
            )
        for i, (_, channels, activation) in enumerate(layers):
            check_positive(latent_size=latent_size, **{f"layers[{i}][1]": channels})
            if activation not in ACTIVATIONS:
                raise ValueError(f"`layers[{i}][2]` is {activation!r}: choose from {sorted(ACTIVATIONS)}.")
        sizes = [latent_size, *(channels for _, channels, _ in layers)]
        made = []
        for i, (layer, layer_key) in enumerate(zip(layers, jr.split(key, len(layers)), strict=True)):
            last = i == len(layers) - 1
            made.append(
                GeneratorLayer(
                    layer[0], sizes[i], layer[1], layer[2], norm=not last, use_bias=last and use_bias, key=layer_key
                )
            )
        self.layers = tuple(made)

    @property
    def latent(self) -> jax.ShapeDtypeStruct:
        weight = self.layers[0].weight
        return jax.ShapeDtypeStruct(weight.shape[2:3], weight.dtype)

    def __call__(self, latent: Float[Array, " latent"]) -> Float[Array, "height width channels"]:
        """**Arguments:**

        - `latent`: the latent code, shape `(latent_size,)`.

        **Returns:**

        An image, in `[−1, 1]` where the last activation is `"tanh"`.
        """
        check_shape(self, latent=(latent, self.latent.shape))
        x = latent[None, None]
        for layer in self.layers:
            x = layer(x)
        return x

    def tensors(self) -> dict[str, Tensor]:
        """A convolution per layer, followed by its normalisation."""
        found = {}
        for i, layer in enumerate(self.layers):
            # In files, transposed convolutions have their input channels first, all others their output channels.
            axes = (2, 3, 1, 0) if layer.kind == "same" else (2, 3, 0, 1)
            found[f"{i}.0.weight"] = Tensor(lambda g, i=i: g.layers[i].weight, axes)
            if layer.bias is not None:
                found[f"{i}.0.bias"] = Tensor(lambda g, i=i: g.layers[i].bias)
            if layer.norm is not None:
                norm = lambda g, i=i: g.layers[i].norm
                found[f"{i}.1.weight"] = Tensor(lambda g, norm=norm: norm(g).weight)
                found[f"{i}.1.bias"] = Tensor(lambda g, norm=norm: norm(g).bias)
                found[f"{i}.1.running_mean"] = Tensor(lambda g, norm=norm: norm(g).mean)
                found[f"{i}.1.running_var"] = Tensor(lambda g, norm=norm: norm(g).variance)
        return found
