"""Parts of a measurement: their laws, and that they are independent."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import stochinv as si
from stochinv.data import split_gaussian, thin_counts

NUMBER = 20_000
ONE, HALVES = np.ones(1, int), np.array([0.5, 0.5])


def assert_uncorrelated(parts):
    """Correlations of parts `(draws, parts)` are within five of their standard errors of none."""
    found = np.corrcoef(parts.T) - np.eye(parts.shape[1])
    assert np.max(np.abs(found)) < 5 / np.sqrt(len(parts))


@pytest.mark.parametrize("mean", [0.7, 30.0, 2000.0])
def test_thinned_counts_are_independent_poisson_counts(mean):
    shares = np.array([0.2, 0.3, 0.5])
    counts = np.random.default_rng(0).poisson(mean, NUMBER)
    parts = np.asarray(thin_counts(counts, shares, jr.key(0)), np.float64)
    assert parts.shape == (3, NUMBER) and np.all(parts >= 0) and np.all(parts == np.round(parts))
    np.testing.assert_array_equal(parts.sum(0), counts)
    for part, rate in zip(parts, shares * mean, strict=True):
        assert abs(part.mean() - rate) < 5 * np.sqrt(rate / NUMBER)
        # The variance of a Poisson law's variance is `(2 λ² + λ) / N`.
        assert abs(part.var() - rate) < 5 * np.sqrt((2 * rate**2 + rate) / NUMBER)
    assert_uncorrelated(parts.T)
    assert_uncorrelated(parts.T**2)


def test_the_joint_law_of_two_thinned_counts():
    """A table of pairs against the product of two Poisson laws, by Pearson's statistic."""
    counts = np.random.default_rng(1).poisson(2.0, NUMBER)
    first, second = np.asarray(thin_counts(counts, np.array([0.4, 0.6]), jr.key(1)), int)
    most = 4
    table = np.zeros((most + 1, most + 1))
    np.add.at(table, (np.minimum(first, most), np.minimum(second, most)), 1)
    tail = lambda rate: np.append(stats.poisson.pmf(np.arange(most), rate), stats.poisson.sf(most - 1, rate))
    assert stats.chisquare(table.ravel(), NUMBER * np.outer(tail(0.8), tail(1.2)).ravel()).pvalue > 0.01


@pytest.mark.thorough
@pytest.mark.parametrize("counts", [0, 1, 7, 1_000_000])
def test_thinning_loses_no_count(counts):
    """Given their sum, parts are binomial."""
    draw = lambda k: thin_counts(jnp.full((2, 1), counts), jnp.asarray([0.25, 0.75]), k)
    parts = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 500)), np.float64)
    assert parts.shape == (500, 2, 2, 1)
    np.testing.assert_array_equal(parts.sum(1), counts)
    error = 5 * np.sqrt(counts * 0.25 * 0.75 / 1000)
    assert abs(parts[:, 0].mean() - counts / 4) <= error


@pytest.mark.parametrize("num", [2, 5])
def test_parts_of_a_gaussian_measurement(num):
    std, mean = 0.7, np.array([[1.0], [-20.0]])
    observed = mean + std * np.random.default_rng(0).normal(size=(NUMBER, 2, 1))
    split = lambda o, k: split_gaussian(o, std, num, k)
    parts = jax.jit(jax.vmap(split))(jnp.asarray(observed, jnp.float32), jr.split(jr.key(0), NUMBER))
    assert parts.shape == (NUMBER, num, 2, 1) and parts.dtype == jnp.float32
    np.testing.assert_allclose(parts.mean(1), observed, atol=2e-5)
    parts = np.asarray(parts, np.float64)[..., 0]
    variance = num * std**2
    assert np.all(np.abs(parts.mean(0) - mean[:, 0]) < 5 * np.sqrt(variance / NUMBER))
    assert np.all(np.abs(parts.var(0) - variance) < 5 * variance * np.sqrt(2 / NUMBER))
    for entry in (0, 1):
        assert_uncorrelated(parts[:, :, entry])
        assert stats.kstest(parts[:, 0, entry], stats.norm(mean[entry, 0], np.sqrt(variance)).cdf).pvalue > 0.01
    assert_uncorrelated(parts[:, 0])


def test_complex_parts_and_a_wrong_standard_deviation():
    """Parts are correlated by `τ² − std²`, for real and imaginary parts each."""
    normal = np.random.default_rng(0).normal(size=(2, NUMBER))
    observed = np.complex64(2.0 * (normal[0] + 1j * normal[1]))
    for std, covariance in ((2.0, 0.0), (1.0, 3.0)):
        parts = np.asarray(split_gaussian(observed, std, 2, jr.key(0)))
        assert parts.dtype == np.complex64
        np.testing.assert_allclose(parts.mean(0), observed, atol=1e-5)
        for x in (parts.real, parts.imag):
            # Of two variables of variance at most 8 each, the covariance has a variance of at most `2 · 8² / N`.
            assert abs(np.cov(x)[0, 1] - covariance) < 5 * np.sqrt(2 * 64 / NUMBER)


@pytest.mark.slow
def test_one_exposure_is_several_views():
    """A fit in signal space of two steps takes the parts of one exposure for views of their share."""
    keys = jr.split(jr.key(0), 3)
    signals = jr.normal(keys[0], (64, 2))
    counts = jr.poisson(keys[1], 5 * jnp.exp(signals))
    shares = jnp.asarray([0.5, 0.25, 0.25])
    parts = jax.vmap(lambda c, k: thin_counts(c, shares, k))(counts, jr.split(keys[2], 64))
    forward = lambda signal, share: 5 * share * jnp.exp(signal)
    problem = si.StochasticInverseProblem(
        forward, noise=si.PoissonNoise(), signal=jax.ShapeDtypeStruct((2,), jnp.float32)
    )
    data = si.View(parts, jnp.broadcast_to(shares, (64, 3)))
    fit = problem.fit(data, key=jr.key(1), steps=2, rounds=1, batch_size=16, progress=False)
    drawn = fit.problem.posterior(si.View(parts[0], shares)).sample(jr.key(2), 4)
    assert drawn.shape == (4, 2) and np.all(np.isfinite(drawn))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: thin_counts(np.array([1.5]), HALVES, jr.key(0)),
            "`counts` must be whole numbers .* got 1.5",
        ),
        (lambda: thin_counts(np.array([3, -1]), HALVES, jr.key(0)), "`counts` must be whole numbers .* got -1"),
        (lambda: thin_counts(np.array([np.nan]), HALVES, jr.key(0)), "`counts` must be whole numbers .* got nan"),
        (lambda: thin_counts(np.ones(2, complex), HALVES, jr.key(0)), "`counts` must be numbers, got an array of c"),
        (
            lambda: thin_counts(ONE, np.array([0.5, 0.6]), jr.key(0)),
            "`shares` must be two or more .* their sum",
        ),
        (lambda: thin_counts(ONE, np.array([1.0]), jr.key(0)), r"`shares` must be two or more .* of shape \(1,\)"),
        (lambda: thin_counts(ONE, np.array([1.5, -0.5]), jr.key(0)), "`shares` must be two or more positive numbers"),
        (
            lambda: split_gaussian(np.ones(3), 0.0, 2, jr.key(0)),
            "`std` must be a number above 0, got 0",
        ),
        (lambda: split_gaussian(np.ones(3), 1.0, 1, jr.key(0)), "`num` must be an integer of at least 2, got 1"),
    ],
)
def test_what_cannot_be_split_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()
