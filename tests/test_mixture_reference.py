"""The examples' importance sampling, where the answer has a closed form: a linear forward model."""

import importlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import stochinv as si

NOISE = 0.4
WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.5]])
ROOTS = np.array([0.5 * np.eye(3), np.tril(np.full((3, 3), 0.4))])
MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
OBSERVED = np.array([[0.2, -0.3], [-1.0, 0.4]])


@pytest.fixture(scope="module")
def reference():
    return importlib.import_module("mixture_reference")


def law(reference):
    return reference.mixture(*(jnp.asarray(x, jnp.float32) for x in (WEIGHTS, MEANS, ROOTS)))


def exact(observed):
    """The weights, means and covariances of the posterior's Gaussians, by NumPy in double precision."""
    weights, means, covariances = [], [], []
    for weight, mean, root in zip(WEIGHTS, MEANS, ROOTS, strict=True):
        prior = root @ root.T
        marginal = MATRIX @ prior @ MATRIX.T + NOISE**2 * np.eye(2)
        gain = prior @ MATRIX.T @ np.linalg.inv(marginal)
        weights.append(weight * multivariate_normal(MATRIX @ mean, marginal).pdf(observed))
        means.append(mean + gain @ (observed - MATRIX @ mean))
        covariances.append(prior - gain @ MATRIX @ prior)
    weights, means = np.array(weights) / np.sum(weights), np.array(means)
    mean = weights @ means
    return mean, np.einsum("k,kij->ij", weights, covariances) + (means - mean).T @ np.diag(weights) @ (means - mean)


@pytest.mark.thorough
def test_draws_are_those_of_the_closed_form(reference):
    """4,000 draws with an effective size of 2,000 and more: moments to 5 standard errors."""
    contexts = si.View(jnp.asarray(OBSERVED[:, None], jnp.float32), jnp.zeros((2, 1)))
    forward = lambda signal, _: jnp.asarray(MATRIX, jnp.float32) @ signal
    prior, options = law(reference), {"key": jr.key(0), "num_proposals": 20_000, "num_draws": 4000}
    # One of the two starts of each Gaussian would do.
    starts = jnp.stack([prior.component_distribution.loc, jnp.zeros((2, 3))], 1)
    draws, ess = reference.posterior(prior, forward, NOISE, contexts, starts, **options)
    assert jnp.all(ess > 2000)
    for drawn, observed in zip(np.asarray(draws, float), OBSERVED, strict=True):
        mean, covariance = exact(observed)
        spread = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(drawn.mean(0) - mean) < 5 * spread / np.sqrt(1300))
        assert np.all(np.abs(np.cov(drawn.T) - covariance) < 5 * np.sqrt(2 / 1300) * np.outer(spread, spread))


def test_log_density_is_that_of_the_mixture(reference):
    signals = jr.normal(jr.key(0), (7, 3))
    covariances = ROOTS @ np.swapaxes(ROOTS, 1, 2)
    each = zip(WEIGHTS, MEANS, covariances, strict=True)
    expected = sum(weight * multivariate_normal(*moments).pdf(np.asarray(signals)) for weight, *moments in each)
    np.testing.assert_allclose(reference.log_density(law(reference), signals), np.log(expected), rtol=1e-4)


def test_gauss_newton_is_the_gaussians_posterior(reference):
    forward = lambda signal, _: jnp.asarray(MATRIX, jnp.float32) @ signal
    mean, root = (jnp.asarray(x[1], jnp.float32) for x in (MEANS, ROOTS))
    observed = jnp.asarray(OBSERVED[0], jnp.float32)
    found, spread = jax.jit(lambda start: reference.gauss_newton(forward, NOISE, mean, root, start, observed, None))(
        jnp.full(3, 2.0)
    )
    prior = ROOTS[1] @ ROOTS[1].T
    gain = prior @ MATRIX.T @ np.linalg.inv(MATRIX @ prior @ MATRIX.T + NOISE**2 * np.eye(2))
    np.testing.assert_allclose(found, MEANS[1] + gain @ (OBSERVED[0] - MATRIX @ MEANS[1]), atol=1e-3)
    np.testing.assert_allclose(spread @ spread.T, prior - gain @ MATRIX @ prior, atol=1e-4)


def test_best_gaussian_has_the_moments(reference):
    found = reference.best_gaussian(law(reference)).component_distribution
    mean = WEIGHTS @ MEANS
    expected = sum(w * (r @ r.T + np.outer(m - mean, m - mean)) for w, m, r in zip(WEIGHTS, MEANS, ROOTS, strict=True))
    np.testing.assert_allclose(found.loc[0], mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance_matrix[0], expected, atol=1e-5)
