"""What contexts say of Gaussian signals, in each of its forms, against NumPy in double precision."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._denoiser.evidence import LEAST_NOISE, Measured, as_rows
from stochinv._denoiser.least_squares import is_dear, levenberg_marquardt
from stochinv._training.gaussian import (
    best_gaussian,
    condition_entries,
    condition_few,
    online_gaussian,
    pairwise_gaussian,
)
from stochinv._training.gaussian_start import Start, find_start, first_signal, standard_normal
from stochinv._training.probe import is_affine
from stochinv._training.records import Records

SIZE, VIEWS, ENTRIES, NOISE = 12, 2, 3, 0.3


def project(signal, matrix):
    return matrix @ signal


def mask(signal, kept):
    return kept * signal


def views(params, counts, seed=0):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=params.shape[:2]).astype(np.float32)
    return si.View(jnp.asarray(observation), jnp.asarray(params, jnp.float32), jnp.asarray(counts))


def cases():
    rng = np.random.default_rng(1)
    matrices = rng.normal(size=(VIEWS, ENTRIES, SIZE))
    kept = (rng.random((VIEWS, SIZE)) < 0.5).astype(float)
    yield "dense", project, matrices, matrices
    yield "laplace", project, matrices, matrices
    yield "diagonal", mask, kept, kept[:, :, None] * np.eye(SIZE)


@pytest.mark.thorough
@pytest.mark.parametrize("counts", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(("form", "forward", "params", "matrices"), list(cases()), ids=["dense", "laplace", "diagonal"])
def test_what_a_context_says(form, forward, params, matrices, counts):
    context = views(params, counts)
    measured = Measured(si.ForwardFunction(forward), si.GaussianNoise(NOISE), si.Units())
    zeros = jnp.zeros(SIZE)
    weights = np.random.default_rng(4).normal(size=(SIZE, SIZE)) if form != "diagonal" else np.eye(SIZE)
    matrix = None if form == "diagonal" else jnp.asarray(weights, jnp.float32)
    evidence = jax.jit(lambda view: measured.evidence(form, lambda z: z, zeros, view, matrix))(context)
    used = np.asarray(counts, float)[:, None, None] * matrices
    precision = np.einsum("vki,vkj->ij", used, used) / NOISE**2
    shift = np.einsum("vki,vk->i", used, np.asarray(context.observation, float)) / NOISE**2
    x = jnp.asarray(np.random.default_rng(2).normal(size=SIZE), jnp.float32)
    inverse = np.linalg.inv(1.7 * np.eye(SIZE) + precision)
    close = {"rtol": 2e-3, "atol": 2e-3 * np.abs(shift).max() + 1e-4}
    np.testing.assert_allclose(evidence.estimate(jnp.float32(1.7), x), inverse @ (shift + x), atol=2e-3)
    np.testing.assert_allclose(evidence.apply(lambda v: 1 / (1.7 + v), x), inverse @ x, atol=2e-3)
    np.testing.assert_allclose(evidence.diagonal(lambda v: 1 / (1.7 + v)), np.diag(inverse), atol=2e-3)
    mean_square = np.mean(np.diag(weights @ inverse @ weights.T))
    np.testing.assert_allclose(evidence.mean_square(lambda v: 1 / (1.7 + v)), mean_square, rtol=2e-3)
    np.testing.assert_allclose(measured.shift(lambda z: z, zeros, context), shift, **close)
    # Other measurements with the same parameters.
    other = views(params, counts, seed=3)
    again = evidence.update(other, measured.shift(lambda z: z, zeros, other))
    afresh = measured.evidence(form, lambda z: z, zeros, other)
    np.testing.assert_allclose(again.estimate(jnp.ones(()), zeros), afresh.estimate(jnp.ones(()), zeros), atol=2e-3)


def test_exact_measurements_are_repeated():
    """Without noise `b` is a million times what is told apart."""
    rng = np.random.default_rng(0)
    context = views(rng.normal(size=(VIEWS, ENTRIES, SIZE)), (True, True))
    measured = Measured(si.ForwardFunction(project), si.GaussianNoise(0.0), si.Units())
    evidence = measured.evidence("dense", lambda z: z, jnp.zeros(SIZE), context)
    found = evidence.estimate(jnp.float32(1.0), jnp.zeros(SIZE))
    np.testing.assert_allclose(jnp.einsum("vki,i->vk", context.params, found), context.observation, atol=1e-3)


def turn(signal, params):
    return jnp.stack([jnp.cos(signal), jnp.sin(signal)])


def test_answers_that_take_too_long_are_left():
    """By the count of operations: of products of large matrices, but not of small ones."""
    for size, dear in ((16, False), (2048, True)):
        weights = jnp.ones((size, size))
        assert is_dear(lambda z, w=weights: jnp.sum(w @ (w @ w), 1)[:3] * z[:3], jnp.zeros(8)) == dear


@pytest.mark.slow
@pytest.mark.parametrize(("centre", "form"), [(3.0, "nothing"), (0.0, "laplace")])
def test_several_answers_are_none(centre, form):
    """Directions near that of -1 are those of two angles within reach, and directions near that of 1 are not."""
    rng = np.random.default_rng(0)
    angles = centre + 0.2 * rng.normal(size=(200, 1))
    seen = np.stack([np.cos(angles), np.sin(angles)], -1) + 0.1 * rng.normal(size=(200, 1, 2))
    problem = si.StochasticInverseProblem(turn, noise=0.1, signal=jax.ShapeDtypeStruct((), jnp.float32))
    data = si.View(jnp.asarray(seen, jnp.float32), None, jnp.ones((200, 1), bool))
    begin = find_start(problem, Records(data, None), problem.signal, si.Units(), None, False, jr.key(0))
    assert begin.form == form
    measured = Measured(problem.forward, problem.noise, si.Units())
    view = jax.tree.map(lambda x: x[0], data)
    evidence = measured.evidence(begin.form, lambda z: z[0], jnp.zeros(1), view)
    known = float(evidence.diagonal(lambda values: 1 / (1 + values))[0])
    assert known == 1 if form == "nothing" else known < 0.1


def bend(signal, params):
    return signal + params * signal**3


@pytest.mark.slow
def test_first_signals_are_those_of_the_posterior():
    """Laplace's approximation, chosen among by the likelihood: 4,000 draws of one record, by brute force."""
    view = si.View(jnp.array([[1.2], [0.2]]), jnp.array([[0.3], [0.8]]), jnp.ones(2, bool))
    measured = Measured(si.ForwardFunction(bend), si.GaussianNoise(0.5), si.Units())
    signal = jax.ShapeDtypeStruct((1,), jnp.float32)
    begin = Start(standard_normal(signal), None, "laplace")
    keys = jr.split(jr.key(0), 4000)
    draws = np.asarray(jax.vmap(lambda key: first_signal(begin, measured, signal, view, key))(keys), float)[:, 0]
    grid = np.linspace(-4, 4, 8001)
    misfit = np.array([[1.2], [0.2]]) - bend(grid, np.array([[0.3], [0.8]]))
    density = np.exp(-0.5 * (misfit**2).sum(0) / 0.25 - 0.5 * grid**2)
    density /= density.sum()
    mean = density @ grid
    std = np.sqrt(density @ (grid - mean) ** 2)
    # One of 16 proposals: what is left of the approximation's error is some per cent.
    assert abs(draws.mean() - mean) < (4 / np.sqrt(4000) + 0.03) * std
    assert abs(draws.std() / std - 1) < 4 / np.sqrt(8000) + 0.03
    shares = np.quantile(draws, [0.05, 0.5, 0.95])
    np.testing.assert_allclose(np.interp(shares, grid, np.cumsum(density)), [0.05, 0.5, 0.95], atol=0.03)


def ripple(signal, params):
    return jnp.stack([jnp.sin(2.5 * signal), 0.5 * signal])


def test_better_answers_far_from_the_mean_are_found():
    """Those of 200 records, by brute force; from the mean alone the steps end elsewhere more often."""
    rng = np.random.default_rng(0)
    signals = rng.normal(size=200)
    seen = np.stack([np.sin(2.5 * signals), 0.5 * signals], -1) + 0.2 * rng.normal(size=(200, 2))
    measured = Measured(si.ForwardFunction(ripple), si.GaussianNoise(0.2), si.Units())
    views = si.View(jnp.asarray(seen[:, None], jnp.float32), None, jnp.ones((200, 1), bool))

    def one(view):
        misfit = lambda z: jnp.ravel(measured.misfit(lambda z: z[0], view)(z))
        evidence = measured.evidence("laplace", lambda z: z[0], jnp.zeros(1), view)
        return evidence.estimate(jnp.ones(()), jnp.zeros(1)), levenberg_marquardt(misfit, jnp.zeros(1))[0]

    found, from_mean = (np.asarray(x, float) for x in jax.jit(jax.vmap(one))(views))
    grid = np.linspace(-6, 6, 6001)
    of = lambda z: ((seen - np.stack([np.sin(2.5 * z), 0.5 * z], -1)) ** 2).sum(-1) / 0.04 + z**2
    least = np.min([of(np.full(200, z)) for z in grid], 0)
    missed = lambda z: np.mean(of(z[:, 0]) > least + 2)
    assert missed(found) < 0.05 and missed(found) < 0.5 * missed(from_mean)


def few(number=3000, seed=0):
    """One measurement of two projections of three correlated entries each."""
    rng = np.random.default_rng(seed)
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
    signals = rng.multivariate_normal([1.0, -1.0, 0.5], covariance, size=number)
    rows = rng.normal(size=(number, 2, 3)) / NOISE
    rest = np.einsum("nki,ni->nk", rows, signals) + rng.normal(size=(number, 2))
    return jnp.asarray(rows, jnp.float32), jnp.asarray(rest, jnp.float32)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_made_of_what_was_not_measured(seed):
    """One exact measurement of three entries: rounding of a million says nothing of the other two directions."""
    params = np.random.default_rng(seed).normal(size=(3, 1, 3))
    measured = Measured(si.ForwardFunction(project), si.GaussianNoise(0.0), si.Units())
    context = views(params, (True, False, False), seed)
    evidence = jax.jit(lambda view: measured.evidence("dense", lambda z: z, jnp.zeros(3), view))(context)
    assert np.sum(np.asarray(evidence.values) > 0) == 1
    rows, rest = as_rows(evidence, 3)
    np.testing.assert_allclose(jnp.linalg.norm(rows), np.linalg.norm(params[0]) / LEAST_NOISE, rtol=1e-4)
    assert np.sum(np.asarray(rest) != 0) == 1
    again = evidence.update(context, measured.shift(lambda z: z, jnp.zeros(3), context))
    np.testing.assert_allclose(again.shift, evidence.shift, rtol=1e-4)


def test_online_rounds_find_the_best_gaussian():
    rows, rest = few()
    precision, shift = jnp.einsum("nki,nkj->nij", rows, rows), jnp.einsum("nki,nk->ni", rows, rest)
    # As many as fill 23 rounds, which see all of them in turn.
    mean, covariance = jax.jit(best_gaussian, static_argnums=2)(precision[:2944], shift[:2944], 100)
    rows_of = lambda index: (rows[index], rest[index])
    found = jax.jit(lambda: online_gaussian(rows_of, len(rows), jnp.eye(3), (1000, 128)))()
    # The standard error of both is 0.02; that they are of different rounds leaves a hundredth of it.
    np.testing.assert_allclose(found[0], mean, atol=1e-3)
    np.testing.assert_allclose(found[1], covariance, atol=1e-3)


def test_draws_given_few_entries():
    rows, rest = (x[0] for x in few(1))
    draws = np.asarray(jax.vmap(lambda key: condition_few(rows, rest, key))(jr.split(jr.key(0), 4000)), float)
    check_law(draws, np.asarray(rows, float).T @ rows, np.asarray(rows, float).T @ rest, np.eye(3))


def test_draws_given_single_entries():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    covariance = root @ root.T
    values, shift = np.array([9.0, 0.0, 25.0, 0.0]), np.array([5.0, 0.0, -30.0, 0.0])

    def draw(key):
        z, noise = jr.normal(key, (2, 4))
        arrays = (jnp.asarray(x, jnp.float32) for x in (covariance, values, shift, root @ np.eye(4)))
        law, values_, shift_, root_ = arrays
        return condition_entries(law, values_, shift_, root_ @ z, noise)

    draws = np.asarray(jax.vmap(draw)(jr.split(jr.key(0), 4000)), float)
    check_law(draws, np.diag(values), shift, covariance)


def check_law(draws, precision, shift, prior):
    covariance = np.linalg.inv(np.linalg.inv(prior) + precision)
    spread = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - covariance @ shift) < 4 * spread / np.sqrt(len(draws)))
    errors = 4 * np.sqrt(2 / len(draws)) * np.outer(spread, spread)
    assert np.all(np.abs(np.cov(draws.T) - covariance) < errors)


def test_moments_of_entries_that_were_measured_together():
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
    signals = rng.multivariate_normal([1.0, -1.0, 0.5], covariance, size=20_000)
    kept = rng.random(signals.shape) < 0.6
    noisy = signals + NOISE * rng.normal(size=signals.shape)
    values = jnp.asarray(kept / NOISE**2, jnp.float32)
    mean, found = pairwise_gaussian(values, jnp.asarray(kept * noisy / NOISE**2, jnp.float32))
    # 7,200 records have any two of them.
    np.testing.assert_allclose(mean, [1.0, -1.0, 0.5], atol=4 / np.sqrt(12_000))
    np.testing.assert_allclose(found, covariance, atol=4 * np.sqrt(2 / 7200) + 0.003)


@pytest.mark.thorough
def test_a_kink_at_the_mean_is_not_affine():
    fold = lambda signal, params: jnp.stack([jnp.abs(signal[0] + signal[1]), signal[1]])
    signal = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert not any(is_affine(fold, signal, None, jr.key(seed)) for seed in range(20))
    assert is_affine(lambda signal, params: 3 * signal + 1, signal, None, jr.key(0))


@pytest.mark.thorough
def test_the_most_likely_signal_is_found_among_many_valleys():
    """A frequency: Gauss-Newton steps from the best of 16 signals end in the wrong valley for a quarter of the
    records."""
    rng, times, noise = np.random.default_rng(3), np.linspace(0, 4, 12), 0.05
    swing = lambda s, np_: np_.sin((6 + 3 * s[..., :1]) * times.astype(np.float32)) * np_.exp(0.3 * s[..., 1:])
    signals = rng.normal(size=(300, 2))
    observed = swing(signals, np) + noise * rng.normal(size=(300, len(times)))
    measured = Measured(si.ForwardFunction(lambda s, _: swing(s, jnp)), si.GaussianNoise(noise), si.Units())

    def estimate(observation):
        precision, shift = measured.laplace(lambda z: z, jnp.zeros(2), si.View(observation[None], None))
        return jnp.linalg.solve(precision + jnp.eye(2), shift)

    found = jax.jit(jax.vmap(estimate))(jnp.float32(observed))
    assert np.mean(np.abs(found - signals).max(1) > 0.3) < 0.18
