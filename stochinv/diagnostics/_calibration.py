r"""Calibration where the true signals are known: simulation-based calibration and expected coverage.

A truth and independent draws from its exact posterior are exchangeable. So the rank of any scalar function of the truth
among the same function of `L` draws is uniform on `0 … L`, with ties broken at random.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from .._custom_types import Key, PyTree
from .._ranks import random_rank
from ._bands import uniform_band
from ._common import as_rows, check_probability, flatten_draws, generator, leading_size, new_axes

MOST_QUANTITIES = 100
LEVELS = tuple(float(x) for x in np.round(np.arange(0.05, 1, 0.05), 2))


@final
class Calibration(eqx.Module):
    """Ranks that are uniform where the posterior is right, and tests of that.

    **Arguments:**

    - `ranks`: ranks `0 … num_draws` of every record's scalar quantities, shape `(records, quantities)`.
    - `num_draws`: draws per record.
    - `levels`: nominal levels of credible regions, shape `(levels,)`.
    - `coverage`: the share of records whose region holds the truth, shape `(levels, quantities)`. The regions are
        central intervals; TARP's are balls around the reference point.
    - `coverage_band`: where `coverage` lies for an exact posterior, for all levels and quantities at once; shape
        `(2, levels)`, lower and upper.
    - `points`: where the empirical distribution function of the fractional ranks is taken, shape `(points,)`.
    - `ecdf_difference`: that function minus the uniform one, shape `(points, quantities)`.
    - `ecdf_band`: the simultaneous band for it, shape `(2, points)`.
    - `p_values`: of uniformity of each quantity, shape `(quantities,)`.
    - `confidence`: the probability that exact posteriors stay inside a band.
    - `central`: whether the credible regions are central intervals.
    """

    ranks: Int[np.ndarray, "records quantities"]
    num_draws: int
    levels: Float[np.ndarray, " levels"]
    coverage: Float[np.ndarray, "levels quantities"]
    coverage_band: Float[np.ndarray, "2 levels"]
    points: Float[np.ndarray, " points"]
    ecdf_difference: Float[np.ndarray, "points quantities"]
    ecdf_band: Float[np.ndarray, "2 points"]
    p_values: Float[np.ndarray, " quantities"]
    confidence: float
    central: bool

    @property
    def p_value(self) -> float:
        """The p-value of all quantities together, by Bonferroni's inequality."""
        return min(1.0, float(self.p_values.min()) * len(self.p_values))

    @property
    def uniform(self) -> bool:
        """Whether the distribution functions of all quantities stay inside the band."""
        lower, upper = self.ecdf_band[:, :, None]
        inside = (self.ecdf_difference >= lower - 1e-9) & (self.ecdf_difference <= upper + 1e-9)
        return bool(inside.all())

    def plot(self, ax: Any = None) -> Any:
        """Draws the empirical distribution functions minus the uniform one, with the band.

        **Arguments:**

        - `ax`: Matplotlib axes; new ones by default.

        **Returns:**

        The axes.
        """
        ax = new_axes(ax)
        band(ax, self.points, self.ecdf_band, f"{self.confidence:.0%} band")
        ax.plot(np.r_[0, self.points, 1], np.pad(self.ecdf_difference, ((1, 1), (0, 0))), lw=1.2)
        verdict = "uniform" if self.uniform else "not uniform"
        ax.set(xlabel="fractional rank", ylabel="ECDF − uniform", title=f"{verdict}, p = {self.p_value:.2g}")
        ax.legend(loc="best", frameon=False)
        return ax

    def plot_coverage(self, ax: Any = None) -> Any:
        """Draws the coverage against the nominal level, with the band.

        **Arguments:** and **Returns:** as of `plot`.
        """
        ax = new_axes(ax)
        ax.plot([0, 1], [0, 1], color="0.4", lw=0.8, ls=":")
        band(ax, self.levels, self.coverage_band, f"{self.confidence:.0%} band")
        ax.plot(self.levels, self.coverage, marker="o", ms=3, lw=1.2)
        ax.set(xlabel="nominal level", ylabel="coverage", xlim=(0, 1), ylim=(0, 1))
        ax.legend(loc="upper left", frameon=False)
        return ax


def band(ax: Any, x: Float[np.ndarray, " points"], limits: Float[np.ndarray, "2 points"], label: str):
    ax.fill_between(x, limits[0], limits[1], color="0.5", alpha=0.25, lw=0, label=label)


def calibration_of_ranks(
    ranks: Int[Array, "records quantities"],
    num_draws: int,
    *,
    key: Key,
    levels: tuple[float, ...] = LEVELS,
    confidence: float,
    central: bool = True,
    num_simulations: int | None = None,
) -> Calibration:
    """Everything that follows from independent ranks."""
    check_probability("confidence", confidence)
    for level in levels:
        check_probability("levels", level)
    array = np.asarray(ranks, np.int64)
    number, quantities = array.shape
    if quantities > MOST_QUANTITIES:
        raise ValueError(
            f"Ranks of {quantities} quantities are too many to test at once (at most {MOST_QUANTITIES}); give a few "
            "scalar functions of the signals, such as their mean, norm or single entries."
        )
    rng = generator(key)
    error = (1 - confidence) / quantities
    simulations = max(2000, int(np.ceil(50 / error))) if num_simulations is None else num_simulations
    fractions = (array + rng.uniform(size=array.shape)) / (num_draws + 1)
    nominal = np.sort(np.asarray(levels, np.float64))
    credibility = np.abs(2 * fractions - 1) if central else fractions
    covered = np.stack([(credibility <= level).sum(0) for level in nominal])
    levels_band = uniform_band(covered.T, number, nominal, error, rng, simulations)
    # Every rank, or 100 of them: there the binomial law of the counts is exact.
    cuts = np.unique(np.linspace(0, num_draws - 1, min(num_draws, 100)).astype(int))
    points = (cuts + 1) / (num_draws + 1)
    counts = np.stack([(array <= cut).sum(0) for cut in cuts])
    ecdf_band = uniform_band(counts.T, number, points, error, rng, simulations)
    return Calibration(
        ranks=array,
        num_draws=num_draws,
        levels=nominal,
        coverage=covered / number,
        coverage_band=np.stack([levels_band.lower, levels_band.upper]),
        points=points,
        ecdf_difference=counts / number - points[:, None],
        ecdf_band=np.stack([ecdf_band.lower, ecdf_band.upper]) - points,
        p_values=ecdf_band.p_values,
        confidence=confidence,
        central=central,
    )


def sbc_ranks(
    draws: PyTree,
    truths: PyTree,
    *,
    key: Key,
    levels: tuple[float, ...] = LEVELS,
    confidence: float = 0.95,
    num_simulations: int | None = None,
) -> Calibration:
    r"""Simulation-based calibration: the rank of each entry of a true signal among posterior draws.

    Under the exact posterior every rank is uniform. A necessary condition only: the prior passes too, as do wrong
    dependences between entries; test functions of the signals (give them as `draws` and `truths`) and `tarp` as well.

    **Arguments:**

    - `draws`: independent posterior draws, leaves of shape `(records, draws, ...)`, at most 100 entries each.
    - `truths`: the signals that the conditioning measurements were simulated from, leaves of shape `(records, ...)`.
    - `key`: a PRNG key: ties are broken at random, and the bands are simulated.
    - `levels`: nominal levels in `(0, 1)` of central credible intervals.
    - `confidence`: the probability that an exact posterior stays inside a band, over all entries together.
    - `num_simulations`: simulated samples behind the bands; by default at least 2,000, more for many entries.

    **Returns:**

    A [`stochinv.diagnostics.Calibration`][], its quantities the raveled entries of the signal.

    ??? cite "Source"

        Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration", theorem 1;
        Säilynoja et al. 2022 for the bands.
    """
    samples, values = checked(draws, truths)
    rank_key, band_key = jr.split(key)
    ranks = _entry_ranks(samples, values, rank_key)
    options = {"levels": levels, "confidence": confidence, "num_simulations": num_simulations}
    return calibration_of_ranks(ranks, samples.shape[1], key=band_key, **options)


def tarp(
    draws: PyTree,
    truths: PyTree,
    *,
    key: Key,
    references: PyTree | None = None,
    levels: tuple[float, ...] = LEVELS,
    confidence: float = 0.95,
    num_simulations: int | None = None,
) -> Calibration:
    r"""Tests of accuracy with random points: expected coverage of balls around random reference points.

    The rank of `‖truth − r‖` among `‖draw − r‖` is uniform under the exact posterior, and the coverage at level `q` is
    `q`. Entries are scaled to the range of the truths first. Unlike ranks of entries, all directions are tested.

    **Arguments:**

    - `draws`: independent posterior draws, leaves of shape `(records, draws, ...)`.
    - `truths`: the true signals, leaves of shape `(records, ...)`.
    - `key`: a PRNG key: reference points, ties and bands.
    - `references`: reference points, leaves of shape `(records, ...)`, which may depend on the conditioning
        measurements but not on the truths (a wrong posterior that ignores the data is only found if they do); by
        default uniform over the bounding box of the truths.
    - `levels`, `confidence`, `num_simulations`: as in `sbc_ranks`, with balls in place of intervals.

    **Returns:**

    A [`stochinv.diagnostics.Calibration`][] of one quantity.

    ??? cite "Source"

        Lemos et al. 2023, "Sampling-based accuracy testing of posterior estimators for general inference",
        algorithm 2 and theorem 3.
    """
    samples, values = checked(draws, truths)
    point_key, rank_key, band_key = jr.split(key, 3)
    low, high = jnp.min(values, 0), jnp.max(values, 0)
    width = jnp.where(high > low, high - low, 1)
    if references is None:
        points = low + width * jr.uniform(point_key, values.shape, values.dtype)
    else:
        points = as_rows("references", references)
        if points.shape != values.shape:
            raise ValueError(f"`references` must be shaped as `truths`, {values.shape} raveled, got {points.shape}.")
    ranks = _distance_ranks(samples / width, values / width, points / width, rank_key)
    options = {"levels": levels, "confidence": confidence, "num_simulations": num_simulations}
    return calibration_of_ranks(ranks, samples.shape[1], key=band_key, central=False, **options)


def checked(draws, truths):
    values = as_rows("truths", truths)
    number = leading_size("draws", draws)
    if any(jnp.ndim(x) < 2 for x in jax.tree.leaves(draws)):
        raise ValueError(
            "`draws` must have leaves with two leading axes, (records, draws); stack the draws of each record."
        )
    samples = flatten_draws(draws).astype(values.dtype)
    if number != values.shape[0] or samples.shape[2] != values.shape[1]:
        raise ValueError(
            f"`draws` must be (records, draws, ...) for `truths` of (records, ...), got {samples.shape} and "
            f"{values.shape} with the entries raveled."
        )
    return samples, values


@jax.jit
def _entry_ranks(draws, truths, key):
    return jax.vmap(random_rank)(draws, truths, jr.split(key, truths.shape[0]))


@jax.jit
def _distance_ranks(draws, truths, points, key):
    distances = jnp.sum((draws - points[:, None]) ** 2, -1)
    truth = jnp.sum((truths - points) ** 2, -1)
    return jax.vmap(random_rank)(distances, truth, jr.split(key, truths.shape[0]))[:, None]
