"""Denoisers of latent codes: what they draw before their networks have learned anything."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import helpers
import stochinv as si

SIZE, LEVEL = 3, si.NoiseLevel(jnp.asarray(0.6), jnp.asarray(0.8))
SIGNAL = jax.ShapeDtypeStruct((SIZE,), jnp.float32)


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


@pytest.mark.thorough
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


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`num_features` must be at least 1"):
        si.AmortisedGaussian(read, 0, 3, key=jr.key(0))


@pytest.mark.thorough
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
