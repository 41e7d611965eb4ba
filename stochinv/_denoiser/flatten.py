from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._complex import as_parts
from .._custom_types import AnyCallable, Context, Observation, Params
from .._schedule import NoiseLevel
from .._view import is_view, view_mask
from .network import AbstractEncoder, Features


@final
class Flatten(AbstractEncoder):
    """Encodes measurements and parameters as one vector, for a network of vectors.

    Each context view, with its parameters, goes through a network of its own; the mean over the views that count is
    taken, so that their order and number do not matter (Zaheer et al. 2017, "Deep sets"). Any other context is
    flattened.

    **Arguments:**

    - `view_network`: a callable from the flattened view to a vector; `None` where the context is not a
        [`stochinv.View`][].
    """

    view_network: AnyCallable | None = None

    def __call__(self, noisy: Observation, level: NoiseLevel, context: Context, params: Params) -> Features:
        flat_noisy = flatten(noisy)
        parts = [flat_noisy / jnp.sqrt(level.alpha**2 + level.sigma**2), flatten(params, flat_noisy)]
        if is_view(context):
            if self.view_network is None:
                raise ValueError("Flatten: the context is a `View`, so `view_network` is needed.")
            network = self.view_network
            vectors = jax.vmap(lambda o, p: network(jnp.concatenate([flatten(o), flatten(p, flat_noisy)])))(
                context.observation, context.params
            )
            mask = view_mask(context)[:, None]
            parts.append(jnp.sum(jnp.where(mask, vectors, 0), 0) / jnp.maximum(jnp.sum(mask), 1))
            parts.append(jnp.mean(mask, 0, dtype=flat_noisy.dtype))
        else:
            parts.append(flatten(context, flat_noisy))
        one = jnp.ones((), flat_noisy.dtype)
        return Features(jnp.concatenate(parts), 0 * one, one)


def flatten(tree: Observation | Params, like: Float[Array, "..."] | None = None) -> Float[Array, " n"]:
    """All entries of a PyTree as one floating-point vector, in the dtype of `like`; complex ones as two."""
    leaves = [jnp.ravel(x) for x in jax.tree.leaves(as_parts(tree))]
    if like is not None:
        leaves = [jnp.zeros((0,), like.dtype), *(x.astype(like.dtype) for x in leaves)]
    return jnp.concatenate(leaves)
