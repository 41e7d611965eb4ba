"""The example of groundwater: it runs at tiny sizes, and what it computes by hand agrees with NumPy and SciPy."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats

KEYS = {
    "energy_score",
    "coverage_90",
    "residual",
    "energy_score_start",
    "energy_score_gaussian",
    "energy_score_laplace",
    "energy_score_gauss_newton",
    "energy_score_reference",
    "std_within_20_percent",
    "least_std_over_nuts",
    "largest_std_over_nuts",
    "train_seconds",
    "sample_seconds",
}


@pytest.fixture(scope="module")
def darcy():
    return importlib.import_module("darcy")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.filterwarnings("ignore:The reference posterior")
def test_runs_at_tiny_sizes(darcy, tmp_path):
    sizes = "--records 64 --steps 4 --rounds 2 --sites 4 --samples 8 --proposals 300 --chains 1 --nuts 20"
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    figures = darcy.main([*sizes.split(), "--out", str(picture), "--json", str(figures_file)])
    assert set(figures) >= KEYS
    assert json.loads(figures_file.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    # Draws are corrected by the likelihood, however little was trained; 32 pressures, 8 draws.
    assert 0.7 < figures["residual"] < 1.4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_modes_are_those_of_the_covariance(darcy):
    """Their squares are its largest eigenvalues, by another routine of LAPACK."""
    places = np.stack(darcy.middles(), -1).reshape(-1, 2)
    covariance = np.exp(-np.linalg.norm(places[:, None] - places, axis=-1) / 0.3)
    flat = darcy.BASIS.reshape(darcy.MODES, -1).astype(float)
    largest = scipy.linalg.eigvalsh(covariance, driver="ev")[::-1][: darcy.MODES]
    np.testing.assert_allclose(flat @ flat.T, np.diag(largest), atol=1e-4 * largest[0])
    np.testing.assert_allclose(flat @ covariance, largest[:, None] * flat, atol=1e-4 * largest[0])


@pytest.mark.slow
def test_the_law_that_others_are_told(darcy):
    """Its density is SciPy's; its moments are those of 20,000 sites, and so is the noise, to 5 standard errors."""
    truth, data = darcy.measure(np.random.default_rng(0), 20_000, 1)
    law = darcy.law()
    each = scipy.stats.norm.logpdf(np.asarray(truth[:50, None], float), darcy.KINDS, darcy.SPREAD).sum(-1)
    np.testing.assert_allclose(law.log_prob(truth[:50]), np.log(np.mean(np.exp(each), 1)), rtol=1e-4)
    spread = np.sqrt(law.variance)
    np.testing.assert_array_less(np.abs(truth.mean(0) - law.mean), 5 * spread / np.sqrt(len(truth)))
    # The fourth moment of a mixture like this one is at most three times the square of its variance.
    np.testing.assert_allclose(truth.var(0), law.variance, rtol=5 * np.sqrt(2 / len(truth)))
    misfit = data.observation - darcy.repeat(darcy.pressures, truth[:, None], data)[:, 0]
    assert abs(float(jnp.std(misfit)) / darcy.NOISE - 1) < 5 / np.sqrt(2 * len(truth))


@pytest.mark.thorough
def test_gaussian_inversion_is_that_of_scipy(darcy):
    """The most likely modes, in white coordinates, and the covariance of draws about them from differences in double
    precision; 4,000 draws tell a variance to 2 %."""
    truth, contexts = darcy.measure(np.random.default_rng(1), 2, 8)
    gaussian = darcy.best_gaussian(darcy.law())
    mean, root = (
        np.asarray(x[0], float)
        for x in (gaussian.component_distribution.loc, gaussian.component_distribution.scale_tril)
    )
    points, draws = darcy.gaussian_inversion(gaussian, contexts, 4000, jr.key(0))
    flow = jax.jit(darcy.pressures)
    for site in range(len(truth)):
        places, observed = contexts.params[site, 0], np.asarray(contexts.observation[site, 0], float)

        def residual(white, places=places, observed=observed):
            read = np.asarray(flow(jnp.asarray(mean + root @ white, jnp.float32), places), float)
            return np.append((read - observed) / darcy.NOISE, white)

        white = np.linalg.solve(root, np.asarray(points[site], float) - mean)
        found = scipy.optimize.least_squares(residual, white, diff_step=1e-2)
        assert np.sum(residual(white) ** 2) < 2 * found.cost + 0.05
        steps = 0.01 * np.eye(darcy.MODES)
        jacobian = np.stack([(residual(white + step) - residual(white - step)) / 0.02 for step in steps], 1)
        expected = root @ np.linalg.inv(jacobian.T @ jacobian) @ root.T
        spread = np.sqrt(np.diag(expected))
        error = (np.cov(np.asarray(draws[site]).T) - expected) / np.outer(spread, spread)
        assert np.abs(error).max() < 0.12
        np.testing.assert_allclose(draws[site].mean(0), points[site], atol=5 * spread.max() / np.sqrt(4000))


def test_wells_are_drawn_where_they_are(darcy):
    wells = jnp.asarray([[0.1, 0.9], [0.5, 0.26]])
    picture = darcy.place(jnp.asarray([1.0, 2.0]), wells)[..., 0]
    assert picture[1, 10] == 1 and picture[6, 3] == 2 and int(jnp.sum(~jnp.isnan(picture))) == 2
