import math
from typing import Any, final

import equinox as eqx
import jax

from ._custom_types import PyTree


@final
class Frozen(eqx.Module):
    """Holds something that a denoiser uses but that is never trained, nor saved with it.

    **Arguments:**

    - `value`: any PyTree, such as a forward model.
    """

    value: Any


@final
class Found(eqx.Module):
    """Holds arrays of a denoiser that are found otherwise than by its training, and saved with it.

    **Arguments:**

    - `value`: a PyTree of arrays.
    """

    value: Any


def trainable(tree: PyTree) -> PyTree:
    """`True` for each floating-point array of a module that is not inside a [`stochinv.Frozen`][], or found
    otherwise."""
    untrained = lambda x: isinstance(x, (Frozen, Found))

    def mark(x):
        return jax.tree.map(lambda _: False, x) if untrained(x) else eqx.is_inexact_array(x)

    return jax.tree.map(mark, tree, is_leaf=untrained)


def owned_arrays(tree: PyTree) -> PyTree:
    """`True` for each array of a module that is not inside a [`stochinv.Frozen`][]."""

    def mark(x):
        return jax.tree.map(lambda _: False, x) if isinstance(x, Frozen) else eqx.is_array(x)

    return jax.tree.map(mark, tree, is_leaf=lambda x: isinstance(x, Frozen))


def count_trained(tree: PyTree) -> int:
    """How many numbers of a module are trained."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(eqx.filter(tree, trainable(tree))))
