"""The example of galaxies: it runs at tiny sizes; its camera, its noise and Richardson and Lucy's steps are right."""

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
    "energy_score_gaussian",
    "energy_score_richardson_lucy",
    "energy_score_wiener",
    "coverage_90",
    "residual",
    "rmse",
    "train_seconds",
    "sample_seconds",
}


@pytest.fixture(scope="module")
def astronomy():
    return importlib.import_module("astronomy")


@pytest.fixture(scope="module")
def exposures(astronomy):
    config = astronomy.Config(train=200)
    galaxies, _ = astronomy.load_galaxies(config)
    return config, galaxies, astronomy.expose(config, galaxies, jr.key(0))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_runs_at_tiny_sizes(astronomy, tmp_path):
    sizes = "--steps 4 --rounds 2 --batch-size 8 --train 400 --galaxies 4 --samples 8"
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    figures = astronomy.main([*sizes.split(), "--out", str(picture), "--json", str(figures_file)])
    assert set(figures) >= KEYS
    assert json.loads(figures_file.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    # Draws fit what was given however short training was, if records are enough to tell a Gaussian.
    assert 0.8 < figures["residual"] < 1.3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_held_out_galaxies_are_of_another_part_of_the_sky(astronomy):
    known, held_out = astronomy.load_galaxies(astronomy.Config(train=300, galaxies=20))
    assert known.shape == (300, 20, 20, 1) and held_out.shape == (20, 20, 20, 1)
    assert 0 <= known.min() and known.max() <= 1
    # Sources are in the middle, two pixels aside at most.
    assert np.all(known[:, 6:14, 6:14].max((1, 2, 3)) > 0.15)
    seen = {x.tobytes() for turned in (known, known[:, ::-1]) for k in range(4) for x in np.rot90(turned, k, (1, 2))}
    assert not any(x.tobytes() in seen for x in held_out)


@pytest.mark.thorough
def test_noise_is_standard_normal(astronomy, exposures):
    """With each pixel's standard deviation estimated from the counts around it."""
    _, galaxies, view = exposures
    misfit = view.observation - astronomy.repeat(astronomy.forward, jnp.asarray(galaxies)[:, None], view)[:, 0]
    # 20,000 pixels: standard errors of 0.007 and 0.005. Light that is smoothed into dark pixels makes their noise
    # appear larger than it is, and counts that are low by chance appear more certain: 3 % each at most.
    assert abs(np.mean(misfit)) < 0.06
    assert abs(np.std(misfit) - 1) < 0.03


def test_a_dithered_camera_sees_a_moved_sky(astronomy):
    """Of a source in the dark, which the blur carries to no edge."""
    sky = jnp.zeros((20, 20, 1)).at[9:11, 8:11].set(1.0)
    moved = astronomy.camera(jnp.roll(sky, (1, 1), (0, 1)), 1.5, jnp.array([0, 0]))
    pointed = astronomy.camera(sky, 1.5, jnp.array([1, 1]))
    # The wings of the point spread function that are rolled to its other side hold less than 2e-3 of the light.
    np.testing.assert_allclose(pointed, moved, atol=2e-3)
    assert np.max(np.abs(pointed - astronomy.camera(sky, 1.5, jnp.array([0, 0])))) > 0.05


@pytest.mark.thorough
def test_richardson_lucy_keeps_the_light_and_gains_likelihood(astronomy, exposures):
    """Each step leaves the sum of what is seen that of what was counted, and makes the counts likelier."""
    config, _, view = exposures
    params = jax.tree.map(lambda x: x[0, 0], view.params)
    see = lambda x: astronomy.camera(x, params["seeing"], params["dither"])
    seen, sky = view.observation[0, 0] / params["weights"], config.sky / config.photons
    seen = jnp.maximum(seen, -0.9 * sky)
    likelihoods = []
    for number in (1, 2, 5, 10, 20):
        expected = see(astronomy.richardson_lucy(see, seen, sky, number) + sky)
        np.testing.assert_allclose(jnp.sum(expected), jnp.sum(seen + sky), rtol=1e-4)
        likelihoods.append(float(jnp.sum((seen + sky) * jnp.log(expected) - expected)))
    assert np.all(np.diff(likelihoods) > 0)


@pytest.mark.thorough
def test_classical_estimates_are_nearer_than_exposures(astronomy):
    """Both are pictures of the galaxies: nearer than exposures whose pixels are split."""
    config = astronomy.Config(train=1, galaxies=12)
    _, galaxies = astronomy.load_galaxies(config)
    contexts = astronomy.expose(config, galaxies, jr.key(0))
    error = lambda x: np.sqrt(np.mean((x - galaxies) ** 2))
    seen = np.asarray(contexts.observation / contexts.params["weights"])[:, 0, ..., 0]
    split = error(np.kron(seen, np.ones((1, 2, 2)))[..., None])
    for estimate in astronomy.best_classical(config, contexts, galaxies).values():
        assert error(estimate) < 0.9 * split
