"""The objectives: their minimisers are the exact denoisers, their estimators are unbiased."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import helpers
import stochinv as si
from stochinv._noise import scaled_normal
from stochinv._objective.energy_score import energy_terms, local_terms


@pytest.mark.parametrize("name", helpers.objectives())
@pytest.mark.parametrize("tree", [False, True])
def test_loss_and_gradient_are_finite_and_parts_add_up(name, tree):
    objective = helpers.objectives()[name]
    case = helpers.linear_gaussian(0, objective=objective, tree=tree)
    observation = jax.tree.map(lambda x: x[0], case.context.observation)
    novel = case.context if name.startswith("squared") else None
    example = si.Example(case.context, si.View(observation, case.params), novel)
    loss = lambda problem: problem.loss(example, key=jr.key(0))
    (value, parts), gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(case.problem)
    assert value.shape == () and np.isfinite(value)
    assert all(np.isfinite(part) for part in parts.values())
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient.denoiser.mean))
    if name == "energy_score":
        np.testing.assert_allclose(value, parts["error"] - parts["spread"], rtol=1e-6)
    if name == "squared_error" and novel is not None:
        np.testing.assert_allclose(value, parts["target"] + parts["novel"], rtol=1e-6)


def gradients_around_the_exact_denoiser(objective, noise, number):
    """Gradients of the loss of `number` records, as a function of the `G` of `D + G (o_t, 1, D - E[D])`."""
    case = helpers.linear_gaussian(0, num_context=1, noise=noise)
    exact, root = case.problem.denoiser, np.linalg.cholesky(case.covariance + 1e-12 * np.eye(6))
    novel_params = case.context.params

    def loss(gain, key):
        signal_key, target_key, novel_key, loss_key = jr.split(key, 4)
        signal = jnp.asarray(case.mean, jnp.float32) + jnp.asarray(root, jnp.float32) @ jr.normal(signal_key, (6,))
        target = case.params @ signal + noise * jr.normal(target_key, (2,))
        novel = novel_params @ signal + noise * jr.normal(novel_key, (2, 2))
        example = si.Example(case.context, si.View(target, case.params), si.View(novel, novel_params))

        def denoiser(noisy, level, context, params, *, key=None):
            draw, mean = (exact(noisy, level, context, params, key=k) for k in (key, None))
            scaled = noisy / jnp.sqrt(level.alpha**2 + level.sigma**2)
            return draw + gain @ jnp.concatenate([scaled, jnp.ones(1), draw - mean])

        problem = si.StochasticInverseProblem(
            helpers.measure, denoiser, noise=noise, objective=objective, signal=case.problem.signal
        )
        return problem.loss(example, key=loss_key)[0]

    keys = jr.split(jr.key(1), number)
    return jax.jit(lambda gain: jax.lax.map(lambda k: jax.grad(loss)(gain, k), keys, batch_size=2000))


# Not of each measurement without noise: the novel one repeats the context, and a norm has a kink where it is exact.
@pytest.mark.parametrize(
    ("objective", "noise"),
    [
        (si.SquaredError, 0.0),
        (si.SquaredError, 0.6),
        (si.EnergyScore, 0.0),
        (si.EnergyScore, 0.6),
        pytest.param(partial(si.EnergyScore, marginal_weight=3.0), 0.6, id="each-0.6", marks=pytest.mark.slow),
        pytest.param(partial(si.EnergyScore, local_weight=3.0), 0.6, id="local-0.6", marks=pytest.mark.slow),
    ],
)
def test_the_exact_denoiser_is_stationary(objective, noise):
    """Around it the gradient vanishes within its standard error, elsewhere it does not."""
    number = 40000
    around_the_noise = lambda schedule, key: schedule.inverse(jr.uniform(key, minval=-6.0, maxval=1.0))
    objective = objective(sample_time=around_the_noise)
    gradients_at = gradients_around_the_exact_denoiser(objective, noise, number)
    gradients = np.asarray(gradients_at(jnp.zeros((6, 9))), np.float64)
    error = gradients.std(0) / np.sqrt(number)
    assert np.all(np.abs(gradients.mean(0)) < 5 * error + 1e-5)
    elsewhere = np.asarray(gradients_at(jnp.full((6, 9), 0.1)), np.float64)
    assert np.any(np.abs(elsewhere.mean(0)) > 10 * elsewhere.std(0) / np.sqrt(number))


def brute_force(predicted, observed, weights, beta):
    norm = lambda d: float(np.sum(weights * d**2) ** (beta / 2))
    error = np.mean([norm(v - observed) for v in predicted])
    pairs = [norm(v - w) for i, v in enumerate(predicted) for j, w in enumerate(predicted) if i != j]
    return error, 0.5 * np.mean(pairs)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7])
def test_energy_terms_against_brute_force(beta):
    rng = np.random.default_rng(0)
    predicted, observed, weights = rng.normal(size=(5, 3)), rng.normal(size=3), np.asarray([1.0, 0.0, 2.0])
    got = energy_terms(*(jnp.asarray(x, jnp.float32) for x in (predicted, observed, weights)), beta)
    np.testing.assert_allclose(got, brute_force(predicted, observed, weights, beta), rtol=1e-5)


def test_local_terms_are_those_of_each_pixel():
    """Of a stack of vectors, of images of two channels, and of numbers; with weights, and of two components."""
    rng = np.random.default_rng(1)
    parts = [np.zeros((2, 3)), np.zeros((1, 2, 2)), np.zeros(())]
    pixels = [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9], [10]]
    predicted, observed, weights = map(jnp.asarray, (rng.normal(size=(4, 2, 11)), rng.normal(size=11), rng.random(11)))
    shares = jnp.asarray([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    alone = [
        energy_terms(predicted[..., i], observed[i], weights[i] / len(i), 1.0, shares) for i in map(np.asarray, pixels)
    ]
    got = local_terms(predicted, parts, observed, weights, 1.0, shares)
    np.testing.assert_allclose(got, np.mean(alone, axis=0), rtol=1e-5)


def test_the_local_score_is_added():
    """One draw: no spread, and the norm of every pixel's error by itself."""
    case = helpers.linear_gaussian(0, num_context=2)
    signal = jr.normal(jr.key(3), (1, 6))
    target, novel = si.View(jnp.zeros(2), case.params), si.View(jnp.zeros((2, 2)), case.context.params)
    score = lambda **settings: energy_of(
        si.Example(case.context, target, novel), fixed_draws(case, signal), case, novel_weight=3.0, **settings
    )[0]
    square = lambda d: float(jnp.sum(d**2))
    alone = [square(case.params @ signal[0]), *(3 * square(phi @ signal[0]) for phi in case.context.params)]
    expected = score() + 0.7 * np.mean(np.sqrt(np.asarray(alone) / 2))
    np.testing.assert_allclose(score(local_weight=0.7), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7])
def test_gradient_is_finite_where_draws_coincide(beta):
    same = jnp.ones((3, 2))
    gradient = jax.grad(lambda v: jnp.subtract(*energy_terms(v, same[0], jnp.ones(2), beta)))(same)
    np.testing.assert_array_equal(gradient, 0)


def test_expected_energy_score_is_least_at_the_truth():
    """`v ~ N(0, 1)`; the expected score of `N(μ, s²)` has its least value at `μ = 0`, `s = 1`."""
    number = 20000
    draws, truth = jr.normal(jr.key(0), (number, 4, 1)), jr.normal(jr.key(1), (number, 1))

    @jax.jit
    def scores(mean, std):
        score = lambda z, v: jnp.subtract(*energy_terms(mean + std * z, v, jnp.ones(1), 1.0))
        return jax.vmap(score)(draws, truth)

    gradients = jax.jit(jax.vmap(jax.grad(lambda a, z, v: jnp.subtract(
        *energy_terms(a[0] + a[1] * z, v, jnp.ones(1), 1.0)), argnums=0), in_axes=(None, 0, 0)))(
            jnp.asarray([0.0, 1.0]), draws, truth)  # fmt: skip
    assert np.all(np.abs(gradients.mean(0)) < 5 * gradients.std(0) / np.sqrt(number))
    least = scores(0.0, 1.0)
    for mean, std in ((0.5, 1.0), (0.0, 0.4), (0.0, 2.0)):
        difference = scores(mean, std) - least
        assert difference.mean() > 5 * difference.std() / np.sqrt(number)


def fixed_draws(case, values):
    """A stochastic denoiser whose answer is one of a few signals, chosen by its key."""
    return lambda noisy, level, context, params, *, key=None: values[jr.randint(key, (), 0, len(values))]


def energy_of(example, denoiser, case, **settings):
    problem = si.StochasticInverseProblem(
        helpers.measure, denoiser, objective=si.EnergyScore(**settings), signal=case.problem.signal
    )
    return problem.loss(example, key=jr.key(0))


def test_weights_and_masks_of_the_energy_score():
    case = helpers.linear_gaussian(0, num_context=2)
    signal = jr.normal(jr.key(3), (1, 6))
    denoiser = fixed_draws(case, signal)
    target = si.View(jnp.zeros(2), case.params)
    novel = si.View(jnp.zeros((2, 2)), case.context.params, jnp.asarray([True, False]))
    example = si.Example(case.context, target, novel)
    score, parts = energy_of(example, denoiser, case, target_weight=2.0, novel_weight=3.0, context_weight=0.5)
    square = lambda d: float(jnp.sum(d**2))
    context_error = case.context.params @ signal[0] - case.context.observation
    total = (
        2 * square(case.params @ signal[0])
        + 3 * square(case.context.params[0] @ signal[0])
        + 0.5 * square(context_error)
    )
    np.testing.assert_allclose(score, np.sqrt(total / 10), rtol=1e-5)
    assert parts["spread"] == 0
    weights = {"target_weight": 2.0, "novel_weight": 3.0, "context_weight": 0.5}
    both, _ = energy_of(example, denoiser, case, **weights, marginal_weight=0.7)
    alone = [2 * square(case.params @ signal[0]), 3 * square(case.context.params[0] @ signal[0]), 0]
    alone += [0.5 * square(x) for x in context_error]
    np.testing.assert_allclose(both, score + 0.7 * np.mean(np.sqrt(np.asarray(alone) / 2)), rtol=1e-5)
    moved = si.View(novel.observation.at[1].set(99.0), novel.params, novel.mask)
    again, _ = energy_of(
        si.Example(case.context, target, moved), denoiser, case, target_weight=2.0, novel_weight=3.0, context_weight=0.5
    )
    np.testing.assert_allclose(again, score, rtol=1e-6)
    with pytest.raises(ValueError, match="context_weight"):
        energy_of(si.Example(None, target, novel), denoiser, case, context_weight=1.0)


def test_masked_novel_views_do_not_count_for_the_squared_error():
    case = helpers.linear_gaussian(0, num_context=1)
    target = si.View(jnp.zeros(2), case.params)
    losses = []
    for value in (0.0, 99.0):
        observation = jnp.zeros((2, 2)).at[1].set(value)
        novel = si.View(observation, case.context.params, jnp.asarray([True, False]))
        losses.append(case.problem.loss(si.Example(case.context, target, novel), key=jr.key(0))[0])
    np.testing.assert_array_equal(*losses)


def test_snr_weight_makes_scaled_outputs_count_alike():
    """For data of unit variance the uncertainty of `α o_t / (α² + σ²)` is `σ/√(α² + σ²)`, on any schedule."""
    for schedule in helpers.schedules().values():
        level = jax.vmap(schedule.level)(jnp.asarray([0.0, 0.3, 1.0]))
        uncertainty = level.sigma / jnp.sqrt(level.alpha**2 + level.sigma**2)
        np.testing.assert_allclose(jax.vmap(si.snr_weight)(level) * uncertainty**2, 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.SquaredError(novel_weight=-1.0), "novel_weight"),
        (lambda: si.EnergyScore(num_samples=1), "num_samples"),
        (lambda: si.EnergyScore(beta=2.0), "beta"),
        (lambda: si.EnergyScore(marginal_weight=-1.0), "marginal_weight"),
        (lambda: si.EnergyScore(local_weight=-1.0), "local_weight"),
        (lambda: si.EnergyScore(context_weight=-1.0), "context_weight"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_noise_of_measurements_is_drawn_where_there_is_some(noise):
    """The very numbers that are drawn unconditionally, under `jit` and `vmap` too; without noise exactly nothing."""
    like, keys = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}, jr.split(jr.key(0), 4)
    problem = si.StochasticInverseProblem(lambda s, phi: s, noise={"a": noise, "b": noise})
    draw = eqx.filter_jit(jax.vmap(lambda problem, key: problem.add_noise(like, key=key), (None, 0)))
    added = jax.vmap(lambda key: scaled_normal(like, noise, key))(keys)
    jax.tree.map(lambda x, y, z: np.testing.assert_array_equal(x, y + z), draw(problem, keys), like, added)
    level = problem.schedule.level(0.5)
    noisy = jax.tree.map(lambda x: 3 * x, like)
    bridge = eqx.filter_jit(jax.vmap(lambda problem, key: problem.measured(noisy, level, like, key=key), (None, 0)))
    mean = problem.measured(noisy, level, like)
    spread = noise * level.sigma / jnp.sqrt((level.alpha * noise) ** 2 + level.sigma**2)
    around = jax.vmap(lambda key: scaled_normal(like, spread, key))(keys)
    close = lambda x, y, z: np.testing.assert_allclose(x, y + z, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, bridge(problem, keys), mean, around)
    if noise == 0:
        exactly = lambda x, y: np.testing.assert_array_equal(x, jnp.broadcast_to(y, x.shape))
        jax.tree.map(exactly, bridge(problem, keys), like)


def test_a_prediction_that_is_nan_has_a_loss_that_is_nan():
    predicted = jnp.array([[jnp.nan, 0.0], [1.0, 2.0]])
    assert all(jnp.isnan(x) for x in energy_terms(predicted, jnp.zeros(2), jnp.ones(2), 1.0))
    same = jnp.ones((2, 2))
    assert energy_terms(same, same[0], jnp.ones(2), 1.0) == (0.0, 0.0)
    assert jnp.all(jax.grad(lambda x: sum(energy_terms(x, same[0], jnp.ones(2), 1.0)))(same) == 0)
