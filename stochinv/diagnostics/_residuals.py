r"""What draws leave unexplained of the measurements that they were given.

A signal and a draw of its exact posterior are exchangeable given the measurements. So in standard deviations of the
noise `(o − f(s)) / τ` of a draw is what the noise itself is: of mean 0 and mean square 1 in every entry, and without
correlation between entries. A forward model that is not the one by which the data came leaves what it cannot explain,
and where it does tells what is missing. Records are the independent pieces of evidence; draws and entries are not.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._checks import check_key
from .._complex import as_parts
from .._custom_types import Key, PyTree
from .._lazy import scipy_special
from ._common import check_at_least_one, generator, leading_size
from ._two_sample import permutation_p_value


@final
class PredictiveResiduals(eqx.Module):
    """By how much draws miss the measurements that they were given, in standard deviations of the noise.

    **Arguments:**

    - `rms`: the root mean square over all; 1 for exact posteriors.
    - `rms_error`: its standard error over records.
    - `offset`: the mean over records, leaves of shape `(...)`; 0 for exact posteriors.
    - `correlation`: of neighbouring entries along all axes of a measurement; 0 for exact posteriors.
    - `size_p_value`: of the mean square being 1, by Student's test.
    - `offset_p_value`: of all offsets being 0, by flips of the records' signs; exact for noise that is symmetric.
    - `correlation_p_value`: of no correlation, by Student's test; NaN for measurements of single numbers.
    """

    rms: float
    rms_error: float
    offset: PyTree
    correlation: float
    size_p_value: float
    offset_p_value: float
    correlation_p_value: float

    @property
    def p_value(self) -> float:
        """The p-value of the tests together, by Bonferroni's inequality."""
        known = [x for x in (self.size_p_value, self.offset_p_value, self.correlation_p_value) if not np.isnan(x)]
        return min(1.0, len(known) * min(known))


def predictive_residuals(
    predicted: PyTree,
    observed: PyTree,
    std: PyTree,
    *,
    key: Key,
    mask: Bool[Array | np.ndarray, "records ..."] | None = None,
    num_flips: int = 999,
) -> PredictiveResiduals:
    """Tests whether measurements look like noise around what draws given them predict.

    It finds forward models and noise that are wrong, and draws that do not keep to the data. A fault that the signal
    can make up for it does not find.

    **Arguments:**

    - `predicted`: noise-free measurements of draws given each record's measurements, leaves of shape
        `(records, draws, ...)`.
    - `observed`: these measurements, leaves of shape `(records, ...)`.
    - `std`: the noise's standard deviation, a PyTree of positive numbers like `observed`, of arrays that broadcast with
        its leaves, or like `predicted`: of noise that depends on the signal, such as counts, that of each draw.
    - `key`: a PRNG key, for the flips.
    - `mask`: `True` for what counts, of shape `(records, ...)`, along the first axes that all leaves of `observed`
        have; `None` for all.
    - `num_flips`: how many times all records are given random signs.

    **Returns:**

    A [`stochinv.diagnostics.PredictiveResiduals`][].

    **Raises:**

    `ValueError` if there are fewer than 8 records, or shapes do not fit.

    ??? cite "Source"

        Gelman, Meng and Stern 1996, "Posterior predictive assessment of model fitness via realized discrepancies",
        equation 6, for discrepancies of draws; their law under an exact posterior follows from exchangeability.
    """
    check_key(key)
    check_at_least_one(num_flips=num_flips)
    number = leading_size("observed", observed)
    if number < 8:
        raise ValueError(f"`observed` must hold at least 8 records, got {number}; standard errors are over records.")
    predicted, observed = (as_parts(jax.tree.map(jnp.asarray, x)) for x in (predicted, observed))
    residuals = jax.tree.map(_residual, predicted, observed, jax.tree.map(jnp.asarray, std))
    weights = jax.tree.map(lambda x: _as_weights(mask, x), observed)
    return _tested(residuals, weights, generator(key), num_flips)


def _tested(residuals, weights, rng, num_flips):
    leaves = list(zip(jax.tree.leaves(residuals), jax.tree.leaves(weights), strict=True))
    number = len(leaves[0][0])
    flat = lambda x: x.reshape(number, -1)
    squares = sum(flat(np.mean(x**2, 1) * w).sum(1) for x, w in leaves)
    square, error, size_p_value = _ratio_test(squares, sum(flat(w).sum(1) for _, w in leaves), 1.0)
    products, pairs = (sum(x) for x in zip(*(_neighbours(x, w) for x, w in leaves), strict=True))
    correlation, _, correlation_p_value = _ratio_test(products, pairs, 0.0)
    means = np.concatenate([flat(np.mean(x, 1) * w) for x, w in leaves], 1)
    totals = np.concatenate([flat(w).sum(0) for _, w in leaves])
    offset, offset_p_value = _offset_test(means, totals, rng, num_flips)
    sizes = np.cumsum([x[0, 0].size for x, _ in leaves])[:-1]
    shaped = [o.reshape(x.shape[2:]) for o, (x, _) in zip(np.split(offset, sizes), leaves, strict=True)]
    tree = jax.tree.unflatten(jax.tree.structure(residuals), shaped)
    root = float(np.sqrt(square))
    p_values = (size_p_value, offset_p_value, correlation_p_value)
    return PredictiveResiduals(root, error / (2 * root), tree, correlation, *p_values)


def _residual(predicted: Any, observed: Any, std: Any) -> np.ndarray:
    if predicted.ndim != observed.ndim + 1 or predicted.shape[:1] + predicted.shape[2:] != observed.shape:
        raise ValueError(
            f"`predicted` must be (records, draws, ...) for `observed` of (records, ...), got {predicted.shape} and "
            f"{observed.shape}; predict each record's measurements from draws given them."
        )
    if not np.all(std > 0):
        raise ValueError(f"`std` must be positive, got {np.min(std)}; without noise nothing may be left.")
    scale = np.asarray(std) if std.ndim == predicted.ndim else np.broadcast_to(std, observed.shape)[:, None]
    return (np.asarray(observed, np.float64)[:, None] - np.asarray(predicted, np.float64)) / scale


def _as_weights(mask: Any, x: Any) -> np.ndarray:
    if mask is None:
        return np.ones(x.shape)
    mask = np.asarray(mask)
    if mask.shape != x.shape[: mask.ndim]:
        raise ValueError(f"`mask` has shape {mask.shape}, but `observed` {x.shape}; give one truth value per view.")
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape).astype(np.float64)


def _ratio_test(sums: Any, counts: Any, expected: float) -> tuple[float, float, float]:
    """The ratio of two means over records, its standard error, and its p-value by Student's test."""
    if not np.any(counts):
        return np.nan, np.nan, np.nan
    ratio = sums.sum() / counts.sum()
    error = np.std((sums - ratio * counts) / counts.mean(), ddof=1) / np.sqrt(len(sums))
    t = (ratio - expected) / max(error, np.finfo(float).tiny)
    return float(ratio), float(error), float(2 * scipy_special.stdtr(len(sums) - 1, -abs(t)))


def _neighbours(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each record's sum of products of neighbouring entries, along all axes, and how many there are."""
    number = x.shape[0]
    products, counts = np.zeros(number), np.zeros(number)
    for axis in range(1, weights.ndim):
        cut = lambda a, axis, part: a[(slice(None),) * axis + (part,)]
        first, second = slice(None, -1), slice(1, None)
        both = cut(weights, axis, first) * cut(weights, axis, second)
        product = np.mean(cut(x, axis + 1, first) * cut(x, axis + 1, second), 1)
        products += (product * both).reshape(number, -1).sum(1)
        counts += both.reshape(number, -1).sum(1)
    return products, counts


def _offset_test(values, totals, rng, num_flips):
    """Each entry's mean, and the p-value of the largest of them in its standard errors."""
    seen = totals > 0
    root = np.sqrt(np.maximum((values**2).sum(0), np.finfo(float).tiny))
    signs = np.concatenate([np.ones((1, len(values))), rng.choice([-1.0, 1.0], (num_flips, len(values)))])
    largest = np.abs(signs @ values / root)[:, seen].max(1)
    return values.sum(0) / np.maximum(totals, 1), permutation_p_value(largest)
