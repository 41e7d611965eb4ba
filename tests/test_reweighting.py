"""The posterior by reweighting, against the closed form of a linear-Gaussian problem."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import helpers
import stochinv as si

TAU, SIZE = 0.7, 3
MEAN, ROOT = jnp.array([0.5, -0.2, 0.1]), jnp.array([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 0.6]])


def prior(key):
    return {"s": MEAN + ROOT @ jr.normal(key, (SIZE,))}


def measure(signal, params):
    return params @ signal["s"]


def second_moments(signal):
    return signal["s"], jnp.outer(signal["s"], signal["s"])


def contexts():
    """Four contexts of two views with two entries each; the last view of the last context does not count."""
    rng = np.random.default_rng(0)
    params = rng.normal(size=(4, 2, 2, SIZE)).astype(np.float32)
    observed = rng.normal(size=(4, 2, 2)).astype(np.float32)
    mask = jnp.array([[True, True]] * 3 + [[True, False]])
    observed[3, 1] = np.nan
    return si.View(jnp.asarray(observed), jnp.asarray(params), mask)


def closed_form(views, index):
    """Mean, covariance and log-evidence of one context."""
    kept = np.asarray(views.mask[index])
    rows = np.asarray(views.params[index], np.float64)[kept].reshape(-1, SIZE)
    observed = np.asarray(views.observation[index], np.float64)[kept].ravel()
    mean, covariance = np.asarray(MEAN, np.float64), np.asarray(ROOT @ ROOT.T, np.float64)
    noise = TAU**2 * np.eye(len(observed))
    total = rows @ covariance @ rows.T + noise
    residual = observed - rows @ mean
    evidence = -0.5 * (residual @ np.linalg.solve(total, residual) + np.linalg.slogdet(2 * np.pi * total)[1])
    return *helpers.condition(mean, covariance, rows, observed, noise), evidence


@pytest.fixture(scope="module")
def reweighted():
    options = dict(summary=second_moments, key=jr.key(0), num_samples=200_000, num_draws=4000, chunk_size=20_000)
    return si.diagnostics.reweighted_posterior(prior, measure, TAU, contexts(), **options)


@pytest.mark.thorough
@pytest.mark.parametrize("index", range(4))
def test_moments_are_those_of_the_closed_form(reweighted, index):
    mean, covariance, evidence = closed_form(contexts(), index)
    ess = float(reweighted.ess[index])
    assert ess > 2000
    got_mean, got_square = (np.asarray(x[index], np.float64) for x in reweighted.mean)
    deviation = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(got_mean - mean) < 5 * deviation / np.sqrt(ess))
    got_covariance = got_square - np.outer(got_mean, got_mean)
    assert np.all(np.abs(got_covariance - covariance) < 5 * np.sqrt(2 / ess) * np.outer(deviation, deviation))
    # The relative variance of the mean weight is 1/ESS − 1/N.
    assert abs(float(reweighted.log_evidence[index]) - evidence) < 5 / np.sqrt(ess)
    samples = np.asarray(reweighted.samples["s"][index])
    helpers.assert_gaussian(samples, mean, covariance, bias=5 / np.sqrt(ess), name="resampled signals")


@pytest.mark.thorough
def test_ess_and_means_do_not_depend_on_chunks():
    """Against weights of all draws at once, in double precision."""
    key, views = jr.key(3), contexts()
    chunked = si.diagnostics.reweighted_posterior(
        prior, measure, TAU, views, summary=second_moments, key=key, num_samples=1000, num_draws=5, chunk_size=250
    )
    draws = [jax.vmap(prior)(jr.split(jr.split(jr.fold_in(key, i), 3)[0], 250))["s"] for i in range(4)]
    draws = np.concatenate(draws).astype(np.float64)
    for index in range(4):
        kept = np.asarray(views.mask[index])
        errors = np.einsum("vab,nb->nva", views.params[index], draws) - np.asarray(views.observation[index])
        logs = -0.5 * np.sum(errors[:, kept] ** 2, (1, 2)) / TAU**2
        weights = np.exp(logs - logs.max())
        np.testing.assert_allclose(chunked.ess[index], weights.sum() ** 2 / np.sum(weights**2), rtol=1e-3)
        np.testing.assert_allclose(chunked.mean[0][index], weights @ draws / weights.sum(), rtol=1e-3, atol=1e-4)


def test_resampled_signals_are_shared_out_by_weight():
    """Three chunks of one draw each: every signal is chosen as often as its weight says."""
    key, views = jr.key(0), si.View(jnp.array([[[1.0]]]))
    posterior = si.diagnostics.reweighted_posterior(
        jr.normal, lambda s, params: s[None], 0.5, views, key=key, num_samples=3, num_draws=20_000, chunk_size=1
    )
    signals = np.array([jr.normal(jr.split(jr.split(jr.fold_in(key, i), 3)[0], 1)[0]) for i in range(3)])
    weights = np.exp(-0.5 * (signals - 1.0) ** 2 / 0.5**2)
    weights /= weights.sum()
    assert np.ptp(weights) > 0.2
    share = np.mean(np.asarray(posterior.samples[0])[:, None] == signals, 0)
    assert np.all(np.abs(share - weights) < 5 * np.sqrt(weights * (1 - weights) / 20_000))


@pytest.mark.parametrize("chunk_size", [50, 2000])
def test_chunks_without_a_likelihood_count_nothing(chunk_size):
    """One draw in 200 lies in the window of the first context, and none in that of the second."""
    options = {"num_samples": 2000, "num_draws": 5, "chunk_size": chunk_size, "key": jr.key(0)}
    posterior = si.diagnostics.reweighted_posterior(
        lambda key: jr.uniform(key, minval=-10.0, maxval=10.0),
        lambda s, params: s,
        lambda clean: dist.Uniform(clean - 0.05, clean + 0.05),
        si.View(jnp.asarray([[1.0], [20.0]])),
        **options,
    )
    assert abs(posterior.mean[0] - 1) < 0.05 and np.all(np.abs(posterior.samples[0] - 1) <= 0.05)
    assert 1 <= posterior.ess[0] < 40 and abs(np.exp(posterior.log_evidence[0]) - 0.05) < 0.05
    assert np.isnan(posterior.mean[1]) and posterior.ess[1] == 0 and posterior.log_evidence[1] == -np.inf


@pytest.mark.slow
def test_other_likelihoods_and_views_without_parameters():
    """One Poisson count, for a Gamma prior: the posterior is Gamma again."""
    shape, rate, count = 2.0, 1.0, 3.0
    views = si.View(jnp.full((1, 1), count))
    posterior = si.diagnostics.reweighted_posterior(
        lambda key: jr.gamma(key, shape) / rate,
        lambda s, params: s,
        dist.Poisson,
        views,
        key=jr.key(0),
        num_samples=50_000,
    )
    expected = (shape + count) / (rate + 1)
    error = np.sqrt(shape + count) / (rate + 1) / np.sqrt(float(posterior.ess[0]))
    assert abs(float(posterior.mean[0]) - expected) < 5 * error
    assert posterior.samples.shape == (1, 1000)


@pytest.mark.thorough
def test_the_generator_runs_once_for_all_contexts():
    """Contexts that differ in their window share the image."""
    calls = []

    def generate(z):
        calls.append(z)
        return jnp.outer(z, z)[..., None]

    forward = si.Composed(lambda z, params: generate(z), si.forward.Window((4, 4, 1), (2, 2)))
    corners = (None, jnp.array([[[0, 0]], [[1, 2]], [[2, 1]]]))
    views = si.View(jnp.zeros((3, 1, 2, 2, 1)), corners)
    posterior = si.diagnostics.reweighted_posterior(
        lambda key: jr.normal(key, (4,)), forward, 1.0, views, key=jr.key(0), num_samples=1000, num_draws=7
    )
    assert posterior.samples.shape == (3, 7, 4)
    traced = jax.make_jaxpr(lambda z, p: jax.vmap(lambda q: forward(z, (None, q)))(p))(jnp.zeros(4), corners[1][:, 0])
    products = [e for e in traced.eqns if e.primitive.name == "mul" and e.outvars[0].aval.shape[-2:] == (4, 4)]
    assert products and all(e.outvars[0].aval.shape == (4, 4) for e in products)


def test_arguments_are_checked():
    run = lambda contexts, **options: si.diagnostics.reweighted_posterior(
        prior, measure, **({"noise": TAU, "contexts": contexts, "key": jr.key(0)} | options)
    )
    with pytest.raises(ValueError, match="`noise` must be positive, got GaussianNoise"):
        run(contexts(), noise=0.0)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        run(contexts(), num_samples=0)
    with pytest.raises(ValueError, match="one common leading axis"):
        run(si.View(jnp.zeros((3, 1, 2)), jnp.zeros((2, 1, 2, 3))))
