r"""Contexts of signal space: any number of views up to those of training, none included."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_arrays
from ._custom_types import Context
from ._data_info import DataInfo, check_counted, check_structure, describe, filled
from ._structure import same_structure
from ._view import View, is_view, num_views, structure


def as_views(info: DataInfo, context: Context, name: str = "context") -> View:
    """A context as a stack of as many views as a record of training has, those that are missing masked out.

    **Arguments:**

    - `info`: what training found out.
    - `context`: a [`stochinv.View`][] with or without a views axis, or `None` for nothing.
    - `name`: what it is called in errors.

    **Raises:**

    `ValueError` if it is none of these, has too many views or others than those of training, or is not finite.
    """
    full: View = info.context
    capacity = jax.tree.leaves(full.observation)[0].shape[0]
    if context is None:
        if info.witness is None:
            raise ValueError(f"`{name}` is None, but no parameters are known to stand in for it; give a masked `View`.")
        stack = lambda x: jnp.broadcast_to(x, (capacity, *x.shape))
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), full.observation)
        return View(blank, jax.tree.map(stack, info.witness.params), jnp.zeros(capacity, bool))
    views = as_view(context, "must be a `View`, or None for the prior; write `View(observation, params)`", name)
    one = info.measurement
    if same_structure(structure(View(views.observation, views.params)), one) and views.mask is None:
        views = jax.tree.map(lambda x: jnp.asarray(x)[None], views)
    leaves = jax.tree.leaves(views.observation)
    number = num_views(views) if leaves and np.ndim(leaves[0]) else 0
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype), one)
    remedy = f"give 1 to {capacity} views like those of the training data, with a leading views axis"
    check_structure(name, views, given, remedy)
    if number > capacity:
        raise ValueError(f"`{name}` has {number} views, but records of training had {capacity}; give at most as many.")
    check_counted(name, views)
    return filled(views, capacity)


def as_view(context: Any, wanted: str, name: str = "context") -> View:
    """A context that has to be a view, of arrays.

    **Raises:**

    `ValueError` that says what is `wanted` if it is none.
    """
    if not is_view(context):
        raise ValueError(f"`{name}` is {describe(context)}, but {wanted}.")
    check_arrays(name, context)
    return cast(View, context)
