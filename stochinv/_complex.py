r"""Complex signals and measurements, of which all that works on signals sees real and imaginary parts.

A complex array becomes a real one with a last axis of two, and real arrays stay as they are. That is done where signals
and measurements of a user's come in, and undone where they go out. Parameters stay complex.
"""

from typing import cast

import jax
import jax.numpy as jnp

from ._custom_types import Context, PyTree, Structure
from ._view import View, is_view


def as_parts(tree: PyTree) -> PyTree:
    """Arrays, complex ones as real and imaginary parts on a last axis."""

    def parts(x):
        return jnp.stack([jnp.real(x), jnp.imag(x)], -1) if jnp.iscomplexobj(x) else x

    return jax.tree.map(parts, tree)


def view_as_parts(context: Context) -> Context:
    """A context whose measurements are real."""
    if not is_view(context):
        return context
    views = cast(View, context)
    return View(as_parts(views.observation), views.params, views.mask)


def parts_structure(structure: Structure) -> Structure:
    """The `jax.ShapeDtypeStruct`s of `as_parts`."""
    return jax.eval_shape(as_parts, structure)


def from_parts(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of `as_parts`.

    **Arguments:**

    - `tree`: real arrays, with any leading axes.
    - `like`: arrays or structures of the dtypes that are wanted.
    """

    def join(x, like):
        return jax.lax.complex(x[..., 0], x[..., 1]) if jnp.issubdtype(like.dtype, jnp.complexfloating) else x

    return jax.tree.map(join, tree, like)
