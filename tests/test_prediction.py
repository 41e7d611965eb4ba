"""Networks that predict noise, velocity or score, against the closed form of a Gaussian signal."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import without_annotations
from test_signal_space import NOISE, SIGNAL, fit, given, measure, records

PREDICTIONS = ("signal", "velocity", "noise", "score")


def predict(name, clean, noise, level):
    size = jnp.sqrt(level.alpha**2 + level.sigma**2)
    return {
        "signal": clean,
        "velocity": (level.alpha * noise - level.sigma * clean) / size,
        "noise": noise,
        "score": -noise / level.sigma,
    }[name]


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("alpha, sigma", [(0.8, 0.6), (0.3, 0.9), (1.0, 2.5)])
def test_a_right_prediction_gives_the_signal_back(name, alpha, sigma):
    level = si.NoiseLevel(jnp.float32(alpha), jnp.float32(sigma))
    clean, noise = {"a": jr.normal(jr.key(0), (3,))}, {"a": jr.normal(jr.key(1), (3,))}
    right = predict(name, clean["a"], noise["a"], level)
    denoiser = si.PredictionDenoiser(lambda *_, key: {"a": right}, name)
    noisy = jax.tree.map(lambda x, e: alpha * x + sigma * e, clean, noise)
    np.testing.assert_allclose(denoiser(noisy, level, None, None)["a"], clean["a"], atol=2e-5)


@pytest.fixture(scope="module")
def trained():
    return fit(steps=1, rounds=1).problem


@pytest.mark.thorough
@pytest.mark.parametrize("name", PREDICTIONS)
def test_draws_are_in_raw_units(trained, name):
    """The exact prediction of a standard normal signal, which whitened signals are."""

    def network(noisy, level, context, params, *, key):
        variance = level.alpha**2 + level.sigma**2
        return predict(name, level.alpha * noisy / variance, level.sigma * noisy / variance, level)

    problem = dataclasses.replace(trained, denoiser=si.PredictionDenoiser(network, name))
    units = trained.data_info.units
    covariance = np.asarray(units.root @ units.root.T, float)
    draws = np.asarray(problem.posterior(sampler=si.ExponentialAdams()).sample(jr.key(2), 1000), float)
    np.testing.assert_allclose(draws.mean(0), units.mean, atol=4 * np.sqrt(covariance.max() / 1000))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=4 * covariance.max() * np.sqrt(2 / 1000) + 0.02)


class Network(eqx.Module):
    """A linear network of the noised signal and of the first view."""

    linear: eqx.nn.Linear

    def __call__(self, noisy, level, context, params, *, key):
        seen = jnp.where(context.mask, 1.0, 0.0)[:, None] * context.observation
        return self.linear(jnp.concatenate([noisy, seen.ravel()]))


@pytest.mark.slow
def test_it_trains_and_is_saved(tmp_path):
    denoiser = si.PredictionDenoiser(Network(eqx.nn.Linear(7, 3, key=jr.key(3))), "velocity")
    problem = si.StochasticInverseProblem(measure, denoiser, noise=NOISE, signal=SIGNAL)
    fitted = problem.fit(records(), key=jr.key(0), steps=24, rounds=2, batch_size=64, progress=False)
    assert fitted.problem.denoiser.predicts == "velocity"
    assert jax.eval_shape(lambda: fitted.problem.posterior(given(1)).sample(jr.key(0))) == SIGNAL
    fitted.problem.save(tmp_path / "problem")
    again = si.load(tmp_path / "problem", forward=measure, denoiser=denoiser)
    draw = lambda p: p.posterior(given(1)).sample(jr.key(0), 4)
    np.testing.assert_array_equal(draw(again), draw(fitted.problem))


def test_what_is_wrong_is_said():
    with without_annotations(), pytest.raises(ValueError, match="`predicts` must be one of"):
        si.PredictionDenoiser(measure, "epsilon")  # pyright: ignore[reportArgumentType]
    denoiser = si.PredictionDenoiser(lambda noisy, *_, key: noisy, "noise")
    problem = si.StochasticInverseProblem(lambda s, p: p @ s, denoiser, noise=NOISE)
    with pytest.raises(ValueError, match="which is for signals that are noised"):
        problem.fit(records(), key=jr.key(0), steps=1, roles=si.RandomViews(context=1, target=1))
