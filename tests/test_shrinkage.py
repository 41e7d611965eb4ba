"""How much of a network's correction is kept: as much as is right for signals that it was not trained on."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._denoiser.correction import AbstractCorrection
from stochinv._problem_base import encode_context
from stochinv._training.shrinkage import shrink, shrinks

SIZE, NOISE = 24, 0.5
# The variance of signals where the denoiser takes them for standard normal.
VARIANCE = 3.0


def records(number, *, seed=0, spread=1.0):
    """Half of the entries of white signals, with noise; by NumPy."""
    rng = np.random.default_rng(seed)
    signals = np.float32(spread * rng.normal(size=(number, SIZE)))
    seen = rng.random((number, 1, SIZE)) < 0.5
    noisy = np.where(seen, signals[:, None] + NOISE * rng.normal(size=seen.shape), 0)
    return signals, si.View(np.float32(noisy), seen)


def fit(data, **options):
    settings = {"key": jr.key(0), "steps": 120, "rounds": 2, "batch_size": 64, "progress": False}
    return si.StochasticInverseProblem(si.forward.Mask(), noise=NOISE).fit(data, **settings | options)


class Wider(AbstractCorrection):
    """The correction that is right for signals of variance `VARIANCE`, times a factor."""

    factor: jax.Array

    def __call__(self, parts, context, embedding):
        estimate, precision = parts[1], jnp.exp(-2 * parts[2])
        exact = precision * estimate / (precision - 1 + 1 / VARIANCE)
        return self.factor * jnp.sqrt(precision) * (exact - estimate)

    @property
    def weights(self):
        return None

    def weigh(self, error, context, precision):
        return error


@pytest.fixture(scope="module")
def by_heart():
    """So few signals, and so many steps, that the network knows them."""
    return fit(records(200)[1], steps=400, rounds=2)


def mean_error(problem, *, factor=None):
    """The mean square of the error of new signals' denoised versions, in units of the Gaussian's."""
    if factor is not None:
        levels, factors = problem.denoiser.shrinkage.value
        problem = eqx.tree_at(lambda p: p.denoiser.shrinkage.value, problem, (levels, jnp.full_like(factors, factor)))
    signals, views = records(256, seed=1)
    problem = problem.noised

    @jax.jit
    @jax.vmap
    def error(signal, views, key):
        time_key, noise_key = jr.split(key)
        level = problem.schedule.level(problem.schedule.inverse(jr.uniform(time_key, minval=-8, maxval=4)))
        noisy = level.alpha * problem.units.standardise(signal) + level.sigma * jr.normal(noise_key, signal.shape)
        context = encode_context(problem, si.View(views.observation, views.params, jnp.ones(1, bool)))
        denoised = problem.denoise(noisy, level, context, None).signal
        spread = context.diagonal(lambda values: 1 / (1 + (level.alpha / level.sigma) ** 2 + values))
        return jnp.mean((denoised - signal) ** 2 / spread)

    return float(jnp.mean(error(signals, jax.tree.map(jnp.asarray, views), jr.split(jr.key(3), 256))))


@pytest.mark.slow
def test_the_factor_is_the_one_that_makes_the_error_least():
    trained = fit(records(256)[1], steps=1, rounds=1).problem
    units, measured = trained.data_info.units, trained.denoiser.known.value[1]
    white = dataclasses.replace(units, mean=jnp.zeros(SIZE), root=jnp.eye(SIZE), inverse=jnp.eye(SIZE))
    parts = {"form": trained.denoiser.form, "embedding": trained.denoiser.embedding}
    known = (measured.forward, measured.noise, measured.units)
    signals, views = records(256, seed=2, spread=np.sqrt(VARIANCE))
    views = si.View(views.observation, views.params, jnp.ones((256, 1), bool))
    for factor, kept in [(2.0, 0.5), (1.25, 0.8), (0.5, 1.0), (-1.0, 0.0), (0.0, 1.0)]:
        denoiser = si.GaussianResidual(white, trained.signal, *known, network=Wider(jnp.asarray(factor)), **parts)
        info = dataclasses.replace(trained.data_info, units=white)
        problem = dataclasses.replace(trained, denoiser=denoiser, data_info=info)
        log_snrs, factors = shrink(problem.noised, signals, None, views, jr.key(1)).denoiser.shrinkage.value
        assert np.all(np.diff(log_snrs) > 0)
        # 65,536 errors of mean square 1 tell the factor where corrections are not tiny themselves.
        told = np.asarray(log_snrs) < 3
        np.testing.assert_allclose(np.asarray(factors)[told], kept, atol=0.05)


@pytest.mark.slow
def test_a_network_that_knows_its_signals_by_heart_does_new_ones_no_harm(by_heart):
    """White signals are Gaussian: there is nothing to be learned of them but the 200 that were drawn."""
    gaussian = mean_error(by_heart.problem, factor=0.0)
    assert mean_error(by_heart.problem, factor=1.0) > 1.05 * gaussian
    assert mean_error(by_heart.problem) < 1.01 * gaussian


@pytest.mark.slow
def test_known_signals_are_left_out_for_it():
    signals, views = records(200)
    trained = fit(si.Pairs(signals, views), steps=400, rounds=1).problem
    gaussian = mean_error(trained, factor=0.0)
    assert mean_error(trained, factor=1.0) > 1.05 * gaussian
    assert mean_error(trained) < 1.01 * gaussian


@pytest.mark.slow
def test_it_is_saved_and_is_the_same_after_a_break(by_heart, tmp_path):
    by_heart.problem.save(tmp_path / "saved.stochinv")
    loaded = si.load(tmp_path / "saved.stochinv", forward=si.forward.Mask())
    for x, y in zip(by_heart.problem.denoiser.shrinkage.value, loaded.denoiser.shrinkage.value, strict=True):
        np.testing.assert_array_equal(x, y)
    views, options = records(200)[1], {"steps": 40}
    with pytest.raises(RuntimeError, match="stop") as caught:
        fit(views, callbacks=[stop], log_every=30, checkpoint=tmp_path / "run", **options)
    assert "checkpoint" in caught.value.__notes__[0]
    resumed, whole = (fit(views, **options, **x).problem for x in ({"checkpoint": tmp_path / "run"}, {}))
    for x, y in zip(jax.tree.leaves(resumed.denoiser), jax.tree.leaves(whole.denoiser), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.any(np.asarray(whole.denoiser.shrinkage.value[1]) < 1)


def stop(progress):
    raise RuntimeError("stop")


def test_for_whom_it_is():
    large, small = (jax.ShapeDtypeStruct((n,), jnp.float32) for n in (SIZE, 16))
    assert shrinks(None, large)
    assert not shrinks(None, small)
    assert not shrinks(lambda *args, key=None: None, large)
