"""Measurement noise that is not Gaussian: gradients against sums over all outcomes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import stochinv as si

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
    # The Fisher information of a count is one over its rate: the derivative of `exp(s)`, squared and divided.
    found = si.diagnostics.identifiability(fit.problem, jnp.log(jnp.full(4, 2.0)), jnp.ones((4, 1)))
    np.testing.assert_allclose(found.singular_values**2, [2.0], rtol=1e-4)


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
