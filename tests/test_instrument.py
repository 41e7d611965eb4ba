"""Posteriors under another forward model or noise, with the prior that was learned: against closed forms."""

import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import stochinv as si
import training
from refusals import without_annotations
from test_signal_space import SIGNAL, given, measure, records


@pytest.fixture(scope="module")
def fitted():
    """One step of the warm-up leaves the network as it was made: its prior is the best Gaussian."""
    problem = si.StochasticInverseProblem(measure, noise=0.2, signal=SIGNAL)
    return problem.fit(records(), key=jr.key(0), steps=1, rounds=1, batch_size=64, progress=False).problem


def posterior_of(problem, matrix, observed, noise):
    """The exact posterior under the prior that was learned."""
    units = problem.data_info.units
    mean, root = np.asarray(units.mean, float), np.asarray(units.root, float)
    prior = np.linalg.inv(root @ root.T)
    covariance = np.linalg.inv(prior + matrix.T @ matrix / noise**2)
    return covariance @ (prior @ mean + matrix.T @ observed / noise**2), covariance


def assert_posterior(posterior, mean, covariance, *, least):
    """Within four standard errors of as many draws as the effective ones, and of those drawn from these."""
    size = float(posterior.effective_sample_size(jr.key(3), 4096))
    assert size > least
    number = 2000
    draws = np.asarray(posterior.sample(jr.key(2), number), float)
    spread = np.sqrt(np.diag(covariance))
    error = np.sqrt(1 / size + 1 / number)
    # The start of sampling and its steps leave some 1 % of a standard deviation.
    assert np.all(np.abs(draws.mean(0) - mean) < (4 * error + 0.01) * spread)
    np.testing.assert_allclose(draws.std(0), spread, rtol=4 * error / np.sqrt(2) + 0.01)


def blurred(signal, row):
    """One number, by a row of three; measurements of training were of two."""
    return (row @ signal)[None]


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_instrument_of_another_kind(fitted, views):
    """Draws of the prior, weighted; with more views than any record of training had, too."""
    rng = np.random.default_rng(1)
    rows = np.float32(rng.normal(size=(views, 3)))
    observed = np.float32(rows @ [1.5, -0.5, 1.0])
    context = si.View(observed[0, None], rows[0]) if views == 1 else si.View(observed[:, None], rows)
    posterior = fitted.posterior(context, forward=blurred, noise=0.4)
    assert "weighted for another instrument" in repr(posterior) and not posterior.instrument.informed
    assert_posterior(posterior, *posterior_of(fitted, rows.astype(float), observed, 0.4), least=100)


@pytest.mark.parametrize(("factor", "noise"), [(1.0, 0.5), (1.0, 0.1), pytest.param(1.5, 1.0, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_instrument_of_the_same_kind(fitted, factor, noise):
    """Noisier, less noisy, and measuring half as much again: half of the draws are those given the context."""
    context = given(2)
    forward = None if factor == 1 else lambda signal, matrix: factor * measure(signal, matrix)
    posterior = fitted.posterior(context, forward=forward, noise=noise)
    assert posterior.instrument.informed
    matrix, observed = factor * np.concatenate(context.params).astype(float), np.concatenate(context.observation)
    assert_posterior(posterior, *posterior_of(fitted, matrix, observed, noise), least=100)


@pytest.mark.thorough
def test_informed_draws_are_worth_more(fitted):
    """Of a measurement that tells much, by the noise of training: draws given it, and draws of the prior alone."""
    context = given(2)
    informed = fitted.posterior(context, noise=0.2)
    blind = fitted.posterior(si.View(*(np.float32(x) for x in flat(context))), forward=flat_measure, noise=0.2)
    sizes = [float(x.effective_sample_size(jr.key(0), 2000)) for x in (informed, blind)]
    # Half of all draws are right as they are.
    assert sizes[0] > 900 > 10 * sizes[1]


def flat(context):
    """Both views as one measurement, which is of another kind than those of training."""
    return np.concatenate(context.observation), np.concatenate(context.params)


def flat_measure(signal, matrix):
    return matrix @ signal


@pytest.mark.slow
def test_predictions_are_of_the_new_instrument(fitted):
    posterior = fitted.posterior(si.View(np.float32([0.3]), np.float32([1, 0, 0])), forward=blurred, noise=0.4)
    row = np.float32([0, 1, 0])
    predicted = np.asarray(posterior.predict(jr.key(1), row, 4000), float)
    mean, covariance = posterior_of(fitted, np.array([[1.0, 0, 0]]), np.array([0.3]), 0.4)
    spread = np.sqrt(covariance[1, 1] + 0.4**2)
    assert predicted.shape == (4000, 1)
    assert abs(predicted.mean() - mean[1]) < 0.06 * spread
    np.testing.assert_allclose(predicted.std(), spread, rtol=0.05)


@pytest.mark.slow
def test_any_law_of_noise(fitted):
    """Laplace noise, by brute force over draws of the prior that was learned."""
    row = np.float32([1, 0, 0])
    law = lambda clean: dist.Laplace(clean, 0.5)
    posterior = fitted.posterior(si.View(np.float32([3.0]), row), forward=blurred, noise=law)
    units = fitted.data_info.units
    mean, variance = float(units.mean[0]), float((units.root @ units.root.T)[0, 0])
    grid = np.linspace(-6, 8, 20001)
    weight = np.exp(-0.5 * (grid - mean) ** 2 / variance - np.abs(grid - 3.0) / 0.5)
    weight /= weight.sum()
    exact = weight @ grid
    spread = np.sqrt(weight @ (grid - exact) ** 2)
    draws = np.asarray(posterior.sample(jr.key(1), 2000), float)[:, 0]
    assert abs(draws.mean() - exact) < 0.12 * spread
    np.testing.assert_allclose(draws.std(), spread, rtol=0.1)


@pytest.mark.thorough
def test_few_draws_that_fit_are_warned_of(fitted):
    far = si.View(np.float32([40.0]), np.float32([1, 0, 0]))
    with pytest.warns(UserWarning, match="Of 16384 signals .* only 1.0 effectively explain"):
        fitted.posterior(far, forward=blurred, noise=0.1).sample(jr.key(0), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = si.View(np.float32([1.0]), np.float32([1, 0, 0]))
        fitted.posterior(near, forward=blurred, noise=0.5).sample(jr.key(0), 10)


@pytest.mark.thorough
def test_shapes_and_masks(fitted):
    rows, observed = np.float32(np.eye(3)[:2]), np.float32([[0.5], [np.nan]])
    context = si.View(observed, rows, np.array([True, False]))
    posterior = fitted.posterior(context, forward=blurred, noise=0.4)
    assert posterior.sample(jr.key(0)).shape == (3,) and posterior.sample(jr.key(0), (2, 4)).shape == (2, 4, 3)
    one = fitted.posterior(si.View(observed[0], rows[0]), forward=blurred, noise=0.4)
    np.testing.assert_allclose(posterior.sample(jr.key(0), 50), one.sample(jr.key(0), 50), atol=1e-4)


VIEW = si.View(np.float32([1.0]), np.float32([1, 0, 0]))
BAD = [
    (lambda p: p.posterior(None, noise=0.1), "`context` is None, but another `forward` or `noise` needs a `View`"),
    (lambda p: p.posterior(VIEW, forward=blurred, noise=0.0), "`noise` is 0, under which no draw explains"),
    (lambda p: p.posterior(VIEW, noise=0.1), "`context` is .* which `forward` does not make of a signal float32"),
    (lambda p: p.posterior(VIEW, forward=3.0), "`forward` must be a forward model or a callable"),
    (lambda p: p.posterior(VIEW, forward=si.MultiView(blurred)), "`forward` is a `MultiView`"),
    (lambda p: p.posterior(VIEW, forward=blurred, sampler=si.Ancestral()), "`sampler` and `params` are for the instr"),
    (
        lambda p: p.posterior(si.View(np.float32([np.nan]), VIEW.params), forward=blurred, noise=0.1),
        "`context.observation` has 1 NaN or infinite values",
    ),
    (
        lambda p: p.posterior(VIEW, forward=blurred, noise=0.1).log_prob(jnp.zeros(3)),
        "is known by its draws alone, and has no density",
    ),
    (lambda p: p.posterior(VIEW, forward=blurred, noise=0.1).to_numpyro(), "has no density; use `sample`"),
    (lambda p: training.problem().posterior(None, noise=0.1), "in signal space alone"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(fitted, call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call(fitted)
