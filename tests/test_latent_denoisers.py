"""Denoisers of latent codes: what they draw before their networks have learned anything, and what goes into files."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import helpers
import stochinv as si
from stochinv._archive import read_archive
from stochinv._denoiser.resampling import pick

SIZE, LEVEL = 3, si.NoiseLevel(jnp.asarray(0.6), jnp.asarray(0.8))
MATRIX = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5]])
SIGNAL = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
TAU = 0.8


def read(noisy, level, context, params):
    return jnp.concatenate([noisy, context])


def amortised(key=0):
    keys = jr.split(jr.key(key), 3)
    network = si.nn.MLP(4, 5, embedding_size=8, width=6, depth=1, key=keys[0])
    features = lambda noisy, level, context, params: network(read(noisy, level, context, params), jnp.zeros(8))
    return si.NetworkDenoiser(
        si.AmortisedGaussian(features, 5, SIZE, key=keys[1]),
        si.nn.MLP(5 + SIZE, SIZE, embedding_size=8, width=6, depth=1, key=keys[2]),
        lambda log_snr: jnp.ones(8),
        embedding_size=8,
        signal=SIGNAL,
        latent_size=SIZE,
        latent="input",
        key=keys[0],
    )


class Likelihood(si.AbstractEncoder):
    """Of the linear measurement in `o_t`, and of another with noise in the context."""

    candidates: si.Frozen

    def __call__(self, noisy, level, context, params):
        measured = self.candidates.value @ MATRIX.T
        of_target = -0.5 * jnp.sum((noisy - level.alpha * measured) ** 2, -1) / level.sigma**2
        return of_target - 0.5 * (self.candidates.value[:, 0] - context[0]) ** 2 / TAU**2


def resampling(number):
    candidates = jr.normal(jr.key(1), (number, SIZE))
    network = si.nn.MLP(4 + SIZE + 2, SIZE, embedding_size=8, width=6, depth=1, key=jr.key(2))
    likelihood = Likelihood(si.Frozen(candidates))
    embedding = si.nn.NoiseEmbedding(8, key=jr.key(3))
    return si.ResamplingDenoiser(candidates, likelihood, read, network, embedding, latent_size=2)


def test_a_fresh_amortised_gaussian_draws_from_the_prior():
    noisy, context = jnp.array([0.3, -1.0]), jnp.array([1.0, 2.0])
    draw = lambda key: amortised()(noisy, LEVEL, context, None, key=key)
    helpers.assert_gaussian(jax.vmap(draw)(jr.split(jr.key(0), 4000)), np.zeros(SIZE), np.eye(SIZE), bias=0)
    np.testing.assert_array_equal(amortised()(noisy, LEVEL, context, None), 0)


def test_an_amortised_gaussian_is_the_one_that_its_features_tell():
    features = jnp.array([0.5, -1.0])
    encoder = si.AmortisedGaussian(lambda *_: features, 2, SIZE, key=jr.key(0))
    denoiser = si.NetworkDenoiser(
        encoder,
        lambda x, embedding: jnp.zeros(SIZE),
        lambda log_snr: jnp.ones(8),
        embedding_size=8,
        signal=SIGNAL,
        latent_size=SIZE,
        latent="input",
        key=jr.key(0),
    )
    draw = lambda key: denoiser(jnp.zeros(2), LEVEL, jnp.zeros(2), None, key=key)
    mean = np.asarray(features @ encoder.to_mean, np.float64)
    scale = np.exp(4 * np.tanh(np.asarray(features @ encoder.to_log_scale, np.float64) / 4))
    assert np.ptp(scale) > 0.1
    helpers.assert_gaussian(jax.vmap(draw)(jr.split(jr.key(1), 4000)), mean, np.diag(scale**2), bias=0)


@pytest.mark.parametrize("alpha", [0.01, 0.6])
def test_fresh_resampling_draws_from_the_posterior(alpha):
    """For a Gaussian prior and linear measurements, with as many candidates as draws are worth."""
    level = si.NoiseLevel(jnp.asarray(alpha), jnp.sqrt(1 - alpha**2))
    noisy, context = jnp.array([0.5, -0.4]), jnp.array([0.7, 0.0])
    rows = np.concatenate([alpha * np.asarray(MATRIX), [[1.0, 0.0, 0.0]]])
    noise = np.diag([1 - alpha**2, 1 - alpha**2, TAU**2])
    observed = np.concatenate([noisy, context[:1]])
    mean, covariance = helpers.condition(np.zeros(SIZE), np.eye(SIZE), rows, observed, noise)
    denoiser = resampling(100_000)
    draw = lambda key: denoiser(noisy, level, context, None, key=key)
    draws = jax.lax.map(draw, jr.split(jr.key(5), 4000), batch_size=100)
    weights = jax.nn.softmax(denoiser.log_likelihood(noisy, level, context, None))
    bias = 5 / np.sqrt(1 / np.sum(np.square(weights)))
    assert bias < 0.05
    helpers.assert_gaussian(draws, mean, covariance, bias=bias)
    at_once = denoiser(noisy, level, context, None)
    assert np.all(np.abs(at_once - mean) < bias * np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize("size", [1, 2, 10, 17])
def test_pick_is_the_inverse_of_the_running_sum(size):
    """Shares in the middle of every step lead to its index; entries without weight are left out."""
    weights = np.random.default_rng(size).uniform(size=size) * (np.arange(size) % 3 != 1)
    edges = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    for index in np.flatnonzero(weights):
        share = (edges[index] + edges[index + 1]) / 2
        assert pick(jnp.asarray(weights, jnp.float32), jnp.asarray(share, jnp.float32)) == index


@pytest.mark.slow
def test_candidates_are_neither_trained_nor_saved(tmp_path):
    forward = lambda signal, params: MATRIX @ signal
    signals = jr.normal(jr.key(4), (32, SIZE))
    data = si.Example(signals[:, :2], si.View(signals @ MATRIX.T))
    problem = si.StochasticInverseProblem(forward, resampling(7), objective=si.ProperScore(num_draws=2), signal=SIGNAL)
    fitted = problem.fit(data, key=jr.key(0), steps=2, batch_size=8).problem
    np.testing.assert_array_equal(fitted.denoiser.candidates.value, problem.denoiser.candidates.value)
    assert jnp.any(fitted.denoiser.network.linear_out.weight != 0)
    fitted.save(tmp_path / "problem.si")
    assert not any("candidates" in name for name in read_archive(tmp_path / "problem.si")[1])
    loaded = si.load(tmp_path / "problem.si", forward, problem.denoiser)
    sample = lambda p: p.sample(signals[0, :2], key=jr.key(6), sampler=si.Ancestral(2)).signal
    np.testing.assert_array_equal(sample(loaded), sample(fitted))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`candidates` must be of shape"):
        si.ResamplingDenoiser(jnp.zeros(3), read, read, read, read)
    with pytest.raises(ValueError, match="`num_features` must be at least 1"):
        si.AmortisedGaussian(read, 0, 3, key=jr.key(0))


def test_image_encoder():
    network = si.nn.ImageEncoder(2, 5, image_size=(33, 20), embedding_size=8, channels=4, key=jr.key(0))
    image, embedding = jr.normal(jr.key(1), (33, 20, 2)), jr.normal(jr.key(2), (8,))
    np.testing.assert_array_equal(network(image, embedding), np.zeros(5))
    weight = jr.normal(jr.key(3), network.linear_out.weight.shape)
    network = jax.tree.map(lambda x: weight if x is network.linear_out.weight else x, network)
    assert jnp.all(network(image, embedding) != network(image, -embedding))
    gradient = jax.grad(lambda x: network(x, embedding)[0])(image)
    assert jnp.all(jnp.any(gradient != 0, -1)), "every pixel is seen"
    with pytest.raises(ValueError, match="`x` of `ImageEncoder` has shape"):
        network(image[:-1], embedding)
    with pytest.raises(ValueError, match="`channels`"):
        si.nn.ImageEncoder(2, 5, image_size=(8, 8), embedding_size=8, channels=0, key=jr.key(0))
