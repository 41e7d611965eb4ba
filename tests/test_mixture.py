"""Denoisers that choose one of several signals: the law of the choice, and its gradient in the energy score."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jaxtyping import Array

import stochinv as si
from stochinv._denoiser.base import components

SIGNAL = jax.ShapeDtypeStruct((), jnp.float32)
LEVEL = si.NoiseLevel(jnp.asarray(0.6), jnp.asarray(0.8))


class Fixed(eqx.Module):
    """The same signals and logits, whatever is measured."""

    signals: Array
    logits: Array

    def __call__(self, noisy, level, context, params, *, key=None):
        return self.signals, self.logits


def two_points(share):
    return si.MixtureDenoiser(Fixed(jnp.asarray([-1.0, 2.0]), jnp.log(jnp.asarray([1 - share, share]))))


def draws_only(denoiser):
    """The same denoiser, as a callable that has no components."""
    return lambda *arguments, key=None: denoiser(*arguments, key=key)


def test_draws_follow_the_shares():
    number, share = 20_000, 0.3
    denoiser = two_points(share)
    draw = lambda key: denoiser(jnp.zeros(1), LEVEL, None, None, key=key)
    second = np.asarray(jax.vmap(draw)(jr.split(jr.key(0), number))) == 2
    assert abs(second.mean() - share) < 5 * np.sqrt(share * (1 - share) / number)
    assert draw(None) == -1 and two_points(0.7)(jnp.zeros(1), LEVEL, None, None) == 2


def test_components_of_a_network_are_proposed_with_one_code():
    structure = si.MixtureDenoiser.structure({"a": SIGNAL, "b": jax.ShapeDtypeStruct((2,), jnp.float32)}, 3)
    network = si.nn.MLP(1 + 4, 12, embedding_size=8, width=6, depth=1, key=jr.key(0))
    network = eqx.tree_at(lambda n: n.linear_out.weight, network, jr.normal(jr.key(1), network.linear_out.weight.shape))
    denoiser = si.MixtureDenoiser(
        si.NetworkDenoiser(
            si.Flatten(), network, lambda log_snr: jnp.ones(8), embedding_size=8, signal=structure, latent="input",
            latent_size=4, key=jr.key(2),
        )
    )  # fmt: skip
    of = lambda key: components(denoiser, jnp.ones(1), LEVEL, None, None, key=key)
    signals, logs = of(jr.key(0))
    assert signals["a"].shape == (3,) and signals["b"].shape == (3, 2)
    np.testing.assert_allclose(jnp.sum(jnp.exp(logs)), 1, rtol=1e-6)
    others, _ = of(jr.key(1))
    assert np.all(np.asarray(signals["a"] != others["a"]))


def test_every_other_denoiser_has_one_component():
    plain = lambda noisy, level, context, params, *, key=None: jnp.asarray(3.0)
    signals, logs = components(plain, jnp.zeros(1), LEVEL, None, None, key=jr.key(0))
    np.testing.assert_array_equal(signals, [3.0])
    np.testing.assert_array_equal(logs, [0.0])


@pytest.mark.parametrize("noise", [0.0, 0.7, dist.Poisson])
def test_weighting_the_choices_changes_no_expectation(noise):
    """The score of draws and the one weighted by shares have the same mean, and so have their gradients by signals."""
    number = 4000
    forward = lambda s, params: 3 + s[None]
    novel = si.View(jnp.asarray([[4.0], [1.0]]), jnp.zeros((2, 0)))
    example = si.Example(None, si.View(jnp.asarray([4.0]), jnp.zeros(0)), novel)
    logits = two_points(0.3).denoiser.logits

    def scores(wrap):
        objective = si.ProperScore(num_draws=2, regulariser=lambda s, params: 0.1 * s**2)

        def score(signals, key):
            denoiser = wrap(si.MixtureDenoiser(Fixed(signals, logits)))
            problem = si.StochasticInverseProblem(forward, denoiser, noise=noise, objective=objective, signal=SIGNAL)
            return problem.loss(example, key=key)[0]

        of = jax.jit(jax.vmap(jax.value_and_grad(score), (None, 0)))
        value, gradient = of(jnp.asarray([-1.0, 2.0]), jr.split(jr.key(0), number))
        return np.concatenate([value[:, None], gradient], 1).astype(np.float64)

    drawn, weighted = scores(draws_only), scores(lambda denoiser: denoiser)
    error = np.sqrt((drawn.var(0) + weighted.var(0)) / number)
    assert np.all(np.abs(drawn.mean(0) - weighted.mean(0)) < 5 * error)
    assert np.all(weighted.var(0) < drawn.var(0))


@pytest.mark.parametrize("noise", [0.0, pytest.param(dist.Poisson, marks=pytest.mark.slow)])
def test_the_right_shares_are_stationary(noise):
    """The gradient by the logits vanishes within its standard error there, and not at other shares."""
    share, number = 0.3, 20_000
    second = jr.bernoulli(jr.key(0), share, (number,))
    forward = lambda s, params: 3 + s[None]
    measured = forward(jnp.where(second, 2.0, -1.0), None)[0][:, None]
    if callable(noise):
        measured = jr.poisson(jr.key(1), measured).astype(jnp.float32)
    empty = jnp.zeros((number, 0))
    data = si.Example(None, si.View(measured, empty), si.View(measured[:, None], empty[:, None]))

    def gradients(share):
        objective = si.ProperScore(num_draws=2, score_target=False)

        def loss(denoiser, example, key):
            problem = si.StochasticInverseProblem(forward, denoiser, noise=noise, objective=objective, signal=SIGNAL)
            return problem.loss(example, key=key)[0]

        keys = jr.split(jr.key(2), number)
        of = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(two_points(share), data, keys)
        return np.asarray(of.denoiser.logits, np.float64)

    at_truth, elsewhere = gradients(share), gradients(0.6)
    assert np.all(np.abs(at_truth.mean(0)) < 5 * at_truth.std(0) / np.sqrt(number) + 1e-6)
    assert np.all(np.abs(elsewhere.mean(0)) > 10 * elsewhere.std(0) / np.sqrt(number))


def test_one_component_is_none_to_choose_from():
    with pytest.raises(ValueError, match="num_components"):
        si.MixtureDenoiser.structure(SIGNAL, 1)
