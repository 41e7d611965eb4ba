"""Posteriors in NumPyro's models."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer
import pytest

import helpers

NOISE = 0.4


def observation_law(**options):
    """A linear-Gaussian posterior, and the mean and the covariance of its target measurement."""
    case = helpers.linear_gaussian(5, noise=NOISE, **options)
    level = case.problem.schedule.level(0.0)
    extra = NOISE**2 + float(level.sigma / level.alpha) ** 2
    covariance = case.matrix @ case.covariance @ case.matrix.T + extra * np.eye(2)
    return case.problem.posterior(case.context, case.params), case.matrix @ case.mean, covariance


@pytest.mark.slow
def test_signal_law_is_a_pytree_of_arrays():
    posterior, _, _ = observation_law()
    distribution = posterior.to_numpyro()
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(distribution))
    traces = []

    @jax.jit
    def draw(distribution, key):
        traces.append(None)
        return distribution.sample(key, (2,))

    expected = posterior.sample(jr.key(0), (2,))
    np.testing.assert_allclose(draw(distribution, jr.key(0)), expected, rtol=1e-4, atol=1e-5)
    draw(posterior.to_numpyro(), jr.key(1))
    assert len(traces) == 1
    mapped = jax.vmap(distribution.sample)(jr.split(jr.key(0), 3))
    np.testing.assert_allclose(mapped[1], distribution.sample(jr.split(jr.key(0), 3)[1]), rtol=1e-4, atol=1e-5)
    shifted = jax.tree.map(lambda x: x, distribution)
    assert shifted.event_shape == (6,) and jax.tree.structure(shifted) == jax.tree.structure(distribution)


@pytest.mark.thorough
def test_signal_law_in_a_model_under_jit():
    posterior, _, _ = observation_law()

    def model(distribution):
        signal = numpyro.sample("s", distribution)
        return numpyro.sample("x", dist.Normal(signal, 0.1).to_event(1))

    run = jax.jit(lambda d, key: numpyro.handlers.seed(model, key)(d))
    assert run(posterior.to_numpyro(), jr.key(0)).shape == (6,)
    draws = numpyro.infer.Predictive(model, num_samples=3)(jr.key(0), posterior.to_numpyro())
    assert draws["s"].shape == (3, 6)


@pytest.mark.thorough
@pytest.mark.parametrize("tree", [pytest.param(False, marks=pytest.mark.slow), True])
def test_observation_law_has_density_and_draws(tree):
    posterior, mean, covariance = observation_law(tree=tree)
    distribution = posterior.to_numpyro("observation")
    assert distribution.event_shape == (2,)
    draws = distribution.sample(jr.key(0), (20, 50))
    assert draws.shape == (20, 50, 2)
    # The start forgets the mean and the covariance of the data: 0.02.
    helpers.assert_gaussian(draws.reshape(-1, 2), mean, covariance, bias=0.03)
    expected = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance)).log_prob(draws[:2, :3])
    values = distribution.log_prob(draws[:2, :3])
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values, expected, atol=0.03)
    unraveled = distribution.unravel(draws[0, 0])
    np.testing.assert_allclose(posterior.log_prob(unraveled), values[0, 0], atol=0.01)
    unraveled = distribution.unravel(draws)
    assert all(x.shape[:2] == (20, 50) for x in jax.tree.leaves(unraveled))


@pytest.mark.thorough
def test_observation_law_as_a_likelihood():
    posterior, mean, covariance = observation_law()
    value = jnp.asarray(mean) + 0.2

    def model(distribution):
        numpyro.sample("o", distribution, obs=value)

    distribution = posterior.to_numpyro("observation")
    log_density = jax.jit(lambda d: numpyro.infer.util.log_density(model, (d,), {}, {})[0])(distribution)
    expected = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance)).log_prob(value)
    np.testing.assert_allclose(log_density, expected, atol=0.03)


@pytest.mark.slow
def test_nuts_on_the_observation_law():
    posterior, mean, covariance = observation_law()
    distribution = posterior.to_numpyro("observation")

    def model():
        numpyro.sample("o", distribution)

    kernel = numpyro.infer.NUTS(model, max_tree_depth=2)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(jr.key(0))
    draws = mcmc.get_samples()["o"]
    assert draws.shape == (10, 2) and np.all(np.isfinite(draws)) and np.ptp(draws[:, 0]) > 0
    # Far from a test of the law: that the chain went to where the mass is.
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws[-1] - mean))
    assert np.linalg.norm(white) < 5


def test_errors_of_to_numpyro():
    posterior, _, _ = observation_law()
    with pytest.raises(ValueError, match="leave them out"):
        posterior.to_numpyro(num_probes=3)
    with pytest.raises(NotImplementedError, match="no `log_prob`"):
        posterior.to_numpyro().log_prob(jnp.zeros(6))
