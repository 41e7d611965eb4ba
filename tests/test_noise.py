"""Noise of measurements: laws that every noise obeys, and gradients against sums over all outcomes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import helpers
import stochinv as si
from stochinv._noise import is_sized

OUTCOMES = np.arange(60)


class OneSignal(si.AbstractDenoiser):
    """The same signal, whatever is measured."""

    value: jax.Array

    def __call__(self, noisy, level, context, params, *, key=None):
        return self.value


def rate(signal, params):
    return jnp.exp(params * signal)


def problem_of(noise, objective=None, denoiser=None):
    return si.StochasticInverseProblem(
        rate,
        denoiser,
        noise=noise,
        objective=si.ProperScore() if objective is None else objective,
        signal=jax.ShapeDtypeStruct((), jnp.float32),
    )


def counts(rng, number, num_views=3):
    signal = rng.normal(size=(number, 1))
    params = rng.uniform(0.5, 1.5, size=(number, num_views))
    return si.View(*(x.astype(np.float32) for x in (rng.poisson(np.exp(params * signal)), params)))


def expected_gradients(values, laws, observed):
    """Sums over all outcomes of `E|y − o| − ½ E|y − y'|`, differentiated by central differences."""

    def score(theta):
        probability = laws(theta)
        spread = probability @ np.abs(values[:, None] - values) @ probability
        return probability @ np.abs(values - observed) - 0.5 * spread

    return (score(0.4 + 1e-4) - score(0.4 - 1e-4)) / 2e-4


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["counts", "normal"])
def test_gradient_is_unbiased(name):
    observed = 3.0
    if name == "counts":
        noise, values = dist.Poisson, OUTCOMES
        laws = lambda theta: stats.poisson.pmf(OUTCOMES, np.exp(theta))
    else:
        noise, values = functools.partial(dist.Normal, scale=0.8), np.linspace(-5, 9, 2801)
        laws = lambda theta: stats.norm.pdf(values, np.exp(theta), 0.8) * (values[1] - values[0])
    one, stack = jnp.ones(1), jnp.full((1, 1), observed)
    example = si.Example(None, si.View(jnp.full(1, observed), one), si.View(stack, one[None]))

    @jax.jit
    def gradients(keys):
        loss = lambda theta, key: problem_of(noise, denoiser=OneSignal(theta)).loss(example, key=key)[0]
        return jax.vmap(jax.grad(loss), (None, 0))(jnp.asarray(0.4), keys)

    # At most this many at a time stay in memory.
    drawn = np.concatenate([gradients(k) for k in jr.split(jr.key(0), (12, 4000))]).astype(np.float64)
    expected = expected_gradients(values, laws, observed)
    assert abs(drawn.mean() - expected) < 5 * drawn.std() / np.sqrt(drawn.size)
    assert drawn.std() / np.sqrt(drawn.size) < 0.02 * abs(expected)


def test_masked_novel_views_do_not_count():
    params, observation = jnp.asarray([[1.0], [0.7]]), jnp.asarray([[2.0], [1.0]])
    target = si.View(observation[0], params[0])
    problem = problem_of(dist.Poisson, denoiser=OneSignal(jnp.asarray(0.3)))

    @eqx.filter_jit
    def gradient(novel):
        loss = lambda problem: problem.loss(si.Example(None, target, novel), key=jr.key(0))[0]
        return eqx.filter_grad(loss)(problem).denoiser.value

    mask = jnp.asarray([True, False])
    first = gradient(si.View(observation, params, mask))
    assert first == gradient(si.View(observation.at[1].set(9.0), params, mask))
    assert first != gradient(si.View(observation.at[0].set(9.0), params, mask))


@pytest.mark.thorough
def test_one_step_is_the_default_and_everything_else_is_refused():
    data = counts(np.random.default_rng(0), 16)
    problem = problem_of(dist.Poisson)
    fit = problem.fit(data, key=jr.key(0), steps=2, batch_size=8, roles=si.RandomViews(1, 1, 1), progress=False)
    assert np.all(np.isfinite(fit.history.loss))
    context, params = si.View(jnp.asarray([2.0]), jnp.ones(1)), jnp.ones(())
    draw = functools.partial(fit.problem.sample, context, params, key=jr.key(1))
    np.testing.assert_array_equal(draw().signal, draw(sampler=si.Ancestral(1)).signal)
    for sampler in (si.Ancestral(2), si.ExponentialAdams(), si.ProbabilityFlow(), si.ReverseSDE()):
        with pytest.raises(ValueError, match="`noise` is not Gaussian"):
            draw(sampler=sampler)
    with pytest.raises(ValueError, match="`noise` is not Gaussian"):
        fit.problem.posterior(context, params).log_prob(jnp.asarray(1.0), key=jr.key(0))
    # The Fisher information of a count is the squared derivative of its rate over the rate; of four, their sum.
    found = si.diagnostics.identifiability(fit.problem, jnp.log(jnp.full(4, 2.0)), jnp.ones((4, 1)))
    np.testing.assert_allclose(found.singular_values**2, [4 * 2.0], rtol=1e-4)


def test_predictions_have_the_noise():
    problem = problem_of(dist.Poisson, denoiser=OneSignal(jnp.asarray(1.0)))
    posterior = problem.posterior(None, params=jnp.ones(()))
    predicted = np.asarray(posterior.predict(jr.key(1), jnp.ones(()), (4000,)))
    assert np.all(predicted == np.round(predicted))
    assert abs(predicted.mean() - np.e) < 5 * np.sqrt(np.e / 4000)
    assert abs(predicted.var() - np.e) < 5 * np.sqrt((np.e + 2 * np.e**2) / 4000)


@pytest.mark.parametrize(
    "message, noise, settings",
    [
        ("`objective` is a SquaredError", dist.Poisson, {"objective": si.SquaredError}),
        ("novel measurements are needed", dist.Poisson, {"roles": (1, 1, 0)}),
        ("a callable from a noise-free measurement", lambda o: o, {}),
        ("simulates measurements of shapes", lambda o: dist.Normal(jnp.zeros(3), 1.0), {}),
        ("`noise` fails on a noise-free measurement", lambda o: dist.Normal(o[0], 1.0), {}),
    ],
)
def test_errors(message, noise, settings):
    settings = {"objective": si.ProperScore, "roles": (1, 1, 1)} | settings
    problem = problem_of(noise, settings["objective"]())
    with pytest.raises(ValueError, match=message):
        problem.fit(
            counts(np.random.default_rng(0), 16),
            key=jr.key(0),
            steps=2,
            batch_size=8,
            roles=si.RandomViews(*settings["roles"]),
            progress=False,
        )


CLEAN = {"a": jnp.asarray([3.0, 5.0]), "b": jnp.asarray([[2.0]])}


@pytest.mark.thorough
@pytest.mark.parametrize("name", helpers.noises())
def test_moments_of_draws(name):
    """The mean is the noise-free measurement plus the background, as `mean` says, the deviation what `std` says."""
    noise, number = helpers.noises()[name], 20_000
    drawn = jax.jit(jax.vmap(lambda k: noise.sample(k, CLEAN)))(jr.split(jr.key(0), number))
    background = 2.0 if name == "poisson_gain" else 0.0
    trees = (drawn, CLEAN, noise.mean(CLEAN), noise.std(CLEAN))
    for x, clean, mean, spread in zip(*map(jax.tree.leaves, trees), strict=True):
        assert x.dtype == clean.dtype and spread.shape == mean.shape == clean.shape
        np.testing.assert_allclose(mean, clean + background, rtol=1e-6)
        x = np.asarray(x, np.float64)
        assert np.all(np.abs(x.mean(0) - clean - background) <= 5 * spread / np.sqrt(number) + 1e-6)
        # The variance of a variance is at most 5/N of its square here (that of a Laplace law).
        assert np.all(np.abs(x.var(0) - spread**2) <= 5 * np.sqrt(5 / number) * spread**2 + 1e-9)
    assert noise.exact == (name == "none")


@pytest.mark.thorough
@pytest.mark.parametrize("name", [x for x in helpers.noises() if x != "none"])
def test_log_probabilities_sum_to_one(name):
    noise = helpers.noises()[name]
    discrete = "poisson" in name or name == "law_without_path"
    gain = 0.5 if name == "poisson_gain" else 1.0
    values = gain * np.arange(80.0) if discrete else np.linspace(-10, 20, 6001)
    logs = jax.vmap(lambda o: noise.log_prob(o, jnp.asarray(3.0)))(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(np.sum(np.exp(logs)) * (1 if discrete else values[1] - values[0]), 1, rtol=1e-3)
    pair = noise.log_prob(CLEAN, CLEAN)
    each = [noise.log_prob(x, x) for x in jax.tree.leaves(CLEAN)]
    np.testing.assert_allclose(pair, sum(each), rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", helpers.noises())
def test_draws_to_differentiate(name):
    """Along a path the derivative of a draw is that of its mean; without one, that of its log-probability is."""
    noise = helpers.noises()[name]
    of = lambda shift: noise.draws(jr.key(0), jax.tree.map(lambda x: x + shift, CLEAN))
    (drawn, logs), (slope, log_slope) = jax.jvp(of, (jnp.zeros(()),), (jnp.ones(()),))
    leading = {x.shape[0] for x in jax.tree.leaves(drawn)} | {logs.size}
    if noise.every_level or name == "law_with_path":
        assert leading == {1} and logs[0] == 0
        assert all(np.all(x == 1) for x in jax.tree.leaves(slope))
    else:
        assert leading == {2} and np.all(log_slope != 0)
        assert all(np.all(x == 0) for x in jax.tree.leaves(slope))
        assert not np.array_equal(*(x[0] for x in zip(*[(a[0], a[1]) for a in jax.tree.leaves(drawn)], strict=True)))


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_conditional_of_gaussian_noise(tau):
    """Mean and variance of the noisy measurement given its noised version, from the joint Gaussian law."""
    noise, level, unit, number = si.GaussianNoise(tau), si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.6)), 2.0, 20_000
    clean, noisy = jnp.asarray([0.7, -0.2]), jnp.asarray([1.5, 0.4])
    draw = lambda k: noise.conditional(noisy, level, clean, jnp.asarray(unit), key=k)
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), number)), np.float64)
    scaled = tau / unit
    total = 0.8**2 * scaled**2 + 0.6**2
    mean = np.asarray(clean) + 0.8 * scaled**2 / total * (np.asarray(noisy) - 0.8 * np.asarray(clean))
    variance = scaled**2 - (0.8 * scaled**2) ** 2 / total
    np.testing.assert_allclose(noise.conditional(noisy, level, clean, jnp.asarray(unit)), mean, rtol=1e-6)
    np.testing.assert_allclose(noise.total_variance(level, clean, jnp.asarray(unit)), total, rtol=1e-6)
    assert np.all(np.abs(drawn.mean(0) - mean) <= 5 * np.sqrt(variance / number) + 1e-6)
    assert np.all(np.abs(drawn.var(0) - variance) <= 5 * variance * np.sqrt(2 / number) + 1e-9)


def test_whether_the_size_of_noise_is_known():
    """NumPyro refuses a mean of 0 of these counts, but 0 may be what was measured."""
    assert is_sized(si.NoiseLaw(lambda clean: dist.NegativeBinomial2(clean, 3.0)), jnp.zeros(2))
    exponential = lambda clean: dist.TransformedDistribution(dist.Normal(clean), dist.transforms.ExpTransform())
    assert not is_sized(si.NoiseLaw(exponential), jnp.ones(2))


def test_other_noise_has_no_conditional():
    level = si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.6))
    for noise in (si.PoissonNoise(), si.NoiseLaw(dist.Laplace)):
        with pytest.raises(ValueError, match="`noise` is not Gaussian"):
            noise.conditional(CLEAN, level, CLEAN, jax.tree.map(jnp.ones_like, CLEAN))
        with pytest.raises(ValueError, match="`noise` is not Gaussian"):
            noise.total_variance(level, CLEAN, jax.tree.map(jnp.ones_like, CLEAN))


@pytest.mark.parametrize(
    ("law", "values"),
    [(dist.BernoulliProbs, [0, 1]), (lambda p: dist.Poisson(9 * p), [0, 3, 17]), (dist.GeometricProbs, [0, 5])],
    ids=["tosses", "counts", "waiting"],
)
def test_rounding_leaves_the_probability_of_counts(law, values):
    """What was standardised and back may be 1 + 1e-7, which NumPyro takes for impossible."""
    noise, values = si.NoiseLaw(law), np.float32(values)
    clean = np.full_like(values, 0.3)
    expected = law(clean).log_prob(values).sum()
    for off in (-1e-6, 1e-6):
        np.testing.assert_allclose(noise.log_prob(values * (1 + off) + off, clean), expected, rtol=1e-5)


def fit_quickly(forward, noise, observed, signals):
    problem = si.StochasticInverseProblem(forward, noise=noise, signal=(2,))
    data = si.Pairs(signals, si.View(observed[:, None]))
    return problem.fit(data, key=jr.key(0), steps=2, rounds=1, batch_size=8, progress=False).problem


@pytest.mark.thorough
def test_draws_given_tosses_are_weighted():
    rng = np.random.default_rng(0)
    design, signals = (rng.normal(size=shape).astype(np.float32) for shape in ((20, 2), (32, 2)))
    tosses = rng.random((32, 20)) < stats.logistic.cdf(signals @ design.T)
    forward = lambda signal, params: jax.nn.sigmoid(design @ signal)
    problem = fit_quickly(forward, dist.BernoulliProbs, tosses.astype(np.float32), signals)
    posterior = problem.posterior(si.View(tosses[:1].astype(np.float32)))
    assert posterior.effective_sample_size(jr.key(1)) > 1
    assert len(np.unique(posterior.sample(jr.key(2), 64), axis=0)) > 8


@pytest.mark.thorough
def test_a_context_that_is_impossible_is_refused():
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(32, 2)).astype(np.float32)
    uniform = lambda clean: dist.Uniform(clean - 1, clean + 1)
    observed = signals + rng.uniform(-1, 1, signals.shape).astype(np.float32)
    problem = fit_quickly(lambda signal, params: signal, uniform, observed, signals)
    posterior = problem.posterior(si.View(np.full((1, 2), 1e3, np.float32)))
    assert posterior.effective_sample_size(jr.key(0)) == 0
    with pytest.raises(Exception, match="no draw of the network explains the context"):
        posterior.sample(jr.key(0), 8)
