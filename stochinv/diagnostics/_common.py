import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._complex import as_parts
from .._custom_types import FloatScalar, Key, PyTree
from .._lazy import optional


def leading_size(name: str, tree: PyTree) -> int:
    """The length of the leading axis that all leaves of a PyTree share."""
    shapes = {jnp.shape(x)[:1] for x in jax.tree.leaves(tree)}
    if len(shapes) != 1 or () in shapes:
        raise ValueError(
            f"`{name}` must have leaves with one common leading axis, got {sorted(shapes)}; stack its leaves."
        )
    return next(iter(shapes))[0]


def as_rows(name: str, samples: PyTree) -> Float[Array, "samples size"]:
    """Samples with a leading axis, raveled to the rows of a matrix; a complex entry is two."""
    number = leading_size(name, samples)
    leaves = [jnp.reshape(x, (number, -1)) for x in jax.tree.leaves(as_parts(jax.tree.map(jnp.asarray, samples)))]
    return jnp.concatenate(leaves, 1).astype(jnp.result_type(float))


def as_pair(x: PyTree, y: PyTree, least: int) -> tuple[Float[Array, "first size"], Float[Array, "second size"]]:
    """Two sets of samples as matrices with equally long rows."""
    first, second = as_rows("x", x), as_rows("y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"`x` and `y` must be samples of the same space, got {first.shape[1]} and {second.shape[1]} entries each; "
            "leave out what only one of them has."
        )
    for name, rows in (("x", first), ("y", second)):
        if rows.shape[0] < least:
            raise ValueError(f"`{name}` must hold at least {least} samples, got {rows.shape[0]}; draw more.")
    return first, second


def largest(*arrays: Float[Array, "..."]) -> FloatScalar:
    """The largest absolute value, 1 if all are 0: a unit in which squares neither vanish nor overflow."""
    size = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in arrays])
    return jnp.where(size > 0, size, 1)


def generator(key: Key) -> np.random.Generator:
    """A generator of NumPy's, seeded by a PRNG key."""
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.random.default_rng(np.asarray(jr.key_data(key) if typed else key).tolist())


def new_axes(ax: Any) -> Any:
    """The Matplotlib axes to draw on, new ones where none are given."""
    if ax is not None:
        return ax
    pyplot = optional("matplotlib.pyplot", "Plots need Matplotlib", "diagnostics")
    return pyplot.subplots(figsize=(4.8, 3.6), layout="constrained")[1]


def check_probability(name: str, value: float):
    """Raises a `ValueError` for 0, 1 and whatever is no probability."""
    if not 0 < value < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, got {value}; 0.95 is usual.")


def check_at_least_one(**numbers: int):
    """Raises a `ValueError` that names the first of some numbers that is less than 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; give a larger one.")


def flatten_draws(draws: PyTree) -> Float[Array, "records draws size"]:
    """Draws with leading axes (records, draws), raveled; a complex entry is two."""
    return jax.vmap(jax.vmap(lambda x: ravel_pytree(x)[0]))(as_parts(jax.tree.map(jnp.asarray, draws)))
