"""The quickstart: it runs at tiny sizes, and at its own sizes beats both simpler answers."""

import importlib
import json
import math

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

KEYS = {
    "energy_score",
    "energy_score_marginal",
    "energy_score_mean",
    "context_rmse",
    "coverage_50",
    "coverage_80",
    "coverage_90",
    "train_seconds",
    "sample_seconds",
}


@pytest.fixture(scope="module")
def quickstart():
    return importlib.import_module("quickstart")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_runs_at_tiny_sizes(quickstart, tmp_path):
    sizes = "--steps 4 --rounds 2 --batch-size 8 --train 64 --digits 3 --unseen 2 --samples 4"
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    files = ["--out", str(picture), "--json", str(figures_file)]
    figures = quickstart.main([*sizes.split(), *files])
    assert set(figures) >= KEYS
    assert json.loads(figures_file.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["context_rmse"] < 0.01
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_coverage_of_equal_laws_is_its_level(quickstart):
    """Samples and observation of one law, four fifths of them exactly zero, as in MNIST."""
    values = jnp.maximum(jr.normal(jr.key(0), (33, 200, 100)) - 0.84, 0)
    coverage = quickstart.interval_coverage(values[1:], values[0], jr.key(1))
    levels = np.array([0.5, 0.8, 0.9])
    assert np.all(np.abs(coverage - levels) < 5 * np.sqrt(levels * (1 - levels) / 20_000))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param("--steps 300 --rounds 5 --digits 40", marks=pytest.mark.slow),
        pytest.param("", marks=pytest.mark.guarantee, id="its own"),
    ],
)
def test_beats_both_simpler_answers(quickstart, sizes, tmp_path):
    figures = quickstart.main([*sizes.split(), "--out", str(tmp_path / "picture.png")])
    assert figures["energy_score"] < (0.95 if sizes else 0.8) * figures["energy_score_mean"]
    assert figures["energy_score"] < 0.75 * figures["energy_score_marginal"]
    assert abs(figures["coverage_90"] - 0.9) < 0.1
    assert figures["context_rmse"] < 0.01
