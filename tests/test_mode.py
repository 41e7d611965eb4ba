"""The most likely signal, against closed forms and a search by brute force."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import record, refuse, trained

MEAN = np.array([1.0, -1.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 1.0]])
NOISE = 0.3
SETTINGS: Any = {"key": jr.key(0), "steps": 1, "rounds": 1, "batch_size": 64, "progress": False}


def records(number=4000, size=2, entries=1):
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(COVARIANCE)
    signals = MEAN + rng.normal(size=(number, 2)) @ root.T
    signals = np.repeat(signals, size // 2, 1)
    rows = rng.normal(size=(number, 1, entries, size))
    clean = np.einsum("nvej,nj->nve", rows, signals)
    return si.View(np.float32(clean + NOISE * rng.normal(size=clean.shape)), np.float32(rows))


@pytest.fixture(scope="module")
def fitted():
    """The best Gaussian: an untrained network adds nothing."""
    problem = si.StochasticInverseProblem(
        lambda s, p: p @ s, noise=NOISE, signal=jax.ShapeDtypeStruct((2,), jnp.float32)
    )
    return problem.fit(records(), **SETTINGS).problem


def gaussian_of(problem):
    return np.asarray(problem.units.mean, float), np.asarray(problem.units.root @ problem.units.root.T, float)


@pytest.mark.slow
def test_of_a_gaussian_it_is_the_mean(fitted):
    mean, covariance = gaussian_of(fitted)
    np.testing.assert_allclose(fitted.posterior().mode(jr.key(0)), mean, atol=5e-3)
    row, value = np.array([0.8, -0.5]), 2.0
    gain = covariance @ row / (row @ covariance @ row + NOISE**2)
    expected = mean + gain * (value - row @ mean)
    context = si.View(np.float32([value]), np.float32(row[None]))
    np.testing.assert_allclose(fitted.posterior(context).mode(jr.key(0)), expected, atol=5e-3)


@pytest.mark.slow
def test_the_highest_of_several():
    """Of a standard normal prior and a measurement that two signals explain, by brute force."""

    def measure(signal, params):
        return signal**2 + 0.5 * signal

    problem = si.StochasticInverseProblem(measure, noise=0.5, signal=jax.ShapeDtypeStruct((1,), jnp.float32))
    signals = np.random.default_rng(0).normal(size=(256, 1, 1))
    data = si.View(np.float32(measure(signals, None)), None)
    fitted = problem.fit(data, start=lambda key: jr.normal(key, (1,)), **SETTINGS).problem
    grid = np.linspace(-4, 4, 80001)
    for observed in (1.5, 3.0):
        density = -0.5 * grid**2 - 0.5 * ((observed - measure(grid, None)) / 0.5) ** 2
        found = fitted.posterior(si.View(jnp.array([observed]), None)).mode(jr.key(0))
        np.testing.assert_allclose(found, [grid[np.argmax(density)]], atol=5e-3)


@pytest.mark.slow
def test_of_a_large_signal_it_is_followed():
    """Without a density that could be maximised; of a Gaussian it is the mean."""
    problem = si.StochasticInverseProblem(
        lambda s, p: p @ s, noise=NOISE, signal=jax.ShapeDtypeStruct((80,), jnp.float32)
    )
    data = records(400, 80, 20)
    fitted = problem.fit(data, **SETTINGS).problem
    context = jax.tree.map(lambda x: x[0, 0], data)
    mean, covariance = gaussian_of(fitted)
    matrix, observed = (np.asarray(x, float) for x in (context.params, context.observation))
    gain = np.linalg.solve(matrix @ covariance @ matrix.T + NOISE**2 * np.eye(20), matrix @ covariance)
    expected = mean + gain.T @ (observed - matrix @ mean)
    spread = np.sqrt(np.diag(covariance - gain.T @ matrix @ covariance))
    found = np.asarray(fitted.posterior(context).mode(jr.key(0)))
    np.testing.assert_allclose((found - expected) / spread, 0, atol=0.02)


@pytest.mark.thorough
def test_what_is_wrong_is_said(fitted):
    refuse(lambda: fitted.posterior().mode(None), "`key` must be", compiles=True)
    refuse(lambda: fitted.posterior().mode(jr.key(0), 0), "`num_samples` must be", compiles=True)
    posterior = trained().posterior(record().context, record().target.params)
    refuse(lambda: posterior.mode(jr.key(0)), "In measurement space .* no `mode`", compiles=True)
