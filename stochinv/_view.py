r"""Measurements and the parts they play in a training record.

A [`stochinv.View`][] is a measurement together with the known parameters `φ` it was taken with. A
[`stochinv.Example`][] is one training record: the *context* that will be given, the *target* that is
noised and denoised, and *novel* views that are only ever predicted and scored.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int

from ._custom_types import ArrayLike, Context, Key, Observation, Params


class View(eqx.Module):
    """A measurement and the known parameters it was taken with.

    Several measurements of one signal stack along a leading *views* axis of every leaf. A stack whose
    number of views varies has a fixed capacity and a `mask` that says which entries count, so that nothing
    recompiles.

    **Arguments:**

    - `observation`: the measurement; a PyTree of floating-point arrays of any shape and unit.
    - `params`: the parameters `φ` of the measurement; any PyTree of arrays, or `None` for a forward model
        without parameters (one view only).
    - `mask`: `True` for the views that count, shape `(views,)`; `None` means all of them.
    """

    observation: Observation
    params: Params = None
    mask: Bool[ArrayLike, "..."] | None = None


class Example(eqx.Module):
    """One training record: measurements of one signal, each with its role.

    **Arguments:**

    - `context`: what is given, at training as at sampling: a [`stochinv.View`][] with a views axis, any other
        PyTree of arrays, or `None`.
    - `target`: the measurement that is noised and denoised. It has a views axis if and only if it holds more
        than one view; the problem's forward model is then a [`stochinv.MultiView`][].
    - `novel`: further measurements of the same signal, with a views axis. They are predicted and scored,
        never shown to the denoiser. `None` if there are none.
    """

    context: Context
    target: View
    novel: View | None = None


class RandomViews(eqx.Module):
    """Deals the roles of a stack of views at random, anew at every call.

    The roles are disjoint. A random number of context views is dealt as a stack of fixed capacity with a mask.

    **Arguments:**

    - `context`: number of context views (0 gives the context `None`), or a pair `(least, most)`, both included,
        from which the number is drawn uniformly.
    - `target`: number of target views, at least 1. More than one needs `MultiView(forward)`.
    - `novel`: number of novel views; 0 gives `None`.
    """

    context: int | tuple[int, int] = 1
    target: int = 1
    novel: int = 0

    def __check_init__(self):
        least, most = self.context_range
        if not 0 <= least <= most:
            raise ValueError(
                "RandomViews: `context` must be a number >= 0 or a pair (least, most) with 0 <= least <= most, got "
                f"{self.context}."
            )
        if self.target < 1:
            raise ValueError(f"RandomViews: `target` must be at least 1, got {self.target}.")
        if self.novel < 0:
            raise ValueError(f"RandomViews: `novel` must be at least 0, got {self.novel}.")

    @property
    def context_range(self) -> tuple[int, int]:
        """The least and the largest number of context views."""
        return (self.context, self.context) if isinstance(self.context, int) else self.context

    @property
    def num_views(self) -> int:
        """How many views a record must have."""
        return self.context_range[1] + self.target + self.novel

    def __call__(self, views: View, *, key: Key) -> Example:
        """Deals the views of one record.

        **Arguments:**

        - `views`: a stack of at least `num_views` views.
        - `key`: a PRNG key.

        **Returns:**

        An [`stochinv.Example`][].

        **Raises:**

        `ValueError` if there are too few views, or if the stack has a mask.
        """
        available = num_views(views)
        if views.mask is not None:
            raise ValueError(
                "RandomViews: a stack of views with a `mask` cannot be dealt; give every record the same number of "
                "views."
            )
        if available < self.num_views:
            raise ValueError(
                f"RandomViews: {self.num_views} views are needed (context {self.context}, target {self.target}, novel "
                f"{self.novel}), but a record has {available}; give more views or deal fewer."
            )
        order_key, number_key = jr.split(key)
        order = jr.permutation(order_key, available)
        least, most = self.context_range
        context = take_views(views, order[:most]) if most else None
        if context is not None and least < most:
            number = jr.randint(number_key, (), least, most + 1)
            context = View(context.observation, context.params, jnp.arange(most) < number)
        chosen = order[most : most + self.target]
        target = take_views(views, chosen if self.target > 1 else chosen[0])
        novel = take_views(views, order[most + self.target : self.num_views]) if self.novel else None
        return Example(context, target, novel)


def num_views(views: View) -> int:
    """The length of the views axis of a stack of views."""
    return jtu.tree_leaves(views.observation)[0].shape[0]


def take_views(views: View, index: Int[Array, "..."]) -> View:
    """The views at `index`; a scalar index takes one view and drops the views axis."""
    return jax.tree.map(lambda x: x[index], views)


def view_mask(views: View) -> Bool[Array, " views"]:
    """The mask of a stack of views, all `True` where it has none."""
    return jnp.ones(num_views(views), bool) if views.mask is None else jnp.asarray(views.mask)


def structure(tree: Any) -> Any:
    """Replaces every array by its `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)
