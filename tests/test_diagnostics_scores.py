"""Scores of predictions against brute force, and ranks that are uniform."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si


def brute_force(samples, observed, norm):
    error = np.mean([norm(x - observed) for x in samples])
    pairs = [norm(x - y) for i, x in enumerate(samples) for j, y in enumerate(samples) if i != j]
    return error - np.mean(pairs) / 2


def test_scores_against_brute_force():
    rng = np.random.default_rng(0)
    samples, observed = rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3))
    energy = brute_force(samples, observed, lambda x: np.sqrt(np.mean(x**2)))
    for unit in (1e-21, 1e21):
        value = si.diagnostics.energy_score(np.float32(unit * samples), np.float32(unit * observed))
        np.testing.assert_allclose(value / unit, energy, rtol=1e-5)
    tree = {"a": samples[:, 0], "b": samples[:, 1]}
    np.testing.assert_allclose(si.diagnostics.energy_score(samples, observed), energy, rtol=1e-5)
    np.testing.assert_allclose(
        si.diagnostics.energy_score(tree, {"a": observed[0], "b": observed[1]}), energy, rtol=1e-5
    )
    each = np.mean([brute_force(samples[:, i, j], observed[i, j], abs) for i in range(2) for j in range(3)])
    np.testing.assert_allclose(si.diagnostics.crps(samples, observed), each, rtol=1e-5)
    one = np.sqrt(np.mean((samples[0] - observed) ** 2))
    np.testing.assert_allclose(si.diagnostics.energy_score(samples[:1], observed), one, rtol=1e-5)
    one = np.mean(np.abs(samples[0] - observed))
    np.testing.assert_allclose(si.diagnostics.crps(samples[:1], observed), one, rtol=1e-5)


@pytest.mark.parametrize("score", ["energy_score", "crps"])
def test_scores_are_unbiased(score):
    """For samples and observation of one law, half the mean distance between two draws."""
    draws = jr.normal(jr.key(0), (4000, 5, 3))
    scores = jax.vmap(lambda x: getattr(si.diagnostics, score)(x[1:], x[0]))(draws)
    difference = draws[:, 0] - draws[:, 1]
    pairs = jnp.sqrt(jnp.mean(difference**2, -1)) if score == "energy_score" else jnp.mean(jnp.abs(difference), -1)
    error = np.sqrt((np.var(scores) + np.var(pairs / 2)) / len(draws))
    assert abs(jnp.mean(scores) - jnp.mean(pairs / 2)) < 5 * error


def test_ranks_of_a_right_law_are_uniform():
    """With four fifths of all values exactly zero, and few samples."""
    values = jnp.maximum(jr.normal(jr.key(0), (6, 40_000)) - 0.84, 0)
    ranks = np.asarray(si.diagnostics.fractional_ranks(values[1:], values[0], key=jr.key(1)))
    for level in (0.05, 0.3, 0.5, 0.9):
        assert abs(np.mean(ranks <= level) - level) < 5 * np.sqrt(level * (1 - level) / 40_000)
    values = jr.normal(jr.key(2), (6, 40_000))
    narrow = np.asarray(si.diagnostics.fractional_ranks(0.7 * values[1:], values[0], key=jr.key(1)))
    assert np.mean(np.abs(narrow - 0.5) <= 1 / 3) < 0.6


def test_measurements_of_another_size_are_refused():
    with pytest.raises(ValueError, match="`samples` must predict all of `observed`, got 3 and 2 entries"):
        si.diagnostics.energy_score(jnp.zeros((4, 3)), jnp.zeros(2))
