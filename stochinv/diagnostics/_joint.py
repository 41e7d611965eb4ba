r"""One decision on a posterior from its draws: whether the truth could be one more of them.

A truth and `L` independent draws of its exact posterior are exchangeable. So each of the `L + 1` could be the truth,
and any statistic of the truths has, over a random choice of one of the `L + 1` in every record, a law that can be
simulated, however many entries, quantities and tests there are and however they depend on each other. The quantities
are ranks among the `L + 1`, of

- entries, and random projections of all entries;
- the distance to the mean of the `L + 1`, in their standard deviations;
- the distance to the third nearest of the others;
- distances to random points, which are others' truths or draws.

With `r` uniform on `0 … L`, `u = (r + ½)/(L + 1)` and the normal score `h = Φ⁻¹(u)`, five families of statistics look
for one kind of fault each: means of `h` (bias); means of `h² − 1`, and of `h` of the distances to the mean and to
neighbours (spread, within modes too); means of `h` of the distances to neighbours, if they are large (signals that
draws miss); means of `cos kπu` for `k = 3 … 6` (shape); and products of `h` and `h²` with what was measured (context).
The smallest of the families' p-values is compared with its own simulated law (Westfall and Young 1993,
"Resampling-based multiple testing", section 2.3).
"""

from typing import NamedTuple, final

import equinox as eqx
import numpy as np

from .._checks import check_key
from .._custom_types import Key, PyTree
from .._lazy import scipy_special
from ._calibration import checked
from ._common import as_rows, check_at_least_one, check_probability, generator

# How many entries, projections of signals, random points and projections of contexts there are.
MOST_ENTRIES, PROJECTIONS, POINTS, FEATURES = 24, 8, 4, 8
NEIGHBOUR, WAVES = 3, np.arange(3, 7)
# Records whose distances between draws are held at once.
CHUNK = 32


@final
class JointCalibration(eqx.Module):
    """Whether truths could be draws, by several tests that make one decision.

    **Arguments:**

    - `p_value`: of all tests together; exact.
    - `p_values`: of each by itself: `"bias"`, `"spread"`, `"missed"` (signals that draws miss), `"shape"` and, where
        contexts are given, `"context"` (faults that depend on what was measured).
    - `bias`: the mean normal score of the truths' ranks, of the entry for which it is largest: by how many posterior
        standard deviations truths lie above the middle of draws.
    - `spread`: the ratio of the draws' spread to that which the ranks ask for, of the entry for which it is farthest
        from 1: below 1 where draws are too narrow.
    - `missed`: the share of truths that are farther from all draws than any draw is from the others, less the share
        that is expected.
    - `confidence`: the probability that an exact posterior passes.
    """

    p_value: float
    p_values: dict[str, float]
    bias: float
    spread: float
    missed: float
    confidence: float

    @property
    def calibrated(self) -> bool:
        """Whether the tests together find nothing wrong."""
        return self.p_value > 1 - self.confidence


def joint_calibration(
    draws: PyTree,
    truths: PyTree,
    *,
    key: Key,
    contexts: PyTree | None = None,
    confidence: float = 0.95,
    num_simulations: int = 999,
) -> JointCalibration:
    """Tests posteriors, or predictions, by many records at once: bias, spread, missing modes, shape and context.

    Unlike [`stochinv.diagnostics.sbc_ranks`][] it finds dependences between entries, and, with `contexts`, posteriors
    that ignore what was measured; and its one decision is exact for any number of records and draws.

    **Arguments:**

    - `draws`: independent draws of each record's posterior, leaves of shape `(records, draws, ...)`, at least 8 each.
    - `truths`: the true signals, or measurements, leaves of shape `(records, ...)`. Records must be independent.
    - `key`: a PRNG key.
    - `contexts`: what was measured, leaves of shape `(records, ...)`, or `None`.
    - `confidence`: the probability that an exact posterior passes.
    - `num_simulations`: how many choices of truths are simulated.

    **Returns:**

    A [`stochinv.diagnostics.JointCalibration`][].

    **Raises:**

    `ValueError` if records or entries do not fit together, and for fewer than 8 records or draws.

    ??? cite "Source"

        Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration", for the ranks;
        Modrák et al. 2023, "Simulation-based calibration checking for Bayesian computation: the choice of test
        quantities shapes sensitivity", for quantities beyond entries; Westfall and Young 1993 for the decision.
    """
    check_key(key)
    check_probability("confidence", confidence)
    check_at_least_one(num_simulations=num_simulations)
    samples, values = (np.asarray(x, np.float64) for x in checked(draws, truths))
    number, size = samples.shape[:2]
    if min(number, size) < 8:
        raise ValueError(f"`draws` must hold at least 8 records of 8 draws, got {number} of {size}; give more.")
    features = None if contexts is None else np.asarray(as_rows("contexts", contexts), np.float64)
    if features is not None and len(features) != number:
        raise ValueError(f"`contexts` has {len(features)} records, but `truths` {number}; give one for each.")
    everyone = np.concatenate([values[:, None], samples], 1)
    return _tested(everyone, features, confidence, num_simulations, generator(key))


def _tested(everyone, features, confidence, num_simulations, rng):
    """The tests of truths, which come first of everyone."""
    number, size = everyone.shape[:2]
    ranks = _ranks(everyone, rng)
    projected = None if features is None else _project(features, FEATURES, rng)
    chosen = np.concatenate([np.zeros((1, number), int), rng.integers(size, size=(num_simulations, number))])
    found = [_statistics(ranks, projected, index) for index in chosen]
    first = found[0]
    each, p_value = _decide(np.array([list(x.families.values()) for x in found]))
    p_values = dict(zip(first.families, each, strict=True))
    return JointCalibration(p_value, p_values, first.bias, first.spread, first.missed, confidence)


class _Ranks(NamedTuple):
    """Ranks of everyone, shape `(records, draws + 1, quantities)`: first of linear quantities, then of the distances to
    the mean, to neighbours and to points. The first of the linear quantities are entries."""

    ranks: np.ndarray
    entries: int
    linear: int


class _Found(NamedTuple):
    families: dict[str, float]
    bias: float
    spread: float
    missed: float


def _project(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Standardised entries, or as many random projections of them, standardised too."""
    rows = _standardised(rows)
    if rows.shape[1] <= most:
        return rows
    return _standardised(rows @ rng.normal(size=(rows.shape[1], most)))


def _standardised(rows):
    spread = rows.std(0)
    return (rows - rows.mean(0)) / np.where(spread > 0, spread, 1)


def _ranks(everyone: np.ndarray, rng: np.random.Generator) -> _Ranks:
    number, size, entries = everyone.shape
    rows = _standardised(everyone.reshape(-1, entries)).reshape(everyone.shape)
    some = np.sort(rng.permutation(entries)[:MOST_ENTRIES])
    linear = [rows[:, :, some]]
    if entries > 1:
        linear.append(rows @ rng.normal(size=(entries, PROJECTIONS)))
    others = (np.arange(number)[:, None] + rng.integers(1, number, (number, POINTS))) % number
    points = rows[others, rng.integers(size, size=others.shape)]
    far = [((rows - points[:, None, i]) ** 2).sum(-1) for i in range(POINTS)]
    near = np.concatenate([_neighbours(rows[i : i + CHUNK]) for i in range(0, number, CHUNK)])
    values = np.concatenate([*linear, near, np.stack(far, -1)], -1)
    # In a random order, so that equal values are ranked at random.
    order = np.argsort(rng.random((number, size)), 1)
    shuffled = np.take_along_axis(values, order[..., None], 1)
    ranks = np.argsort(np.argsort(shuffled, 1, kind="stable"), 1)
    back = np.argsort(order, 1)
    return _Ranks(np.take_along_axis(ranks, back[..., None], 1), len(some), sum(x.shape[-1] for x in linear))


def _neighbours(rows):
    """The distances to the mean of a record, and to the third nearest neighbour, in its standard deviations."""
    spread = rows.std(1, keepdims=True)
    rows = (rows - rows.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    squares = (rows**2).sum(-1)
    between = squares[:, :, None] + squares[:, None] - 2 * rows @ rows.transpose(0, 2, 1)
    return np.stack([squares, np.partition(between, NEIGHBOUR, -1)[..., NEIGHBOUR]], -1)


def _statistics(found: _Ranks, features: np.ndarray | None, index: np.ndarray) -> _Found:
    """The families' statistics where one of everyone in each record is taken for the truth."""
    number, size, quantities = found.ranks.shape
    ranks, linear = found.ranks[np.arange(number), index], found.linear
    u = (np.arange(size) + 0.5) / size
    normal = scipy_special.ndtri(u)
    square = np.mean(normal**2)
    tables = np.stack([normal / np.sqrt(square), (normal**2 - square) / np.std(normal**2)])
    waves = np.sqrt(2) * np.cos(np.pi * WAVES[:, None] * u)
    cells = np.bincount((ranks + size * np.arange(quantities)).ravel(), minlength=size * quantities)
    counts = cells.reshape(quantities, size).T / np.sqrt(number)
    bias, spread = tables @ counts
    families = {
        "bias": np.abs(bias[:linear]).max(),
        "spread": max(np.abs(spread[:linear]).max(), np.abs(bias[linear : linear + 2]).max()),
        "missed": bias[linear + 1],
        "shape": ((waves @ counts) ** 2).sum(0).max(),
    }
    if features is not None:
        scores = tables[:, ranks[:, : linear + 1]]
        families["context"] = np.abs(scores.transpose(0, 2, 1) @ features).max() / np.sqrt(number)
    worst, widest = np.abs(bias[: found.entries]).argmax(), np.abs(spread[: found.entries]).argmax()
    squared = square + spread[widest] * np.std(normal**2) / np.sqrt(number)
    top = (ranks[:, linear + 1] == size - 1).mean() - 1 / size
    return _Found(families, float(bias[worst] * np.sqrt(square / number)), float(np.sqrt(square / squared)), float(top))


def _decide(statistics: np.ndarray) -> tuple[list[float], float]:
    """The p-values of the first row's statistics, each by itself and all together, among those of all rows."""
    ascending = np.sort(statistics, 0)
    # Statistics that rounding alone makes differ count as equal.
    least = statistics - 1e-9 * np.abs(statistics)
    below = np.stack([np.searchsorted(ascending[:, i], least[:, i]) for i in range(statistics.shape[1])], 1)
    p_values = (len(statistics) - below) / len(statistics)
    smallest = p_values.min(1)
    return p_values[0].tolist(), float(np.mean(smallest <= smallest[0] + 1e-12))
