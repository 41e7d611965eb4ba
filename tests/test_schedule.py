"""Noise schedules against hand-derived formulas, and against a simulation of the noising process."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import helpers
import stochinv as si

TIMES = np.linspace(0.0, 1.0, 23)
every_schedule = pytest.mark.parametrize("name", helpers.schedules())


def hand_derived(name, schedule, t):
    """`d log α/dt` and `g²`, worked out on paper for each schedule."""
    if name == "variance_preserving":
        low, high = schedule.beta_min, schedule.beta_max
        start = np.log1p(np.exp(-schedule.log_snr_max))
        u0 = (-low + np.sqrt(low**2 + 2 * (high - low) * start)) / (high - low)
        beta = (low + (high - low) * (u0 + (1 - u0) * t)) * (1 - u0)
        return -beta / 2, beta
    if name == "variance_exploding":
        rate = np.log(schedule.sigma_max / schedule.sigma_min)
        sigma = schedule.sigma_min * np.exp(rate * t)
        return 0 * t, 2 * sigma**2 * rate
    if name == "cosine":
        start, end = np.arctan(np.exp(-schedule.log_snr_max / 2)), np.arctan(np.exp(-schedule.log_snr_min / 2))
        angle, rate = start + (end - start) * t, end - start
        return -rate * np.tan(angle), 2 * rate * np.tan(angle)
    start, end = 1 / (1 + np.exp(schedule.log_snr_max / 2)), 1 / (1 + np.exp(schedule.log_snr_min / 2))
    u, rate = start + (end - start) * t, end - start
    return -rate / (1 - u), 2 * rate * u / (1 - u)


@every_schedule
def test_drift_and_diffusion(name, x64):
    schedule = helpers.schedules()[name]
    drift, square = hand_derived(name, schedule, TIMES)
    np.testing.assert_allclose(jax.vmap(schedule.drift)(TIMES), drift, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(schedule.diffusion)(TIMES) ** 2, square, rtol=1e-9)


@every_schedule
def test_range(name, x64):
    schedule = helpers.schedules()[name]
    assert schedule.sigma(1.0) / schedule.alpha(1.0) >= 100
    assert schedule.sigma(0.0) / schedule.alpha(0.0) < 0.0021
    log_snr = jax.vmap(schedule.log_snr)(TIMES)
    assert np.all(np.diff(log_snr) < 0)
    level = jax.vmap(schedule.level)(TIMES)
    assert np.all(level.alpha > 0) and np.all(level.sigma > 0)
    np.testing.assert_allclose(level.log_snr, 2 * np.log(level.alpha / level.sigma), rtol=1e-12)
    if name in ("variance_preserving", "cosine"):
        np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1.0, rtol=1e-12)
    if name == "rectified_flow":
        np.testing.assert_allclose(level.alpha + level.sigma, 1.0, rtol=1e-12)


@every_schedule
def test_inverse(name, x64):
    schedule = helpers.schedules()[name]
    np.testing.assert_allclose(jax.vmap(lambda t: schedule.inverse(schedule.log_snr(t)))(TIMES), TIMES, atol=1e-12)
    assert schedule.inverse(1000.0) == pytest.approx(0.0, abs=1e-12)
    assert schedule.inverse(-1000.0) == pytest.approx(1.0, abs=1e-12)
    middle = schedule.log_snr(0.4)
    slope = jax.grad(schedule.inverse)(middle) * jax.grad(schedule.log_snr)(0.4)
    np.testing.assert_allclose(slope, 1.0, rtol=1e-8)


@pytest.mark.thorough
@every_schedule
def test_single_precision_near_both_ends(name):
    schedule = helpers.schedules()[name]
    times = np.concatenate([np.geomspace(1e-6, 1e-2, 9), 1 - np.geomspace(1e-6, 1e-2, 9), [0.0, 1.0]])
    times = times.astype(np.float32)
    quantities = lambda t: (
        schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t), schedule.drift(t), schedule.diffusion(t)
    )  # fmt: skip
    single = jax.vmap(quantities)(jnp.asarray(times))
    jax.config.update("jax_enable_x64", True)
    try:
        double = jax.vmap(quantities)(jnp.asarray(times, jnp.float64))
    finally:
        jax.config.update("jax_enable_x64", False)
    for got, expected in zip(single, double, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=3e-4, atol=1e-7)


# Euler–Maruyama is of first order in the step; the largest relative error of a variance seen at 2000 steps is 1 %.
EULER_BIAS = 0.02


@pytest.mark.thorough
@every_schedule
def test_simulated_noising_has_the_moments_of_the_schedule(name):
    """`do = a o dt + g dw` from `o_0` at time 0 has mean `α(t)/α(0) o_0`, variance `σ(t)² − α(t)²σ(0)²/α(0)²`."""
    schedule, number, steps = helpers.schedules()[name], 4000, 2000
    # Steps even in log-SNR: the rates of the schedules peak at either end.
    times = jnp.flip(si.UniformLogSNR()(schedule, steps + 1))

    def step(o, inputs):
        t, dt, key = inputs
        noise = jr.normal(key, o.shape)
        return o + schedule.drift(t) * o * dt + schedule.diffusion(t) * jnp.sqrt(dt) * noise, o

    inputs = (times[:-1], jnp.diff(times), jr.split(jr.key(0), steps))
    _, path = jax.lax.scan(step, jnp.full((number,), 2.0), inputs)
    for index in (steps // 4, steps // 2, 3 * steps // 4, steps - 1):
        level, first = schedule.level(times[index]), schedule.level(0.0)
        scale = level.alpha / first.alpha
        std = jnp.sqrt(level.sigma**2 - (scale * first.sigma) ** 2)
        white = (np.asarray(path[index]) - 2.0 * scale) / std
        assert abs(white.mean()) < 5 / np.sqrt(number) + EULER_BIAS
        assert abs(white.var() - 1) < 5 * np.sqrt(2 / number) + EULER_BIAS


def test_noise_level_of_arrays():
    level = si.NoiseLevel(jnp.asarray([1.0, 0.5]), jnp.asarray([1.0, 1.0]))
    np.testing.assert_allclose(level.log_snr, [0.0, -2 * np.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.VariancePreserving(beta_min=2.0, beta_max=1.0), "beta_min"),
        (lambda: si.VariancePreserving(log_snr_max=-20.0), "log_snr_max"),
        (lambda: si.VarianceExploding(sigma_min=0.0), "sigma_min"),
        (lambda: si.CosineSchedule(log_snr_min=3.0, log_snr_max=2.0), "log_snr_min"),
        (lambda: si.RectifiedFlow(log_snr_min=3.0, log_snr_max=2.0), "log_snr_min"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("law", "share"), [(si.uniform_log_snr, 0), (si.middle_log_snr, 1), (si.half_middle_log_snr, 0.5)]
)
def test_noise_levels_of_training(law, share):
    """Log-SNRs normal around -0.5 with standard deviation 2, even over the schedule's range, or half of both."""
    schedule = si.CosineSchedule()
    times = jax.jit(jax.vmap(lambda key: law(schedule, key)))(jr.split(jr.key(0), 20_000))
    low, high = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    # Inside of the range: the ends hold what is outside of it.
    cdf = lambda x: share * stats.norm.cdf(x, -0.5, 2) + (1 - share) * (x - low) / (high - low)
    found = np.sort(np.asarray(jax.vmap(schedule.log_snr)(times), float))
    inside = (found > low + 0.01) & (found < high - 0.01)
    ranks = (np.arange(20_000) + 0.5) / 20_000
    assert np.abs(ranks - cdf(found))[inside].max() < 1.63 / np.sqrt(20_000)
