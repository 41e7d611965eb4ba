r"""Scoring rules: how far the law of draws is from what was observed.

All of them are made of a *distance* `ρ` of two predictions, and score draws `v_1, …, v_M` by

`S = mean_m ρ(v_m, v) − ½ mean_{m≠n} ρ(v_m, v_n)`,

whose expectation is least where the draws follow the law of `v`, if `ρ` is a conditionally negative definite kernel
(strictly, if it is characteristic; Gneiting and Raftery 2007, theorem 4). Sums of such distances, distances of parts
and of coarser copies are such distances again, so rules compose: `EnergyRule() + 0.1 * Patches(EnergyRule(), 8)`.

What is compared is a tuple of stacks of views: arrays with a leading views axis, or PyTrees of them.
"""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_instance, check_integer, check_number, shown
from .._custom_types import FloatScalar, PyTree


class AbstractScoringRule(eqx.Module):
    """A proper score of draws. It knows nothing of problems, forward models and noise."""

    @abc.abstractmethod
    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        """The distance `ρ(a, b)` of two predictions: at least 0, and 0 for equal ones.

        **Arguments:**

        - `a`, `b`: tuples of stacks of views, alike in structure and shapes.
        """

    def terms(
        self, draws: PyTree, observed: PyTree, shares: Float[Array, "draws components"] | None = None
    ) -> tuple[FloatScalar, FloatScalar]:
        """`mean_m ρ(v_m, v)` and the unbiased `½ mean_{m≠n} ρ(v_m, v_n)`.

        **Arguments:**

        - `draws`: predictions with a leading axis of at least two draws; with `shares` a second one, of components.
        - `observed`: what was observed.
        - `shares`: the probabilities of each draw's components, over which means are taken.
        """
        number = jax.tree.leaves(draws)[0].shape[0]
        first, second = jnp.triu_indices(number, 1)
        at = lambda index: jax.tree.map(lambda x: x[index], draws)
        to_observed = lambda v: self.distance(v, observed)
        if shares is None:
            errors, pairs = jax.vmap(to_observed)(draws), jax.vmap(self.distance)(at(first), at(second))
            return jnp.mean(errors), 0.5 * jnp.mean(pairs)
        errors = jax.vmap(jax.vmap(to_observed))(draws)

        def pair(m, n):
            between = jax.vmap(lambda a: jax.vmap(lambda b: self.distance(a, b))(at(n)))(at(m))
            return shares[m] @ between @ shares[n]

        return jnp.mean(jnp.sum(shares * errors, -1)), 0.5 * jnp.mean(jax.vmap(pair)(first, second))

    def __call__(self, draws: PyTree, observed: PyTree) -> FloatScalar:
        """The score of draws, an unbiased estimate of that of their law.

        **Arguments:**

        - `draws`: predictions with a leading axis of at least two draws.
        - `observed`: what was observed.
        """
        error, spread = self.terms(draws, observed)
        return error - spread

    def __add__(self, other: "AbstractScoringRule") -> "SumOfRules":
        return SumOfRules((self, other), (1.0, 1.0))

    def __rmul__(self, weight: float) -> "SumOfRules":
        return SumOfRules((self,), (weight,))


@final
class EnergyRule(AbstractScoringRule):
    """The energy score: `ρ(a, b) = ‖a − b‖^β`, the root of the mean square of all entries, to the power `β`.

    **Arguments:**

    - `beta`: the exponent, `0 < β < 2`.

    ??? cite "Source"

        Gneiting and Raftery 2007, "Strictly proper scoring rules", section 5.1.
    """

    beta: float = 1.0

    def __check_init__(self) -> None:
        check_number("EnergyRule: `beta`", self.beta, "a number strictly between 0 and 2", lambda x: 0 < x < 2)

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        square = _mean_square(a, b)
        zero = square == 0  # and not `> 0`, which would hide NaN; the gradient there is 0, not NaN
        return jnp.where(zero, 0.0, jnp.where(zero, 1.0, square) ** (self.beta / 2))


@final
class KernelRule(AbstractScoringRule):
    """The kernel score of the Gaussian kernel: `ρ(a, b) = 1 − exp(−‖a − b‖² / 2h²)`, bounded and local.

    **Arguments:**

    - `bandwidth`: `h > 0`, in standard deviations of a measurement.

    ??? cite "Source"

        Gneiting and Raftery 2007, "Strictly proper scoring rules", section 5.2.
    """

    bandwidth: float = 1.0

    def __check_init__(self) -> None:
        check_number("KernelRule: `bandwidth`", self.bandwidth, "positive and finite", lambda x: x > 0)

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        return -jnp.expm1(-0.5 * _mean_square(a, b) / self.bandwidth**2)


@final
class PerView(AbstractScoringRule):
    """The mean distance of each view by itself.

    What one view determines is learned sooner than by a score of all together, where it is outweighed by what the
    others leave open.

    **Arguments:**

    - `rule`: the [`stochinv.AbstractScoringRule`][] of a view.
    """

    rule: AbstractScoringRule

    def __check_init__(self) -> None:
        check_rule("PerView", self.rule)

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        return _mean_over_parts(self.rule, a, b)


@final
class Patches(AbstractScoringRule):
    """The mean distance of patches, each by itself.

    In many dimensions the score of all entries together hardly tells a mixture of two modes from their mean, where much
    else is uncertain; that of few does. The axes of a view but its last, which is that of channels, are cut.

    **Arguments:**

    - `rule`: the [`stochinv.AbstractScoringRule`][] of a patch.
    - `size`: the length of a patch along each axis, at least 1. What is left at an end makes a patch with zeros.
    """

    rule: AbstractScoringRule
    size: int

    def __check_init__(self) -> None:
        check_rule("Patches", self.rule)
        check_integer("Patches: `size`", self.size)

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        cut = lambda stacks: [_cut(x, self.size) for x in jax.tree.leaves(stacks)]
        return _mean_over_parts(self.rule, cut(a), cut(b))


@final
class Scales(AbstractScoringRule):
    """The mean distance over coarser and coarser copies, each of half the length of the one before.

    **Arguments:**

    - `rule`: the [`stochinv.AbstractScoringRule`][] of a copy.
    - `levels`: how many copies, the measurement itself included, at least 1.
    """

    rule: AbstractScoringRule
    levels: int

    def __check_init__(self) -> None:
        check_rule("Scales", self.rule)
        check_integer("Scales: `levels`", self.levels)

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        total = self.rule.distance(a, b)
        for _ in range(self.levels - 1):
            a, b = jax.tree.map(_halve, (a, b))
            total = total + self.rule.distance(a, b)
        return total / self.levels


@final
class SumOfRules(AbstractScoringRule):
    """A weighted sum of rules, as `rule + 0.5 * another` makes it.

    **Arguments:**

    - `rules`: the rules.
    - `weights`: as many weights, positive.
    """

    rules: tuple[AbstractScoringRule, ...]
    weights: tuple[float, ...]

    def __check_init__(self) -> None:
        for name, value in (("rules", self.rules), ("weights", self.weights)):
            if not isinstance(value, tuple) or not value:
                raise ValueError(f"SumOfRules: `{name}` must be a tuple of one entry per rule, got {shown(value)}.")
        for rule in self.rules:
            check_rule("SumOfRules", rule)
        for weight in self.weights:
            check_number("SumOfRules: `weights`", weight, "positive and finite numbers", lambda x: x > 0)
        if len(self.rules) != len(self.weights):
            raise ValueError(
                f"SumOfRules: `weights` must be a positive number for each of {len(self.rules)} rules, got "
                f"{self.weights}."
            )

    def distance(self, a: PyTree, b: PyTree) -> FloatScalar:
        return sum((w * rule.distance(a, b) for w, rule in zip(self.weights, self.rules, strict=True)), jnp.zeros(()))


def check_rule(name: str, rule: Any):
    """Raises a `ValueError` if the rule of an object of the class `name` is none."""
    check_instance(f"{name}: `rule`", rule, AbstractScoringRule, "a scoring rule such as `EnergyRule()`")


def _mean_square(a, b):
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return sum(jnp.sum((x - y) ** 2) for x, y in pairs) / sum(x.size for x, _ in pairs)


def _mean_over_parts(rule, a, b):
    """The mean distance of parts, each by itself, which lie along the leading axes of each entry of two sequences."""
    one = lambda part: (jax.tree.map(lambda x: x[None], part),)  # a tuple of stacks of one view
    each = jax.vmap(lambda u, v: rule.distance(one(u), one(v)))
    return jnp.mean(jnp.concatenate([each(x, y) for x, y in zip(a, b, strict=True)]))


def _spatial(x):
    """A stack with axes (views, spatial axes, channels); numbers have one channel."""
    return x[:, None] if x.ndim == 1 else x


def _cut(stack, size):
    """The patches of a stack along a leading axis, each with its spatial axes and channels."""
    x = _spatial(stack)
    axes = range(1, x.ndim - 1)
    x = jnp.pad(x, [(0, 0), *((0, -x.shape[i] % size) for i in axes), (0, 0)])
    for i in axes:  # each spatial axis in two, of which the first goes to the front
        x = x.reshape(-1, *x.shape[1:i], x.shape[i] // size, size, *x.shape[i + 1 :])
        x = jnp.moveaxis(x, i, 0).reshape(-1, *x.shape[1:i], *x.shape[i + 1 :])
    return x


def _halve(stack):
    """Means over neighbours along each spatial axis; a last one without neighbour is left out."""
    x = _spatial(stack)
    for i in range(1, x.ndim - 1):
        if x.shape[i] > 1:
            even = x.shape[i] // 2 * 2
            x = jax.lax.slice_in_dim(x, 0, even, axis=i)
            x = jnp.mean(x.reshape(*x.shape[:i], even // 2, 2, *x.shape[i + 1 :]), i + 1)
    return x
