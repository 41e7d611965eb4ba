"""Chains in the normal numbers behind signals: against closed forms, quadrature, and SciPy's tests of laws."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from numpyro.distributions import constraints

import stochinv as si
from stochinv._normal import check_law, from_normal, to_normal
from test_corrected_samplers import assert_posterior, cases, draw, exact
from test_signal_space import fit, records

COVARIANCE = jnp.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.5]])
LAWS = {
    "normal": dist.Normal(1.0, 2.0).expand([3]).to_event(1),
    "correlated": dist.MultivariateNormal(jnp.arange(3.0), covariance_matrix=COVARIANCE),
    "lognormal": dist.LogNormal(jnp.arange(3.0), 0.5),
    "uniform": dist.Uniform(-1.0, jnp.arange(3.0)).to_event(1),
    "truncated": dist.TruncatedNormal(0.0, 1.0, low=0.5).expand([3]),
    "laplace": dist.Laplace(0.0, jnp.ones(3)),
    "transformed": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
        dist.transforms.LowerCholeskyAffine(jnp.ones(3), jnp.tril(COVARIANCE)),
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", LAWS)
def test_maps_of_normal_numbers_have_the_law(name):
    law = LAWS[name]
    check_law("law", law)
    z = jr.normal(jr.key(0), (4000, 3))
    draws = jax.vmap(lambda z: from_normal(law, z))(z)
    np.testing.assert_allclose(jax.vmap(lambda s: to_normal(law, s))(draws), z, atol=2e-3)
    others = law.sample(jr.key(1), (4000,))
    # Entries one by one, and sums of two, which tell of correlations.
    for direction in (*np.eye(3), [1, 1, 0], [0, 1, -1]):
        assert scipy.stats.ks_2samp(draws @ np.array(direction), others @ np.array(direction)).pvalue > 1e-3


@pytest.fixture(scope="module")
def trained():
    return fit(records(64), steps=1, rounds=1, batch_size=8).problem


@pytest.mark.thorough
@pytest.mark.parametrize("learned", [pytest.param(True, marks=pytest.mark.slow), False], ids=["learned", "given"])
def test_chains_make_up_for_a_network_that_is_wrong(trained, learned):
    """It is told of three times the noise; draws that make one move are told apart."""
    still = []

    @settings(max_examples=3)
    @given(case=cases(), seed=st.integers(0, 2**31 - 1))
    def check(case, seed):
        prior = dist.MultivariateNormal(*map(jnp.float32, (case.mean, case.covariance)))
        problem = exact(trained, case, told=3.0)
        options = {"num_steps": 8} if learned else {"prior": prior}
        sample = lambda number: draw(problem, case.context, si.CrankNicolson(num_moves=number, **options), jr.key(seed))
        assert_posterior(sample(200), case, bias=0.02)
        still.append((sample(1), case))

    check()
    assert sum(is_wrong(*x) for x in still) >= len(still) / 2


def is_wrong(draws, case):
    try:
        assert_posterior(draws, case, bias=0.02)
    except AssertionError:
        return True
    return False


@pytest.fixture(scope="module")
def ring():
    """Two numbers, of which the length is measured."""
    forward = lambda s, p: jnp.sqrt(jnp.sum(s**2) + 1e-6)
    problem = si.StochasticInverseProblem(forward, noise=0.4, signal=(2,))
    prior = dist.Normal(jnp.array([0.5, 0.0]), jnp.array([1.0, 1.0])).to_event(1)
    return problem.fit(si.data.Simulated(prior), key=jr.key(0), steps=2, rounds=1, progress=False).problem, prior


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [si.ExponentialAdams(), None], ids=["network", "prior"])
def test_a_forward_model_that_is_not_affine(ring, sampler):
    """Against quadrature: means, standard deviations, and the share of the smaller mode."""
    problem, prior = ring
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-4, 4, 401)], indexing="ij"), -1).reshape(-1, 2)
    log = np.asarray(prior.log_prob(jnp.asarray(grid))) - 0.5 * ((np.linalg.norm(grid, axis=1) - 2.0) / 0.4) ** 2
    weights = np.exp(log - log.max()) / np.sum(np.exp(log - log.max()))
    wanted = {
        "mean": weights @ grid,
        "std": np.sqrt(weights @ (grid - weights @ grid) ** 2),
        "share": weights @ (grid[:, 0] < 0),
    }
    number = 2000
    posterior = problem.posterior(si.View(jnp.array(2.0)), sampler=si.CrankNicolson(prior, sampler, 400))
    draws = np.asarray(posterior.sample(jr.key(1), number))
    assert np.all(np.abs(draws.mean(0) - wanted["mean"]) < 4.5 * wanted["std"] / number**0.5)
    # The law has two modes, so that its kurtosis is below 3 and the error of a standard deviation below a Gaussian's.
    assert np.all(np.abs(draws.std(0) / wanted["std"] - 1) < 4.5 / (2 * number) ** 0.5)
    share = wanted["share"]
    assert 0.05 < share < 0.4
    assert abs(np.mean(draws[:, 0] < 0) - share) < 4.5 * (share * (1 - share) / number) ** 0.5


@pytest.mark.thorough
def test_signals_with_bounds_and_names():
    """Logarithms of rates are measured, and have Gaussian posteriors."""
    prior = {"rate": dist.LogNormal(0.5, 0.8).expand([2]), "level": dist.Normal(1.0, 2.0)}
    law = lambda key: {name: part.sample(jr.fold_in(key, i)) for i, (name, part) in enumerate(sorted(prior.items()))}
    forward = lambda s, p: jnp.concatenate([jnp.log(s["rate"]), s["level"][None]])
    problem = si.StochasticInverseProblem(
        forward, noise=0.5, signal={"rate": (2,), "level": ()}, support={"rate": constraints.positive, "level": None}
    )
    problem = problem.fit(si.data.Simulated(law), key=jr.key(0), steps=2, rounds=1, progress=False).problem
    observed = jnp.array([1.0, 0.0, 2.0])
    sampler = si.CrankNicolson(prior, None, num_moves=300)
    draws = problem.posterior(si.View(observed), sampler=sampler).sample(jr.key(1), 1000)
    found = np.concatenate([np.log(draws["rate"]), np.asarray(draws["level"])[:, None]], 1)
    mean, variance = np.array([0.5, 0.5, 1.0]), np.array([0.8, 0.8, 2.0]) ** 2
    gain = variance / (variance + 0.25)
    std = np.sqrt(variance * (1 - gain))
    assert np.all(np.abs(found.mean(0) - (mean + gain * (observed - mean))) < 4.5 * std / 1000**0.5)
    assert np.all(np.abs(found.std(0) / std - 1) < 4.5 / 2000**0.5)


@pytest.mark.thorough
def test_chains_leave_where_nothing_is_possible(ring):
    """A start that the prior excludes is drawn anew, and one without likelihood is left."""
    problem, _ = ring
    inside = dist.Uniform(jnp.array([1.0, -1.0]), jnp.array([3.0, 1.0])).to_event(1)
    posterior = problem.posterior(si.View(jnp.array(2.0)), sampler=si.CrankNicolson(inside))
    draws = posterior.sample(jr.key(0), 200)
    assert np.all(np.asarray((draws >= inside.base_dist.low) & (draws <= inside.base_dist.high)))
    assert np.all(np.abs(np.linalg.norm(draws, axis=1) - 2) < 1.5)


@pytest.mark.thorough
def test_without_noise_no_chain_is_taken_for_the_posterior(ring):
    exact = dataclasses.replace(ring[0], noise=si.GaussianNoise(0.0))
    posterior = exact.posterior(si.View(jnp.array(2.0)), sampler=si.CrankNicolson(ring[1], None, num_moves=20))
    with pytest.raises(Exception, match="the likelihood of the context is 0 wherever a chain went"):
        posterior.sample(jr.key(0), 8)


@pytest.mark.thorough
def test_the_same_bits_from_the_same_key(ring):
    problem, prior = ring
    posterior = problem.posterior(si.View(jnp.array(2.0)), sampler=si.CrankNicolson(prior, num_moves=5))
    np.testing.assert_array_equal(posterior.sample(jr.key(0), 8), posterior.sample(jr.key(0), 8))
    assert not np.any(posterior.sample(jr.key(0), 8) == posterior.sample(jr.key(1), 8))


@pytest.mark.thorough
def test_bad_problems(ring):
    posterior = ring[0].posterior(si.View(jnp.array(2.0)), sampler=si.CrankNicolson(LAWS["normal"]))
    with pytest.raises(ValueError, match=r"`prior` draws float32\[3\], but the problem's signal is float32\[2\]"):
        posterior.sample(jr.key(0), 2)
    denoiser = lambda noisy, level, context, params, key=None: noisy
    problem = si.StochasticInverseProblem(lambda s, p: s, denoiser)
    with pytest.raises(ValueError, match="CrankNicolson: the likelihood of a context is not known"):
        problem.sample(None, None, key=jr.key(0), sampler=si.CrankNicolson())
