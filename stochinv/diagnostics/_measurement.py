r"""Calibration on real data, where no signal is known: held-out measurements among predicted ones.

Given a context, the exact posterior's predictions of another measurement, noise included, are exchangeable with the
measurement itself. So the rank of any scalar function of it among predictions is uniform. Entries (pixels) of one
record are dependent, however: `N` records are `N` independent pieces of evidence, not `N` times the entries.
Two tests respect this:

- *entries*: each record's share of entries covered (or at or below a fractional rank) is one number of expectation
  equal to the nominal level; their mean over records has a standard error from their spread over records, and a
  simultaneous band from the quantile of the maximum of a multivariate t law (Hothorn et al. 2008, "Simultaneous
  inference in general parametric models", section 3);
- *projections*: one random linear functional of the measurement per record gives independent ranks, which exact bands
  (Säilynoja et al. 2022) apply to. It also finds entries that are right one by one, and wrong together.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._custom_types import AnyCallable, Key
from .._forward.base import as_multi_view
from .._noise import add_noise
from .._problem import StochasticInverseProblem
from .._ranks import fractional_ranks, random_rank
from .._sampler.base import AbstractSampler
from .._view import Example, RandomViews, View, view_mask
from ._calibration import Calibration, band, calibration_of_ranks
from ._common import check_at_least_one, check_probability, generator, leading_size, new_axes

NUM_POINTS = 19


@final
class MeasurementCalibration(eqx.Module):
    """Coverage and ranks of held-out measurements among predicted ones.

    **Arguments:**

    - `levels`: nominal levels of central predictive intervals, shape `(levels,)`.
    - `coverage`: the share of entries inside, mean over records, shape `(levels,)`.
    - `coverage_band`: simultaneous confidence band of the coverage, over records, shape `(2, levels)`.
    - `record_coverage`: the share of each record's entries inside, shape `(records, levels)`.
    - `points`, `ecdf_difference`: the pooled empirical distribution function of the entries' fractional ranks minus
        the uniform one, shape `(points,)`.
    - `ecdf_band`: the simultaneous band for it, over records, shape `(2, points)`, around zero.
    - `coverage_p_value`, `ecdf_p_value`: of the two tests of entries.
    - `projections`: the [`stochinv.diagnostics.Calibration`][] of random linear functionals, independent over records.
    - `confidence`: the probability that an exact posterior stays inside a band.
    """

    levels: Float[np.ndarray, " levels"]
    coverage: Float[np.ndarray, " levels"]
    coverage_band: Float[np.ndarray, "2 levels"]
    record_coverage: Float[np.ndarray, "records levels"]
    points: Float[np.ndarray, " points"]
    ecdf_difference: Float[np.ndarray, " points"]
    ecdf_band: Float[np.ndarray, "2 points"]
    coverage_p_value: float
    ecdf_p_value: float
    projections: Calibration
    confidence: float

    @property
    def p_value(self) -> float:
        """The p-value of the three tests together, by Bonferroni's inequality."""
        return min(1.0, 3 * min(self.coverage_p_value, self.ecdf_p_value, self.projections.p_value))

    @property
    def calibrated(self) -> bool:
        """Whether the three tests together find nothing wrong."""
        return self.p_value > 1 - self.confidence

    def plot(self, ax: Any = None) -> Any:
        """Draws the pooled distribution function of the entries' ranks, minus the uniform one, with the band.

        `projections.plot()` draws that of the random functionals.

        **Arguments:**

        - `ax`: Matplotlib axes; new ones by default.

        **Returns:**

        The axes.
        """
        ax = new_axes(ax)
        ax.axhline(0, color="0.4", lw=0.8, ls=":")
        band(ax, self.points, self.ecdf_band, f"{self.confidence:.0%} band over records")
        ax.plot(np.r_[0, self.points, 1], np.pad(self.ecdf_difference, 1), lw=1.2, label="entries, pooled")
        ax.set(
            xlabel="fractional rank of the measurement",
            ylabel="ECDF − uniform",
            title=f"p = {self.ecdf_p_value:.2g}",
        )
        ax.legend(loc="best", frameon=False)
        return ax

    def plot_coverage(self, ax: Any = None) -> Any:
        """Draws the coverage against the nominal level, with its confidence band.

        **Arguments:** and **Returns:** as of `plot`.
        """
        ax = new_axes(ax)
        ax.plot([0, 1], [0, 1], color="0.4", lw=0.8, ls=":", label="exact")
        error = np.abs(self.coverage_band - self.coverage)
        label = f"{self.confidence:.0%} band over records"
        ax.errorbar(self.levels, self.coverage, yerr=error, fmt="o", ms=4, capsize=3, label=label)
        ax.set(xlabel="nominal level", ylabel="coverage of entries", xlim=(0, 1), ylim=(0, 1))
        ax.legend(loc="upper left", frameon=False)
        return ax


def measurement_calibration(
    problem: StochasticInverseProblem,
    data: Example | View,
    *,
    key: Key,
    roles: RandomViews | None = None,
    num_samples: int = 127,
    levels: tuple[float, ...] = (0.5, 0.8, 0.9),
    sampler: AbstractSampler | AnyCallable | None = None,
    resolution: float | int | None = None,
    limits: tuple[float | int, float | int] | None = None,
    num_projections: int = 2,
    confidence: float = 0.95,
    batch_size: int = 8,
) -> MeasurementCalibration:
    r"""Tests the posterior against measurements that it was not given.

    For each record, signals are drawn given the context through the target's parameters (the target's observation is
    not used), the novel views are predicted, measurement noise included, and the observed ones ranked among the
    predictions. Without novel views the target is predicted.

    **Arguments:**

    - `problem`: a trained problem.
    - `data`: held-out records: an [`stochinv.Example`][] whose leaves have a leading record axis, or a
        [`stochinv.View`][] with leading (record, views) axes together with `roles`. Records must be independent of each
        other and of the training data.
    - `key`: a PRNG key.
    - `roles`: deals the views of each record, once.
    - `num_samples`: posterior draws per record.
    - `levels`: nominal levels in `(0, 1)` of central predictive intervals.
    - `sampler`: as in `sample`.
    - `resolution`: what the data are rounded to, in raw units (1/255 for grey levels in `[0, 1]`): predictions and
        measurements are rounded to its multiples, and ties broken at random. `None` does not round.
    - `limits`: what the data are clipped to, in raw units; applied to both. `None` does not clip.
    - `num_projections`: random linear functionals per record; each is tested on its own.
    - `confidence`: the probability that an exact posterior stays inside a band.
    - `batch_size`: how many records are sampled at once; memory grows with it times `num_samples`.

    **Returns:**

    A [`stochinv.diagnostics.MeasurementCalibration`][].

    **Raises:**

    `ValueError` if the problem is not trained, `roles` are missing or superfluous, or there are fewer than 8 records.
    """
    check_at_least_one(num_samples=num_samples, num_projections=num_projections, batch_size=batch_size)
    check_probability("confidence", confidence)
    for level in levels:
        check_probability("levels", level)
    number = _check_records(data, roles, resolution)
    data = jax.tree.map(jnp.asarray, data)
    record_key, rank_key, band_key = jr.split(key, 3)
    keys, options = jr.split(record_key, number), (num_samples, num_projections, resolution, limits)
    fractions, weights, ranks = _all_records(problem, data, keys, roles, sampler, options, min(batch_size, number))
    projections = calibration_of_ranks(ranks, num_samples, key=rank_key, confidence=confidence)
    fractions, weights = np.asarray(fractions, np.float64), np.asarray(weights, np.float64)
    return _calibration_of_entries(fractions, weights, np.sort(levels), projections, generator(band_key))


def _calibration_of_entries(fractions, weights, levels, projections, rng):
    """The tests of entries, of their fractional ranks and of which of them count, beside that of projections."""
    confidence, entries = projections.confidence, float(weights.sum(1).mean())
    points = np.arange(1, NUM_POINTS + 1) / (NUM_POINTS + 1)
    covered = _share(np.abs(2 * fractions - 1), weights, levels)
    below = _share(fractions, weights, points)
    width, coverage_p_value = _mean_test(covered, levels, entries, confidence, rng)
    ecdf_width, ecdf_p_value = _mean_test(below, points, entries, confidence, rng)
    coverage = covered.mean(0)
    return MeasurementCalibration(
        levels=levels,
        coverage=coverage,
        coverage_band=np.clip(np.stack([coverage - width, coverage + width]), 0, 1),
        record_coverage=covered,
        points=points,
        ecdf_difference=below.mean(0) - points,
        ecdf_band=np.stack([-ecdf_width, ecdf_width]),
        coverage_p_value=coverage_p_value,
        ecdf_p_value=ecdf_p_value,
        projections=projections,
        confidence=confidence,
    )


def _check_records(data, roles, resolution):
    """The number of records, which have to be enough, and to have roles; what they are rounded to is positive."""
    if resolution is not None and not resolution > 0:
        raise ValueError(f"`resolution` must be positive, got {resolution}; leave it out where data are not rounded.")
    if isinstance(data, View) and roles is None:
        raise ValueError("`data` is a `View`, so `roles` are needed: give `roles=RandomViews(...)`.")
    if isinstance(data, Example) and roles is not None:
        raise ValueError("`roles` are for a `View`; `data` is an `Example`, whose roles are dealt: leave `roles` out.")
    number = leading_size("data", data)
    if number < 8:
        raise ValueError(
            f"`data` must hold at least 8 records, got {number}; hold out more, since bands are estimated over records."
        )
    return number


@eqx.filter_jit
def _all_records(problem, data, keys, roles, sampler, options, batch_size):
    one = lambda inputs: _record(problem, inputs[0], inputs[1], roles, sampler, options)
    return jax.lax.map(one, (data, keys), batch_size=batch_size)


def _record(problem, example, key, roles, sampler, options):
    """Fractional ranks of the entries, which entries count, and ranks of random functionals."""
    num_samples, num_projections, resolution, limits = options
    role_key, sample_key, noise_key, direction_key, rank_key, tie_key = jr.split(key, 6)
    if roles is not None:
        example = roles(example, key=role_key)
    target = example.target
    signals = problem.sample(
        example.context, target.params, key=sample_key, sampler=sampler, num_samples=num_samples, chunk_size=num_samples
    ).signal
    held_out = target if example.novel is None else example.novel
    forward = problem.forward if example.novel is None else as_multi_view(problem.forward)

    def predict(signal, key):
        observation = forward(signal, held_out.params)
        noisy = add_noise(problem.noise, observation, key=key, stacked=example.novel is not None)
        return ravel_pytree(noisy)[0]

    def recorded(values):
        values = values if limits is None else jnp.clip(values, *limits)
        return values if resolution is None else jnp.round(values / resolution)

    observed = recorded(ravel_pytree(held_out.observation)[0])
    predicted = recorded(jax.vmap(predict)(signals, jr.split(noise_key, num_samples)))
    weights = jnp.ones(observed.shape, observed.dtype)
    if example.novel is not None:
        each = jax.vmap(lambda o, m: jax.tree.map(lambda x: jnp.full(x.shape, m, observed.dtype), o))
        weights = ravel_pytree(each(example.novel.observation, view_mask(example.novel)))[0]
    fractions = fractional_ranks(predicted, observed, key=rank_key)
    directions = weights * jr.normal(direction_key, (num_projections, observed.size), observed.dtype)
    # One product for both, so that equal measurements get equal projections.
    projected = jnp.concatenate([jnp.where(weights > 0, observed, 0)[None], predicted]) @ directions.T
    return fractions, weights, random_rank(projected[1:], projected[0], tie_key)


def _share(values, weights, thresholds):
    """The share of each record's entries at or below the thresholds."""
    total = weights.sum(1)
    if not np.all(total > 0):
        raise ValueError("`data` has records whose novel views are all masked; leave these records out.")
    return np.stack([((values <= t) * weights).sum(1) / total for t in thresholds], 1)


def _mean_test(
    values: Float[np.ndarray, "records points"],
    expected: Float[np.ndarray, " points"],
    entries: float,
    confidence: float,
    rng: np.random.Generator,
    num_simulations: int = 20000,
) -> tuple[Float[np.ndarray, " points"], float]:
    """Half-widths of a simultaneous band of the mean over records, and the p-value of the expected one."""
    number = values.shape[0]
    centred = values - values.mean(0)
    spread = centred.std(0, ddof=1)
    # Never below that of independent entries: few records can agree by chance.
    error = np.maximum(spread, np.sqrt(expected * (1 - expected) / entries)) / np.sqrt(number)
    scaled = centred / np.where(spread > 0, spread, 1)
    eigenvalues, basis = np.linalg.eigh(scaled.T @ scaled / (number - 1))
    root = basis * np.sqrt(np.maximum(eigenvalues, 0))
    normal = rng.normal(size=(num_simulations, len(expected))) @ root.T
    chi = np.sqrt(rng.chisquare(number - 1, (num_simulations, 1)) / (number - 1))
    largest = np.sort(np.abs(normal / chi).max(1))
    observed = np.max(np.abs(values.mean(0) - expected) / error)
    p_value = (1 + num_simulations - np.searchsorted(largest, observed)) / (1 + num_simulations)
    return np.quantile(largest, confidence) * error, float(p_value)
