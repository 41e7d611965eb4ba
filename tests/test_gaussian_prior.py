"""The encoder that conditions a Gaussian, against dense linear algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import helpers
import stochinv as si
from stochinv._denoiser.gaussian_prior import condition


def encoder_of(forward, signal, *, noise=0.0, mean=0.0, std=1.0, scale=1.5):
    view_network = lambda x: jnp.zeros(1, x.dtype)
    return si.GaussianPrior(
        forward,
        signal,
        si.Flatten(view_network),
        scale=scale,
        noise=si.GaussianNoise(noise),
        units=si.Units(jnp.asarray(mean), jnp.asarray(std)),
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), noise=st.sampled_from([0.0, 0.4]), num_context=st.sampled_from([0, 1, 2]))
def test_estimate_and_uncertainty_are_the_exact_conditional_law(seed, noise, num_context):
    case = helpers.linear_gaussian(seed, noise=noise, num_context=num_context)
    rng = np.random.default_rng(seed)
    mean, std, scale, alpha, sigma = 0.3, 2.0, 1.5, 0.8, 0.6
    encoder = encoder_of(case.problem.forward, case.problem.signal, noise=noise, mean=mean, std=std, scale=scale)
    noisy = rng.normal(size=2)
    context = si.View((case.context.observation - mean) / std, case.context.params, case.context.mask)
    features = eqx.filter_jit(encoder)(
        jnp.asarray(noisy, jnp.float32), si.NoiseLevel(jnp.asarray(alpha), jnp.asarray(sigma)), context, case.params
    )
    rows = np.concatenate([case.context.params[:num_context].reshape(-1, 6), case.matrix]).astype(np.float64)
    observed = np.concatenate([np.ravel(case.context.observation[:num_context]), std * noisy / alpha + mean])
    variances = np.full(len(rows), noise**2)
    variances[-2:] += (std * sigma / alpha) ** 2
    expected_mean, covariance = helpers.condition(np.zeros(6), scale**2 * np.eye(6), rows, observed, np.diag(variances))
    np.testing.assert_allclose(features.estimate, expected_mean, atol=3e-5)
    root = np.asarray(features.uncertainty, np.float64)
    np.testing.assert_allclose(root @ root.T, covariance, atol=3e-5)


def test_signals_explain_a_context_without_noise():
    case = helpers.linear_gaussian(0, num_context=2)
    encoder = encoder_of(case.problem.forward, case.problem.signal)
    level = si.CosineSchedule().level(0.4)
    features = encoder(jnp.ones(2), level, case.context, case.params)
    for seed in range(3):
        signal = features.estimate + features.uncertainty @ np.random.default_rng(seed).normal(size=6)
        measured = jnp.einsum("vij,j->vi", case.context.params, signal)
        np.testing.assert_allclose(measured, case.context.observation, atol=1e-5)


def test_repeated_measurements_change_nothing_and_have_gradients():
    rng = np.random.default_rng(0)
    rows, observed = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32), jnp.asarray([0.3, -1.0])
    once = condition(rows, observed, jnp.zeros(2))
    twice = condition(jnp.tile(rows, (2, 1)), jnp.tile(observed, 2), jnp.zeros(4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), once, twice)
    value = lambda rows: sum(jnp.sum(x**2) for x in condition(rows, observed, jnp.zeros(2)))
    assert np.all(np.isfinite(jax.grad(value)(rows)))


def test_a_network_moves_a_measured_direction_by_its_variance():
    """Draws follow a precise target whatever the network says: it moves them by variances, not standard deviations."""
    case = helpers.linear_gaussian(0, num_context=1)
    encoder = encoder_of(case.problem.forward, case.problem.signal)
    for sigma in (1e-2, 1e-3):
        level = si.NoiseLevel(jnp.asarray(1.0), jnp.asarray(sigma))
        features = encoder(jnp.ones(2), level, case.context, case.params)
        moved = case.matrix @ features.uncertainty @ features.shrinkage @ np.ones(6)
        assert np.all(np.abs(moved) < 10 * sigma**2)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_default_network_of_a_small_affine_problem_uses_it(noise):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(16, 3, 1, 2)), jnp.float32)
    data = si.View(jnp.asarray(rng.normal(size=(16, 3, 1)), jnp.float32), params)
    problem = si.StochasticInverseProblem(
        helpers.measure, objective=si.ProperScore(), noise=noise, signal=jax.ShapeDtypeStruct((2,), jnp.float32)
    )
    fit = problem.fit(data, key=jax.random.key(0), steps=3, batch_size=8, roles=si.RandomViews(1, 1, 1), progress=False)
    assert isinstance(fit.problem.denoiser.encoder, si.GaussianPrior)
    assert np.all(np.isfinite(fit.history.loss))
    context = si.View(jnp.asarray([[0.7]]), jnp.asarray([[[1.0, 0.0]]]))
    signals = fit.problem.posterior(context, params=jnp.asarray([[0.0, 1.0]])).sample(jax.random.key(1), (8,))
    assert (np.abs(signals[:, 0] - 0.7).max() < 1e-4) == (noise == 0)


def test_a_network_of_zeros_draws_from_the_gaussian():
    case = helpers.linear_gaussian(4, num_context=1, noise=0.3)
    structure = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    info = si.DataInfo(
        jax.ShapeDtypeStruct((2,), jnp.float32),
        structure(case.params),
        structure(case.context),
        si.Units(jnp.zeros(()), jnp.ones(())),
        affine=True,
    )
    denoiser = si.nn.default_denoiser(
        case.problem.forward, case.problem.signal, info, width=8, noise=si.GaussianNoise(0.3), key=jax.random.key(0)
    )
    noisy, level = np.array([0.5, -0.2]), si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.6))
    draw = lambda key: denoiser(jnp.asarray(noisy, jnp.float32), level, case.context, case.params, key=key)
    draws = eqx.filter_jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000))
    rows = np.concatenate([np.asarray(case.context.params[0], np.float64), case.matrix])
    observed = np.concatenate([np.asarray(case.context.observation[0]), noisy / 0.8])
    variances = 0.3**2 + np.array([0, 0, 0.75**2, 0.75**2])
    mean, covariance = helpers.condition(np.zeros(6), np.eye(6), rows, observed, np.diag(variances))
    helpers.assert_gaussian(draws, mean, covariance, bias=0.0)
