"""The law of the signals that rounds drew, of an angle with two modes that is seen as a point."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy.stats import norm

import stochinv as si
from stochinv._mixture import MOST_COMPONENTS
from stochinv._training.law_of_draws import find_law, told, with_law

NUMBER, SHARES, MODES, STD = 3000, np.array([0.7, 0.3]), np.array([-1.0, 2.0]), 0.2
SIGNAL = jax.ShapeDtypeStruct((), jnp.float32)


def measure(signal, params):
    return jnp.stack([jnp.cos(signal), jnp.sin(signal)])


def angles(number=NUMBER):
    rng = np.random.default_rng(0)
    return MODES[(rng.random(number) > SHARES[0]).astype(int)] + STD * rng.normal(size=number)


def points(number=NUMBER):
    signal = angles(number)[:, None, None]
    clean = np.concatenate([np.cos(signal), np.sin(signal)], -1)
    return si.View(np.float32(clean + 0.5 * np.random.default_rng(1).normal(size=clean.shape)), None)


def fit(data, **options):
    problem = si.StochasticInverseProblem(measure, noise=0.5, signal=SIGNAL)
    options = {"key": jr.key(0), "steps": 24, "rounds": 3, "batch_size": 32, "progress": False} | options
    return problem.fit(data, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit(points(), start=lambda key: 0.5 + 2 * jr.normal(key))


def log_density(x):
    return np.logaddexp.reduce(np.log(SHARES)[:, None] + norm.logpdf(x, MODES[:, None], STD))


@pytest.mark.slow
def test_the_law_of_signals_is_found_in_the_coordinates_of_the_denoiser(fitted):
    signals = angles()
    found = find_law(fitted.problem.noised, jnp.float32(signals), jr.key(1))
    assert found.log_weights.shape == (MOST_COMPONENTS,)
    shares = np.exp(np.asarray(found.log_weights, float))
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
    # The start has mean 0.5 and standard deviation 2, up to the error of 4096 draws.
    coordinates = fitted.problem.denoiser.coordinates
    assert abs(float(coordinates.root[0, 0]) - 2) < 4 * 2 / np.sqrt(2 * 4096)
    x = np.linspace(-2, 3, 501)
    z = (x - float(coordinates.mean[0])) / float(coordinates.root[0, 0])
    components = shares[:, None] * norm.pdf(
        z, np.asarray(found.means), np.sqrt(np.maximum(np.asarray(found.variances), 1e-9))
    )
    density = components[shares > 0].sum(0) / float(coordinates.root[0, 0])
    # 3000 signals tell shares and widths to 2 or 3 %.
    assert 0.5 * np.sum(np.abs(density - np.exp(log_density(x)))) * (x[1] - x[0]) < 0.05


@pytest.mark.thorough
def test_signals_of_one_gaussian_have_no_mixture(fitted):
    noised, normal = fitted.problem.noised, np.float32(np.random.default_rng(2).normal(size=NUMBER))
    found = find_law(noised, jnp.asarray(normal), jr.key(1))
    assert not np.any(np.isfinite(found.log_weights))
    assert with_law(noised, found) is noised


@pytest.mark.thorough
def test_it_is_what_the_network_corrects_in_the_last_round(fitted):
    """An untrained network then draws it."""
    problem = with_law(fitted.problem.noised, find_law(fitted.problem.noised, jnp.float32(angles()), jr.key(1)))
    problem = eqx.tree_at(
        lambda p: p.denoiser.shrinkage.value[1], problem, jnp.zeros_like(problem.denoiser.shrinkage.value[1])
    )
    problem = told(fitted.problem, problem, fitted.problem.data_info)
    assert problem.data_info.mixture is not None
    x = jnp.linspace(-2, 3, 101)
    found = jax.jit(jax.vmap(problem.posterior(None).log_prob))(x)
    assert 0.5 * np.sum(np.abs(np.exp(found) - np.exp(log_density(np.asarray(x, float))))) * 0.05 < 0.06


@pytest.mark.thorough
def test_fit_finds_it_and_saves_it(fitted, tmp_path):
    mixture = fitted.problem.denoiser.mixture.value
    assert mixture.log_weights.size > 1 and np.all(np.isfinite(mixture.log_weights))
    np.testing.assert_array_equal(fitted.problem.data_info.mixture.means, mixture.means)
    fitted.problem.save(tmp_path / "angle.stochinv")
    loaded = si.load(tmp_path / "angle.stochinv", measure)
    draw = lambda p: np.asarray(p.posterior(None).sample(jr.key(1), 5))
    np.testing.assert_array_equal(draw(loaded), draw(fitted.problem))


@pytest.mark.slow
def test_few_records_tell_none():
    assert fit(points(300)).problem.denoiser.mixture.value is None


@pytest.mark.thorough
def test_one_round_leaves_room_for_none():
    """What is saved is as of before."""
    problem = fit(points(), rounds=1, steps=4).problem
    assert problem.denoiser.mixture.value is None and problem.data_info.mixture is None


@pytest.mark.slow
@pytest.mark.parametrize("stop", [16, 20])
def test_a_run_goes_on_bit_for_bit(tmp_path, stop):
    """Before the last round, and within it, with the law that was found."""
    data = points()
    whole = fit(data, start=lambda key: 0.5 + 2 * jr.normal(key))
    options = {"checkpoint": tmp_path, "checkpoint_every": 4, "start": lambda key: 0.5 + 2 * jr.normal(key)}
    fit(data, callbacks=[lambda progress: progress.step == stop], log_every=1, **options)
    rest = fit(data, **options)
    assert rest.history.loss == whole.history.loss
    for a, b in zip(jtu.tree_leaves(rest.problem), jtu.tree_leaves(whole.problem), strict=True):
        np.testing.assert_array_equal(a, b)
