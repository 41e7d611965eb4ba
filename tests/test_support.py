"""Signals that are bounded, positive, or shares of a whole: against closed forms, and against the same problem in
coordinates without bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import stochinv as si
from helpers import assert_gaussian
from stochinv._coordinates import Coordinates

SETTINGS: Any = {"key": jr.key(0), "steps": 60, "rounds": 3, "batch_size": 64, "progress": False}
NOISE = 0.4
MEAN, ROOT = np.array([0.4, -0.7, 0.2]), np.array([[0.6, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.1, 0.7]])
SIGNAL = {"level": jax.ShapeDtypeStruct((), jnp.float32), "rates": jax.ShapeDtypeStruct((2,), jnp.float32)}
SUPPORT = {"level": None, "rates": constraints.positive}


def measure(signal, row):
    """Linear in the level and the logarithms of the rates, so that these have Gaussian posteriors."""
    return row[:, 0] * signal["level"] + row[:, 1:] @ jnp.log(signal["rates"])


def measure_coordinates(signal, row):
    return measure({"level": signal["level"], "rates": jnp.exp(signal["rates"])}, row)


def records(number=8000, seed=0):
    """By NumPy: coordinates, and one measurement of two numbers of each."""
    rng = np.random.default_rng(seed)
    z = MEAN + rng.normal(size=(number, 3)) @ ROOT.T
    rows = rng.normal(size=(number, 1, 2, 3))
    observed = np.einsum("nvij,nj->nvi", rows, z) + NOISE * rng.normal(size=(number, 1, 2))
    return z, si.View(np.float32(observed), np.float32(rows))


def problem(forward=measure, support: Any = SUPPORT, **options):
    return si.StochasticInverseProblem(forward, **{"noise": NOISE, "signal": SIGNAL, "support": support} | options)


@pytest.fixture(scope="module")
def fitted():
    return problem().fit(records()[1], **SETTINGS).problem


@pytest.fixture(scope="module")
def unbounded():
    return problem(measure_coordinates, None).fit(records()[1], **SETTINGS).problem


def context(index=3):
    return jax.tree.map(lambda x: x[index], records(8, seed=5)[1])


BOUNDS = {
    "positive": (constraints.positive, (3,)),
    "unit_interval": (constraints.unit_interval, (2, 2)),
    "interval": (constraints.interval(-1.0, 3.0), ()),
    "greater_than": (constraints.greater_than(2.0), (3,)),
    "simplex": (constraints.simplex, (4,)),
    "none": (None, (3,)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", BOUNDS)
def test_coordinates_come_back_and_tell_their_volume(name):
    bound, shape = BOUNDS[name]
    coordinates = Coordinates(jax.ShapeDtypeStruct(shape, jnp.float32), bound)
    z = 0.8 * jr.normal(jr.key(0), coordinates.structure().shape)
    signal = coordinates.to_signal(z)
    assert bound is None or bool(jnp.all(bound(signal)))
    np.testing.assert_allclose(coordinates.from_signal(signal), z, atol=1e-5)
    # Of shares of a whole the last one follows from the others.
    flat = lambda z: jnp.ravel(coordinates.to_signal(z.reshape(coordinates.structure().shape)))[: z.size]
    expected = np.linalg.slogdet(np.asarray(jax.jacobian(flat)(jnp.ravel(z)), np.float64))[1]
    np.testing.assert_allclose(coordinates.log_volume(z), expected, atol=1e-4)
    many = jax.vmap(coordinates.from_signal)(jnp.stack([signal, signal]))
    np.testing.assert_allclose(coordinates.to_signal(many)[1], signal, rtol=1e-5)


@pytest.mark.slow
def test_posterior_is_log_normal(fitted):
    """From one measurement of each record, and nothing else."""
    view = context()
    row, observed = view.params.reshape(2, 3).astype(float), view.observation.ravel().astype(float)
    precision = np.linalg.inv(ROOT @ ROOT.T) + row.T @ row / NOISE**2
    mean = np.linalg.solve(precision, np.linalg.inv(ROOT @ ROOT.T) @ MEAN + row.T @ observed / NOISE**2)
    drawn = fitted.posterior(view).sample(jr.key(1), 1024)
    assert drawn["rates"].shape == (1024, 2) and bool(jnp.all(drawn["rates"] > 0))
    z = np.concatenate([np.asarray(drawn["level"])[:, None], np.log(drawn["rates"])], 1)
    # 8,000 records tell the prior's mean to a ninetieth of its standard deviation, three of which are one here.
    assert_gaussian(z, mean, np.linalg.inv(precision), bias=0.08)


@pytest.mark.slow
def test_it_is_the_problem_of_coordinates(fitted, unbounded):
    """The same bits are drawn, and densities differ by the volume."""
    view = context()
    bounded, free = (x.posterior(view) for x in (fitted, unbounded))
    drawn, z = bounded.sample(jr.key(2), 16), free.sample(jr.key(2), 16)
    np.testing.assert_allclose(drawn["rates"], jnp.exp(z["rates"]), rtol=1e-5)
    one, coordinates = (jax.tree.map(lambda x: x[0], x) for x in (drawn, z))
    np.testing.assert_allclose(
        bounded.log_prob(one), free.log_prob(coordinates) - jnp.sum(coordinates["rates"]), atol=5e-3
    )
    law = bounded.to_numpyro()
    flat = law.ravel(coordinates, ())
    np.testing.assert_allclose(law.log_prob(flat), free.log_prob(coordinates), atol=5e-3)
    np.testing.assert_allclose(fitted.coordinates.to_signal(law.unravel(flat))["rates"], one["rates"], rtol=1e-5)
    many = fitted.sample_many(jax.tree.map(lambda x: x[None], view), key=jr.key(2), num_samples=4).signal
    assert many["rates"].shape == (1, 4, 2) and bool(jnp.all(many["rates"] > 0))


@pytest.mark.slow
def test_mode_is_that_of_the_signal(fitted):
    """A log-normal law has its mode below its median, by its variance."""
    view = context()
    posterior, prior = fitted.posterior(view), fitted.posterior()

    def density(signal):
        misfit = view.observation[0] - measure(signal, view.params[0])
        return float(prior.log_prob(signal)) - 0.5 * np.sum(misfit**2) / NOISE**2

    found = posterior.mode(jr.key(3))
    best = density(found)
    for name, change in (("rates", jnp.array([1.1, 1.0])), ("rates", jnp.array([1.0, 0.9])), ("level", 1.0)):
        moved = found | {name: found[name] * change + (0.1 if name == "level" else 0.0)}
        assert density(moved) < best
    median = posterior.quantile(jr.key(4), 0.5, 1000)["rates"]
    assert bool(jnp.all(found["rates"] < median))


@pytest.mark.thorough
def test_files_need_the_support(fitted, tmp_path):
    fitted.save(tmp_path / "problem")
    loaded = si.load(tmp_path / "problem", measure, support=SUPPORT)
    view = context()
    one, other = (x.posterior(view).sample(jr.key(1), 4)["rates"] for x in (fitted, loaded))
    np.testing.assert_array_equal(one, other)
    assert "support" in repr(loaded)
    with pytest.raises(ValueError, match="`support` is .*Positive.* in the file and"):
        si.load(tmp_path / "problem", measure)
    with pytest.raises(ValueError, match="`support` is"):
        si.load(tmp_path / "problem", measure, support={"level": None, "rates": constraints.greater_than(1.0)})


def mix(signal, params):
    """Shares of a whole, of which two sums are seen."""
    return jnp.stack([signal[0] + signal[1], signal[1] + signal[2]])


@pytest.mark.slow
def test_simplex_from_a_prior_with_everything_around_it():
    prior, shares = dist.Dirichlet(jnp.array([2.0, 3.0, 4.0, 2.0])), jax.ShapeDtypeStruct((4,), jnp.float32)
    posed = si.StochasticInverseProblem(mix, noise=0.05, signal=shares, support=constraints.simplex)
    observed = si.View(jnp.array([[0.4, 0.6]]))
    fit = posed.fit(si.data.Simulated(prior, observed=observed), **SETTINGS)
    drawn = fit.problem.posterior(observed).sample(jr.key(1), 64)
    assert drawn.shape == (64, 4)
    np.testing.assert_allclose(drawn.sum(-1), 1, atol=1e-5)
    signals = prior.sample(jr.key(2), (16,))
    views = si.View(jax.vmap(lambda s: mix(s, None))(signals)[:, None])
    assert np.isfinite(fit.check(views).residual.value)
    report = si.diagnostics.report(fit.problem, si.Pairs(signals, views), key=jr.key(3), num_samples=8)
    assert "verdict" in report.figures
    elsewhere = fit.problem.posterior(observed, noise=0.1).sample(jr.key(4), 8)
    np.testing.assert_allclose(elsewhere.sum(-1), 1, atol=1e-5)
    known = posed.fit(si.Pairs(signals, views), **SETTINGS | {"batch_size": 2, "steps": 2, "rounds": 1})
    np.testing.assert_allclose(known.problem.posterior().sample(jr.key(5)).sum(), 1, atol=1e-5)


@pytest.mark.slow
def test_start_is_a_law_of_signals():
    start = lambda key: {"level": jr.normal(key), "rates": jnp.exp(jr.normal(jr.fold_in(key, 1), (2,)))}
    fit = problem().fit(records(256)[1], start=start, **SETTINGS | {"steps": 8, "rounds": 2})
    assert bool(jnp.all(fit.problem.posterior().sample(jr.key(0), 8)["rates"] > 0))


VECTOR = jax.ShapeDtypeStruct((2,), jnp.float32)
REFUSED = {
    "no constraint": (VECTOR, "positive", "`support` must be a PyTree of constraints, got 'positive'"),
    "integers": (VECTOR, constraints.nonnegative_integer, "which no bijection leads to"),
    "another structure": (SIGNAL, {"rates": constraints.positive}, "is not structured as the signal"),
    "a vector's": (jax.ShapeDtypeStruct((), jnp.float32), constraints.simplex, "bounds vectors"),
    "complex": (jax.ShapeDtypeStruct((2,), jnp.complex64), constraints.positive, "for a complex part"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    signal, support, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        si.StochasticInverseProblem(lambda s, p: s, signal=signal, support=support)


@pytest.mark.thorough
@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_refuses_known_signals_outside(value):
    signals = np.ones((32, 2), np.float32)
    signals[3, 1] = value
    posed = si.StochasticInverseProblem(lambda s, p: s, noise=0.1, support=constraints.positive)
    with pytest.raises(ValueError, match="not inside of the `support`"):
        posed.fit(si.Pairs(signals, si.View(signals[:, None])), **SETTINGS | {"batch_size": 4})
    start = dist.Normal(-5.0, 1.0).expand([2]).to_event(1)
    posed = si.StochasticInverseProblem(lambda s, p: s, noise=0.1, signal=VECTOR, support=constraints.positive)
    with pytest.raises(ValueError, match="`start` has signals that are not inside"):
        posed.fit(si.View(signals[:, None]), start=start, **SETTINGS | {"batch_size": 4})


@pytest.mark.thorough
def test_refuses_measurement_space():
    data = si.View(np.ones((32, 3, 2), np.float32), np.ones((32, 3, 1), np.float32))
    posed = si.StochasticInverseProblem(lambda s, p: s * p, signal=VECTOR, support=constraints.positive)
    with pytest.raises(ValueError, match="`support` is for signal space"):
        posed.fit(data, roles=si.RandomViews(1, 1, 1), key=jr.key(0), steps=1)
