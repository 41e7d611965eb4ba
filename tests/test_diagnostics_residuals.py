"""What draws leave unexplained: nothing but noise where they are right, and what was done to the data where it was."""

import jax.random as jr
import numpy as np
import pytest

import refusals
from stochinv import diagnostics

RECORDS, DRAWS, SHAPE, STD = 100, 4, (2, 6), 0.3


def measurements(rng, *, scale=1.0, offset=0.0, smooth=0.0, records=RECORDS):
    """Predictions of draws, and measurements; what is left is half the noise of these, and half that of draws."""
    noise = rng.normal(size=(records, 1, *SHAPE))
    noise = np.sqrt(0.5) * (noise + rng.normal(size=(records, DRAWS, *SHAPE)))
    noise[..., 1:] += smooth * noise[..., :-1]
    observed = rng.normal(size=(records, *SHAPE))
    return observed[:, None] - STD * (scale * noise + offset), observed


def test_false_alarms_are_as_many_as_stated():
    rng, repeats = np.random.default_rng(0), 200
    found = [
        diagnostics.predictive_residuals(*measurements(rng), STD, key=jr.key(i), num_flips=99) for i in range(repeats)
    ]
    for name in ("size_p_value", "offset_p_value", "correlation_p_value", "p_value"):
        alarms = sum(getattr(x, name) <= 0.05 for x in found)
        assert alarms <= 0.05 * repeats + 4 * np.sqrt(0.05 * 0.95 * repeats), name
    rms, error = (np.mean([getattr(x, name) for x in found]) for name in ("rms", "rms_error"))
    assert abs(rms - 1) < 4 * error / np.sqrt(repeats) + 0.001
    assert abs(np.std([x.rms for x in found]) / error - 1) < 4 / np.sqrt(2 * repeats)


def test_faults_are_told_apart():
    rng = np.random.default_rng(0)
    find = lambda **fault: diagnostics.predictive_residuals(*measurements(rng, **fault), STD, key=jr.key(0))
    offset = 0.4 * np.eye(*SHAPE)
    offset[0] = 0
    large, moved, smooth = find(scale=1.2), find(offset=offset), find(smooth=0.2)
    assert large.size_p_value < 1e-4 and min(large.offset_p_value, large.correlation_p_value) > 0.01
    assert abs(large.rms - 1.2) < 4 * large.rms_error
    assert moved.offset_p_value == 0.001 and moved.correlation_p_value > 0.01
    # What a hundred records tell of a mean of noise.
    np.testing.assert_allclose(moved.offset, offset, atol=4 / np.sqrt(RECORDS))
    assert smooth.correlation_p_value < 1e-4 and smooth.offset_p_value > 0.01
    assert large.p_value < 0.001 and moved.p_value < 0.005 and smooth.p_value < 0.001


def test_what_is_masked_does_not_count_and_trees_have_their_own_noise():
    rng = np.random.default_rng(0)
    predicted, observed = measurements(rng)
    mask = np.ones((RECORDS, 2), bool)
    mask[:, 1] = False
    broken = predicted.copy()
    broken[:, :, 1] = 1e6
    found = diagnostics.predictive_residuals(broken, observed, STD, key=jr.key(0), mask=mask)
    cut = diagnostics.predictive_residuals(predicted[:, :, :1], observed[:, :1], STD, key=jr.key(0))
    np.testing.assert_allclose(found.rms, cut.rms, rtol=1e-5)
    np.testing.assert_allclose(found.correlation, cut.correlation, rtol=1e-4)
    np.testing.assert_allclose(found.offset[0], cut.offset[0], rtol=1e-4)
    assert np.all(found.offset[1] == 0)
    tree = lambda x, axis: dict(zip("ab", np.split(x, [2], axis), strict=True))
    scaled = tree(predicted, -1), tree(observed, -1)
    scaled[0]["a"], scaled[1]["a"] = 10 * scaled[0]["a"], 10 * scaled[1]["a"]
    found = diagnostics.predictive_residuals(*scaled, {"a": 10 * STD, "b": np.full((2, 4), STD)}, key=jr.key(0))
    whole = diagnostics.predictive_residuals(predicted, observed, STD, key=jr.key(0))
    np.testing.assert_allclose(found.rms, whole.rms, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([found.offset["a"], found.offset["b"]], -1), whole.offset, atol=1e-5)


def test_single_numbers_have_no_neighbours():
    predicted, observed = measurements(np.random.default_rng(0))
    found = diagnostics.predictive_residuals(predicted[..., 0, 0], observed[..., 0, 0], STD, key=jr.key(0))
    assert np.isnan(found.correlation_p_value) and 0 < found.p_value <= 1


GOOD = measurements(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((GOOD[0][:5], GOOD[1][:5], STD), {}, "at least 8 records, got 5"),
        ((GOOD[0][:, 0], GOOD[1], STD), {}, "`predicted` must be .records, draws"),
        ((*GOOD, 0.0), {}, "`std` must be positive"),
        ((*GOOD, STD), {"mask": np.ones((RECORDS, 3), bool)}, "`mask` has shape"),
        ((*GOOD, STD), {"num_flips": 0}, "`num_flips` must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(arguments, options, message):
    refusals.refuse(
        lambda: diagnostics.predictive_residuals(*arguments, key=jr.key(0), **options), message, compiles=True
    )
