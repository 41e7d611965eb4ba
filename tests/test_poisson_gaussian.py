"""A camera's noise against sums over all counts, in double precision."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
from scipy import special, stats

import stochinv as si
from stochinv._poisson_gaussian import _log_density

RATES = (0.0, 1e-3, 0.1, 1.0, 3.0, 15.0, 100.0, 1e4, 1e6)
READS = (0.01, 0.3, 1.0, 3.0, 10.0, 1000.0)


def exact(x, rate, read):
    """The log-density of one measurement in counts, and its derivative by the rate."""
    x, rate, read = (float(np.float32(value)) for value in (x, rate, read))
    reach = lambda centre, spread: (centre - 40 * spread - 60, centre + 40 * spread + 60)
    ends = reach(rate, np.sqrt(rate)) + reach(x, read)
    counts = np.arange(max(0, min(ends)), max(ends) + 1).round()
    logs = stats.poisson.logpmf(counts, rate) + stats.norm.logpdf(x, counts, read)
    total = special.logsumexp(logs)
    ahead = special.logsumexp(stats.poisson.logpmf(counts - 1, rate) + stats.norm.logpdf(x, counts, read))
    # d/dλ Pois(n; λ) = Pois(n − 1; λ) − Pois(n; λ).
    return total, np.expm1(ahead - total)


@functools.cache
def compiled():
    return jax.jit(jax.vmap(jax.value_and_grad(_log_density, 1)))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("read", READS)
def test_density_and_derivative_against_the_sum_over_all_counts(rate, read):
    """Up to eight standard deviations from the mean, between counts, and where nothing was counted."""
    std = np.sqrt(rate + read**2)
    values = rate + std * np.array([-8, -4, -2, -0.7, 0, 0.3, 1, 3, 6, 8])
    values = np.float32([*values, 0, np.round(rate) + 0.5, -3])
    logs, slopes = compiled()(values, jnp.full(values.shape, rate), jnp.full(values.shape, read))
    expected, slope = np.array([exact(x, rate, read) for x in values]).T
    # 3e-6 is the claim: single precision has 6e-8, and some 50 terms and logarithms of size up to 10 round each.
    np.testing.assert_allclose(logs, expected, rtol=3e-6, atol=3e-6)
    # In units of the score's standard deviation, which is at most `1/√λ`; at 0 the rate is halfway to none.
    scale = 1 / np.sqrt(max(rate, 1e-3))
    np.testing.assert_allclose(slopes, slope, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize(("gain", "read_std", "background"), [(1.0, 0.3, 0.0), (0.5, 2.0, 3.0), (4.0, 1.0, 0.5)])
def test_density_is_normalised_and_of_raw_units(gain, read_std, background):
    noise, clean = si.PoissonGaussianNoise(gain, read_std, background), 6.0
    std = float(noise.std(jnp.asarray(clean)))
    np.testing.assert_allclose(std**2, gain * (clean + background) + read_std**2, rtol=1e-6)
    values = np.linspace(clean + background - 9 * std, clean + background + 14 * std, 4001)
    log_prob = jax.jit(jax.vmap(lambda o: noise.log_prob(o, jnp.asarray(clean))))
    density = np.exp(np.asarray(log_prob(jnp.asarray(values, jnp.float32)), np.float64))
    moments = [scipy.integrate.trapezoid(density * values**k, values) for k in (0, 1, 2)]
    np.testing.assert_allclose(moments[0], 1, rtol=1e-5)
    np.testing.assert_allclose(moments[1], clean + background, rtol=1e-5)
    np.testing.assert_allclose(moments[2] - moments[1] ** 2, std**2, rtol=1e-4)


@pytest.mark.thorough
def test_draws_have_the_law():
    """Their histogram against the exact distribution function, by Kolmogorov and Smirnov."""
    noise, clean, number = si.PoissonGaussianNoise(0.5, 0.2, 1.0), jnp.asarray([0.0, 2.0, 40.0]), 20_000
    drawn = jax.jit(jax.vmap(lambda k: noise.sample(k, clean)))(jr.split(jr.key(0), number))
    counts = np.arange(400)
    for x, mean in zip(np.asarray(drawn, np.float64).T, np.asarray(clean) + 1.0, strict=True):
        weights = stats.poisson.pmf(counts, mean / 0.5)
        cdf = lambda o, weights=weights: stats.norm.cdf(np.asarray(o)[:, None], 0.5 * counts, 0.2) @ weights
        assert stats.kstest(x, cdf).pvalue > 0.01
        variance = 0.5 * mean + 0.2**2
        assert abs(x.mean() - mean) < 4 * np.sqrt(variance / number)
        # The fourth moment of a Poisson law is at most `3 v² + v` in counts, here below 5 v².
        assert abs(x.var() - variance) < 4 * variance * np.sqrt(4 / number)


@pytest.mark.thorough
def test_derivatives_by_every_parameter():
    """By the measurement, the gain and the read-out, against central differences of the exact density."""
    point = np.array([7.3, 4.0, 0.8, 0.6, 1.5])  # measured, noise-free, gain, read-out, background

    def log_prob(point):
        observed, clean, gain, read, background = point
        return si.PoissonGaussianNoise(gain, read, background).log_prob(observed, clean)

    def closed_form(point):
        observed, clean, gain, read, background = point
        counts = np.arange(200)
        terms = stats.poisson.logpmf(counts, (clean + background) / gain)
        return special.logsumexp(terms + stats.norm.logpdf(observed, gain * counts, read))

    slopes = jax.grad(log_prob)(jnp.asarray(point))
    steps = 1e-5 * np.eye(5)
    expected = [(closed_form(point + step) - closed_form(point - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_dark_and_negative_measurements():
    """Read-outs of dark pixels are negative half of the time; a mean below 0 is none."""
    noise = si.PoissonGaussianNoise(2.0, 0.5)
    dark = jnp.asarray([-1.0, 0.0])
    np.testing.assert_allclose(noise.std(dark), [0.5, 0.5])
    expected = stats.norm.logpdf(np.asarray(dark), 0, 0.5).sum()
    np.testing.assert_allclose(noise.log_prob(dark, jnp.zeros(2)), expected, rtol=1e-5)
    np.testing.assert_allclose(noise.log_prob(dark, -jnp.ones(2)), expected, rtol=1e-5)
    assert np.all(np.isfinite(noise.sample(jr.key(0), -jnp.ones(2))))
    assert np.all(np.isfinite(jax.grad(lambda c: noise.log_prob(jnp.full(2, -1e4), c))(jnp.asarray([0.0, 1e-3]))))


@pytest.mark.thorough
def test_gradients_of_expectations_are_unbiased():
    """`E[o²]` by the score-function estimator of two draws: its derivative is `2 m + gain`."""
    noise, clean, number = si.PoissonGaussianNoise(0.5, 0.4), jnp.asarray(3.0), 20_000

    def surrogate(clean, key):
        (a, b), (log_a, log_b) = noise.draws(key, clean)
        return 0.5 * jax.lax.stop_gradient(a**2 - b**2) * (log_a - log_b)

    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(surrogate), (None, 0)))(clean, jr.split(jr.key(0), number)))
    assert abs(slopes.mean() - (2 * 3.0 + 0.5)) < 4 * slopes.std() / np.sqrt(number)
    assert slopes.std() / np.sqrt(number) < 0.05 * 6.5


@pytest.mark.slow
def test_a_fit_in_signal_space_is_saved_and_loaded(tmp_path):
    noise = si.PoissonGaussianNoise(gain=0.5, read_std=0.3)
    forward = lambda signal, exposure: exposure * jnp.exp(signal)
    keys = jr.split(jr.key(0), 3)
    exposures = jr.uniform(keys[0], (64, 1, 1), minval=1.0, maxval=4.0)
    clean = jax.vmap(forward)(jr.normal(keys[1], (64, 3)), exposures[:, 0])
    data = si.View(jax.vmap(noise.sample)(jr.split(keys[2], 64), clean)[:, None], exposures)
    problem = si.StochasticInverseProblem(forward, noise=noise, signal=jax.ShapeDtypeStruct((3,), jnp.float32))
    fit = problem.fit(data, key=jr.key(1), steps=2, rounds=1, batch_size=16, progress=False)
    context = si.View(data.observation[0], data.params[0])
    drawn = fit.problem.posterior(context).sample(jr.key(2), 4)
    assert drawn.shape == (4, 3) and np.all(np.isfinite(drawn))
    fit.problem.save(tmp_path / "camera.si")
    loaded = si.load(tmp_path / "camera.si", forward)
    assert isinstance(loaded.noise, si.PoissonGaussianNoise) and float(loaded.noise.read_std) == pytest.approx(0.3)
    np.testing.assert_array_equal(loaded.posterior(context).sample(jr.key(2), 4), drawn)
    assert repr(noise) == "PoissonGaussianNoise(gain=0.5, read_std=0.3, background=0.0)"
