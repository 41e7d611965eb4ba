"""Complex signals and measurements, against closed forms and against their real and imaginary parts."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import stochinv as si
from stochinv._complex import as_parts, from_parts
from stochinv._noise import add_noise

NOISE = 0.3
# One of a kind: parts that are correlated, within an entry and between entries.
MEAN = np.array([1.0, -0.5, 0.3, 0.8])
ROOT = np.array([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.3, -0.4, 0.7, 0.0], [0.2, 0.5, -0.3, 0.6]])
SIGNAL = jax.ShapeDtypeStruct((2,), jnp.complex64)


def measure(signal, row):
    """What a receive coil sees of two complex entries: one complex number."""
    return row @ signal


def records(number=2000, views=2, seed=0):
    """By NumPy."""
    rng = np.random.default_rng(seed)
    parts = (MEAN + rng.normal(size=(number, 4)) @ ROOT.T).reshape(number, 2, 2)
    signals = parts[..., 0] + 1j * parts[..., 1]
    draw = lambda *shape: rng.normal(size=shape) + 1j * rng.normal(size=shape)
    rows = draw(number, views, 2)
    clean = np.einsum("nvj,nj->nv", rows, signals)
    return np.complex64(signals), si.View(np.complex64(clean + NOISE * draw(number, views)), np.complex64(rows))


def problem(forward=measure, **options):
    return si.StochasticInverseProblem(forward, **{"noise": NOISE, "signal": SIGNAL} | options)


SETTINGS: Any = {"key": jr.key(0), "steps": 24, "rounds": 2, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def fitted():
    return problem().fit(records()[1], **SETTINGS)


def posterior_of(view):
    """The exact posterior of the four parts given a view."""
    real, imaginary = view.params.real, view.params.imag
    matrix = np.zeros((2, 4))
    matrix[0, ::2], matrix[0, 1::2], matrix[1, ::2], matrix[1, 1::2] = real, -imaginary, imaginary, real
    precision = np.linalg.inv(ROOT @ ROOT.T) + matrix.T @ matrix / NOISE**2
    observed = np.array([view.observation.real, view.observation.imag])
    shift = np.linalg.inv(ROOT @ ROOT.T) @ MEAN + matrix.T @ observed / NOISE**2
    return np.linalg.solve(precision, shift), np.linalg.inv(precision)


@pytest.mark.thorough
def test_parts_and_back():
    tree = {"a": jnp.array([1 + 2j, 3 - 1j]), "b": jnp.array([1.0, 2.0])}
    parts = as_parts(tree)
    np.testing.assert_array_equal(parts["a"], [[1, 2], [3, -1]])
    for name, x in from_parts(parts, tree).items():
        np.testing.assert_array_equal(x, tree[name])
        assert x.dtype == tree[name].dtype


@pytest.mark.slow
def test_draws_have_the_law_of_the_posterior(fitted):
    _, held_out = records(1, seed=1)
    view = jax.tree.map(lambda x: x[0, 0], held_out)
    draws = fitted.problem.posterior(view).sample(jr.key(1), 2000)
    assert draws.shape == (2000, 2) and draws.dtype == jnp.complex64
    mean, covariance = posterior_of(view)
    parts = np.asarray(as_parts(draws), float).reshape(-1, 4)
    # The best Gaussian of 2,000 records is not the true one.
    stds = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((parts.mean(0) - mean) / stds, 0, atol=0.15)
    np.testing.assert_allclose(np.cov(parts.T) / np.outer(stds, stds), covariance / np.outer(stds, stds), atol=0.15)


@pytest.mark.slow
def test_residual_and_check(fitted):
    assert abs(fitted.history.residual[0] - 1) < 0.1
    check = fitted.check(records(32, seed=2)[1])
    assert abs(check.residual.value - 1) < 0.1
    for coverage, level in zip(check.coverage, (0.5, 0.8, 0.9), strict=True):
        assert abs(coverage.value - level) < 4 * coverage.error


@pytest.mark.slow
def test_complex_is_the_same_as_its_parts(fitted):
    """To the last bit: a complex problem is one of real and imaginary parts."""

    def of_parts(signal, row):
        measured = row @ jax.lax.complex(signal[..., 0], signal[..., 1])
        return jnp.stack([measured.real, measured.imag], -1)

    _, views = records()
    data = si.View(np.asarray(as_parts(views.observation)), views.params)
    other = problem(of_parts, signal=jax.ShapeDtypeStruct((2, 2), jnp.float32)).fit(data, **SETTINGS)
    assert other.history.loss == fitted.history.loss
    view = jax.tree.map(lambda x: x[3], views)
    real_view = si.View(as_parts(view.observation), view.params)
    draws = fitted.problem.posterior(view).sample(jr.key(1), 4)
    others = other.problem.posterior(real_view).sample(jr.key(1), 4)
    np.testing.assert_array_equal(as_parts(draws), others)


@pytest.mark.slow
def test_density_and_summaries(fitted):
    view = jax.tree.map(lambda x: x[0], records(1, seed=1)[1])
    posterior = fitted.problem.posterior(view)
    draws = posterior.sample(jr.key(1), 3)
    value = posterior.log_prob(draws[0])
    assert value.shape == () and jnp.isfinite(value)
    assert posterior.mean(jr.key(0), 32).dtype == jnp.complex64 and posterior.std(jr.key(0), 32).dtype == jnp.float32
    assert posterior.quantile(jr.key(0), jnp.array([0.1, 0.9]), 32).shape == (2, 2, 2)
    assert posterior.predict(jr.key(0), view.params[0], 5).dtype == jnp.complex64
    law = posterior.to_numpyro()
    flat = law.sample(jr.key(2))
    assert flat.shape == (4,) and jnp.isfinite(law.log_prob(flat))
    contexts = records(5, seed=2)[1]
    drawn = fitted.problem.sample_many(contexts, key=jr.key(0), num_samples=2)
    assert drawn.signal.shape == (5, 2, 2) and drawn.signal.dtype == jnp.complex64


@pytest.mark.thorough
def test_another_instrument(fitted):
    """A sum of both entries, through the learned prior."""
    posterior = fitted.problem.posterior(
        si.View(jnp.array([1.0 + 1.0j]), None), forward=lambda s, p: jnp.sum(s, keepdims=True), noise=0.1
    )
    draws = posterior.sample(jr.key(0), 500)
    assert draws.dtype == jnp.complex64
    np.testing.assert_allclose(np.mean(np.sum(np.asarray(draws), 1)), 1 + 1j, atol=0.05)


@pytest.mark.thorough
def test_saved_and_loaded(fitted, tmp_path):
    fitted.problem.save(tmp_path / "problem")
    loaded = si.load(tmp_path / "problem", measure)
    view = jax.tree.map(lambda x: x[0], records(1, seed=1)[1])
    before, after = (p.posterior(view).sample(jr.key(0), 3) for p in (fitted.problem, loaded))
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_known_signals_and_simulators():
    signals, views = records(256)
    draw = lambda key: jax.lax.complex(*jr.normal(key, (2, 2)))
    for data in (si.Pairs(signals, views), si.data.Simulated(draw, views.params)):
        fit = problem(signal=None).fit(data, key=jr.key(0), steps=2, batch_size=32, progress=False)
        assert fit.problem.posterior().sample(jr.key(0), 2).dtype == jnp.complex64
    fit = problem().fit(views, start=draw, **SETTINGS | {"steps": 2})
    assert fit.problem.signal == SIGNAL


@pytest.mark.slow
def test_a_real_signal_of_complex_measurements():
    """The Fourier coefficients of a real signal."""
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(500, 4)) * np.array([2.0, 1.0, 0.5, 0.1])
    spectra = np.fft.rfft(signals) + 0.1 * (rng.normal(size=(500, 3)) + 1j * rng.normal(size=(500, 3)))
    forward = lambda s, p: jnp.fft.rfft(s)
    data = si.View(np.complex64(spectra)[:, None], None)
    fit = si.StochasticInverseProblem(forward, noise=0.1, signal=jax.ShapeDtypeStruct((4,), jnp.float32)).fit(
        data, **SETTINGS
    )
    view = si.View(jnp.asarray(np.fft.rfft([1.0, 2.0, -1.0, 0.1]), jnp.complex64), None)
    draws = fit.problem.posterior(view).sample(jr.key(0), 500)
    assert draws.dtype == jnp.float32
    np.testing.assert_allclose(np.mean(draws, 0), [1.0, 2.0, -1.0, 0.1], atol=0.1)


@pytest.mark.thorough
def test_measurement_space_refuses_complex_signals():
    view = si.View(np.zeros((64, 2), np.float32), np.zeros((64, 1), np.float32))
    data = si.Example(jax.tree.map(lambda x: x[:, None], view), view, None)
    with pytest.raises(ValueError, match="`signal` has complex64.*must be real in measurement space"):
        problem(lambda s, p: jnp.real(s), noise=0.0).fit(data, key=jr.key(0), steps=1)


@pytest.mark.thorough
def test_noise_of_each_part():
    noise, clean = si.GaussianNoise(0.5), jnp.zeros(20000, jnp.complex64)
    for noisy in (noise.sample(jr.key(0), clean), add_noise(noise, clean, key=jr.key(0), stacked=False)):
        assert noisy.dtype == jnp.complex64
        np.testing.assert_allclose([np.std(noisy.real), np.std(noisy.imag)], 0.5, atol=4 * 0.5 / np.sqrt(2 * 20000))
    value, expected = jnp.array([1.0 + 2.0j]), stats.norm.logpdf([1.0, 2.0], scale=0.5).sum()
    np.testing.assert_allclose(noise.log_prob(value, jnp.zeros_like(value)), expected, rtol=1e-5)
    assert noise.std(clean).dtype == jnp.float32
