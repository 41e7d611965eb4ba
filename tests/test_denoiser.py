"""The exact denoiser, and the score of the problem, against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import helpers
import stochinv as si


def posterior_of_noised(case, level, noisy, noise):
    """The law of the signal given the context and `o_t = α (A s + τ η) + σ ε`, in numpy."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    spread = (sigma**2 + (alpha * noise) ** 2) * np.eye(len(noisy))
    return helpers.condition(case.mean, case.covariance, alpha * case.matrix, noisy, spread)


@pytest.mark.thorough
@pytest.mark.parametrize("schedule", helpers.schedules())
@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("standardised", [False, True])
def test_score_is_the_gradient_of_the_log_density(schedule, noise, standardised, x64):
    case = helpers.linear_gaussian(
        1, schedule=helpers.schedules()[schedule], noise=noise, num_context=1, dtype=jnp.float64
    )
    problem, shift, scale = case.problem, 0.0, 1.0
    if standardised:
        shift, scale = 0.7, 2.5
        exact = problem.denoiser
        struct = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        info = si.DataInfo(
            struct(jnp.zeros(2)),
            struct(case.params),
            struct(case.context),
            si.Units(jnp.asarray(shift), jnp.asarray(scale)),
        )

        def denoiser(noisy, level, context, params, *, key=None):
            raw = si.View(shift + scale * context.observation, context.params, context.mask)
            level = si.NoiseLevel(level.alpha, scale * level.sigma)
            return exact(scale * noisy + level.alpha * shift, level, raw, params, key=key)

        problem = si.StochasticInverseProblem(
            helpers.measure, denoiser, schedule=problem.schedule, noise=noise, signal=problem.signal, data_info=info
        )
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        level = problem.schedule.level(t)
        alpha, sigma = level.alpha, level.sigma

        def log_density(raw, alpha=alpha, sigma=sigma):
            x = (raw - shift) / scale
            mean = alpha * (case.matrix @ case.mean - shift) / scale
            target = (case.matrix @ case.covariance @ case.matrix.T + noise**2 * np.eye(2)) / scale**2
            return jax.scipy.stats.multivariate_normal.logpdf(x, mean, alpha**2 * target + sigma**2 * jnp.eye(2))

        noisy = shift + scale * jnp.asarray([0.4, -1.1])
        expected = jax.grad(log_density)(noisy)
        np.testing.assert_allclose(problem.score(noisy, level, case.context, case.params), expected, rtol=1e-8)


@pytest.mark.parametrize("standardised", [False, True])
def test_denoised_observation_is_the_forward_model_of_the_signal(standardised):
    case = helpers.linear_gaussian(2)
    problem, level = case.problem, si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.6))
    if standardised:
        info = si.DataInfo(None, None, None, si.Units(jnp.asarray(0.7), jnp.asarray(2.5)))
        problem = eqx.tree_at(lambda p: p.data_info, problem, info, is_leaf=lambda x: x is None)
    sample = problem.denoise(jnp.asarray([0.3, 0.1]), level, case.context, case.params)
    raw = case.params @ sample.signal
    np.testing.assert_allclose(sample.observation, (raw - 0.7) / 2.5 if standardised else raw, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("num_context", [0, 1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_mean_and_draws(tree, num_context, noise):
    case = helpers.linear_gaussian(num_context, tree=tree, num_context=num_context, noise=noise)
    level = si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.5))
    values = np.asarray([0.9, -0.3])
    noisy = jnp.asarray(values, jnp.float32)
    noisy = {"first": noisy[:1], "rest": (noisy[1:],)} if tree else noisy
    mean, covariance = posterior_of_noised(case, level, values, noise)
    denoise = lambda key: case.problem.denoiser(noisy, level, case.context, case.params, key=key)
    np.testing.assert_allclose(ravel_pytree(denoise(None))[0], mean, atol=2e-5)
    draws = jax.jit(jax.vmap(denoise))(jr.split(jr.key(0), 4000))
    helpers.assert_gaussian(helpers.ravel_samples(draws), mean, covariance, bias=0.0, name="the draws")


def test_masked_views_count_for_nothing_and_redundant_ones_for_one():
    case = helpers.linear_gaussian(0, num_context=1)
    level, noisy = si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.5)), jnp.asarray([0.9, -0.3])
    context = case.context
    expected = case.problem.denoiser(noisy, level, context, case.params)
    for observation, params, mask in (
        (context.observation[:1], context.params[:1], None),
        (context.observation.at[1].set(jnp.nan), context.params, context.mask),
        (context.observation[jnp.asarray([0, 0, 0])], context.params[jnp.asarray([0, 0, 0])], None),
    ):
        view = si.View(observation, params, mask)
        np.testing.assert_allclose(case.problem.denoiser(noisy, level, view, case.params), expected, atol=2e-4)


def test_without_context_and_with_one_that_is_no_view():
    case = helpers.linear_gaussian(0, num_context=0)
    level, noisy = si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.5)), jnp.asarray([0.9, -0.3])
    expected = case.problem.denoiser(noisy, level, case.context, case.params)
    got = case.problem.denoiser(noisy, level, None, case.params)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    with pytest.raises(ValueError, match="the context must be a `stochinv.View`, or None"):
        case.problem.denoiser(noisy, level, jnp.zeros(2), case.params)


def test_covariance_of_the_wrong_shape():
    with pytest.raises(ValueError, match="covariance"):
        si.GaussianDenoiser(helpers.measure, jnp.zeros(3), jnp.eye(2))


def test_guidance_moves_a_signal_along_what_the_context_says():
    forward = lambda signal, direction: direction @ signal
    exact = si.GaussianDenoiser(forward, jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    level, noisy, params = si.CosineSchedule().level(0.5), jnp.asarray(0.3), jnp.array([0.0, 1.0])
    context = si.View(jnp.array([1.0]), jnp.array([[1.0, 0.0]]), jnp.array([True]))
    none = eqx.tree_at(lambda c: c.mask, context, jnp.array([False]))
    given, free = (exact(noisy, level, c, params) for c in (context, none))
    guided = lambda weight: si.GuidedDenoiser(exact, weight)(noisy, level, context, params)
    for weight, expected in ((0.0, free), (1.0, given), (3.0, 3 * given - 2 * free)):
        np.testing.assert_allclose(guided(weight), expected, rtol=1e-5, atol=1e-5)
    assert jnp.abs(given - free).max() > 0.1
    with pytest.raises(ValueError, match="with a mask"):
        si.GuidedDenoiser(exact, 2.0)(noisy, level, si.View(context.observation, context.params), params)
    with pytest.raises(ValueError, match="`weight` must be at least 0"):
        si.GuidedDenoiser(exact, -1.0)


@pytest.mark.thorough
def test_guided_samples_agree_more_with_the_context():
    """Given that the first entry is 1, the second has mean 0.8; guidance goes beyond, with less spread."""
    forward = lambda signal, direction: direction @ signal
    exact = si.GaussianDenoiser(forward, jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    context = si.View(jnp.array([1.0]), jnp.array([[1.0, 0.0]]), jnp.array([True]))

    def draws(denoiser):
        problem = si.StochasticInverseProblem(forward, denoiser, signal=jax.ShapeDtypeStruct((2,), jnp.float32))
        sample = problem.sample(context, jnp.array([0.0, 1.0]), key=jr.key(0), num_samples=2000)
        return np.asarray(sample.observation)

    plain, same, guided = draws(exact), draws(si.GuidedDenoiser(exact, 1.0)), draws(si.GuidedDenoiser(exact, 3.0))
    np.testing.assert_allclose(plain, same, atol=1e-4)
    assert abs(plain.mean() - 0.8) < 5 * 0.6 / np.sqrt(2000)
    assert guided.mean() > 1.2 and guided.std() < plain.std()
