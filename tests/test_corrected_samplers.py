"""The law of every corrected sampler, on random linear-Gaussian problems, against closed forms.

The denoiser is exact for the Gaussian prior but where it is made wrong on purpose. Shapes are always the same, so that
nothing is compiled twice.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import stochinv as si
from stochinv._denoiser.evidence import Measured
from stochinv._problem_base import encode_context
from stochinv._sampler.importance import choose, systematic
from test_signal_space import SIGNAL, fit, records

SIZE, VIEWS, DRAWS = 3, 2, 500


@dataclasses.dataclass(frozen=True)
class Case:
    """A Gaussian prior, a context of one or two views of two entries each, and the noise of measurements."""

    mean: np.ndarray
    covariance: np.ndarray
    context: si.View
    noise: float

    @property
    def posterior(self):
        seen = np.asarray(self.context.mask)
        matrix = self.context.params[seen].reshape(-1, SIZE).astype(float)
        gain = np.linalg.solve(
            matrix @ self.covariance @ matrix.T + self.noise**2 * np.eye(len(matrix)), matrix @ self.covariance
        ).T
        observed = self.context.observation[seen].ravel()
        return self.mean + gain @ (observed - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stds = np.array(draw(st.lists(st.floats(0.3, 3.0), min_size=SIZE, max_size=SIZE)))
    noise = draw(st.floats(0.1, 2.0))
    rotation = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    mean, root = 2 * rng.normal(size=SIZE), rotation * stds
    matrices = rng.normal(size=(VIEWS, 2, SIZE))
    # What is measured of some entries is nothing, or the same twice.
    matrices[:, 1] *= draw(st.sampled_from([0.0, 1.0]))
    matrices[:, :, 2] *= draw(st.sampled_from([0.0, 1.0]))
    signal = mean + root @ rng.normal(size=SIZE)
    observed = matrices @ signal + noise * rng.normal(size=(VIEWS, 2))
    mask = np.array([True, draw(st.booleans())])
    context = si.View(np.float32(observed), np.float32(matrices), mask)
    return Case(mean, root @ root.T, context, noise)


@pytest.fixture(scope="module")
def trained():
    return fit(records(64), steps=1, rounds=1, batch_size=8).problem


def exact(trained, case, *, told=1.0):
    """A problem whose denoiser is exact for the prior of a case, but is told `told` times the noise."""
    values, vectors = np.linalg.eigh(case.covariance)
    array = lambda x: jnp.asarray(x, jnp.float32)
    root = (vectors * np.sqrt(values)) @ vectors.T
    units = si.Whitening(array(case.mean), array(root), array(np.linalg.inv(root)))
    noise, blunt = si.GaussianNoise(array(case.noise)), si.GaussianNoise(array(told * case.noise))
    old = trained.denoiser
    parts = {"form": old.form, "network": old.network, "embedding": old.embedding}
    measured = Measured(old.known.value[1].forward, blunt, old.known.value[1].units)
    known = (measured.forward, measured.noise, measured.units)
    info = dataclasses.replace(trained.data_info, units=units)
    return dataclasses.replace(
        trained, noise=noise, denoiser=si.GaussianResidual(units, SIGNAL, *known, **parts), data_info=info
    ).noised


@eqx.filter_jit
def draw(problem, context, sampler, key):
    encoded = encode_context(problem, problem.as_context(context))
    return sampler.many(problem, encoded, None, key=key, num_samples=DRAWS, chunk_size=DRAWS).signal


def assert_posterior(draws, case, *, effective=DRAWS, bias=0.0):
    """Means and standard deviations along the principal axes of the posterior: 4.5 standard errors and a bias."""
    mean, covariance = case.posterior
    values, vectors = np.linalg.eigh(covariance)
    spread = np.sqrt(np.maximum(values, 0))
    along = (np.asarray(draws, float) - mean) @ vectors
    assert np.all(np.abs(along.mean(0)) < (4.5 / np.sqrt(effective) + bias) * spread)
    assert np.all(np.abs(along.std(0) / spread - 1) < 4.5 / np.sqrt(2 * effective) + bias)


SAMPLERS = {
    "adams": (si.ExponentialAdams(), 0.02),
    "ancestral": (si.Ancestral(48, order=2), 0.02),
    "ancestral_in_few_steps": (si.Ancestral(12, order=2), 0.06),
    "guidance": (si.Guidance(), 0.02),
    "guidance_in_few_steps": (si.Guidance(si.ExponentialAdams(12), num_iterations=1), 0.05),
    "guidance_without_iterations": (si.Guidance(num_iterations=0), 0.02),
    "importance": (si.ImportanceSampling(), 0.02),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_from_the_posterior(trained, name):
    sampler, bias = SAMPLERS[name]

    @settings(max_examples=5)
    @given(case=cases(), seed=st.integers(0, 2**31 - 1))
    def check(case, seed):
        assert_posterior(draw(exact(trained, case), case.context, sampler, jr.key(seed)), case, bias=bias)

    check()


@pytest.mark.slow
def test_weights_make_up_for_a_network_that_is_wrong(trained):
    """It is told of noise of half again the size; draws that are not corrected are told apart."""
    plain = []

    @settings(max_examples=5)
    @given(case=cases(), seed=st.integers(0, 2**31 - 1))
    def check(case, seed):
        problem, key = exact(trained, case, told=1.5), jr.key(seed)
        # Weights vary: of 2,000 proposals about a half are effective, and 500 are chosen.
        assert_posterior(
            draw(problem, case.context, si.ImportanceSampling(), key), case, effective=0.6 * DRAWS, bias=0.02
        )
        plain.append((draw(problem, case.context, si.ExponentialAdams(), key), case))

    check()
    wrong = 0
    for draws, case in plain:
        try:
            assert_posterior(draws, case, bias=0.02)
        except AssertionError:
            wrong += 1
    assert wrong >= len(plain) / 2


@pytest.mark.thorough
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_guidance_by_a_denoiser_with_and_without_context(trained, weight):
    """Once it is the posterior's denoiser, not at all it is the prior's."""
    rng = np.random.default_rng(0)
    matrices = np.float32(rng.normal(size=(VIEWS, 2, SIZE)))
    context = si.View(np.float32(rng.normal(size=(VIEWS, 2))), matrices, np.ones(2, bool))
    problem = exact(trained, Case(np.zeros(SIZE), np.eye(SIZE), context, 0.5))
    guided = dataclasses.replace(problem, denoiser=si.GuidedDenoiser(problem.denoiser, weight))
    same = dataclasses.replace(context, mask=np.full(2, weight == 1))
    draws = [draw(p, c, si.ExponentialAdams(), jr.key(1)) for p, c in ((guided, context), (problem, same))]
    np.testing.assert_allclose(*draws, atol=1e-4)


@pytest.mark.slow
def test_a_chain_forgets_where_it_started(trained):
    """Two fresh proposals a time, of a network that is told of thrice the noise, from signals far away."""
    rng = np.random.default_rng(0)
    matrices = np.float32(rng.normal(size=(VIEWS, 2, SIZE)))
    observed = np.float32(matrices @ np.ones(SIZE) + 0.5 * rng.normal(size=(VIEWS, 2)))
    case = Case(np.zeros(SIZE), np.eye(SIZE), si.View(observed, matrices, np.ones(2, bool)), 0.5)
    problem, sampler = exact(trained, case, told=3.0), si.ImportanceSampling(num_proposals=2)

    @eqx.filter_jit
    def renew(problem, context, signals, key):
        encoded = encode_context(problem, problem.as_context(context))
        one = lambda signal, key: sampler.renew(problem, encoded, signal, key)
        return jax.vmap(one)(signals, jr.split(key, DRAWS))

    signals = 5.0 + jr.normal(jr.key(0), (DRAWS, SIZE))
    for number in range(12):
        signals = renew(problem, case.context, signals, jr.key(number))
    assert_posterior(signals, case, bias=0.02)
    # It stays where it is right.
    assert_posterior(renew(problem, case.context, signals, jr.key(12)), case, bias=0.02)
    # One choice among two, from scratch, is not enough.
    with pytest.raises(AssertionError):
        assert_posterior(renew(problem, case.context, 50.0 + 0 * signals, jr.key(13)), case, bias=0.02)


def test_each_proposal_is_chosen_as_often_as_its_weight_says():
    weights = np.array([0.05, 0.5, 0.0, 0.3, 0.15])
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32)) + 80.0
    chosen = jax.vmap(lambda key: systematic(log_weights, jnp.arange(5.0), key, 10))(jr.split(jr.key(0), 2000))
    counts = np.stack([np.bincount(row, minlength=5) for row in np.asarray(chosen)])
    assert np.all((counts >= np.floor(10 * weights)) & (counts <= np.ceil(10 * weights)))
    np.testing.assert_allclose(counts.mean(0), 10 * weights, atol=4 * 0.5 / np.sqrt(2000))
    # In random order.
    assert abs(np.mean(chosen[:, 0] == 1) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_as_many_draws_are_chosen_of_a_mode_as_there_are_proposals_for():
    """Draws of four times as many proposals have the error of these, not that of as many draws."""
    rng = np.random.default_rng(0)
    upper = rng.random(4000) < 0.3
    proposals = np.stack([0.1 * rng.normal(size=4000), np.where(upper, 1, -1) + 0.1 * rng.normal(size=4000)], 1)
    drawn = choose(jnp.float32(proposals), jnp.zeros(4000), jr.key(0), 1000)
    assert abs(np.mean(drawn[:, 1] > 0) - upper.mean()) <= 1.01e-3
