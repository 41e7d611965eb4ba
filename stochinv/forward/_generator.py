r"""A pretrained generator as a forward model: from its latent code to its image."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import AnyCallable, Observation, Params, Signal, Structure
from .._forward.base import AbstractForwardModel
from .._frozen import Frozen


@final
class Generator(AbstractForwardModel):
    r"""A pretrained generator with frozen weights: the signal is its latent code, the measurement its output.

    Its weights get no gradient, are not trained even as part of a denoiser, and are not saved with one. What is
    measured of the output follows in [`stochinv.Composed`][]: `Composed(Generator(...), Window(...))`. It has no
    parameters.

    In an intermediate space with a mean, as StyleGAN's $w$, the signal is the deviation from that mean: the
    generator is given $\bar w + s$, and the signal 0 is the mean image.

    **Arguments:**

    - `generator`: a callable from one latent code to one output, such as [`stochinv.nn.MLPGenerator`][]; traceable and
        differentiable by JAX.
    - `latent`: the `jax.ShapeDtypeStruct`s of the latent code; `None` if the generator has an attribute `latent` that
        says so.
    - `mean`: the mean $\bar w$ of the latent code, in its structure; `None` for 0.

    **Raises:**

    `ValueError` if the latent code is not known, or `mean` is not structured as it.
    """

    generator: Frozen
    latent: Structure
    mean: Frozen

    def __init__(self, generator: AnyCallable, latent: Structure | None = None, *, mean: Signal | None = None) -> None:
        latent = getattr(generator, "latent", None) if latent is None else latent
        if latent is None:
            raise ValueError(
                "Generator: give `latent`, the PyTree of `jax.ShapeDtypeStruct` of a latent code; "
                f"{type(generator).__name__} does not say what it takes."
            )
        self.generator = Frozen(generator)
        self.latent = latent
        self.mean = Frozen(mean)

    def __check_init__(self) -> None:
        mean = self.mean.value
        shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        if mean is not None and shapes(mean) != shapes(self.latent):
            raise ValueError(
                f"Generator: `mean` must have the structure of the latent code, {self.latent}, got "
                f"{jax.tree.map(jnp.shape, mean)}."
            )

    def __call__(self, signal: Signal, params: Params) -> Observation:
        generator, mean = _without_gradient((self.generator.value, self.mean.value))
        if mean is not None:
            signal = jax.tree.map(jnp.add, mean, signal)
        return generator(signal)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the latent code."""
        return self.latent


def _without_gradient(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
