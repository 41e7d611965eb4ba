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
import numpyro.distributions as dist
import pytest
import scipy.linalg

import stochinv as si
from test_generator import data_file, random_file

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = "--steps 2 --batch-size 8 --width 16 --contexts 3 --candidates 4 --samples 5 --images 20 --sampler-steps 1 2"
KEYS = {"patch_rmse", "noise_level", "diversity", "train_seconds", "seconds_per_sample"}
CLASS_KEYS = {
    "class_tv",
    "class_tv_network",
    "class_tv_regressor",
    "class_tv_floor",
    "class_tv_prior",
    "class_tv_real",
    "energy_distance",
    "frechet",
    "frechet_network",
    "frechet_regressor",
    "rare_class_share",
    "rare_class_share_truth",
    "seconds_per_sample_network",
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
    options = f"{TINY} --generator-steps 2 --classifier-steps 2 --reference 200 --moves 3"
    figures = run(example, tmp_path, options)
    assert set(figures) >= KEYS | CLASS_KEYS
    assert set(figures["class_tv"]) == {1, 2} and set(figures["class_tv_regressor"]) == {1}
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_faces_at_tiny_sizes(example, tmp_path):
    generator = si.nn.DCGANGenerator(100, example.FACES, use_bias=True, key=jr.key(0))
    random_file(tmp_path / "faces.npz", generator)
    options = f"faces {TINY} --patch 0 0 8 8 --patches 2 --moves 3 --generator {tmp_path / 'faces.npz'}"
    figures = run(example, tmp_path, options)
    assert set(figures) >= KEYS and figures["noise_level"] == 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_stylegan2_takes_a_step_of_training_and_of_sampling(example, tmp_path):
    options = TINY.replace("--steps 2", "--steps 1").replace("--batch-size 8", "--batch-size 2")
    options = options.replace("--sampler-steps 1 2", "--sampler-steps 1").replace("--samples 5", "--samples 2")
    figures = run(example, tmp_path, f"stylegan2 {options} --size 32 --channels 8")
    assert set(figures) >= KEYS


def test_faces_need_weights(example, tmp_path):
    with pytest.raises(ValueError, match="faces need pretrained weights"):
        example.main(["faces", "--cache", str(tmp_path)])


def test_records_are_patches_of_images(example):
    """Noise of the right size around the patches of the same image, and fresh images."""
    generator = si.forward.Generator(si.nn.MLPGenerator(key=jr.key(0)))
    window = si.forward.Window((28, 28, 1), (8, 8))
    prior = dist.Normal(jnp.zeros(64), 1.0).to_event(1)
    scene = example.Scene(generator, prior, (28, 28, 1), window, None, 0.5, patches=2)
    images, contexts = scene.records(jr.key(1), 200)
    corners = contexts.params[1]
    clean = jax.vmap(jax.vmap(window, (None, 0)))(images, corners)
    residual = np.asarray(contexts.observation - clean)
    assert abs(residual.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * residual.size)
    assert corners.shape == (200, 2, 2) and corners.min() == 0 and corners.max() == 20
    assert jnp.all(jnp.any(images[1:] != images[:-1], (1, 2, 3)))


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
    """With pretrained digits: the shares of classes, the patch, and the rarest class, for any number of steps."""
    figures = run(example, tmp_path, f"--generator {data_file('mnist_gan_mlp.npz')}")
    assert figures["contexts"] >= 40
    assert set(figures["class_tv"]) == {1, 4, 16} and max(figures["class_tv"].values()) <= 0.07
    assert min(figures["class_tv_network"].values()) > 0.12
    assert abs(figures["patch_rmse"] / figures["patch_rmse_truth"] - 1) < 0.02
    assert abs(figures["rare_class_share"] - figures["rare_class_share_truth"]) <= 0.005
