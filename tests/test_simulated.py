"""Simulators with a prior as training data: posteriors against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import stochinv as si
from refusals import without_annotations
from stochinv._simulated import Region, draw_inside, everywhere, region_of
from stochinv._training.known_signals import KnownSignals
from stochinv._training.plan import Plan
from stochinv._training.records import as_records
from test_signal_space import COVARIANCE, MEAN, NOISE, given, posterior_of, problem, records

PRIOR = dist.MultivariateNormal(jnp.float32(MEAN), jnp.float32(COVARIANCE))
REAL = si.Coordinates(jax.ShapeDtypeStruct((3,), jnp.float32))
PARAMS = records(200).params


def fit(data, problem=problem(), **options):
    settings = {"key": jr.key(0), "steps": 24, "rounds": 2, "batch_size": 64, "progress": False}
    return problem.fit(data, **settings | options)


@pytest.fixture(scope="module")
def fitted():
    return fit(si.data.Simulated(PRIOR, PARAMS))


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.slow
def test_posteriors_of_a_gaussian_prior(fitted, number):
    context = given(number) if number else None
    mean, covariance = posterior_of(context) if number else (MEAN, COVARIANCE)
    draws = np.asarray(fitted.problem.posterior(context).sample(jr.key(1), 1000), float)
    spread = np.sqrt(np.diag(covariance))
    # A round of 768 signals tells an entry of the prior's covariance to some 6 %.
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * spread.max() / np.sqrt(1000) + 0.07)
    np.testing.assert_allclose(draws.std(0), spread, rtol=4 / np.sqrt(2000) + 0.07)


@pytest.mark.thorough
def test_nothing_is_drawn_by_the_network(fitted):
    assert fitted.history.residual == []
    assert "Simulated(parameters of 200 records of 2 views)" == repr(si.data.Simulated(PRIOR, PARAMS))


def rounds_of(length=10):
    simulated = si.data.Simulated(PRIOR, PARAMS)
    signal, made = as_records(problem(), simulated, None, 64, lambda _: 64 * length, jr.key(0))
    assert made.unknown == 0 and signal == jax.ShapeDtypeStruct((3,), jnp.float32)
    noised = si.SignalSpace().problem(problem())
    return KnownSignals(noised, made, jr.key(1), Plan(length, 0, length))


@pytest.mark.thorough
def test_every_round_has_signals_of_its_own_and_of_the_prior():
    rounds, noised = rounds_of(), si.SignalSpace().problem(problem())
    first, second, again = (rounds.records(noised, number) for number in (0, 1, 0))
    signals = np.concatenate([first.target.observation, second.target.observation])
    assert len(np.unique(signals[:, 0])) == 2 * 640
    np.testing.assert_array_equal(first.target.observation, again.target.observation)
    error = np.sqrt(np.diag(COVARIANCE) / len(signals))
    assert np.all(np.abs(signals.mean(0) - MEAN) < 4 * error)
    # Contexts are noisy measurements of these signals, with parameters that the simulator was given.
    context = second.context
    rest = np.asarray(context.observation - jnp.einsum("nvij,nj->nvi", context.params, second.target.observation))
    assert abs(rest.std() / NOISE - 1) < 4 / np.sqrt(2 * rest.size)
    seen = {matrix.tobytes() for matrix in PARAMS.reshape(-1, 2, 3)}
    used = {np.asarray(matrix).tobytes() for matrix in context.params.reshape(-1, 2, 3)}
    assert used <= seen and len(used) > 0.7 * len(seen)


WEIGHTS, CENTRES, STDS = np.array([0.3, 0.7]), np.array([-2.0, 1.5]), np.array([0.3, 0.6])


@pytest.mark.slow
def test_a_prior_of_two_modes_and_no_parameters():
    """One measurement `s + noise` of each; given it the posterior is a mixture of Gaussians again."""

    def prior(key):
        mode, value = jr.split(key)
        chosen = jr.bernoulli(mode, WEIGHTS[1]).astype(int)
        return jnp.asarray(CENTRES, jnp.float32)[chosen] + jnp.asarray(STDS, jnp.float32)[chosen] * jr.normal(value)

    identity = si.StochasticInverseProblem(lambda signal, params: signal[None], noise=1.5)
    trained = fit(si.data.Simulated(prior), identity, steps=600, rounds=3, batch_size=256).problem
    for observed in (None, -1.0, 0.2):
        context = None if observed is None else si.View(np.full((1, 1), observed, np.float32))
        weights, centres, variances = WEIGHTS, CENTRES, STDS**2
        if observed is not None:
            total = variances + 1.5**2
            weights = weights * stats.norm(centres, np.sqrt(total)).pdf(observed)
            weights = weights / weights.sum()
            centres = centres + variances / total * (observed - centres)
            variances = variances * 1.5**2 / total
        number = 2000
        draws = np.asarray(trained.posterior(context).sample(jr.key(1), number), float)
        law = lambda x, parts=(weights, centres, variances): (
            parts[0] @ stats.norm.cdf(x, parts[1][:, None], np.sqrt(parts[2])[:, None])
        )
        # 600 short steps leave a Kolmogorov distance of some 0.03; a Gaussian in the place of two modes has 0.15.
        distance = stats.kstest(draws, law).statistic
        assert distance < 1.63 / np.sqrt(number) + 0.03, (observed, distance)


def fit_with_a_stop(simulated, folder):
    """A fit, which one that is stopped and goes on equals bit for bit."""
    whole = fit(simulated)
    stop = {"callbacks": [lambda progress: progress.step == 17], "log_every": 1}
    fit(simulated, checkpoint=folder, checkpoint_every=100, **stop)
    assert fit(simulated, checkpoint=folder, checkpoint_every=100).history.loss == whole.history.loss
    return whole


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path):
    fit_with_a_stop(si.data.Simulated(PRIOR, PARAMS), tmp_path)
    with pytest.raises(ValueError, match="is of another run"):
        fit(si.data.Simulated(PRIOR.expand((1,)).to_event(0).base_dist, PARAMS[:100]), checkpoint=tmp_path)


@pytest.mark.thorough
def test_a_truncated_prior_is_drawn_from_by_rejection():
    """A box along turned axes: the draws are those of the prior that are in it."""
    units = si.Whitening(jnp.float32(MEAN), jnp.eye(3), jnp.eye(3))
    axes = jnp.float32(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    region = Region(units, axes, jnp.array([-0.5, -jnp.inf, -1.0]), jnp.array([0.8, 0.3, jnp.inf]))
    prior = si.data.Simulated(PRIOR).prior
    drawn = jax.jit(jax.vmap(lambda key: draw_inside(prior, REAL, region, key)))(jr.split(jr.key(0), 4000))
    assert np.all(jax.vmap(region.holds)(drawn))
    free = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, size=100_000)
    along = (free - MEAN) @ np.asarray(axes, float)
    inside = along[(along[:, 0] > -0.5) & (along[:, 0] < 0.8) & (along[:, 1] < 0.3) & (along[:, 2] > -1)]
    for axis, x in enumerate(((np.asarray(drawn) - MEAN) @ np.asarray(axes)).T):
        assert stats.ks_2samp(x, inside[:, axis]).pvalue > 1e-3
    # Where nothing is found it is a draw all the same.
    nowhere = Region(units, axes, jnp.full(3, 100.0), jnp.full(3, 101.0))
    assert np.all(np.isfinite(jax.jit(lambda key: draw_inside(prior, REAL, nowhere, key))(jr.key(0))))


@pytest.mark.thorough
def test_a_region_holds_what_it_is_made_of():
    units = si.Whitening(jnp.float32(MEAN), 2 * jnp.eye(3), jnp.eye(3) / 2)
    draws = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, size=200_000)
    region = region_of(units, jnp.float32(draws[:1024]))
    held = np.asarray(jax.vmap(region.holds)(jnp.float32(draws)))
    # The ends of 1,024 draws are some 3.2 standard deviations away, and the margins end at some 4.8.
    assert 1 - held.mean() < 1e-4
    # Its axes are those of the draws, so it is no larger than it needs to be.
    volume = np.prod(np.asarray(region.high - region.low, float)) * 2**3
    assert volume < 10.5**3 * np.sqrt(np.linalg.det(COVARIANCE))
    assert np.all(jax.vmap(everywhere(units, jax.ShapeDtypeStruct((3,), jnp.float32)).holds)(jnp.float32(draws[:9])))


@pytest.mark.slow
def test_signals_are_narrowed_down_to_what_one_observation_leaves(monkeypatch, tmp_path):
    """And a run that was stopped goes on with the region it had."""
    regions, records_of = [], KnownSignals.records

    def spy(self, problem, number):
        regions.append(self.kept)
        return records_of(self, problem, number)

    monkeypatch.setattr(KnownSignals, "records", spy)
    whole = fit_with_a_stop(si.data.Simulated(PRIOR, PARAMS, observed=given(1)), tmp_path)
    with pytest.raises(ValueError, match="is of another run"):
        fit(si.data.Simulated(PRIOR, PARAMS, observed=given(1, 6)), checkpoint=tmp_path)

    mean, covariance = posterior_of(given(1))
    exact = np.float32(np.random.default_rng(0).multivariate_normal(mean, covariance, size=2000))
    free = PRIOR.sample(jr.key(0), (2000,))
    share = lambda region, signals: float(np.mean(jax.vmap(region.holds)(signals)))
    assert share(regions[0], free) == share(regions[0], exact) == 1
    # One view leaves one direction as free as the prior.
    assert share(regions[1], exact) > 0.998 and share(regions[1], free) < 0.5
    draws = np.asarray(whole.problem.posterior(given(1)).sample(jr.key(1), 1000), float)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * spread.max() / np.sqrt(1000) + 0.07)
    np.testing.assert_allclose(draws.std(0), spread, rtol=4 / np.sqrt(2000) + 0.07)


BAD = [
    (lambda: si.data.Simulated(3.0), "Simulated: `prior` must be a NumPyro distribution or a callable from a key"),
    (lambda: si.data.Simulated(PRIOR, np.ones(3)), r"Simulated: `params` has arrays of shapes .* `x\[:, None\]`"),
    (lambda: si.data.Simulated(PRIOR, np.full((2, 1, 2, 3), np.nan)), "`Simulated: params` has 12 NaN or infinite"),
    (lambda: fit(si.data.Simulated(lambda key: 1 / 0, PARAMS)), "Simulated: `prior` fails to draw .*ZeroDivisionError"),
    (lambda: fit(si.data.Simulated(dist.Poisson(jnp.ones(3)), PARAMS)), "`signal` has int32"),
    (lambda: fit(si.data.Simulated(PRIOR)), "`forward` fails on a signal"),
    (
        lambda: fit(si.data.Simulated(dist.Normal(jnp.zeros(2), 1.0), PARAMS)),
        r"The known signals are float32\[2\], but",
    ),
    (lambda: si.data.Simulated(PRIOR, observed=np.ones(2)), "Simulated: `observed` must be a `View"),
    (
        lambda: fit(si.data.Simulated(PRIOR, PARAMS, observed=si.View(np.ones((1, 3)), PARAMS[0, :1]))),
        r"Simulated: observed",
    ),
    (lambda: fit(si.data.Simulated(PRIOR, PARAMS), known=records(90)), "`known` must be `Pairs"),
    (lambda: fit(si.data.Simulated(PRIOR, PARAMS), start=PRIOR), "`start` is where"),
    (lambda: fit(si.data.Simulated(PRIOR, PARAMS), roles=si.RandomViews(1, 1)), "`data` is a Simulated; leave it out"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call()
