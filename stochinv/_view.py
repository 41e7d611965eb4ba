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
import numpy as np
from jaxtyping import Array, Bool, Int

from ._checks import as_range, check_instance, check_integer, is_integer, shown
from ._custom_types import ArrayLike, Context, Key, Observation, Params, PyTree


def as_floating(observation: Observation) -> Observation:
    """A measurement whose arrays of integers, such as counts, are floating-point."""

    def convert(x):
        whole = isinstance(x, np.ndarray | jax.Array) and jnp.issubdtype(x.dtype, jnp.integer)
        return x.astype(jnp.result_type(float)) if whole else x

    return jax.tree.map(convert, observation)


class View(eqx.Module):
    """A measurement and the known parameters it was taken with.

    Several measurements of one signal stack along a leading *views* axis of every leaf. A stack whose
    number of views varies has a fixed capacity and a `mask` that says which entries count, so that nothing
    recompiles.

    **Arguments:**

    - `observation`: the measurement; a PyTree of floating-point arrays of any shape and unit. Integers, such as counts,
        become floating-point.
    - `params`: the parameters `φ` of the measurement; any PyTree of arrays, or `None` for a forward model
        without parameters (one view only).
    - `mask`: `True` for the views that count, shape `(views,)`; `None` means all of them.
    """

    observation: Observation = eqx.field(converter=as_floating)
    params: Params = None
    mask: Bool[ArrayLike, "..."] | None = None

    def __check_init__(self) -> None:
        if self.mask is None:
            return
        dtype = getattr(self.mask, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.bool_):
            raise ValueError(f"View: `mask` must be an array of booleans, got {shown(self.mask)}; write `mask > 0`.")
        shape = jnp.shape(self.mask)
        for x in jax.tree.leaves((self.observation, self.params)):
            if jnp.shape(x)[: len(shape)] != shape:
                raise ValueError(
                    f"View: `mask` has shape {shape}, but an array of the views has shape {jnp.shape(x)}; give one "
                    "truth value per view."
                )


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

    def __check_init__(self) -> None:
        check_instance("Example: `target`", self.target, View, "a `View`, by `View(observation, params)`")
        check_instance("Example: `novel`", self.novel, View | None, "a `View`, by `View(observation, params)`, or None")


class RandomViews(eqx.Module):
    """Deals the roles of a stack of views at random, anew at every call.

    The roles are disjoint. A random number of context views is dealt as a stack of fixed capacity with a mask.

    **Arguments:**

    - `context`: number of context views (0 gives the context `None`), or a pair `(least, most)`, both included,
        from which the number is drawn uniformly.
    - `target`: number of target views, at least 1. More than one needs `MultiView(forward)`.
    - `novel`: number of novel views; 0 gives `None`.

    **Raises:**

    `ValueError` if a number is not an integer in its range.
    """

    context: tuple[int, int]
    target: int
    novel: int

    def __init__(self, context: int | tuple[int, int] = 1, target: int = 1, novel: int = 0) -> None:
        check_integer("RandomViews: `target`", target)
        check_integer("RandomViews: `novel`", novel, 0)
        self.context = as_range("RandomViews: `context`", context)
        self.target = int(target)
        self.novel = int(novel)

    @property
    def num_views(self) -> int:
        """How many views a record must have."""
        return self.context[1] + self.target + self.novel

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
                f"RandomViews: {self.num_views} views are needed (`context` {self.context}, `target` {self.target}, "
                f"`novel` {self.novel}), but a record has {available}; give more views or deal fewer."
            )
        order_key, number_key = jr.split(key)
        order = jr.permutation(order_key, available)
        least, most = self.context
        context = take_views(views, order[:most]) if most else None
        if context is not None and least < most:
            number = jr.randint(number_key, (), least, most + 1)
            context = View(context.observation, context.params, jnp.arange(most) < number)
        chosen = order[most : most + self.target]
        target = take_views(views, chosen if self.target > 1 else chosen[0])
        novel = take_views(views, order[most + self.target : self.num_views]) if self.novel else None
        return Example(context, target, novel)


def is_view(tree: Any) -> bool:
    """Whether a context, or training data, are measurements through the forward model."""
    return isinstance(tree, View)


def num_views(views: View) -> int:
    """The length of the views axis of a stack of views."""
    return jtu.tree_leaves(views.observation)[0].shape[0]


def take_views(views: View, index: Int[Array, "..."]) -> View:
    """The views at `index`; a scalar index takes one view and drops the views axis."""
    return jax.tree.map(lambda x: x[index], views)


def first_view(stack: Any) -> Any:
    """The structure of one view of a stack, or of one record of many, given theirs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)


def first(records: PyTree) -> PyTree:
    """The first of records along a leading axis."""
    return jax.tree.map(lambda x: x[0], records)


def count(records: PyTree) -> int:
    """The length of the record axis."""
    return jax.tree.leaves(records)[0].shape[0]


def view_mask(views: View) -> Bool[Array, " views"]:
    """The mask of a stack of views, all `True` where it has none."""
    return jnp.ones(num_views(views), bool) if views.mask is None else jnp.asarray(views.mask)


def structure(tree: Any) -> Any:
    """Replaces every array by its `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def as_signal(signal: Any) -> Any:
    """The structure of a signal that a user gave: arrays, and shapes such as `(28, 28, 1)` or 3, replaced by their
    `jax.ShapeDtypeStruct`s.

    **Raises:**

    `ValueError` if a leaf has no shape and dtype, or is not floating-point.
    """
    if signal is None:
        return None
    signal = jax.tree.map(shaped, signal, is_leaf=is_shape)
    leaves = jax.tree.leaves(signal)
    if not leaves or not all(isinstance(x, jax.ShapeDtypeStruct | jax.Array | np.ndarray) for x in leaves):
        raise ValueError(
            f"`signal` must be a shape, or a PyTree of shapes or of `jax.ShapeDtypeStruct`, got {shown(signal)}; write "
            "`(28, 28, 1)`, or `jax.ShapeDtypeStruct(shape, dtype)`."
        )
    signal = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), signal)
    check_signal(signal)
    return signal


def is_shape(x: Any) -> bool:
    """Whether this is how long an array is, or how long its axes are."""
    return (is_integer(x) and x > 0) or (type(x) is tuple and all(is_integer(size) and size > 0 for size in x))


def shaped(x: Any) -> Any:
    """The structure of a real array with a shape; anything else stays as it is."""
    if not is_shape(x):
        return x
    return jax.ShapeDtypeStruct((x,) if is_integer(x) else x, jnp.result_type(float))


def check_signal(signal: Any):
    """Raises a `ValueError` if the `jax.ShapeDtypeStruct`s of a signal are not those of floating-point arrays."""
    for x in jax.tree.leaves(signal):
        found = f"{x.dtype}{list(x.shape)}"
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(f"`signal` has {found}, but signals must be floating-point arrays; use `jnp.float32`.")
        single = jax.dtypes.canonicalize_dtype(x.dtype)
        if single != x.dtype:
            raise ValueError(
                f"`signal` has {found}, but JAX computes in single precision; use `jnp.{single}`, or "
                "`jax.config.update('jax_enable_x64', True)`."
            )
