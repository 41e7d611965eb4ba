import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.infer
import pytest

import stochinv as si

CENTRE, SPREAD = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.5, 1.0, 2.0])
MATRIX, OTHER = jnp.eye(3)[:2], jnp.asarray([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])


class Draws(eqx.Module):
    """A stochastic denoiser whose draws are `N(centre, spread²)`, whatever it is given."""

    tree: bool = False

    def __call__(self, noisy, level, context, params, *, key=None):
        signal = CENTRE if key is None else CENTRE + SPREAD * jr.normal(key, (3,))
        return {"a": signal[:1], "b": signal[1:]} if self.tree else signal


def measure(signal, params):
    return params @ (jnp.concatenate([signal["a"], signal["b"]]) if isinstance(signal, dict) else signal)


def posterior_of(tree=False, **options):
    signal = jax.ShapeDtypeStruct((3,), jnp.float32)
    if tree:
        signal = {"a": jax.ShapeDtypeStruct((1,), jnp.float32), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}
    problem = si.StochasticInverseProblem(measure, Draws(tree), objective=si.ProperScore(), signal=signal, **options)
    return problem.posterior(None, MATRIX, sampler=si.Ancestral(2))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_shapes(shape):
    posterior, tree = posterior_of(), posterior_of(tree=True)
    assert posterior.sample(jr.key(0), shape).shape == (*shape, 3)
    assert jax.tree.map(jnp.shape, tree.sample(jr.key(0), shape)) == {"a": (*shape, 1), "b": (*shape, 2)}
    assert posterior.predict(jr.key(0), OTHER, shape).shape == (*shape, 2)


def test_draws_differ_and_chunks_do_not_matter():
    posterior = posterior_of()
    samples = posterior.sample(jr.key(0), (6,))
    assert len(np.unique(np.asarray(samples)[:, 0])) == 6
    np.testing.assert_array_equal(samples, posterior.sample(jr.key(0), (2, 3)).reshape(6, 3))
    np.testing.assert_allclose(samples, posterior.sample(jr.key(0), (6,), chunk_size=4), rtol=1e-6)


def test_predictions_are_of_the_signals_that_sample_draws():
    posterior = posterior_of()
    signals = posterior.sample(jr.key(3), (2, 5))
    predicted = posterior.predict(jr.key(3), OTHER, (2, 5))
    np.testing.assert_allclose(predicted, jnp.einsum("ij,abj->abi", OTHER, signals), rtol=1e-5, atol=1e-6)


def test_predictions_have_measurement_noise_in_raw_units():
    noise = 0.7
    info = si.DataInfo(
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.ShapeDtypeStruct((2, 3), jnp.float32),
        None,
        si.Units(jnp.asarray(3.0), jnp.asarray(50.0)),
    )
    posterior = posterior_of(noise=noise, data_info=info)
    signals = posterior.sample(jr.key(3), (2000,))
    residual = posterior.predict(jr.key(3), OTHER, (2000,)) - signals @ OTHER.T
    # Five standard errors of a standard deviation from 4000 numbers.
    np.testing.assert_allclose(np.std(residual), noise, rtol=5 / np.sqrt(2 * 4000))
    assert abs(np.corrcoef(np.asarray(residual).T)[0, 1]) < 5 / np.sqrt(2000)


def test_moments_and_quantiles():
    posterior, number = posterior_of(), 4000
    # Five standard errors: of a mean σ/√N, of a standard deviation σ/√2N, of a median 1.25 σ/√N.
    error = 5 * SPREAD / np.sqrt(number)
    key = jr.key(0)
    assert np.all(np.abs(posterior.mean(key, number) - CENTRE) < error)
    assert np.all(np.abs(posterior.std(key, number) - SPREAD) < error / np.sqrt(2))
    quantiles = posterior.quantile(key, jnp.asarray([0.1587, 0.5, 0.8413]), number)
    assert quantiles.shape == (3, 3)
    expected = CENTRE + SPREAD * jnp.asarray([[-1.0], [0.0], [1.0]])
    assert np.all(np.abs(quantiles - expected) < 1.6 * error)
    np.testing.assert_allclose(posterior.quantile(key, 0.5, number), quantiles[1], rtol=1e-6)


def test_inside_jit():
    posterior = posterior_of()
    inside = eqx.filter_jit(lambda p, key: (p.sample(key, (3,)), p.mean(key, 8)))(posterior, jr.key(1))
    np.testing.assert_allclose(inside[0], posterior.sample(jr.key(1), (3,)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inside[1], posterior.mean(jr.key(1), 8), rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda key: posterior.sample(key))(jr.split(jr.key(0), 4))
    np.testing.assert_allclose(mapped[2], posterior.sample(jr.split(jr.key(0), 4)[2]), rtol=1e-5, atol=1e-6)


def test_to_arviz():
    arviz = pytest.importorskip("arviz")
    posterior = posterior_of(tree=True)
    data = posterior.to_arviz(jr.key(0), 7)
    assert isinstance(data, arviz.InferenceData)
    samples = posterior.sample(jr.key(0), (7,))
    np.testing.assert_allclose(data.posterior["signal['b']"].values, samples["b"][None])
    assert data.posterior["signal['a']"].shape == (1, 7, 1)


@pytest.mark.parametrize("tree", [False, True])
def test_to_numpyro(tree):
    posterior = posterior_of(tree)
    distribution = posterior.to_numpyro()
    assert distribution.event_shape == (3,) and distribution.batch_shape == ()
    key = jr.key(2)
    samples = distribution.sample(key, (5,))
    assert samples.shape == (5, 3)
    expected = posterior.sample(key, (5,))
    first = jax.tree.map(lambda x: x[0], expected)
    unraveled = distribution.unravel(samples[0])
    assert jax.tree.structure(unraveled) == jax.tree.structure(first)
    jax.tree.map(np.testing.assert_array_equal, unraveled, first)

    def model():
        signal = numpyro.sample("signal", distribution)
        numpyro.sample("observation", numpyro.distributions.Normal(OTHER @ signal, 0.01).to_event(1))

    draws = numpyro.infer.Predictive(model, num_samples=2000)(jr.key(0))
    assert draws["signal"].shape == (2000, 3)
    assert np.all(np.abs(np.mean(draws["signal"], 0) - CENTRE) < 5 * SPREAD / np.sqrt(2000))
    np.testing.assert_allclose(draws["observation"], draws["signal"] @ OTHER.T, atol=0.1)
    with pytest.raises(NotImplementedError, match="no `log_prob`, so MCMC cannot run on it"):
        distribution.log_prob(samples[0])
    with pytest.raises(NotImplementedError, match="no `log_prob`"):
        numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=1, num_samples=1, progress_bar=False).run(jr.key(0))
