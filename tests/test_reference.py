"""Reference posteriors by MCMC against closed forms."""

import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import helpers
import stochinv as si
from stochinv.diagnostics import reference_posterior

NOISE = 0.3


def gaussian_case(num_context):
    case = helpers.linear_gaussian(1, noise=NOISE, num_context=num_context)
    prior = dist.MultivariateNormal(jnp.asarray(case.prior_mean), jnp.asarray(case.prior_covariance))
    return case, prior


@pytest.mark.thorough
@pytest.mark.parametrize("num_context", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_linear_gaussian(num_context):
    case, prior = gaussian_case(num_context)
    # What is masked must not matter, whatever it holds.
    mask = jnp.asarray(case.context.mask)
    broken = jnp.where(mask[:, None], case.context.observation, jnp.nan)
    params = jnp.where(mask[:, None, None], case.context.params, jnp.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = reference_posterior(
            prior, helpers.measure, NOISE, si.View(broken, params, mask), key=jr.key(0), num_samples=600, num_warmup=300
        )
    samples = np.asarray(result.samples, np.float64)
    assert samples.shape == (2400, 6) and result.chains.shape == (4, 600, 6)
    assert result.r_hat.shape == result.ess.shape == (6,)
    std = np.sqrt(np.diag(case.covariance))
    assert np.all(np.abs(samples.mean(0) - case.mean) < 4 * std / np.sqrt(result.ess))
    # A variance is known from fewer effective samples than a mean: half of them, to be on the safe side.
    np.testing.assert_allclose(samples.std(0), std, rtol=4 / np.sqrt(result.ess.min()))


@pytest.mark.slow
def test_model_as_prior_and_tree_of_measurements():
    case = helpers.linear_gaussian(1, noise=NOISE, tree=True)
    root = jnp.asarray(np.linalg.cholesky(case.prior_covariance))

    def prior():
        flat = jnp.asarray(case.prior_mean) + root @ numpyro.sample("white", dist.Normal().expand([6]).to_event(1))
        return {"a": flat[:2], "b": flat[2:].reshape(2, 2)}

    noise = {"first": NOISE, "rest": (NOISE,)}
    result = reference_posterior(
        prior, helpers.measure_tree, noise, case.context, key=jr.key(0), num_samples=400, num_warmup=300
    )
    assert result.samples["b"].shape == (1600, 2, 2)
    mean = helpers.ravel_samples(result.samples).mean(0)
    ess = min(result.ess["a"].min(), result.ess["b"].min())
    assert np.all(np.abs(mean - case.mean) < 4 * np.sqrt(np.diag(case.covariance) / ess))


@pytest.mark.slow
def test_poisson_counts():
    # A Gamma prior on a rate is conjugate: Gamma(2 + Σ counts, 1 + Σ exposures).
    counts, exposures = jnp.asarray([3.0, 7.0, 4.0]), jnp.asarray([1.0, 2.0, 1.5])
    result = reference_posterior(
        dist.Gamma(2.0, 1.0),
        lambda rate, exposure: rate * exposure,
        dist.Poisson,
        si.View(counts, exposures),
        key=jr.key(0),
        num_samples=1200,
        num_warmup=300,
    )
    shape, rate = 2 + 14.0, 1 + 4.5
    samples = np.asarray(result.samples)
    assert abs(samples.mean() - shape / rate) < 4 * np.sqrt(shape) / rate / np.sqrt(result.ess)
    np.testing.assert_allclose(samples.std(), np.sqrt(shape) / rate, rtol=4 / np.sqrt(result.ess))


@pytest.mark.slow
def test_warns_of_chains_that_disagree():
    modes = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.asarray([-30.0, 30.0]), 1.0))
    with pytest.warns(UserWarning, match=r"R-hat of `signal` is up to .* \(limit 1.01\); ESS of `signal`"):
        result = reference_posterior(
            modes,
            lambda s, p: s * p,
            1.0,
            si.View(jnp.zeros(1), jnp.zeros(1)),
            key=jr.key(1),
            num_samples=50,
            num_warmup=50,
        )
    assert result.r_hat > 1.5


def test_errors():
    case, prior = gaussian_case(2)
    run = lambda noise, context, **options: reference_posterior(
        prior, helpers.measure, noise, context, key=jr.key(0), **options
    )
    with pytest.raises(ValueError, match=r"`noise` must be positive, got GaussianNoise\(0.0\)"):
        run(0.0, case.context)
    with pytest.raises(ValueError, match="`noise` must be a scalar or have the structure"):
        run({"a": 1.0}, case.context)
    with pytest.raises(ValueError, match="`context` must be a `stochinv.View`"):
        run(1.0, case.context.observation)
    with pytest.raises(ValueError, match="`num_samples` must be at least 4"):
        run(1.0, case.context, num_samples=1)
    empty = si.View(case.context.observation, case.context.params, jnp.zeros(2, bool))
    with pytest.raises(ValueError, match="no view that counts"):
        run(1.0, empty)
