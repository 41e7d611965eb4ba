"""The example of phase retrieval: it runs at tiny sizes, and what it computes by hand agrees with NumPy."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

KEYS = {
    "energy_score",
    "coverage_90",
    "residual",
    "energy_score_reference",
    "energy_score_gaussian",
    "energy_score_start",
    "energy_score_hio",
    "error_of_weight",
    "largest_error_of_weight",
    "std_within_20_percent",
    "train_seconds",
    "sample_seconds",
}


@pytest.fixture(scope="module")
def example():
    return importlib.import_module("phase_retrieval")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_runs_at_tiny_sizes(example, tmp_path):
    sizes = "--records 64 --steps 4 --rounds 2 --digits 3 --samples 8 --proposals 400 --starts 1"
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    figures = example.main([*sizes.split(), "--out", str(picture), "--json", str(figures_file)])
    assert set(figures) >= KEYS
    assert json.loads(figures_file.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    assert 0 <= figures["error_of_weight"] <= figures["largest_error_of_weight"] <= 1
    # The right answers repeat the data as well as the noise allows, and so do the network's corrected draws, roughly.
    assert 0.5 < figures["residual"] < 10
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
def test_a_turned_digit_has_the_same_intensities(example):
    """But not with the bright point, which is not turned."""
    modes = jr.normal(jr.key(0), (example.MODES,))
    turned = modes * example.TWIN
    np.testing.assert_allclose(example.decode(turned), example.decode(modes)[::-1, ::-1], atol=2e-5)
    np.testing.assert_allclose(example.forward(turned, 0.0), example.forward(modes, 0.0), atol=1e-4)
    assert jnp.max(jnp.abs(example.forward(turned, 1.0) - example.forward(modes, 1.0))) > 1


@pytest.mark.thorough
@pytest.mark.parametrize("beacon", [0.0, 1.0])
def test_intensities_are_those_of_numpy(example, beacon):
    """Each of the 49 lowest frequencies once, up to the zero frequency; a real image has the others twice."""
    modes = np.asarray(jr.normal(jr.key(1), (example.MODES,)), float)
    frame = np.zeros((28, 28))
    frame[:14, :14] = (example.MEAN + modes @ example.BASIS).reshape(14, 14)
    frame[0, 0] += example.BEACON * beacon
    spectrum = np.abs(np.fft.fft2(frame)) ** 2 / 28**2
    pairs = [(down, right) for down in range(-3, 4) for right in range(-3, 4)][:25]
    expected = np.array([spectrum[down, right] for down, right in pairs])
    np.testing.assert_allclose(example.low_frequencies(jnp.float32(modes), beacon), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_hybrid_input_output_finds_the_digit_or_its_twin(example):
    """Without noise, to 0.05 of a mode's standard deviation, for four of five digits: it may stagnate."""
    truth = example.law_of_digits().sample(jr.key(2), (5,))
    found = example.hybrid_input_output(jax.vmap(lambda x: example.forward(x, 0.0))(truth), jr.key(3), starts=20)
    errors = [jnp.max(jnp.abs(found - truth * signs), 1) for signs in (1, example.TWIN)]
    assert int(jnp.sum(jnp.minimum(*errors) < 0.05)) >= 4


def test_share_upright_counts_by_the_distance(example):
    truth = jr.normal(jr.key(4), (3, example.MODES))
    draws = jr.normal(jr.key(5), (3, 50, example.MODES))
    distance = lambda other: np.linalg.norm(np.asarray(draws - other[:, None], float), axis=-1)
    expected = np.mean(distance(truth) < distance(truth * example.TWIN), 1)
    np.testing.assert_allclose(example.share_upright(draws, truth), expected, atol=1e-6)


@pytest.mark.thorough
def test_the_law_is_that_of_real_digits(example):
    """Mean and covariance of a fitted mixture are those of what it was fitted to, but for its regularisation."""
    law = example.law_of_digits()
    np.testing.assert_allclose(law.mean, example.COEFFICIENTS.mean(0), atol=1e-3)
    gaussian = example.best_gaussian(law).component_distribution
    covariance = np.cov(example.COEFFICIENTS.T, bias=True)
    np.testing.assert_allclose(gaussian.covariance_matrix[0], covariance, atol=5e-3)
    assert jax.tree.leaves(law.sample(jr.key(0), (2,)))[0].shape == (2, example.MODES)
