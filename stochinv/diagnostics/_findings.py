r"""What a report says: one decision on all tests, and warnings, from plain arrays.

The tests are of predictions, of draws against the measurements that they were given, and of signals where they are
known. Holm's rule makes one decision of them: where all is right, one is rejected with a probability of at most 5 %
(Holm 1979, "A simple sequentially rejective multiple test procedure"). Warnings are apart from it, of level 1 % each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._check import COVERAGE_TOLERANCE, LEAST_EFFECTIVE, RESIDUAL_TOLERANCE
from .._custom_types import Key
from .._ranks import fractional_ranks
from ._common import generator
from ._held_out import HeldOut, Residuals
from ._joint import JointCalibration, joint_calibration
from ._residuals import PredictiveResiduals, predictive_residuals

LEVEL, WARNING_LEVEL = 0.05, 0.01
LEVELS = (0.5, 0.8, 0.9)
# Fewer records are few, whatever their spread.
FEW = 30
# Of offsets and correlations of residuals, what is too small to matter.
LEAST_STRUCTURE = 0.1
# The share of records that are called unusual by chance, and of how many records the numbers are told.
SHARE_UNUSUAL, MOST_TOLD = 0.05, 10
NUM_BOOTSTRAP, NUM_SIMULATED = 1000, 10_000


class Test(NamedTuple):
    """A test: what it asks, its p-value, that with all tests counted, and what it found where it rejects."""

    question: str
    p_value: float
    adjusted: float
    found: str

    @property
    def wrong(self) -> bool:
        return self.adjusted <= LEVEL


class Coverage(NamedTuple):
    """The share of values in central intervals, and the ends of a 95 % interval for it, by resampling records."""

    level: float
    share: float
    low: float
    high: float


class Findings(NamedTuple):
    """What a report says, by names that tell; each part is `None` where it is not known."""

    records: int
    draws: int
    tests: dict[str, Test]
    predictions: JointCalibration
    signals: JointCalibration | None
    residuals: PredictiveResiduals | None
    coverage: list[Coverage]
    signal_coverage: list[Coverage] | None
    effective: float | None
    unusual: list[int]
    unusual_p_value: float
    warnings: list[str]

    @property
    def verdict(self) -> str:
        """What is wrong, in one sentence."""
        wrong = sorted((x for x in self.tests.values() if x.wrong), key=lambda x: x.adjusted)
        if not wrong:
            return f"Nothing is wrong that {self.records} held-out records can tell."
        return f"These posteriors are wrong: {'; '.join(x.found for x in wrong)}."


def judge(found: HeldOut, key: Key) -> Findings:
    """Tests what was found of held-out records.

    **Arguments:**

    - `found`: the arrays.
    - `key`: a PRNG key.
    """
    predicted_key, signal_key, residual_key, rest_key, *rank_keys = jr.split(key, 6)
    rng = generator(rest_key)
    number, draws = found.predicted.shape[:2]
    predictions = joint_calibration(found.predicted, found.unseen, contexts=found.given, key=predicted_key)
    signals = None
    if found.signals is not None:
        signals = joint_calibration(found.drawn, found.signals, contexts=found.measured, key=signal_key)
    residuals = None if found.residuals is None else _tested(found.residuals, residual_key)
    coverage = _coverage(found.predicted, found.unseen, rank_keys[0], rng)
    effective = None if found.effective is None else float(np.mean(found.effective))
    unusual, unusual_p_value = _unusual(found.likely, found.usual, rng)
    warnings = [
        *_few_records(number, coverage),
        *([] if residuals is None else _structure(residuals)),
        *_unusual_records(unusual, unusual_p_value, number),
        *_few_weights(effective),
    ]
    return Findings(
        records=number,
        draws=draws,
        tests=_tests(predictions, signals, residuals),
        predictions=predictions,
        signals=signals,
        residuals=residuals,
        coverage=coverage,
        signal_coverage=None if signals is None else _coverage(found.drawn, found.signals, rank_keys[1], rng),
        effective=effective,
        unusual=unusual,
        unusual_p_value=unusual_p_value,
        warnings=warnings,
    )


def _tested(residuals: Residuals, key):
    return predictive_residuals(residuals.predicted, residuals.observed, residuals.std, key=key, mask=residuals.mask)


def _tests(predictions, signals, residuals):
    """The tests by name, their p-values adjusted by Holm's rule."""
    given = {
        "predictions": (
            "Do measurements that were not given look like one more of their predictions?",
            predictions.p_value,
            _fault("predictions of unseen measurements", predictions),
        )
    }
    if signals is not None:
        question = "Do the true signals look like one more draw of their posteriors?"
        given["signals"] = (question, signals.p_value, _fault("draws of the signal", signals))
    if residuals is not None:
        close = abs(residuals.rms - 1) <= RESIDUAL_TOLERANCE
        size = f"{residuals.rms:.2f} standard deviations of the noise instead of 1.00"
        given["given data"] = (
            "Do draws agree with the measurements that they were given, to within the noise?",
            1.0 if close else residuals.size_p_value,
            f"draws miss the measurements that they were given by {size}",
        )
    order = sorted(given, key=lambda name: given[name][1])
    adjusted, largest = {}, 0.0
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, (len(given) - place) * given[name][1]))
        adjusted[name] = largest
    return {name: Test(question, p, adjusted[name], told) for name, (question, p, told) in given.items()}


def _fault(what: str, found: JointCalibration) -> str:
    """What the tests that reject most clearly say of draws."""
    clearest = min(found.p_values.values())
    names = [name for name, p in found.p_values.items() if p <= clearest]
    width = "narrow" if found.spread < 1 else "wide"
    told = {
        "missed": f"miss values that occur, {max(found.missed, 0):.0%} of all",
        "spread": f"are too {width}, by a factor of about {found.spread:.2f}",
        "bias": f"are shifted, by about {abs(found.bias):.2f} of their standard deviations",
        "shape": "have another shape than the true values",
        "context": "are wrong in a way that depends on what was measured",
    }
    # What explains the others comes first: missing values shift what is left and make it narrow.
    first = [name for name in told if name in names and (name != "missed" or found.missed > COVERAGE_TOLERANCE)]
    return f"{what} {' and '.join(told[name] for name in first[:2] or names[:1])}"


def _coverage(draws, values, key, rng) -> list[Coverage]:
    """Coverage of central intervals, entries pooled, with its spread over records."""
    number = len(values)
    ranks = jax.vmap(lambda draws, value, key: fractional_ranks(draws, value, key=key))
    central = np.abs(2 * np.asarray(ranks(jnp.asarray(draws), jnp.asarray(values), jr.split(key, number))) - 1)
    resampled = rng.multinomial(number, np.full(number, 1 / number), NUM_BOOTSTRAP) / number
    found = []
    for level in LEVELS:
        each = (central <= level).mean(1)
        low, high = np.quantile(resampled @ each, [0.025, 0.975])
        found.append(Coverage(level, float(each.mean()), float(low), float(high)))
    return found


def _unusual(
    likely: Float[np.ndarray, " records"], usual: Float[np.ndarray, " simulated"], rng: np.random.Generator
) -> tuple[list[int], float]:
    """Records less likely than nearly all that the prior makes, the least likely first, and how probable so many are by
    chance."""
    number, simulated = len(likely), len(usual)
    place = max(round(SHARE_UNUSUAL * (simulated + 1)), 1)
    limit = np.sort(usual)[place - 1]
    unusual = np.flatnonzero(likely < limit)
    # How much of the law of records is below the limit is known by those simulated alone.
    share = rng.beta(place, simulated + 1 - place, NUM_SIMULATED)
    by_chance = rng.binomial(number, share)
    p_value = (1 + np.sum(by_chance >= len(unusual))) / (1 + NUM_SIMULATED)
    return unusual[np.argsort(likely[unusual])].tolist(), float(p_value)


def _few_records(number, coverage):
    last = coverage[-1]
    # Of very few records all may be inside by chance, and then resampling knows of no spread.
    if number >= FEW and (last.high - last.low) / 2 <= COVERAGE_TOLERANCE:
        return []
    return [
        f"{number} held-out records are few: by chance alone, the share of measurements in {last.level:.0%} intervals "
        f"lies anywhere from {last.low:.0%} to {last.high:.0%}. Faults of that size go unseen; hold out more."
    ]


def _structure(residuals):
    found = []
    entries = np.concatenate([np.ravel(x) for x in jax.tree.leaves(residuals.offset)])
    if residuals.offset_p_value <= WARNING_LEVEL and np.abs(entries).max() > LEAST_STRUCTURE:
        found.append(
            "The forward model does not match the measurements: at the same places draws miss them to the same side in "
            f"many records, by up to {np.abs(entries).max():.2f} standard deviations of the noise."
        )
    if residuals.correlation_p_value <= WARNING_LEVEL and abs(residuals.correlation) > LEAST_STRUCTURE:
        found.append(
            "The forward model or the noise does not match the measurements: in what draws leave unexplained "
            f"neighbouring entries go together (a correlation of {residuals.correlation:.2f} instead of 0)."
        )
    return found


def _unusual_records(unusual, p_value, number):
    if p_value > WARNING_LEVEL:
        return []
    few = ", ".join(map(str, unusual[:MOST_TOLD])) + (", …" if len(unusual) > MOST_TOLD else "")
    return [
        f"{len(unusual)} of {number} records are unlike what was learned from, where {SHARE_UNUSUAL:.0%} would be by "
        f"chance: do not rely on their posteriors. The least usual are numbers {few}, counted from 0."
    ]


def _few_weights(effective):
    if effective is None or effective >= LEAST_EFFECTIVE:
        return []
    return [
        f"Only {effective:.1%} of the network's draws fit the measurements, so that corrected draws repeat a few of "
        "them: train longer."
    ]
