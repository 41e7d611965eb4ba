r"""The noise of measurements: the law of a measurement given the noise-free one, in raw units.

A noised target `o_t = α o + σ ε` and Gaussian measurement noise `o = ô + τ η` are jointly Gaussian, hence with
`v = σ² + α² τ²`

- the score given the noise-free `ô` is `(α ô − o_t) / v`;
- the noisy measurement given `o_t` is `N(ô + k (o_t − α ô), τ² σ² / v)`, `k = α τ² / v`.

For any other noise neither is known, but at pure noise, `t = 1`, where `o_t` tells nothing: there the law of a
measurement is compared by simulation. Its gradient is taken along the simulated path where the distribution has one.
Where it has none, as for counts, it is the score-function estimator of two independent draws `y, y'`, which needs no
baseline:

`∇ E[A(y)] = ½ E[(A(y) − A(y')) (∇ log p(y) − ∇ log p(y'))]`.
"""

import abc
import math
from typing import Any, ClassVar, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_instance, is_traced, numbers, shown
from ._complex import as_parts, from_parts
from ._custom_types import AnyCallable, FloatScalar, Key, Observation, PyTree, Structure, summary
from ._lazy import is_distribution
from ._noising import scaled_normal
from ._schedule import NoiseLevel


class AbstractNoise(eqx.Module):
    """The law of a measurement given the noise-free one.

    `every_level` says whether a noised measurement is understood at every noise level, as it is for Gaussian noise.
    Otherwise training is at pure noise, and sampling takes one step from there.
    """

    every_level: eqx.AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether there is no noise at all."""

    @abc.abstractmethod
    def sample(self, key: Key, clean: Observation) -> Observation:
        """Draws a measurement.

        **Arguments:**

        - `key`: a PRNG key.
        - `clean`: the noise-free measurement in raw units.

        **Returns:**

        A measurement in its structure and dtypes.
        """

    @abc.abstractmethod
    def log_prob(self, observation: Observation, clean: Observation) -> FloatScalar:
        """The log-density, or the log-probability, of a measurement given the noise-free one; both in raw units."""

    @abc.abstractmethod
    def mean(self, clean: Observation) -> Observation | None:
        """The mean of a measurement, such as `clean` and a background; in raw units, `None` where it is not known."""

    @abc.abstractmethod
    def std(self, clean: Observation) -> PyTree | None:
        """The standard deviation of each entry in raw units, broadcast to `clean`; `None` where it or the mean is not
        known."""

    @abc.abstractmethod
    def draws(self, key: Key, clean: Observation) -> tuple[Observation, Float[Array, " draws"]]:
        """Draws through which to differentiate, with a leading axis, and their log-probabilities.

        One draw with log-probability 0 if its path can be differentiated, else two without a path.
        """

    @abc.abstractmethod
    def gaussian_scale(self, clean: Observation) -> PyTree | None:
        """`τ` in raw units, one scalar like each leaf of an observation; `None` if the noise is not Gaussian."""

    def _standardised(self, clean, unit):
        scales = self.gaussian_scale(clean)
        if scales is None:
            raise ValueError(
                "`noise` is not Gaussian but a law, for which only one step from noise is exact: sample by "
                "`Ancestral(1)`, and do without `score` and `log_prob`."
            )
        return jax.tree.map(jnp.divide, scales, unit)

    def total_variance(self, level: NoiseLevel, clean: Observation, unit: PyTree) -> PyTree:
        """`σ² + α² τ²` in standardised units, by which the score divides, as scalars like an observation.

        **Arguments:**

        - `level`: the noise level.
        - `clean`: a measurement, for its structure and dtype.
        - `unit`: the standard deviations that measurements are standardised by, scalars like an observation.

        **Raises:**

        `ValueError` unless `every_level`.
        """
        return jax.tree.map(lambda n: level.sigma**2 + (level.alpha * n) ** 2, self._standardised(clean, unit))

    def conditional(
        self, noisy: Observation, level: NoiseLevel, clean: Observation, unit: PyTree, *, key: Key | None = None
    ) -> Observation:
        """The noisy measurement given its noised version and its noise-free prediction, all in standardised units.

        **Arguments:**

        - `noisy`: the noised measurement `o_t`.
        - `level`, `unit`: as of `total_variance`.
        - `clean`: the prediction `ô`.
        - `key`: a PRNG key for a draw; `None` for the mean.

        **Raises:**

        `ValueError` unless `every_level`.
        """
        scales, total = self._standardised(clean, unit), self.total_variance(level, clean, unit)
        pull = lambda o, x, n, v: o + level.alpha * n**2 / v * (x - level.alpha * o)
        mean = lambda: jax.tree.map(pull, clean, noisy, scales, total)
        if key is None:
            return mean()
        spread = jax.tree.map(lambda n, v: n * level.sigma / jnp.sqrt(v), scales, total)
        around_mean = lambda: jax.tree.map(jnp.add, mean(), scaled_normal(clean, spread, key))
        return _where_noisy(scales, around_mean, clean)

    @abc.abstractmethod
    def check(self, clean: Structure) -> None:
        """Raises a `ValueError` if this is not the noise of measurements of a structure."""


@final
class GaussianNoise(AbstractNoise):
    """Gaussian noise, independent from entry to entry, and of real and imaginary parts of complex ones.

    **Arguments:**

    - `scale`: the standard deviation `τ ≥ 0` in raw units, of each part where measurements are complex: a scalar, or a
        PyTree of scalars in the structure of an observation. 0 is no noise.

    **Raises:**

    `ValueError` if a standard deviation is not a finite number of at least 0.
    """

    scale: PyTree
    every_level: ClassVar[bool] = True

    def __init__(self, scale: PyTree = 0.0) -> None:
        if not jax.tree.leaves(scale):
            raise ValueError(
                f"`noise` must be a number, or a PyTree of numbers, got {shown(scale)}; give 0.0 for none."
            )
        self.scale = jax.tree.map(as_scale, scale)

    @property
    def exact(self) -> bool:
        return not any(float(x) > 0 for x in jax.tree.leaves(self.scale))

    def __repr__(self) -> str:
        return f"GaussianNoise({numbers(self.scale)})"

    def gaussian_scale(self, clean: Observation) -> PyTree:
        scale, expected = self.scale, jax.tree.structure(clean)
        if jax.tree.structure(scale) == jax.tree.structure(0.0):
            scale = jax.tree.map(lambda _: scale, clean)
        elif jax.tree.structure(scale) != expected:
            raise ValueError(
                f"`noise` must be a scalar or have the structure of an observation, {expected}, got "
                f"{jax.tree.structure(scale)}."
            )
        return jax.tree.map(lambda n, x: n.astype(jnp.finfo(x.dtype).dtype), scale, clean)

    def sample(self, key: Key, clean: Observation) -> Observation:
        scales, parts = self.gaussian_scale(clean), as_parts(clean)
        noisy = lambda: jax.tree.map(jnp.add, parts, scaled_normal(parts, scales, key))
        return from_parts(_where_noisy(scales, noisy, parts), clean)

    def log_prob(self, observation: Observation, clean: Observation) -> FloatScalar:
        # Raveled: a sum over several axes, short ones among them, takes a processor thirty times as long.
        log = lambda o, c, n: jnp.sum(
            -0.5 * ((jnp.ravel(o) - jnp.ravel(c)) / n) ** 2 - jnp.log(n) - 0.5 * math.log(2 * math.pi)
        )
        logs = jax.tree.map(log, as_parts(observation), as_parts(clean), self.gaussian_scale(clean))
        return sum(jax.tree.leaves(logs), jnp.zeros(()))

    def mean(self, clean: Observation) -> Observation:
        return clean

    def std(self, clean: Observation) -> PyTree:
        return jax.tree.map(lambda n, x: jnp.broadcast_to(n, x.shape), self.gaussian_scale(clean), clean)

    def draws(self, key: Key, clean: Observation) -> tuple[Observation, Float[Array, " draws"]]:
        return jax.tree.map(lambda x: x[None], self.sample(key, clean)), jnp.zeros(1)

    def check(self, clean: Structure) -> None:
        self.gaussian_scale(clean)


@final
class NoiseLaw(AbstractNoise):
    """Any noise that NumPyro can draw.

    **Arguments:**

    - `law`: a callable from a noise-free measurement in raw units to a NumPyro distribution, or to a PyTree of them
        like an observation, such as `numpyro.distributions.Laplace`.
    """

    law: AnyCallable
    every_level: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if not callable(self.law) or is_distribution(self.law):
            raise ValueError(f"NoiseLaw: `law` must be a callable to a NumPyro distribution, got {shown(self.law)}.")

    @property
    def exact(self) -> bool:
        return False

    def _laws(self, clean):
        return jax.tree.flatten(self.law(clean), is_leaf=is_distribution)

    def sample(self, key: Key, clean: Observation) -> Observation:
        laws, treedef = self._laws(clean)
        keys = jr.split(key, max(len(laws), 1))
        drawn = treedef.unflatten([law.sample(k) for law, k in zip(laws, keys, strict=False)])
        return jax.tree.map(lambda x, o: x.astype(o.dtype), drawn, clean)

    def log_prob(self, observation: Observation, clean: Observation) -> FloatScalar:
        laws, treedef = self._laws(clean)
        # Counts that were standardised and back are a little off, and all but whole numbers are impossible to NumPyro.
        as_is = lambda law, x: jnp.round(x) if law.support is not None and law.is_discrete else x
        pairs = zip(laws, treedef.flatten_up_to(observation), strict=True)
        return sum((jnp.sum(law.log_prob(as_is(law, x))) for law, x in pairs), jnp.zeros(()))

    def _moments(self, clean):
        """Means and variances like a measurement; `None` twice where either is not known."""
        laws, treedef = self._laws(clean)
        try:
            moments = [law.mean for law in laws], [law.variance for law in laws]
        except NotImplementedError:
            return None, None
        spread = lambda m, x: jnp.broadcast_to(m, x.shape).astype(x.dtype)
        return tuple(jax.tree.map(spread, treedef.unflatten(m), clean) for m in moments)

    def mean(self, clean: Observation) -> Observation | None:
        return self._moments(clean)[0]

    def std(self, clean: Observation) -> PyTree | None:
        variance = self._moments(clean)[1]
        return None if variance is None else jax.tree.map(jnp.sqrt, variance)

    def draws(self, key: Key, clean: Observation) -> tuple[Observation, Float[Array, " draws"]]:
        laws, _ = self._laws(clean)
        if all(law.has_rsample for law in laws):
            return jax.tree.map(lambda x: x[None], self.sample(key, clean)), jnp.zeros(1)
        drawn = jax.vmap(lambda k: self.sample(k, jax.lax.stop_gradient(clean)))(jr.split(key))
        return drawn, jax.vmap(lambda o: self.log_prob(o, clean))(drawn)

    def gaussian_scale(self, clean: Observation) -> None:
        """Of counts and other laws there is none."""

    def check(self, clean: Structure) -> None:
        remedy = "give a callable from a noise-free measurement to a NumPyro distribution of the same shape"
        found = []

        def simulate(x):
            laws, treedef = self._laws(x)
            found.extend(laws)
            return (
                treedef.unflatten([law.sample(jr.key(0)) for law in laws]) if all(map(is_distribution, laws)) else None
            )

        try:
            drawn = jax.eval_shape(simulate, clean)
        except Exception as error:
            raise ValueError(f"`noise` fails on a noise-free measurement ({summary(error)}); {remedy}.") from error
        if not found or not all(map(is_distribution, found)):
            raise ValueError(f"`noise` returns {found} for a noise-free measurement; {remedy}.")
        shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        if shapes(drawn) != shapes(clean):
            raise ValueError(
                f"`noise` simulates measurements of shapes {shapes(drawn)[1]}, but the data's are {shapes(clean)[1]}; "
                f"{remedy}."
            )


def is_sized(noise: AbstractNoise, like: Observation) -> bool:
    """Whether the size of the noise of measurements like one is known, whatever it is there."""
    return eqx.filter_eval_shape(noise.std, like) is not None


def add_noise(noise: AbstractNoise, clean: Observation, *, key: Key, stacked: bool) -> Observation:
    """A noisy measurement, or with `stacked` a stack of views each with noise of its own; in raw units.

    Real and imaginary parts of complex measurements have noise each.
    """
    one = lambda key, clean: from_parts(noise.sample(key, as_parts(clean)), clean)
    if not stacked:
        return one(key, clean)
    return jax.vmap(one)(jr.split(key, jax.tree.leaves(clean)[0].shape[0]), clean)


def as_noise(noise: Any) -> AbstractNoise:
    """The noise that a user gave: a law, numbers for Gaussian noise, or a callable to NumPyro distributions.

    **Raises:**

    `ValueError` if it is none of these, or if a number is not finite and at least 0.
    """
    if isinstance(noise, AbstractNoise):
        return noise
    if isinstance(noise, type) and issubclass(noise, AbstractNoise):
        check_instance("`noise`", noise, AbstractNoise, "a noise")
    return NoiseLaw(noise) if callable(noise) else GaussianNoise(noise)


def as_scale(value: Any, name: str = "`noise`", *, positive: bool = False) -> Array:
    """A number of a user's in raw units, as an array.

    **Raises:**

    `ValueError` if it is not one finite number of at least 0, or with `positive` above 0.
    """
    remedy = "give a standard deviation in raw units" if name == "`noise`" else "give a number in raw units"
    if is_traced(value):
        return value.astype(jnp.result_type(float))
    known = isinstance(value, int | float | complex | np.ndarray | np.generic | jax.Array)
    if not known or isinstance(value, bool) or not jnp.issubdtype(np.asarray(value).dtype, np.number):
        raise ValueError(f"{name} must be a number, got {shown(value)}; {remedy}.")
    if np.shape(value) != ():
        raise ValueError(f"{name} must consist of scalars, got one of shape {np.shape(value)}; {remedy}.")
    least, number, dtype = "above" if positive else "at least", cast(Any, value), jnp.result_type(float)
    finite = not np.iscomplexobj(number) and abs(float(number)) <= float(jnp.finfo(dtype).max)
    if not finite or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {least} 0, got {shown(value)}; {remedy}.")
    return jax.device_put(np.asarray(value, dtype))  # `jnp.asarray` would compile a program


def _where_noisy(scales: PyTree, noisy: AnyCallable, clean: Observation) -> Observation:
    """`noisy()` if any standard deviation is positive, and `clean` if none is.

    Without noise, its arithmetic and random numbers for every draw would be much of a training step.
    """
    some = jnp.any(jnp.stack([x > 0 for x in jax.tree.leaves(scales)]))
    return jax.lax.cond(some, noisy, lambda: clean)
