"""What held-out measurements say of a fit: right for exact posteriors, and wrong for others."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import stochinv as si
import training
from refusals import without_annotations
from stochinv import _check
from stochinv._check import LEVELS, hold_out
from stochinv._denoiser.evidence import LEAST_NOISE
from stochinv._training.records import as_masked
from stochinv._training.residual import residual
from stochinv.diagnostics import _held_out
from test_signal_space import COVARIANCE, MEAN, NOISE, SIGNAL, measure, posterior_of, records

HELD_OUT = records(60, seed=9)


@pytest.fixture(scope="module", autouse=True)
def few_weights():
    """A quarter of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_check, "LEAST_WEIGHTS", 32)
        yield


@pytest.fixture(scope="module")
def fitted():
    """One step of the warm-up leaves the network as it was made: exact for the best Gaussian."""
    problem = si.StochasticInverseProblem(measure, noise=NOISE, signal=SIGNAL)
    return problem.fit(records(), key=jr.key(0), steps=1, rounds=1, batch_size=64, progress=False)


@pytest.fixture(scope="module")
def checked(fitted):
    return fitted.check(HELD_OUT, num_samples=32)


def exact_energy(data, number=400, seed=0):
    """The energy score of exact predictions of one view from the other, and its standard error; by NumPy."""
    rng, scores = np.random.default_rng(seed), []
    for observation, params in zip(data.observation, data.params, strict=True):
        mean, covariance = posterior_of(si.View(observation[:1], params[:1]))
        signals = rng.multivariate_normal(mean, covariance, size=number)
        predicted = signals @ params[1].T + NOISE * rng.normal(size=(number, 2))
        norm = lambda x: np.sqrt(np.mean(x**2, -1))
        pairs = norm(predicted[: number // 2] - predicted[number // 2 :]).mean()
        scores.append(norm(predicted - observation[1]).mean() - 0.5 * pairs)
    scores = np.array(scores) / data.observation.std()
    return scores.mean(), scores.std(ddof=1) / np.sqrt(len(scores))


@pytest.mark.slow
def test_exact_posteriors_pass(checked):
    """The network is the Gaussian, and all is as it should be for a right one, within four standard errors."""
    assert abs(checked.residual.value - 1) < 4 * checked.residual.error < 0.25
    for level, found in zip(LEVELS, checked.coverage, strict=True):
        # 120 entries, two of a record dependent.
        assert 0.5 < found.error / np.sqrt(level * (1 - level) / 120) < 2
        assert abs(found.value - level) < 4 * found.error
    mean, error = exact_energy(records(1000, seed=9))
    assert abs(checked.energy.value - mean) < 4 * np.hypot(error, checked.energy.error)
    assert abs(checked.energy.value - checked.energy_gaussian.value) < 4 * checked.energy_gaussian.error
    assert checked.energy_others.value > checked.energy.value + 5 * checked.energy_others.error
    assert checked.effective.value > 0.8
    assert checked.heavy.value < 0.1
    assert checked.verdict == "Nothing is wrong that 60 records can tell."


@pytest.mark.thorough
def test_it_is_printed_on_one_screen(checked):
    lines = repr(checked).splitlines()
    assert len(lines) == 11 and lines[-1] == checked.verdict and max(map(len, lines)) <= 100
    assert lines[0].startswith("Check: 60 held-out records, 32 draws each") and "residual" in lines[1]


@pytest.mark.slow
def test_noise_that_is_wrong_is_found(fitted):
    """Draws for half the noise that there is, by a network that was told so."""
    wrong = si.StochasticInverseProblem(measure, noise=0.5 * NOISE, signal=SIGNAL)
    trained = wrong.fit(records(), key=jr.key(0), steps=1, rounds=1, batch_size=64, progress=False)
    found = trained.check(HELD_OUT, num_samples=16)
    # In units of half the noise, exact draws would miss by two.
    assert found.residual.value > 1.3
    assert "Draws miss the measurements" in found.verdict


@pytest.mark.thorough
def test_one_view_is_held_out_at_random():
    mask = np.array([[True, True], [True, False], [False, True]] * 200)
    views = as_masked(si.View(HELD_OUT.observation[[0, 1, 2] * 200], HELD_OUT.params[[0, 1, 2] * 200], mask))
    given, unseen = hold_out(views, jr.key(0))
    left = np.asarray(given.mask)
    assert np.all(left.sum(1) == mask.sum(1) - 1) and not np.any(left & ~mask)
    chosen = np.argmax(mask & ~left, 1)
    np.testing.assert_array_equal(unseen.params, np.asarray(views.params)[np.arange(600), chosen])
    np.testing.assert_array_equal(unseen.observation, np.asarray(views.observation)[np.arange(600), chosen])
    assert abs(chosen[::3].mean() - 0.5) < 4 * 0.5 / np.sqrt(200)


RATE = 3.0
NOISES = {
    "counts": si.PoissonNoise(),
    "background": si.PoissonNoise(0.5, 2.0),
    "camera": si.PoissonGaussianNoise(1.0, 0.5),
    "law": si.NoiseLaw(lambda clean: dist.Gamma(clean, 0.5)),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_true_signal_misses_measurements_by_their_noise(noise):
    """By one standard deviation for noise of every kind, in training, in checks and in reports."""
    problem = si.StochasticInverseProblem(lambda s, _: s, noise=noise, signal=(4,), space=si.SignalSpace()).noised
    signal = jnp.full(4, RATE)
    observed = jax.vmap(lambda key: noise.sample(key, jnp.full((2, 4), RATE)))(jr.split(jr.key(0), 500))
    views = si.View(observed, None, jnp.ones((500, 2), bool))
    measured = _check.Measured(problem.measure, noise, si.Units())
    squares, counts = jax.jit(jax.vmap(lambda view: residual(problem, measured, signal, view)))(views)
    told = _held_out._residuals(problem, views, jnp.broadcast_to(signal, (500, 1, 4)))
    reported = si.diagnostics.predictive_residuals(*told[:3], key=jr.key(0), num_flips=1)
    # The fourth moment of any of them is below 6.
    for found in (jnp.sqrt(jnp.sum(squares) / jnp.sum(counts)), reported.rms):
        assert abs(found - 1) < 4 * np.sqrt(5 / observed.size) / 2


def test_rates_that_cannot_be_leave_a_number():
    measured = _check.Measured(si.ForwardFunction(lambda s, _: s), si.PoissonNoise(), si.Units())
    mean, std = measured.expect(-jnp.ones(2), si.View(jnp.asarray([[0.0, 4.0]])))
    np.testing.assert_allclose(mean, [[-1, -1]])
    np.testing.assert_allclose(std, [[LEAST_NOISE, 2]])


@pytest.mark.slow
def test_single_views_are_predicted_from_nothing(fitted):
    """By the prior that was learned, which the prior's own law of measurements is compared with."""
    found = fitted.check(records(60, views=1, seed=3), num_samples=16)
    for level, share in zip(LEVELS, found.coverage, strict=True):
        assert abs(share.value - level) < 4 * share.error
    rng = np.random.default_rng(0)
    data = records(2000, views=1, seed=4)
    signals = rng.multivariate_normal(MEAN, COVARIANCE, size=(2, 2000))
    norm = lambda x: np.sqrt(np.mean(x**2, -1)).mean()
    first, second = (
        np.einsum("nij,nj->ni", data.params[:, 0], s) + NOISE * rng.normal(size=(2000, 2)) for s in signals
    )
    expected = (norm(first - data.observation[:, 0]) - 0.5 * norm(first - second)) / data.observation.std()
    assert abs(found.energy.value - expected) < 4 * found.energy.error + 0.02


RIGHT = si.Check(
    records=100,
    draws=32,
    residual=si.Figure(1.02, 0.02),
    coverage=tuple(si.Figure(level, 0.02) for level in LEVELS),
    energy=si.Figure(0.5, 0.02),
    energy_gaussian=si.Figure(0.55, 0.01),
    energy_others=si.Figure(0.9, 0.02),
    effective=si.Figure(0.6, 0.02),
    heavy=si.Figure(0.02, 0.01),
)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "Nothing is wrong that 100 records"),
        ({"residual": si.Figure(1.3, 0.02)}, "Draws miss"),
        ({"residual": si.Figure(0.7, 0.02)}, "Draws keep closer"),
        ({"residual": si.Figure(1.3, 0.2)}, "Nothing is wrong"),
        ({"residual": si.Figure(np.nan, np.nan)}, "Nothing is wrong"),
        ({"coverage": (si.Figure(0.3, 0.02), *RIGHT.coverage[1:])}, "Predictions are too narrow"),
        ({"coverage": (*RIGHT.coverage[:2], si.Figure(0.98, 0.01))}, "Predictions are too wide"),
        ({"energy_gaussian": si.Figure(0.45, 0.01)}, "The Gaussian of the start predicts better"),
        ({"effective": si.Figure(0.01, 0.01)}, "Few draws of the network"),
        ({"heavy": si.Figure(0.4, 0.05)}, "Given many records, weights of few draws"),
        ({"effective": si.Figure(np.nan, np.nan), "energy_gaussian": si.Figure(np.nan, np.nan)}, "Nothing is wrong"),
    ],
)
def test_verdicts(change, verdict):
    found = dataclasses.replace(RIGHT, **change)
    assert found.verdict.startswith(verdict) and found.verdict.endswith(".")
    assert repr(found).endswith(found.verdict)


BAD = [
    (lambda fit: fit.check(HELD_OUT.observation), "`held_out` must be a `View` with leading"),
    (lambda fit: fit.check(records(5)), "`held_out` has 5 records, but at least 8 are needed"),
    (lambda fit: fit.check(HELD_OUT, num_samples=1), "`num_samples` must be an integer of at least 2"),
    (
        lambda fit: fit.check(si.View(np.ones((9, 2, 3), np.float32), np.ones((9, 2, 3), np.float32))),
        "held_out.0, 0.*is",
    ),
    (
        lambda fit: fit.check(si.View(np.nan * HELD_OUT.observation, HELD_OUT.params)),
        "`held_out.observation` has 240 NaN",
    ),
    (lambda fit: fit.check(HELD_OUT, key=3), "`key` must be one PRNG key"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(fitted, call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call(fitted)


@pytest.mark.thorough
def test_in_measurement_space():
    trained = training.fit(training.problem(), jax.tree.map(jnp.asarray, training.examples()))
    with pytest.raises(ValueError, match="`check` is for signal space, .* use `si.diagnostics.measurement_calibration"):
        trained.check(training.views())
