r"""Whether a trained problem's posteriors are right, as far as held-out measurements tell.

Signals stay unknown, so posteriors are compared with measurements. For exact posteriors, and where forward model and
noise are the true ones:

- a draw given all measurements of a record misses them by as much as the signal itself does, by the noise: in its
  standard deviations the root mean square is 1, since signal and draw are exchangeable given the measurements;
- a measurement that was not given has a uniform rank among predictions of it, noise included, so that central intervals
  hold as many as their level says;
- no prediction has a better expected energy score (Gneiting and Raftery 2007).
"""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from ._checks import check_instance, check_integer, check_key
from ._chunks import in_chunks
from ._complex import view_as_parts
from ._custom_types import Key, Signal
from ._data_info import check_structure, standardise_view
from ._denoiser.gaussian_residual import Measured
from ._instrument import effective_number
from ._noise import is_sized
from ._objective.rules import EnergyRule
from ._pareto import LARGEST_SHAPE, pareto_k
from ._problem_base import context_units, encode_context
from ._sampler.importance import ImportanceSampling, choose
from ._sampling import corrects, sample_many
from ._structure import zeros_of
from ._training.records import as_masked, check_views
from ._training.residual import residual
from ._training.watch import LEVELS, hold_out, predict
from ._view import View, count

# The fewest records from whose spread a standard error is taken, and how many are scored at once.
FEWEST, CHUNK = 8, 16
# How many draws given all of a record's measurements are compared with these.
RESIDUAL_DRAWS = 8
# How many weights at least tell whether they can be trusted.
LEAST_WEIGHTS = 128
# What may be off in practice, whatever the number of records says: of the residual, of coverage.
RESIDUAL_TOLERANCE, COVERAGE_TOLERANCE, LEAST_EFFECTIVE, MOST_HEAVY = 0.1, 0.05, 0.05, 0.25


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over held-out records.

    **Arguments:**

    - `value`: the mean; NaN where it is not known.
    - `error`: its standard error over records.
    """

    value: float
    error: float


@dataclasses.dataclass(frozen=True, repr=False)
class Check:
    """What held-out measurements say of a fit; printed, a table and a verdict.

    **Arguments:**

    - `records`, `draws`: how many held-out records there were, and draws given each.
    - `residual`: the root mean square by which draws miss the measurements that they were given, in standard
        deviations of the noise; 1 for exact posteriors. NaN where these are not known.
    - `coverage`: the shares of unseen measurements in central intervals of 50, 80 and 90 %.
    - `energy`: the energy score of predictions of the unseen measurements, in their standard deviations.
    - `energy_gaussian`: that of the Gaussian from which training started. NaN where the noise's size is not known.
    - `energy_others`: that of other records' measurements taken for predictions.
    - `effective`: the effective sample size per draw of the network. NaN without a likelihood, or for signals of more
        than 16 entries.
    - `heavy`: the share of records for which Pareto k is above 0.7, so that corrected draws are not to be relied on.
        NaN as before, and for fewer than 25 draws.
    """

    records: int
    draws: int
    residual: Figure
    coverage: tuple[Figure, ...]
    energy: Figure
    energy_gaussian: Figure
    energy_others: Figure
    effective: Figure
    heavy: Figure

    @property
    def verdict(self) -> str:
        """What is wrong, in one sentence, the gravest first."""
        off = self.residual.value - 1
        if abs(off) > max(3 * self.residual.error, RESIDUAL_TOLERANCE):
            if off > 0:
                return "Draws miss the measurements that they were given: train longer, or check `forward` and `noise`."
            return "Draws keep closer to the given measurements than the noise allows: check `noise`."
        gaps = [c.value - level for c, level in zip(self.coverage, LEVELS, strict=True)]
        wrong = [
            gap for gap, c in zip(gaps, self.coverage, strict=True) if abs(gap) > max(3 * c.error, COVERAGE_TOLERANCE)
        ]
        if wrong:
            what = "narrow" if wrong[0] < 0 else "wide"
            return f"Predictions are too {what}: train longer, with more records, or check `noise`."
        if self.energy.value - self.energy_gaussian.value > 3 * self.energy_gaussian.error:
            return "The Gaussian of the start predicts better than the network: train longer."
        if self.effective.value < LEAST_EFFECTIVE:
            return "Few draws of the network fit the measurements: train longer, or give samplers more proposals."
        if self.heavy.value > MOST_HEAVY:
            return "Given many records, weights of few draws are all that counts: train longer."
        return f"Nothing is wrong that {self.records} records can tell."

    def __repr__(self) -> str:
        at = lambda figure, wanted: _row(figure, f"{wanted:.2f} ± {3 * figure.error:.2f}")
        rows = [("residual at the given data, noise stds", at(self.residual, 1.0))]
        for figure, level in zip(self.coverage, LEVELS, strict=True):
            rows.append((f"coverage of {level:.0%} intervals, unseen data", at(figure, level)))
        rows += [
            ("energy score of unseen data", _row(self.energy, "the least")),
            ("  by the Gaussian of the start", _row(self.energy_gaussian, "")),
            ("  by other records' measurements", _row(self.energy_others, "")),
            ("effective sample size per draw", _row(self.effective, "near 1")),
            ("records with Pareto k above 0.7", _row(self.heavy, "near 0")),
        ]
        lines = [f"  {name:<42}{row}".rstrip() for name, row in rows]
        head = f"{f'Check: {self.records} held-out records, {self.draws} draws each':<44}{'found':>8}   right"
        return "\n".join([head, *lines, self.verdict])


def _row(figure: Figure, right: str) -> str:
    return "not known" if np.isnan(figure.value) else f"{figure.value:>8.3f}   {right}"


def check(problem: Any, held_out: View, key: Key | None, num_samples: int) -> Check:
    """What `fit.check` does."""
    held_out = as_held_out("check", problem, held_out, num_samples, 2)
    number = count(held_out)
    key = jr.key(0) if key is None else key
    check_key(key)
    noised, views = problem.noised, as_masked(held_out)
    split_key, all_key, part_key, score_key, others_key = jr.split(key, 5)
    given, unseen = jax.jit(hold_out)(views, split_key)
    options = {"sampler": None, "chunk_size": 1024}
    draw = lambda views, key, each: sample_many(noised, views, None, key=key, num_samples=each, **options).signal
    weights = {}
    if corrects(noised):
        drawn, weights = _weigh(noised, views, jr.split(all_key, number), max(num_samples, LEAST_WEIGHTS))
    else:
        drawn = draw(views, all_key, RESIDUAL_DRAWS)
    predicting = draw(given, part_key, num_samples)
    others = jr.randint(others_key, (number, num_samples), 1, number) + jnp.arange(number)[:, None]
    records = (views, given, unseen, drawn, predicting, others % number, jr.split(score_key, number))
    known = is_sized(noised.measurement_noise, jax.tree.map(lambda x: x[0], unseen.observation))
    found = _scores(noised, records, unseen.observation, known and not noised.measurement_noise.exact)
    return _figures(number, num_samples, {name: np.asarray(x, np.float64) for name, x in (found | weights).items()})


def as_held_out(caller: str, problem: Any, held_out: View, num_samples: int, least: int) -> View:
    """Held-out records like those of training, of real and imaginary parts.

    **Arguments:**

    - `caller`: who asks, for errors.
    - `problem`: a trained [`stochinv.StochasticInverseProblem`][].
    - `held_out`: what a user gave.
    - `num_samples`: a number of draws, at least `least`.

    **Raises:**

    `ValueError` in measurement space, and if an argument is not what it must be.
    """
    if problem.space is None or not problem.space.of_signals:
        raise ValueError(
            f"`{caller}` is for signal space, but the problem is in measurement space; use "
            "`si.diagnostics.measurement_calibration(fit.problem, held_out, roles=..., key=...)`."
        )
    check_instance("`held_out`", held_out, View, "a `View` with leading (record, views) axes")
    check_integer("`num_samples`", num_samples, least)
    check_views("held_out", held_out, problem, 1)
    held_out = cast(View, view_as_parts(held_out))
    record = jax.tree.map(lambda x: x[0, 0], View(held_out.observation, held_out.params))
    remedy = "give records like those of the training data"
    check_structure("held_out[0, 0]", record, problem.data_info.measurement, remedy)
    number = count(held_out)
    if number < FEWEST:
        raise ValueError(f"`held_out` has {number} records, but at least {FEWEST} are needed; hold out more.")
    return held_out


@eqx.filter_jit
def _scores(problem, records, measurements, known_noise):
    """What each record tells."""
    units = context_units(problem)
    measured = Measured(problem.measure, problem.measurement_noise, units)
    flat = lambda observation: ravel_pytree(units.standardise(observation))[0]
    others = jax.vmap(flat)(measurements)

    def one(inputs):
        views, given, unseen, drawn, predicting, index, key = inputs
        predict_key, gaussian_key, second_key = jr.split(key, 3)
        number = index.shape[0]
        squares, counts = jnp.nan, jnp.nan
        gaussian = jnp.nan
        if known_noise:
            encoded = standardise_view(units, problem.as_context(views))
            squares, counts = jax.vmap(lambda s: residual(problem, measured, s, encoded))(drawn)
            signals = _gaussian(problem, measured, problem.as_context(given), gaussian_key, number)
            gaussian = predict(problem, signals, unseen, second_key)["energy"]
        return predict(problem, predicting, unseen, predict_key) | {
            "squares": jnp.mean(squares),
            "counts": jnp.mean(counts),
            "energy_gaussian": gaussian,
            "energy_others": EnergyRule()((others[index],), (flat(unseen.observation),)),
        }

    return in_chunks(one, records, CHUNK)


def _gaussian(problem, measured, views, key, number) -> Signal:
    """Draws of the Gaussian in whose coordinates signals are noised, given views."""
    flat, unravel = zeros_of(problem.signal)
    signal = lambda z: problem.units.destandardise(unravel(z))
    evidence = measured.evidence(problem.data_info.form, signal, flat, standardise_view(measured.units, views))
    centre = evidence.estimate(jnp.ones((), flat.dtype), flat)
    spread = lambda e: evidence.apply(lambda values: 1 / jnp.sqrt(1 + values), e)
    noise = jr.normal(key, (number, flat.size), flat.dtype)
    return jax.vmap(lambda e: signal(centre + spread(e)))(noise)


@eqx.filter_jit
def _weigh(problem, views, keys, number):
    """Draws given all views of a record, chosen of weighted ones, and what the weights are like."""

    def one(inputs):
        view, key = inputs
        propose_key, choice_key = jr.split(key)
        context = encode_context(problem, problem.as_context(view))
        proposals, log_weights = ImportanceSampling().propose(problem, context, propose_key, number)
        drawn = choose(proposals, log_weights, choice_key, RESIDUAL_DRAWS)
        shape = pareto_k(log_weights)
        heavy = jnp.where(shape == jnp.inf, jnp.nan, shape > LARGEST_SHAPE)
        found = {"effective": effective_number(log_weights) / number, "heavy": heavy}
        return drawn, found

    return in_chunks(one, (views, keys), CHUNK)


def _figures(number: int, draws: int, found: dict[str, Any]) -> Check:
    """Means over records, and their standard errors."""
    unknown = np.full(number, np.nan)
    mean = lambda x: Figure(float(np.mean(x)), float(np.std(x, ddof=1) / np.sqrt(number)))
    square = found["squares"].sum() / found["counts"].sum()
    # Of a ratio of means, and of its root.
    rest = (found["squares"] - square * found["counts"]) / found["counts"].mean()
    root = float(np.sqrt(square))
    difference = mean(found["energy_gaussian"] - found["energy"])
    return Check(
        records=number,
        draws=draws,
        residual=Figure(root, mean(rest).error / (2 * root)),
        coverage=tuple(mean(inside) for inside in found["inside"].T),
        energy=mean(found["energy"]),
        energy_gaussian=Figure(float(np.mean(found["energy_gaussian"])), difference.error),
        energy_others=mean(found["energy_others"]),
        effective=mean(found.get("effective", unknown)),
        heavy=mean(found.get("heavy", unknown)),
    )
