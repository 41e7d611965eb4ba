"""Records whose signals are known, in signal space: posteriors against closed forms."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

import stochinv as si
from refusals import without_annotations
from stochinv._training.expectation_maximisation import Rounds, prepare_signals, repeat_records
from stochinv._training.gaussian_start import gaussian_of_signals
from stochinv._training.plan import Plan
from stochinv._training.records import as_records, count
from test_signal_space import COVARIANCE, MEAN, NOISE, given, measure, posterior_of, problem, records


def pairs(number=2000, views=2, seed=0):
    """Signals that are known, and views whose observations tell nothing of them."""
    rng = np.random.default_rng(seed)
    signals = rng.multivariate_normal(MEAN, COVARIANCE, size=number)
    data = records(number, views, seed + 100)
    return si.Pairs(np.float32(signals), data)


def fit(data, **options):
    settings = {"key": jr.key(0), "steps": 24, "rounds": 2, "batch_size": 64, "progress": False}
    return problem().fit(data, **settings | options)


@pytest.fixture(scope="module")
def labelled():
    return fit(pairs())


def assert_posterior(trained, context, mean, covariance, *, bias):
    draws = np.asarray(trained.posterior(context).sample(jr.key(1), 1000), float)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * spread.max() / np.sqrt(1000) + bias)
    np.testing.assert_allclose(draws.std(0), spread, rtol=4 / np.sqrt(2000) + bias)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [0, 1, 2])
def test_posteriors_of_known_signals_are_those_of_a_gaussian(labelled, number):
    context = given(number) if number else None
    mean, covariance = posterior_of(context) if number else (MEAN, COVARIANCE)
    # 2,000 signals tell an entry of the covariance to some 4 %.
    assert_posterior(labelled.problem, context, mean, covariance, bias=0.05)


@pytest.mark.thorough
def test_no_signal_is_drawn_where_all_are_known(labelled):
    assert labelled.history.residual == []
    assert labelled.problem.space == si.SignalSpace()
    # The signals' own moments, all but a thousandth.
    units, signals = labelled.problem.data_info.units, pairs().signal
    np.testing.assert_allclose(units.mean, signals.mean(0), atol=1e-3)
    np.testing.assert_allclose(units.root @ units.root.T, np.cov(signals.T, bias=True), atol=3e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [20, 400])
def test_the_gaussian_of_known_signals_is_that_of_ledoit_and_wolf(number):
    """Images of 100 pixels vary in few ways: to shrink their covariance as if in all blurs what they tell."""
    rng = np.random.default_rng(0)
    signals = 5 + 1e3 * rng.normal(size=(number, 6)) @ rng.normal(size=(6, 100)) + rng.normal(size=(number, 100))
    found = gaussian_of_signals(jnp.float32(signals))
    np.testing.assert_allclose(found.mean, signals.mean(0), rtol=1e-4, atol=1e-2)
    expected, share = ledoit_wolf(signals)
    assert 0.001 < share < 0.2
    np.testing.assert_allclose(found.root @ found.root.T, expected, atol=1e-4 * expected.max())


@pytest.mark.thorough
@pytest.mark.parametrize("signals", [np.ones((1, 3)), np.ones((50, 3)), np.array([[1.0, 2.0], [3.0, 2.0]])])
def test_known_signals_that_do_not_vary_have_a_gaussian(signals):
    found = gaussian_of_signals(jnp.float32(signals))
    assert jnp.all(jnp.isfinite(found.inverse))
    np.testing.assert_allclose(found.root @ found.inverse, np.eye(signals.shape[1]), atol=1e-3)


@pytest.mark.thorough
def test_the_signal_need_not_be_named():
    unnamed = si.StochasticInverseProblem(measure, noise=NOISE)
    trained = unnamed.fit(pairs(100), key=jr.key(0), steps=2, rounds=1, batch_size=64, progress=False)
    assert trained.problem.signal == jax.ShapeDtypeStruct((3,), jnp.float32)


def first_two(number, seed):
    """Measurements that never see the third entry of the signal."""
    data = records(number, 2, seed)
    rng = np.random.default_rng(seed)
    signals = rng.multivariate_normal(MEAN, COVARIANCE, size=number)
    matrices = np.float32(data.params * np.array([1, 1, 0]))
    clean = np.einsum("nvij,nj->nvi", matrices, signals)
    return signals, si.View(np.float32(clean + NOISE * rng.normal(size=clean.shape)), matrices)


@pytest.mark.slow
def test_known_signals_tell_what_measurements_never_see():
    """The third entry from its regression on the others, which 600 known signals alone tell; by the law of all."""
    _, data = first_two(2000, seed=1)
    signals, views = first_two(600, seed=2)
    known = si.Pairs(np.float32(signals), views)
    trained = fit(data, known=known).problem
    # A mean or a standard deviation from 600 signals has a standard error of 4 % and 3 %.
    assert_posterior(trained, None, MEAN, COVARIANCE, bias=0.1)
    draws = np.asarray(trained.posterior().sample(jr.key(3), 1000), float)
    np.testing.assert_allclose(np.cov(draws.T), COVARIANCE, atol=4 * np.sqrt(2 / 1000) + 0.1)
    _, view = first_two(1, seed=3)
    context = jax.tree.map(lambda x: x[0], view)
    assert_posterior(trained, context, *posterior_of(context), bias=0.1)
    alone = np.asarray(fit(data).problem.posterior().sample(jr.key(3), 1000), float)
    assert abs(np.cov(alone.T)[1, 2]) < 0.2 < COVARIANCE[1, 2] - 0.2


@pytest.mark.thorough
def test_known_signals_stay_as_they_are():
    data, known = records(200), pairs(100)
    prepared = dataclasses.replace(problem(), space=si.SignalSpace())
    signal, both = as_records(prepared, data, known, 64, lambda _: 64 * 12, jr.key(2))
    prepared, begin = prepare_signals(prepared, both, signal, None, True, jr.key(0))
    rounds = Rounds(prepared.noised, both, begin, None, jr.key(1), Plan(12, 12, 24), 64)
    before = rounds.signals
    rounds.draw(prepared.noised, 1, last=False)
    np.testing.assert_array_equal(before[200:], known.signal)
    np.testing.assert_array_equal(rounds.signals[200:], known.signal)
    # A signal may be chosen again.
    assert np.mean(np.any(before[:200] != rounds.signals[:200], 1)) > 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("known", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_goes_on_bit_for_bit(tmp_path, known):
    data, options = (records(100), {"known": pairs(100)}) if known else (pairs(100), {})
    whole = fit(data, **options)
    stop = {"callbacks": [lambda progress: progress.step == 17], "log_every": 1}
    fit(data, checkpoint=tmp_path, checkpoint_every=100, **options, **stop)
    rest = fit(data, checkpoint=tmp_path, checkpoint_every=100, **options)
    assert rest.history.loss == whole.history.loss
    for a, b in zip(jax.tree.leaves(rest.problem), jax.tree.leaves(whole.problem), strict=True):
        np.testing.assert_array_equal(a, b)


BAD = [
    (lambda: fit(records(90), known=records(90)), r"`known` must be `Pairs\(signal, view\)`, or None"),
    (lambda: fit(pairs(90), known=pairs(90)), "`known` goes with `data` whose signals are unknown, but `data` is a Pa"),
    (lambda: fit(records(90), known=pairs(90, views=1)), r"`known.view\[0\]` is .* with missing views masked out"),
    (lambda: fit(si.Pairs(pairs(80).signal, records(90))), "`data.signal` has arrays of shapes .* has 90 records"),
    (lambda: fit(si.Pairs(np.nan * pairs(90).signal, records(90))), "`data.signal` has 270 NaN or infinite values"),
    (lambda: fit(si.Pairs(np.ones((90, 2)), records(90))), r"The known signals are float32\[2\], but `signal` is"),
    (lambda: fit(pairs(90), start=lambda key: jr.normal(key, (3,))), "`start` is where .* leave it out"),
    (lambda: fit(pairs(90), roles=si.RandomViews(1, 1)), "`roles` is for measurements alone, but `data` is a Pairs"),
    (lambda: fit(records(90), known=pairs(90), roles=si.RandomViews(1, 1)), "Known signals are learned from in signal"),
    (
        lambda: dataclasses.replace(problem(), space=si.MeasurementSpace()).fit(pairs(90), key=jr.key(0)),
        "Known signals are learned from in signal space alone",
    ),
    (lambda: si.Pairs(np.ones((90, 3)), cast(Any, np.ones((90, 2)))), "Pairs: `view` must be a `View`"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_few_records_are_drawn_for_several_times(labelled):
    """From one signal of each a network would learn them by heart."""
    both = as_records(problem(), records(100), pairs(20), 64, lambda signal: 1, jr.key(0))[1]
    many = repeat_records(labelled.problem.noised, both, Plan(50, 50, 100), 64)
    # A step takes as long as to draw for 8 of its records: 400 signals in the time of a round.
    assert many.unknown == 400 and count(many.views) == 420
    np.testing.assert_array_equal(many.views.params[:400], np.tile(both.views.params[:100], (4, 1, 1, 1)))
    np.testing.assert_array_equal(many.views.params[400:], both.views.params[100:])
    for length in (1, 10):
        assert repeat_records(labelled.problem.noised, both, Plan(length, 10, 20), 64) is both
    assert repeat_records(labelled.problem.noised, both, Plan(10**6, 0, 10**6), 64).unknown == 16_300
