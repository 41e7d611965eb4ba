"""Scoring rules: each against brute force, and the laws that all of them obey."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import helpers
import stochinv as si

ENERGY = si.EnergyRule()
RULES = helpers.scoring_rules()


def some(key, *leading):
    """A target of one view and a stack of two, images of 5×4 pixels and 2 channels."""
    first, second = jr.split(key)
    return jr.normal(first, (*leading, 1, 5, 4, 2)), jr.normal(second, (*leading, 2, 5, 4, 2))


@pytest.mark.thorough
@pytest.mark.parametrize("name", RULES)
def test_a_distance_is_symmetric_and_zero_for_equal_ones(name):
    rule, a, b = RULES[name], some(jr.key(0)), some(jr.key(1))
    distance = jax.jit(rule.distance)
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-6)
    assert distance(a, b) > 0 and distance(a, a) == 0
    gradient = jax.jit(jax.grad(rule.distance))(a, a)
    assert all(np.all(np.isfinite(x)) for x in gradient)
    assert np.isnan(distance(jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), a), b))


@pytest.mark.thorough
@pytest.mark.parametrize("name", RULES)
def test_terms_are_means_over_draws_and_pairs(name):
    rule, draws, observed = RULES[name], some(jr.key(0), 4), some(jr.key(1))
    of = lambda m: jax.tree.map(lambda x: x[m], draws)
    distance = jax.jit(rule.distance)
    error = np.mean([distance(of(m), observed) for m in range(4)])
    spread = 0.5 * np.mean([distance(of(m), of(n)) for m in range(4) for n in range(4) if m != n])
    np.testing.assert_allclose(jax.jit(rule.terms)(draws, observed), (error, spread), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(rule)(draws, observed), error - spread, rtol=1e-4)


@pytest.mark.thorough
def test_terms_are_means_over_all_choices_of_components():
    rng = np.random.default_rng(0)
    predicted, observed = rng.normal(size=(3, 2, 1, 4)), rng.normal(size=(1, 4))
    shares = rng.dirichlet(np.ones(2), size=3)
    norm = lambda d: np.sqrt(np.mean(d**2))
    error = spread = 0.0
    for choice in np.ndindex(2, 2, 2):
        chosen = predicted[np.arange(3), choice]
        probability = np.prod(shares[np.arange(3), choice])
        error += probability * np.mean([norm(v - observed) for v in chosen])
        pairs = [norm(chosen[m] - chosen[n]) for m in range(3) for n in range(3) if m != n]
        spread += probability * 0.5 * np.mean(pairs)
    predicted, observed, shares = (jnp.asarray(x, jnp.float32) for x in (predicted, observed, shares))
    np.testing.assert_allclose(ENERGY.terms((predicted,), (observed,), shares), (error, spread), rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", RULES)
def test_the_expected_score_is_least_at_the_truth(name):
    """`v ~ N(0, 1)` in every pixel; the expected score of `N(μ, s²)` has its least value at `μ = 0`, `s = 1`."""
    rule, number = RULES[name], 4000
    draws, truth = jr.normal(jr.key(0), (number, 4, 1, 2, 2, 1)), jr.normal(jr.key(1), (number, 1, 2, 2, 1))
    score = lambda at, z, v: rule((at[0] + at[1] * z,), (v,))
    gradients = jax.jit(jax.vmap(jax.grad(score), (None, 0, 0)))(jnp.asarray([0.0, 1.0]), draws, truth)
    assert np.all(np.abs(gradients.mean(0)) < 5 * gradients.std(0) / np.sqrt(number))
    scores = jax.jit(jax.vmap(score, (None, 0, 0)))
    least = scores(jnp.asarray([0.0, 1.0]), draws, truth)
    for mean, std in ((0.5, 1.0), (0.0, 0.4), (0.0, 2.0)):
        difference = scores(jnp.asarray([mean, std]), draws, truth) - least
        assert difference.mean() > 5 * difference.std() / np.sqrt(number)


def test_the_energy_and_kernel_distances():
    a, b = (jnp.asarray([[1.0, 2.0]]),), (jnp.asarray([[4.0, 6.0]]),)
    np.testing.assert_allclose(ENERGY.distance(a, b), np.sqrt(12.5), rtol=1e-6)
    np.testing.assert_allclose(si.EnergyRule(0.5).distance(a, b), 12.5**0.25, rtol=1e-6)
    np.testing.assert_allclose(si.KernelRule(2.0).distance(a, b), 1 - np.exp(-12.5 / 8), rtol=1e-6)


@pytest.mark.thorough
def test_patches_are_cut_from_each_view():
    """Of images whose sides the patch does not divide: what is left at the ends is filled with zeros."""
    a, b = some(jr.key(0)), some(jr.key(1))
    patches = []
    for x, y in zip(a, b, strict=True):
        for d in np.asarray(x - y):
            padded = np.pad(d, ((0, 1), (0, 2), (0, 0)))
            patches += [padded[i : i + 3, j : j + 3] for i in (0, 3) for j in (0, 3)]
    expected = np.mean([np.sqrt(np.mean(p**2)) for p in patches])
    np.testing.assert_allclose(si.Patches(ENERGY, 3).distance(a, b), expected, rtol=1e-5)
    pixels = np.concatenate([np.linalg.norm(x - y, axis=-1).ravel() for x, y in zip(a, b, strict=True)]) / np.sqrt(2)
    np.testing.assert_allclose(si.Patches(ENERGY, 1).distance(a, b), pixels.mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 5, 2)], ids=["numbers", "vectors", "signals in time"])
def test_parts_of_other_shapes(shape):
    a, b = (jr.normal(jr.key(0), shape),), (jr.normal(jr.key(1), shape),)
    last = np.asarray(a[0] - b[0]).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    expected = np.mean(np.sqrt(np.mean(last**2, -1)))
    np.testing.assert_allclose(si.Patches(ENERGY, 1).distance(a, b), expected, rtol=1e-5)
    assert np.isfinite(si.Scales(ENERGY, 4).distance(a, b))


def test_views_and_scales():
    a, b = some(jr.key(0)), some(jr.key(1))
    norm = lambda d: np.sqrt(np.mean(np.asarray(d) ** 2))
    views = [norm(u - v) for x, y in zip(a, b, strict=True) for u, v in zip(x, y, strict=True)]
    np.testing.assert_allclose(si.PerView(ENERGY).distance(a, b), np.mean(views), rtol=1e-5)
    coarse = lambda x: np.asarray(x)[:, :4].reshape(-1, 2, 2, 2, 2, 2).mean((2, 4))
    whole = np.concatenate([np.ravel(x - y) for x, y in zip(a, b, strict=True)])
    halved = np.concatenate([np.ravel(coarse(x) - coarse(y)) for x, y in zip(a, b, strict=True)])
    expected = 0.5 * (norm(whole) + norm(halved))
    np.testing.assert_allclose(si.Scales(ENERGY, 2).distance(a, b), expected, rtol=1e-5)


def test_sums_are_weighted():
    a, b = some(jr.key(0)), some(jr.key(1))
    rule = si.PerView(ENERGY) + 0.25 * si.KernelRule() + ENERGY
    expected = si.PerView(ENERGY).distance(a, b) + 0.25 * si.KernelRule().distance(a, b) + ENERGY.distance(a, b)
    np.testing.assert_allclose(rule.distance(a, b), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.EnergyRule(2.0), "`beta` must be a number strictly between 0 and 2, got 2.0"),
        (lambda: si.EnergyRule(0.0), "`beta`"),
        (lambda: si.KernelRule(0.0), "`bandwidth` must be positive and finite, got 0.0"),
        (lambda: si.Patches(ENERGY, 0), "`size` must be an integer of at least 1, got 0"),
        (lambda: si.Scales(ENERGY, 0), "`levels` must be an integer of at least 1, got 0"),
        (lambda: -1.0 * ENERGY, "`weights` must be positive and finite numbers, got -1.0"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()
