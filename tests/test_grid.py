"""Which signals are images, sequences and volumes, and that U-Nets denoise them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._denoiser.correction import ImageCorrection, VectorCorrection
from stochinv._grid import grid_of, is_convolved, smooth_covariance


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    "signal, grid, convolved",
    [
        (struct(300), None, False),
        (struct(64, 1), (64, 1), True),
        (struct(500, 12), (500, 12), True),
        (struct(31, 1), (31, 1), False),
        (struct(28, 28), (28, 28, 1), True),
        (struct(28, 28, 1), (28, 28, 1), True),
        (struct(28, 28, 1, 2), (28, 28, 2), True),
        (struct(16, 16, 1), (16, 16, 1), False),
        (struct(8, 8, 8, 1), (8, 8, 8, 1), True),
        (struct(20, 20, 20), (20, 20, 20, 1), True),
        (struct(4, 4, 4, 4, 4), None, False),
        (struct(1, 1, 3), None, False),
        ({"a": struct(28, 28, 1), "b": struct(28, 28, 1)}, None, False),
    ],
)
def test_grid_of_a_signal(signal, grid, convolved):
    assert grid_of(signal) == grid
    assert is_convolved(signal) == convolved


@pytest.mark.parametrize("shape, space", [((260, 1), (260,)), ((4, 3, 1), (4, 3)), ((2, 3, 4, 2), (2, 3, 4))])
def test_smooth_covariance_falls_with_the_distance(shape, space):
    found = np.asarray(smooth_covariance(struct(*shape))).reshape(shape + shape)
    places = [np.array(i) for i in np.ndindex(shape)][:30]
    for a in places:
        for b in places:
            near = np.exp(-0.125 * np.sum((a[: len(space)] - b[: len(space)]) ** 2)) * (a[-1] == b[-1])
            np.testing.assert_allclose(found[(*a, *b)], near + 0.02 * np.all(a == b), atol=1e-6)
    for shape in ((3,), (40, 1)):
        np.testing.assert_array_equal(smooth_covariance(struct(*shape)), np.eye(shape[0], dtype=np.float32))


def fit(forward, clean, signal, noise=0.1):
    rng = np.random.default_rng(1)
    data = si.View(np.float32(clean + noise * rng.normal(size=clean.shape))[:, None])
    problem = si.StochasticInverseProblem(forward, noise=noise, signal=signal)
    return problem.fit(data, key=jr.key(0), steps=2, rounds=2, batch_size=8, progress=False).problem, data


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(40, 2), (7, 6, 7, 1)])
def test_signals_on_a_grid_get_a_unet_and_have_posteriors(shape):
    rng = np.random.default_rng(0)
    clean = np.cumsum(rng.normal(size=(64, *shape)), 1) / 4
    problem, data = fit(lambda signal, params: 2.0 * signal, 2.0 * clean, shape)
    assert isinstance(problem.denoiser.network, ImageCorrection)
    draws = problem.posterior(jax.tree.map(lambda x: x[0], data)).sample(jr.key(1), 8)
    assert draws.shape == (8, *shape)
    # What was measured well is found again: of noise .05 beside values of about 1.
    assert np.sqrt(np.mean((np.mean(draws, 0) - clean[0]) ** 2)) < 0.1


@pytest.mark.thorough
def test_perceptrons_see_measurements_that_gaussians_do_not_tell():
    """A U-Net would not see the context of a sequence that is measured by its squares."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(64, 40, 1)) ** 2
    problem, _ = fit(lambda signal, params: signal**2, clean, (40, 1))
    assert isinstance(problem.denoiser.network, VectorCorrection)
