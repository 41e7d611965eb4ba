import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from stochinv import diagnostics


def normal(seed, number, size, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, size)) + shift, jnp.float32)


@pytest.mark.parametrize("second", [300, 187])
def test_sliced_wasserstein_on_the_line(second):
    x, y = normal(0, 300, 1), 2 * normal(1, second, 1, 0.5)
    expected = scipy.stats.wasserstein_distance(np.asarray(x)[:, 0], np.asarray(y)[:, 0])
    np.testing.assert_allclose(diagnostics.sliced_wasserstein(x, y, key=jr.key(0)), expected, rtol=1e-4)


def test_sliced_wasserstein_of_a_shift():
    """The squared distance of a set and itself shifted by `v` is `‖v‖² / d`."""
    x, shift, number = normal(0, 50, 3), jnp.asarray([1.0, 2.0, -2.0]), 4000
    squared = diagnostics.sliced_wasserstein(x, x + shift, key=jr.key(0), num_projections=number, p=2) ** 2
    # (θᵀv)² / ‖v‖² is beta distributed, Beta(1/2, 1), of variance 4/45.
    assert abs(squared - 3) < 5 * 9 * np.sqrt(4 / 45 / number)


def test_energy_distance_by_brute_force():
    x, y = normal(0, 40, 3), normal(1, 55, 3, 0.4)
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    distance = scipy.spatial.distance.cdist
    off = lambda matrix: (matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1))
    energy = 2 * distance(a, b).mean() - off(distance(a, a)) - off(distance(b, b))
    np.testing.assert_allclose(diagnostics.energy_distance(x, y, batch_size=7), energy, atol=2e-5)


def test_energy_distance_of_gaussians():
    number, shift = 4000, 1.0
    x, y = normal(0, number, 1), normal(1, number, 1, shift)
    # |x − y| is folded normal with deviation √2.
    folded = lambda m: 2 / np.sqrt(np.pi) * np.exp(-(m**2) / 4) + m * (1 - 2 * scipy.stats.norm.cdf(-m / np.sqrt(2)))
    # Distances averaged over one sample vary by less than twice the shift.
    expected = 2 * (folded(shift) - folded(0))
    assert abs(diagnostics.energy_distance(x, y) - expected) < 5 * 2 * np.sqrt(2 / number)


@pytest.mark.thorough
def test_c2st():
    pytest.importorskip("sklearn")
    number = 400
    x = normal(0, number, 2)
    # An accuracy from 2N labels, whose standard error is at most 0.5/√(2N).
    assert abs(diagnostics.c2st(x, normal(1, number, 2)) - 0.5) < 4 * 0.5 / np.sqrt(2 * number)
    # The best classifier of laws two standard deviations apart in each entry is right with probability Φ(√2).
    best = scipy.stats.norm.cdf(np.sqrt(2))
    # In a unit whose square is no number in single precision.
    assert abs(diagnostics.c2st(1e-21 * x, 1e-21 * normal(1, number, 2, 2.0)) - best) < 0.05


def test_samples_may_be_trees_and_units_are_those_of_the_samples():
    x, y = normal(0, 20, 6), normal(1, 30, 6, 1.0)
    tree = lambda rows: {"a": rows[:, :2], "b": rows[:, 2:].reshape(-1, 2, 2)}
    for distance in (
        lambda x, y: diagnostics.sliced_wasserstein(x, y, key=jr.key(0), p=2),
        diagnostics.energy_distance,
    ):
        np.testing.assert_allclose(distance(tree(x), tree(y)), distance(x, y), rtol=1e-6)
        for unit in (3.0, 1e-21, 1e21):
            np.testing.assert_allclose(distance(unit * x, unit * y) / unit, distance(x, y), rtol=1e-4)


def test_errors():
    x = normal(0, 10, 2)
    with pytest.raises(ValueError, match="2 and 3 entries"):
        diagnostics.energy_distance(x, normal(0, 10, 3))
    with pytest.raises(ValueError, match="`y` must hold at least 2"):
        diagnostics.energy_distance(x, x[:1])
    with pytest.raises(ValueError, match="`p` must be at least 1"):
        diagnostics.sliced_wasserstein(x, x, key=jr.key(0), p=0.5)
