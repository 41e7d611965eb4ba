"""The objectives: their minimisers are the exact denoisers, their estimators are unbiased."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jaxtyping import Array

import helpers
import stochinv as si
from stochinv._denoiser.base import components

ENERGY = si.EnergyRule()
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


@pytest.mark.thorough
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
    if name == "proper_score":
        np.testing.assert_allclose(value, parts["error"] - parts["spread"], rtol=1e-6)
    if name == "squared_error" and novel is not None:
        np.testing.assert_allclose(value, parts["target"] + parts["novel"], rtol=1e-6)


def gradients_around_the_exact_denoiser(objective, noise, number, *, with_novel=True):
    """Gradients of the loss of `number` records, as a function of the `G` of `D + G (o_t, 1, D - E[D])`."""
    case = helpers.linear_gaussian(0, num_context=1, noise=noise)
    exact, root = case.problem.denoiser, np.linalg.cholesky(case.covariance + 1e-12 * np.eye(6))
    novel_params = case.context.params

    def loss(gain, key):
        signal_key, target_key, novel_key, loss_key = jr.split(key, 4)
        signal = jnp.asarray(case.mean, jnp.float32) + jnp.asarray(root, jnp.float32) @ jr.normal(signal_key, (6,))
        target = case.params @ signal + noise * jr.normal(target_key, (2,))
        novel = novel_params @ signal + noise * jr.normal(novel_key, (2, 2))
        novel = si.View(novel, novel_params) if with_novel else None
        example = si.Example(case.context, si.View(target, case.params), novel)

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
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("objective", "noise"),
    [
        (si.SquaredError, 0.0),
        (si.SquaredError, 0.6),
        (si.ProperScore, 0.0),
        (si.ProperScore, 0.6),
        pytest.param(
            partial(si.ProperScore, rule=ENERGY + 3.0 * si.PerView(ENERGY)), 0.6, id="each-0.6", marks=pytest.mark.slow
        ),
        pytest.param(
            partial(si.ProperScore, rule=ENERGY + 3.0 * si.Patches(ENERGY, 1)),
            0.6,
            id="local-0.6",
            marks=pytest.mark.slow,
        ),
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


@pytest.mark.thorough
def test_a_noisy_target_that_is_seen_as_pure_noise_is_scored_like_a_novel_one():
    """Without a novel measurement the exact denoiser is stationary there, and one that knows no noise is not."""
    number = 40000
    objective = si.ProperScore(sample_time=si.pure_noise)
    gradients_at = gradients_around_the_exact_denoiser(objective, 0.6, number, with_novel=False)
    for size, stationary in ((0.0, True), (0.1, False)):
        gradients = np.asarray(gradients_at(jnp.full((6, 9), size)), np.float64)
        error = gradients.std(0) / np.sqrt(number)
        assert np.all(np.abs(gradients.mean(0)) < 5 * error + 1e-5) == stationary
    case = helpers.linear_gaussian(0, noise=0.6)
    example = si.Example(None, si.View(jnp.zeros(2), case.params))
    objective.check(case.problem, example)
    with pytest.raises(ValueError, match="novel measurements are needed"):
        si.ProperScore(sample_time=si.mostly_noise).check(case.problem, example)


def fixed_draws(case, values):
    """A stochastic denoiser whose answer is one of a few signals, chosen by its key."""
    return lambda noisy, level, context, params, *, key=None: values[jr.randint(key, (), 0, len(values))]


def score_of(example, denoiser, case, **settings):
    problem = si.StochasticInverseProblem(
        helpers.measure, denoiser, objective=si.ProperScore(**settings), signal=case.problem.signal
    )
    return problem.loss(example, key=jr.key(0))


@pytest.mark.thorough
def test_target_and_masks_of_a_proper_score():
    """One draw: no spread, and the norm of the error of what counts."""
    case = helpers.linear_gaussian(0, num_context=2)
    signal = jr.normal(jr.key(3), (1, 6))
    denoiser = fixed_draws(case, signal)
    target = si.View(jnp.zeros(2), case.params)
    novel = si.View(jnp.zeros((2, 2)), case.context.params, jnp.asarray([True, False]))
    square = lambda d: float(jnp.sum(d**2))
    errors = [square(case.params @ signal[0]), square(case.context.params[0] @ signal[0])]
    score, parts = score_of(si.Example(case.context, target, novel), denoiser, case)
    np.testing.assert_allclose(score, np.sqrt(sum(errors) / 6), rtol=1e-5)
    assert parts["spread"] == 0
    each, _ = score_of(si.Example(case.context, target, novel), denoiser, case, rule=si.PerView(ENERGY))
    np.testing.assert_allclose(each, np.mean(np.sqrt(np.asarray([*errors, 0.0]) / 2)), rtol=1e-5)
    alone, _ = score_of(si.Example(case.context, target, novel), denoiser, case, score_target=False)
    np.testing.assert_allclose(alone, np.sqrt(errors[1] / 4), rtol=1e-5)
    moved = si.View(novel.observation.at[1].set(99.0), novel.params, novel.mask)
    again, _ = score_of(si.Example(case.context, target, moved), denoiser, case)
    np.testing.assert_allclose(again, score, rtol=1e-6)


@pytest.mark.thorough
def test_the_unfair_share_shrinks_the_spread():
    """`fair=0` is the score of the draws themselves, whose pairs with themselves count too."""
    case = helpers.linear_gaussian(0, num_context=2)
    values = jr.normal(jr.key(3), (5, 6))
    target = si.View(jnp.zeros(2), case.params)
    example = si.Example(case.context, target, None)
    parts = [score_of(example, fixed_draws(case, values), case, fair=x, num_draws=3)[1] for x in (1.0, 0.0, 0.95)]
    np.testing.assert_allclose(parts[1]["spread"], parts[0]["spread"] * 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(parts[2]["spread"], parts[0]["spread"] * (1 - 0.05 / 3), rtol=1e-5)
    assert parts[0]["spread"] > 0 and parts[0]["error"] == parts[1]["error"]


def test_masked_novel_views_do_not_count_for_the_squared_error():
    case = helpers.linear_gaussian(0, num_context=1)
    target = si.View(jnp.zeros(2), case.params)
    losses = []
    for value in (0.0, 99.0):
        observation = jnp.zeros((2, 2)).at[1].set(value)
        novel = si.View(observation, case.context.params, jnp.asarray([True, False]))
        losses.append(case.problem.loss(si.Example(case.context, target, novel), key=jr.key(0))[0])
    np.testing.assert_array_equal(*losses)


class Choice(si.AbstractMixtureDenoiser):
    """One of the same few signals, whatever is measured."""

    signals: Array
    logits: Array

    def components(self, noisy, level, context, params, *, key=None):
        return self.signals, jax.nn.log_softmax(self.logits)

    def __call__(self, noisy, level, context, params, *, key=None):
        return self.signals[jr.categorical(key, self.logits)]


def two_points(share):
    return Choice(jnp.asarray([-1.0, 2.0]), jnp.log(jnp.asarray([1 - share, share])))


def test_every_other_denoiser_has_one_component():
    plain = lambda noisy, level, context, params, *, key=None: jnp.asarray(3.0)
    signals, logs = components(plain, jnp.zeros(1), si.CosineSchedule().level(0.5), None, None, key=jr.key(0))
    np.testing.assert_array_equal(signals, [3.0])
    np.testing.assert_array_equal(logs, [0.0])


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [0.0, 0.7, dist.Poisson])
def test_weighting_the_choices_changes_no_expectation(noise):
    """The score of draws and the one weighted by shares have the same mean, and so have their gradients by signals."""
    number = 4000
    forward = lambda s, params: 3 + s[None]
    novel = si.View(jnp.asarray([[4.0], [1.0]]), jnp.zeros((2, 0)))
    example = si.Example(None, si.View(jnp.asarray([4.0]), jnp.zeros(0)), novel)
    objective = si.ProperScore(num_draws=2, regulariser=lambda s, params: 0.1 * s**2)
    logits = two_points(0.3).logits

    def scores(wrap):
        def score(signals, key):
            denoiser = wrap(Choice(signals, logits))
            problem = si.StochasticInverseProblem(forward, denoiser, noise=noise, objective=objective, signal=SCALAR)
            return problem.loss(example, key=key)[0]

        of = jax.jit(jax.vmap(jax.value_and_grad(score), (None, 0)))
        value, gradient = of(jnp.asarray([-1.0, 2.0]), jr.split(jr.key(0), number))
        return np.concatenate([value[:, None], gradient], 1).astype(np.float64)

    # As a plain callable, a denoiser has no components.
    drawn = scores(lambda denoiser: lambda *arguments, key=None: denoiser(*arguments, key=key))
    weighted = scores(lambda denoiser: denoiser)
    error = np.sqrt((drawn.var(0) + weighted.var(0)) / number)
    assert np.all(np.abs(drawn.mean(0) - weighted.mean(0)) < 5 * error)
    assert np.all(weighted.var(0) < drawn.var(0))


@pytest.mark.parametrize("noise", [0.0, pytest.param(dist.Poisson, marks=pytest.mark.slow)])
def test_the_right_shares_are_stationary(noise):
    """The gradient by the logits vanishes within its standard error there, and not at other shares."""
    share, number = 0.3, 20_000
    second = jr.bernoulli(jr.key(0), share, (number,))
    forward = lambda s, params: 3 + s[None]
    measured = forward(jnp.where(second, 2.0, -1.0), None)[0][:, None]
    if callable(noise):
        measured = jr.poisson(jr.key(1), measured).astype(jnp.float32)
    empty = jnp.zeros((number, 0))
    data = si.Example(None, si.View(measured, empty), si.View(measured[:, None], empty[:, None]))
    objective = si.ProperScore(num_draws=2, score_target=False)

    def gradients(share):
        def loss(denoiser, example, key):
            problem = si.StochasticInverseProblem(forward, denoiser, noise=noise, objective=objective, signal=SCALAR)
            return problem.loss(example, key=key)[0]

        keys = jr.split(jr.key(2), number)
        of = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(two_points(share), data, keys)
        return np.asarray(of.logits, np.float64)

    at_truth, elsewhere = gradients(share), gradients(0.6)
    assert np.all(np.abs(at_truth.mean(0)) < 5 * at_truth.std(0) / np.sqrt(number) + 1e-6)
    assert np.all(np.abs(elsewhere.mean(0)) > 10 * elsewhere.std(0) / np.sqrt(number))


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
        (lambda: si.ProperScore(num_draws=1), "num_draws"),
        (lambda: si.ProperScore(fair=1.5), "fair"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()
