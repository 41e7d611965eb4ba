"""What networks that correct vectors are told of a context, and how errors of images count."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import stochinv as si
from stochinv._denoiser.correction import LARGEST_COVARIANCE
from stochinv._denoiser.evidence import Measured, nothing
from stochinv._frozen import Frozen
from test_evidence import NOISE, SIZE, VIEWS, project, views

PARTS, EMBEDDING = jnp.ones((5, SIZE)), jnp.zeros(1)


def told(context, view_network=None):
    """The input of the network."""
    inputs = []

    def network(x, embedding):
        inputs.append(x)
        return x[:SIZE]

    si.VectorCorrection(network, view_network)(PARTS, context, EMBEDDING)
    return np.asarray(inputs[0])


def context(counts=(True, True)):
    matrices = np.random.default_rng(1).normal(size=(VIEWS, 3, SIZE))
    return views(matrices, counts)


def evidence(view):
    measured = Measured(si.ForwardFunction(project), si.GaussianNoise(NOISE), si.Units())
    return measured.evidence("dense", lambda z: z, jnp.zeros(SIZE), view)


def reverse(view):
    return jax.tree.map(lambda x: x[::-1], view)


def test_the_covariance_given_a_context():
    view = context()
    matrix = np.asarray(view.params, float).reshape(-1, SIZE)
    exact = np.linalg.inv(np.eye(SIZE) + matrix.T @ matrix / NOISE**2)
    found = told(evidence(view))
    assert len(found) == si.VectorCorrection.num_inputs(SIZE)
    np.testing.assert_allclose(found[5 * SIZE :], exact[np.triu_indices(SIZE)], atol=1e-4)
    assert si.VectorCorrection.num_inputs(LARGEST_COVARIANCE + 1) == 5 * (LARGEST_COVARIANCE + 1)


def test_the_order_of_views_does_not_matter():
    network = eqx.nn.MLP(3 + 3 * SIZE, 4, 8, 1, key=jr.key(0))
    for view in (context(), context((True, False))):
        for of in (evidence, lambda view: nothing(view, jnp.zeros(SIZE))):
            np.testing.assert_allclose(told(of(reverse(view)), network), told(of(view), network), atol=1e-4)


def test_views_that_do_not_count_say_nothing():
    network = eqx.nn.MLP(3 + 3 * SIZE, 4, 8, 1, key=jr.key(0))
    view = context((True, False))
    other = dataclasses.replace(view, observation=view.observation.at[1].set(5.0))
    first, second = (told(nothing(x, jnp.zeros(SIZE)), network) for x in (view, other))
    np.testing.assert_array_equal(first, second)
    counted = dataclasses.replace(other, mask=jnp.array([True, True]))
    assert np.any(told(nothing(counted, jnp.zeros(SIZE)), network) != second)
    value = network(jnp.concatenate([view.observation[0], jnp.ravel(view.params[0])]))
    np.testing.assert_allclose(first[-5:], [*value, 1 / VIEWS], atol=1e-5)


def test_errors_of_whitened_images_count_as_they_are_seen():
    """`W (ẑ − z)` over the root mean square that the Gaussian's has, so that nothing counts that cannot be learned."""
    view, precision = context(), jnp.float32(1.7)
    root = np.random.default_rng(5).normal(size=(SIZE, SIZE)) * np.geomspace(10, 0.1, SIZE)
    measured = Measured(si.ForwardFunction(project), si.GaussianNoise(NOISE), si.Units())
    weights = jnp.asarray(root, jnp.float32)
    known = measured.evidence("dense", lambda z: z, jnp.zeros(SIZE), view, weights)
    correction = si.ImageCorrection(lambda image, _: image, (3, 4, 1), Frozen(weights))
    matrix = np.asarray(view.params, float).reshape(-1, SIZE)
    covariance = np.linalg.inv(1.7 * np.eye(SIZE) + matrix.T @ matrix / NOISE**2)
    size = np.sqrt(np.mean(np.diag(root @ covariance @ root.T)))
    values, vectors = np.linalg.eigh(covariance)
    errors = np.random.default_rng(6).normal(size=(5, SIZE))
    seen = errors @ ((vectors * np.sqrt(values)) @ vectors.T) @ root.T / size
    found = jax.vmap(lambda x: correction.weigh(x, known, precision))(jnp.asarray(errors, jnp.float32))
    np.testing.assert_allclose(found, seen, atol=2e-3 * np.abs(seen).max())
