"""One decision on posteriors: a right one passes as often as stated, and wrong ones do not."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import refusals
from helpers import condition
from stochinv import diagnostics

LEVEL, RECORDS, DRAWS, SIZE = 0.05, 500, 64, 3
ROWS = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])


def gaussian(rng, *, records=RECORDS, draws=DRAWS, width=1.0, shift=0.0, ignore=False):
    """Draws, truths and measurements of a conjugate Gaussian problem; half a standard deviation is of each entry's."""
    truths = rng.normal(size=(records, SIZE))
    observed = truths @ ROWS.T + 0.5 * rng.normal(size=(records, 2))
    mean, covariance = condition(np.zeros((SIZE, 1)), np.eye(SIZE), ROWS, observed.T, 0.25 * np.eye(2))
    noise = rng.normal(size=(records, draws, SIZE))
    if ignore:
        return noise, truths, observed
    around = width * noise @ np.linalg.cholesky(covariance).T + shift * np.sqrt(np.diag(covariance))
    return mean.T[:, None] + around, truths, observed


def two_modes(rng, *, records=RECORDS, draws=DRAWS, between=False, **fault):
    """The same of posteriors with a second mode of weight a tenth, to one side of the first or between its halves."""
    observed = rng.normal(size=(records, 2))

    def law(*shape, weight=0.1, width=1.0, shift=0.0):
        second = rng.random((*shape, 1)) < weight
        first = np.where(rng.random((*shape, 1)) < 0.5, -4.0, 4.0) if between else 0.0
        centre = np.where(second, 0.0 if between else 4.0, first) * np.sqrt(0.5)
        return centre + 0.5 * (width * rng.normal(size=(*shape, 2)) + shift)

    return observed[:, None] + law(records, draws, **fault), observed + law(records), observed


PROBLEMS = {"gaussian": gaussian, "two modes": two_modes, "between": lambda rng, **o: two_modes(rng, between=True, **o)}
FAULTS = [
    ("gaussian", {"width": 1.2}, "spread"),
    ("gaussian", {"width": 1 / 1.2}, "spread"),
    ("gaussian", {"shift": 0.5}, "bias"),
    ("gaussian", {"ignore": True}, "context"),
    ("two modes", {"width": 1.2}, "spread"),
    ("two modes", {"width": 1 / 1.2}, "spread"),
    ("two modes", {"shift": 0.5}, "bias"),
    ("two modes", {"weight": 0.0}, "missed"),
    ("between", {"weight": 0.0}, "missed"),
]


def decide(arrays, key, num_simulations=399):
    draws, truths, observed = (jnp.asarray(x, jnp.float32) for x in arrays)
    return diagnostics.joint_calibration(draws, truths, contexts=observed, key=key, num_simulations=num_simulations)


@pytest.mark.thorough
def test_false_alarms_are_as_many_as_stated():
    """With few records, few draws and every tenth value tied; of each test by itself, too."""
    rng, repeats = np.random.default_rng(0), 200
    found = []
    for i in range(repeats):
        draws, truths, observed = two_modes(rng, records=30, draws=15)
        found.append(decide((np.round(draws, 1), np.round(truths, 1), observed), jr.key(i), 99))
    most = LEVEL * repeats + 4 * np.sqrt(LEVEL * (1 - LEVEL) * repeats)
    assert 0 < sum(not x.calibrated for x in found) <= most
    for name in found[0].p_values:
        assert 0 < sum(x.p_values[name] <= LEVEL for x in found) <= most, name


@pytest.mark.parametrize(("problem", "fault", "name"), FAULTS, ids=str)
def test_faults_are_found(problem, fault, name):
    found = decide(PROBLEMS[problem](np.random.default_rng(0), **fault), jr.key(0), 199)
    # Other tests may find it, too, and one of them all makes a p-value of five.
    assert not found.calibrated and found.p_value <= 5 / 200 and found.p_values[name] == 1 / 200


def test_it_tells_by_how_much():
    rng = np.random.default_rng(0)
    for width in (0.8, 1.25):
        found = decide(gaussian(rng, width=width), jr.key(0), 9)
        # Of the quantity that is farthest off; the ratio of two standard deviations has an error of 1/√(2N).
        assert abs(found.spread / width - 1) < 5 / np.sqrt(2 * RECORDS)
    assert decide(gaussian(rng, shift=-0.5), jr.key(0), 9).bias > 0.4
    # A tenth of all truths, less those few records that have no other truth to be far from.
    found = decide(two_modes(rng, weight=0.0), jr.key(0), 9)
    assert abs(found.missed - 0.1) < 4 * np.sqrt(0.09 / RECORDS)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_right_posterior_passes(problem):
    """At least 93 of 100, as 95 do on average, with a standard error of 2: fewer fail a test of 400."""
    rng, repeats = np.random.default_rng(0), 400
    passed = sum(decide(PROBLEMS[problem](rng), jr.key(i)).calibrated for i in range(repeats))
    assert passed >= 0.93 * repeats


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "fault", "name"), FAULTS, ids=str)
def test_power(problem, fault, name):
    rng, repeats = np.random.default_rng(1), 50
    found = sum(not decide(PROBLEMS[problem](rng, **fault), jr.key(i)).calibrated for i in range(repeats))
    assert found >= 0.9 * repeats


def test_images_and_trees():
    rng = np.random.default_rng(0)
    image = lambda *shape: jnp.asarray(rng.normal(size=(*shape, 12, 12)) * np.linspace(0, 3, 12), jnp.float32)
    right = diagnostics.joint_calibration(image(100, 16), image(100), key=jr.key(0), num_simulations=99)
    narrow = diagnostics.joint_calibration(0.8 * image(100, 16), image(100), key=jr.key(0), num_simulations=99)
    assert right.calibrated and list(right.p_values) == ["bias", "spread", "missed", "shape"]
    assert narrow.p_values["spread"] == 0.01
    draws, truths = image(100, 16), image(100)
    tree = lambda x: {"a": x[..., :4, :], "b": x[..., 4:, :]}
    found = [
        diagnostics.joint_calibration(d, t, key=jr.key(0), num_simulations=9)
        for d, t in ((draws, truths), (tree(draws), tree(truths)))
    ]
    assert found[0] == found[1]


GOOD = [np.float32(x) for x in gaussian(np.random.default_rng(0), records=20, draws=10)]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((GOOD[0][:5], GOOD[1][:5]), {}, "at least 8 records of 8 draws, got 5 of 10"),
        ((GOOD[0][:, :5], GOOD[1]), {}, "at least 8 records of 8 draws, got 20 of 5"),
        ((GOOD[0][:10], GOOD[1]), {}, "`draws` must be .records, draws"),
        (GOOD[:2], {"contexts": GOOD[2][:9]}, "`contexts` has 9 records, but `truths` 20"),
        (GOOD[:2], {"confidence": 1.0}, "`confidence` must lie strictly between"),
        (GOOD[:2], {"num_simulations": 0}, "`num_simulations` must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(arguments, options, message):
    refusals.refuse(lambda: diagnostics.joint_calibration(*arguments, key=jr.key(0), **options), message, compiles=True)
