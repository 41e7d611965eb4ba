r"""What a fitted problem knows of its data: structures, and the units in which it works."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._custom_types import Context, Observation, Structure
from ._view import Example, View, structure


class DataInfo(eqx.Module):
    """The structure of one training record and the standardisation of its measurements.

    Every leaf of an observation has *one* mean and *one* standard deviation, so that white noise stays white.

    **Arguments:**

    - `observation`, `params`: the `jax.ShapeDtypeStruct`s of the target measurement and of its parameters.
    - `context`: those of the context.
    - `mean`, `std`: scalars in the structure of an observation; `std` is positive.
    - `affine`: whether the forward model was found to be affine in the signal.
    """

    observation: Structure
    params: Structure
    context: Structure
    mean: PyTree
    std: PyTree
    affine: bool = False

    def standardise(self, observation: Observation) -> Observation:
        """`(o − mean) / std`, for one measurement or a stack."""
        return jax.tree.map(lambda o, m, s: (o - m) / s, observation, self.mean, self.std)

    def destandardise(self, observation: Observation) -> Observation:
        """`mean + std · o`, for one measurement or a stack."""
        return jax.tree.map(lambda o, m, s: m + s * o, observation, self.mean, self.std)


def measure_data(data: View, example: Example, *, standardise: bool, affine: bool) -> DataInfo:
    """The [`stochinv.DataInfo`][] of training data.

    **Arguments:**

    - `data`: measurements with any leading axes.
    - `example`: one record, for the structures.
    - `standardise`: whether to take mean and standard deviation from the data, or 0 and 1.
    - `affine`: whether the forward model is affine in the signal.
    """

    def mean_of(x):
        return jnp.mean(x) if standardise else jnp.zeros((), x.dtype)

    def std_of(x):
        std = jnp.std(x) if standardise else jnp.ones((), x.dtype)
        return jnp.where(std > 0, std, jnp.ones((), x.dtype))

    observations = jax.tree.map(jnp.asarray, data.observation)
    return DataInfo(
        structure(example.target.observation),
        structure(example.target.params),
        structure(example.context),
        jax.tree.map(mean_of, observations),
        jax.tree.map(std_of, observations),
        affine,
    )


def without_mask(context: Context) -> Context:
    """A context whose mask, which may come and go, is left out of comparisons."""
    return View(context.observation, context.params) if isinstance(context, View) else context


def describe(tree: Any) -> str:
    """A PyTree's shapes and dtypes in one line, for error messages."""
    described = jax.tree.map(lambda x: f"{jnp.dtype(x.dtype).name}{list(x.shape)}", structure(tree))
    line = " ".join(str(described).replace("'", "").split())
    return line.replace("( ", "(").replace(" )", ")")


def check_structure(name: str, tree: Any, expected: Structure, remedy: str):
    """Raises a `ValueError` that names the argument if `tree` does not have the expected structure."""
    got = structure(without_mask(tree))
    expected = without_mask(expected)
    same = jax.tree.structure(got) == jax.tree.structure(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    )
    if not same:
        raise ValueError(f"`{name}` is {describe(got)}, but {describe(expected)} is expected; {remedy}.")
