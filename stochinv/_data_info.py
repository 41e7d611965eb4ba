r"""What a fitted problem knows of its data: structures, and the units in which it works."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ._checks import check_arrays, check_finite, is_traced, numbers, shorten
from ._custom_types import AnyCallable, Context, FloatScalar, Observation, PyTree, Structure
from ._mixture import Mixture
from ._structure import same_structure
from ._view import View, first_view, is_view, structure, view_mask

FINITE = "remove them, fill them, or mask their view out"


class AbstractUnits(eqx.Module):
    """An invertible map from raw values to those that are noised and that networks see."""

    @abc.abstractmethod
    def standardise(self, observation: Observation) -> Observation:
        """Raw values in standardised units."""

    @abc.abstractmethod
    def destandardise(self, observation: Observation) -> Observation:
        """The inverse of `standardise`."""

    @abc.abstractmethod
    def unit(self, observation: Observation) -> PyTree:
        """How large one standardised unit of each leaf is in raw units, a scalar each."""

    @abc.abstractmethod
    def log_volume(self, observation: Observation) -> FloatScalar:
        """The log-determinant of `destandardise`, for something like `observation`."""


@final
class Units(AbstractUnits):
    """The standardisation of measurements.

    Every leaf of an observation has *one* mean and *one* standard deviation, so that white noise stays white.

    **Arguments:**

    - `mean`, `std`: scalars in raw units, in the structure of an observation; `std` is positive. `None` for
        measurements that are left as they are.
    """

    mean: PyTree = None
    std: PyTree = None

    def __repr__(self) -> str:
        return f"Units(mean={numbers(self.mean)}, std={numbers(self.std)})"

    def standardise(self, observation: Observation) -> Observation:
        """`(o − mean) / std`, for one measurement or a stack."""
        return self._each(lambda o, m, s: (o - m) / s, observation)

    def destandardise(self, observation: Observation) -> Observation:
        """`mean + std · o`, for one measurement or a stack."""
        return self._each(lambda o, m, s: m + s * o, observation)

    def _each(self, function, observation):
        """A function of each leaf with its mean and standard deviation, in the containers of `observation`."""
        if self.mean is None:
            return observation
        leaves, treedef = jax.tree.flatten(observation)
        means, stds = jax.tree.leaves(self.mean), jax.tree.leaves(self.std)
        return treedef.unflatten([function(o, m, s) for o, m, s in zip(leaves, means, stds, strict=True)])

    def unit(self, observation: Observation) -> PyTree:
        """The standard deviations by which an observation is standardised, scalars in its structure."""
        if self.mean is None:
            return jax.tree.map(lambda x: jnp.ones((), x.dtype), observation)
        return self._each(lambda o, m, s: s, observation)

    def log_volume(self, observation: Observation) -> FloatScalar:
        logs = jax.tree.map(lambda o, s: o.size * jnp.log(s), observation, self.unit(observation))
        return sum(jax.tree.leaves(logs), jnp.zeros(()))


def standardise_view(units: AbstractUnits, view: Context) -> Context:
    """A view with its measurement standardised; a context that is not a [`stochinv.View`][] is left alone."""
    return View(units.standardise(view.observation), view.params, view.mask) if is_view(view) else view


def destandardise_view(units: AbstractUnits, view: View) -> View:
    """The inverse of `standardise_view`."""
    return View(units.destandardise(view.observation), view.params, view.mask)


class Witness(eqx.Module):
    """One measurement of a signal that is always the same: what a forward model did when it was trained with.

    **Arguments:**

    - `params`: the parameters of the measurement.
    - `values`: up to 64 of its entries, in raw units.
    """

    params: PyTree
    values: Float[Array, " entries"]

    def agrees(self, forward: AnyCallable, signal: Structure) -> bool:
        """Whether a forward model measures the same, to a thousandth of the largest entry."""
        return same_values(self.values, witness(forward, signal, self.params).values)


def witness(forward: AnyCallable, signal: Structure, params: PyTree) -> Witness:
    """The [`stochinv.Witness`][] of a forward model."""

    @eqx.filter_jit
    def measure(forward, params):
        leaves, treedef = jax.tree.flatten(signal)
        keys = jr.split(jr.key(0), len(leaves))
        drawn = treedef.unflatten([jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])
        return ravel_pytree(forward(drawn, params))[0]

    values = measure(forward, params)
    return Witness(params, values[jnp.unique(jnp.linspace(0, values.size - 1, 64).astype(int))])


def same_values(a: Any, b: Any) -> bool:
    """Whether two vectors are both `None`, or the same to a thousandth of the largest entry, NaN included."""
    if a is None or b is None:
        return a is b
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    size = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=1e-3 * size, equal_nan=True))


class DataInfo(eqx.Module):
    """The structure of one training record and the units of its measurements.

    **Arguments:**

    - `observation`, `params`: the `jax.ShapeDtypeStruct`s of the target measurement and of its parameters.
    - `context`: those of the context.
    - `units`: those of what is noised.
    - `affine`: whether the forward model was found to be affine in the signal.
    - `witness`: a measurement by which to tell the forward model from another, or `None`.
    - `context_units`: those of a context's measurements, in signal space; `None` elsewhere.
    - `form`: how a context is told, in signal space (see [`stochinv.GaussianResidual`][]); `None` elsewhere.
    - `mixture`: the mixture of Gaussians that signals of few entries are like, in the units of what is noised, or
        `None`.
    """

    observation: Structure
    params: Structure
    context: Structure
    units: AbstractUnits
    affine: bool = False
    witness: Witness | None = None
    context_units: Units | None = None
    form: str | None = None
    mixture: Mixture | None = None

    @property
    def measurement(self) -> View:
        """The structure of one measurement."""
        if self.context_units is None:
            return View(self.observation, self.params)
        return first_view(View(self.context.observation, self.context.params))


def measure_units(observation: Observation, *, standardise: bool) -> Units:
    """The units of measurements: their mean and standard deviation, or 0 and 1.

    Both are computed near 1 and scaled by a power of two: data in units of 1e-21 or 1e+21 are not squared in single
    precision, and give the last bits that data in units of 1 give.

    **Arguments:**

    - `observation`: measurements with any leading axes, finite.
    - `standardise`: whether to take mean and standard deviation from them.

    **Raises:**

    `ValueError` if all measurements are the same number.
    """

    @jax.jit
    def moments(x):
        _, exponent = jnp.frexp(jnp.max(jnp.abs(x), initial=0.0))
        near_one = _scaled(x, -exponent)
        spread = jnp.std(near_one)
        mean = _scaled(jnp.mean(near_one), exponent)
        return mean, jnp.where(spread > 0, _scaled(spread, exponent), 0)

    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, observation))
    if not standardise:
        return Units(*(treedef.unflatten([jnp.full((), y, x.dtype) for x in leaves]) for y in (0, 1)))
    found = [moments(x) for x in leaves]
    if all(float(std) == 0 for _, std in found):
        raise ValueError(
            f"`data` is constant: every measurement is {float(found[0][0]):g}, from which nothing can be learned; "
            "check how it was read."
        )
    stds = [jnp.where(std > 0, std, 1).astype(std.dtype) for _, std in found]
    return Units(treedef.unflatten([mean for mean, _ in found]), treedef.unflatten(stds))


def _scaled(x, exponent):
    """`x · 2^exponent`, exactly, in two factors that neither over- nor underflow."""
    half = exponent // 2
    return jnp.ldexp(jnp.ldexp(x, half), exponent - half)


def without_mask(context: Context) -> Context:
    """A context whose mask, which may come and go, is left out of comparisons."""
    return View(context.observation, context.params) if is_view(context) else context


def describe(tree: Any) -> str:
    """A PyTree's shapes and dtypes in one line, for error messages."""
    described = jax.tree.map(lambda x: f"{jnp.dtype(x.dtype).name}{list(x.shape)}", structure(tree))
    line = " ".join(str(described).replace("'", "").split())
    return line.replace("( ", "(").replace(" )", ")")


def check_structure(name: str, tree: Any, expected: Structure, remedy: str):
    """Raises a `ValueError` that names the argument if `tree` does not have the expected structure."""
    tree, expected = without_mask(tree), without_mask(expected)
    if not same_structure(structure(tree), expected):
        got, wanted = shorten(describe(tree), 300), shorten(describe(expected), 300)
        raise ValueError(f"`{name}` is {got}, but {wanted} is expected; {remedy}.")


def check_context(info: DataInfo | None, context: Context):
    """Raises a `ValueError` if a context is not like those of training, or not finite where it counts."""
    check_arrays("context", context)
    if info is not None:
        check_structure("context", context, info.context, "give a context like those of the training data")
    check_counted("context", context)


def check_counted(name: str, context: Context, remedy: str = FINITE):
    """Raises a `ValueError` if a context, or views with any leading axes, are not finite where they count."""
    mask = context.mask if is_view(context) else None
    if is_traced(mask):
        return
    seen = lambda x: x if mask is None or is_traced(x) else np.asarray(x)[np.asarray(mask)]
    check_finite(name, jax.tree.map(seen, context), remedy)


def as_context(context: Context) -> Context:
    """A context as arrays, whose views that are masked out are zero, whatever they held."""
    context = jax.tree.map(jnp.asarray, context)
    return context if not is_view(context) or context.mask is None else filled(context, context.mask.shape[0])


def filled(views: View, capacity: int) -> View:
    """`capacity` views: those that count are as they were, the others zero with the parameters of one that counts.

    Zeros are no parameters of many forward models, cameras among them.
    """
    mask = view_mask(views)
    mask = jnp.pad(mask, (0, capacity - mask.size))
    stand_in = jnp.where(mask, jnp.arange(capacity), jnp.argmax(mask))

    def observed(x):
        x = jnp.asarray(x)[stand_in]
        return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    params = jax.tree.map(lambda x: jnp.asarray(x)[stand_in], views.params)
    return View(jax.tree.map(observed, views.observation), params, mask)


def check_measurement(name: str, tree: Any):
    """Raises a `ValueError` if a measurement, or the parameters of one, are not numbers, or not finite."""
    check_arrays(name, tree)
    check_finite(name, tree, FINITE)
