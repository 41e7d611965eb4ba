"""The example of GAN inversion: it runs at tiny sizes for every preset, and its figures measure what they say."""

import importlib
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg

import stochinv as si
from test_generator import data_file, random_file

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = "--steps 2 --batch-size 8 --width 16 --contexts 3 --candidates 4 --samples 5 --images 20 --sampler-steps 1 2"
KEYS = {"patch_rmse", "noise_level", "diversity", "train_seconds", "seconds_per_sample"}
CLASS_KEYS = {
    "class_tv_energy",
    "class_tv_squared",
    "class_tv_regressor",
    "class_tv_floor",
    "class_tv_prior",
    "class_tv_real_energy",
    "energy_distance",
    "frechet_energy",
    "frechet_squared",
    "frechet_regressor",
    "seconds_per_sample_squared",
}


@pytest.fixture(scope="module")
def example():
    return importlib.import_module("gan_inversion")


@pytest.fixture(scope="module")
def scores(example):
    return sys.modules["gan_inversion_scores"]


def finite(value):
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(math.isfinite(v) for v in values)


def run(example, tmp_path, arguments):
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    files = ["--out", str(picture), "--json", str(figures_file), "--cache", str(tmp_path / "cache")]
    figures = example.main([*arguments.split(), *files])
    stored = json.loads(figures_file.read_text())
    assert set(stored) == set(figures) and all(map(finite, figures.values()))
    assert picture.read_bytes().startswith(b"\x89PNG")
    return figures


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_digits_at_tiny_sizes(example, tmp_path):
    options = f"{TINY} --generator-steps 2 --classifier-steps 2 --reference 200 --memory 32"
    figures = run(example, tmp_path, options)
    assert set(figures) >= KEYS | CLASS_KEYS
    assert set(figures["class_tv_energy"]) == {1, 2} and set(figures["class_tv_regressor"]) == {1}
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_faces_at_tiny_sizes(example, tmp_path):
    generator = si.nn.DCGANGenerator(100, example.FACES, use_bias=True, key=jr.key(0))
    random_file(tmp_path / "faces.npz", generator)
    options = f"faces {TINY} --no-baselines --anywhere --generator {tmp_path / 'faces.npz'}"
    figures = run(example, tmp_path, options)
    assert set(figures) >= KEYS and figures["noise_level"] == 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_stylegan2_takes_a_step_of_training_and_of_sampling(example, tmp_path):
    options = TINY.replace("--steps 2", "--steps 1").replace("--batch-size 8", "--batch-size 2")
    options = options.replace("--sampler-steps 1 2", "--sampler-steps 1").replace("--samples 5", "--samples 2")
    figures = run(example, tmp_path, f"stylegan2 {options} --size 32 --channels 8 --no-baselines")
    assert set(figures) >= KEYS


def test_faces_need_weights(example, tmp_path):
    with pytest.raises(ValueError, match="faces need pretrained weights"):
        example.main(["faces", "--cache", str(tmp_path)])


def test_records_are_patches_of_images(example):
    """Noise of the right size around the patch of the same image, and fresh images in every batch."""
    generator = si.forward.Generator(si.nn.MLPGenerator(key=jr.key(0)))
    window = si.forward.Window((28, 28, 1), (8, 8))
    prior = lambda key: jr.normal(key, (64,))
    scene = example.Scene(generator, prior, (28, 28, 1), window, None, 0.5)
    first, second = (batch for batch, _ in zip(example.Records(scene, 200, jr.key(1)), range(2), strict=False))
    patches, corners = first.context
    clean = jax.vmap(window)(first.target.observation, corners)
    residual = np.asarray(patches - clean)
    assert abs(residual.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * residual.size)
    assert corners.min() == 0 and corners.max() == 20
    assert jnp.all(jnp.any(first.target.observation != second.target.observation, (1, 2, 3)))


def test_remembered_images_are_weighed_by_their_likelihood(example):
    """With all principal components, by that of all pixels of the noisy image and of the patch."""
    images = jr.normal(jr.key(0), (50, 4, 6, 1)) + 1
    likelihood = example.PatchLikelihood(images, images[:, 1:3, 2:5], 0.7)
    noisy, level = jr.normal(jr.key(1), (4, 6, 1)), si.NoiseLevel(jnp.asarray(0.6), jnp.asarray(0.8))
    patch, corner = jr.normal(jr.key(2), (2, 3, 1)), jnp.array([1, 2])
    of_target = jnp.sum((noisy - 0.6 * images) ** 2, (1, 2, 3)) / 0.8**2
    of_patch = jnp.sum((images[:, 1:3, 2:5] - patch) ** 2, (1, 2, 3)) / 0.7**2
    expected = -0.5 * (of_target + of_patch)
    got = likelihood(noisy, level, (patch, corner), None)
    np.testing.assert_allclose(got - got[0], expected - expected[0], rtol=1e-3, atol=1e-3)


def test_frechet_distance_is_that_of_gaussians(scores):
    """Against the formula with a matrix root; 0 for a set and itself."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 4)), rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root)
    assert abs(scores.frechet_distance(x, y) - expected) < 1e-6 * expected
    assert abs(scores.frechet_distance(x, x)) < 1e-6


def test_mean_distance_and_total_variation(scores):
    images = np.random.default_rng(0).normal(size=(6, 3, 3, 1)).astype(np.float32)
    pairs = [np.sqrt(np.mean((a - b) ** 2)) for i, a in enumerate(images) for b in images[:i]]
    np.testing.assert_allclose(scores.mean_distance(jnp.asarray(images)), np.mean(pairs), rtol=1e-3)
    assert scores.total_variation(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])) == 0.5


@pytest.mark.guarantee
def test_classes_follow_brute_force(example, tmp_path):
    """With pretrained digits: at most 0.15 in total variation, and below half of what a squared error does."""
    figures = run(example, tmp_path, f"--generator {data_file('mnist_gan_mlp.npz')}")
    assert figures["contexts"] >= 40
    assert min(figures["class_tv_energy"].values()) <= 0.15
    assert min(figures["class_tv_energy"].values()) < 0.5 * min(figures["class_tv_squared"].values())
