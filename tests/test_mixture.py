"""Mixtures of Gaussians, and the best one of measurements, against NumPy in double precision."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import stochinv as si
from stochinv._data_info import measure_units
from stochinv._denoiser.evidence import Measured
from stochinv._mixture import Mixture, solve
from stochinv._problem_base import encode_context
from stochinv._sampler.importance import two_densities
from stochinv._sampling import OF_ROUNDS
from stochinv._schedule import NoiseLevel
from stochinv._training.gaussian_start import find_start, first_signal
from stochinv._training.mixture import best_mixture, may_be_mixed
from stochinv._training.records import Records

SIZE, COMPONENTS, DRAWS = 3, 4, 20_000


def law(seed=0, components=COMPONENTS):
    """Weights, means and covariances."""
    rng = np.random.default_rng(seed)
    roots = 0.5 * rng.normal(size=(components, SIZE, SIZE))
    means = rng.normal(size=(components, SIZE))
    return rng.dirichlet(np.full(components, 5.0)), means, roots @ np.swapaxes(roots, 1, 2) + 0.01 * np.eye(SIZE)


def as_mixture(weights, means, covariances):
    values, vectors = np.linalg.eigh(covariances)
    single = lambda x: jnp.asarray(x, jnp.float32)
    return Mixture(single(np.log(weights)), single(means), single(vectors), single(values))


def condition(weights, means, covariances, rows, rest):
    """The mixture given `rest = rows z + ε`, in the form of precisions, and the logarithm of its density."""
    precisions = np.linalg.inv(covariances)
    inverses = np.linalg.inv(precisions + rows.T @ rows)
    shifts = np.einsum("kij,kj->ki", precisions, means) + rows.T @ rest
    found = np.einsum("kij,kj->ki", inverses, shifts)
    logs = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        inner = np.eye(len(rest)) + rows @ covariance @ rows.T
        error = rest - rows @ mean
        logs.append(np.log(weight) - 0.5 * (np.linalg.slogdet(inner)[1] + error @ np.linalg.solve(inner, error)))
    log = np.logaddexp.reduce(logs)
    return np.exp(np.array(logs) - log), found, inverses, log


def moments(weights, means, covariances):
    mean = weights @ means
    centred = means - mean
    return mean, np.einsum("k,kij->ij", weights, covariances + centred[:, :, None] * centred[:, None, :])


def draw(rng, number, weights, means, covariances):
    index = rng.choice(len(weights), number, p=weights)
    return means[index] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(covariances)[index], rng.normal(size=(number, SIZE))
    )


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 2, 8])
def test_solve(size):
    rng = np.random.default_rng(size)
    root, right = rng.normal(size=(5, 7, size, size)), rng.normal(size=(5, 7, size, 3))
    matrix = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(size)
    # As of measurements some of which have next to no noise.
    scale = np.where(np.arange(size) % 2, 1.0, 1e3)
    matrix = matrix * scale * scale[:, None]
    found, log_det = jax.jit(solve)(jnp.float32(matrix), jnp.float32(scale[:, None] * right))
    np.testing.assert_allclose(
        scale[:, None] * found, np.linalg.solve(matrix / scale / scale[:, None], right), atol=1e-2
    )
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize(("noise", "entries"), [(1.0, 2), (1e-3, 1), (0.3, 0)])
@pytest.mark.parametrize("variance", [1e4, 0.5, 1e-3])
def test_what_measurements_make_of_a_mixture(noise, entries, variance):
    rng, exact = np.random.default_rng(1), law()
    rows = rng.normal(size=(2, SIZE)) / noise
    rows[entries:] = 0
    signal = draw(rng, 1, *exact)[0]
    rest = rows @ signal + rng.normal(size=2) * (np.arange(2) < entries)
    x = signal + np.sqrt(variance) * rng.normal(size=SIZE)
    single = lambda x: jnp.asarray(x, jnp.float32)
    noised = as_mixture(*exact).noised(single(x), variance)
    said = noised.measured(single(rows), single(rest))
    every = np.concatenate([rows, np.eye(SIZE) / np.sqrt(variance)])
    weights, means, covariances, _ = condition(*exact, every, np.append(rest, x / np.sqrt(variance)))
    np.testing.assert_allclose(said.weights, weights, atol=2e-3)
    np.testing.assert_allclose(said.mean, weights @ means, atol=2e-3)
    found = np.einsum("kji,ki,kli->kjl", noised.vectors, noised.variances, noised.vectors)
    found = found - np.einsum("kmi,kmj->kij", said.across, said.gains)
    np.testing.assert_allclose(found, covariances, atol=2e-3)


@pytest.mark.thorough
def test_draws_given_a_measurement():
    exact, rng = law(), np.random.default_rng(2)
    rows, rest = rng.normal(size=(1, SIZE)) / 0.2, np.array([1.5])
    single = lambda x: jnp.asarray(x, jnp.float32)
    mixture = as_mixture(*exact)
    one = lambda key: mixture.draw(single(rows), single(rest), key)
    drawn = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(0), DRAWS)), float)
    mean, covariance = moments(*condition(*exact, rows, rest)[:3])
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(drawn.mean(0) - mean), 4.5 * spread / np.sqrt(DRAWS))
    # Fourth moments of a mixture are below three times those of a Gaussian here.
    np.testing.assert_allclose(
        np.cov(drawn, rowvar=False) / np.outer(spread, spread),
        covariance / np.outer(spread, spread),
        atol=4.5 * np.sqrt(3 / DRAWS),
    )


def projections(rng, signals, noise):
    """Two random directions of each, in standard deviations of the noise."""
    rows = rng.normal(size=(len(signals), 2, SIZE)) / noise
    rest = np.einsum("nij,nj->ni", rows, signals) + rng.normal(size=(len(signals), 2))
    return jnp.float32(rows), jnp.float32(rest)


def whitened(weights, means, covariances):
    mean, covariance = moments(weights, means, covariances)
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    return weights, (means - mean) @ inverse.T, inverse @ covariances @ inverse.T


@pytest.mark.slow
def test_the_best_mixture_is_the_true_one():
    """From two noisy projections of each of 8,000 signals with two modes, which one projection does not show."""
    means = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    exact = whitened(np.array([0.7, 0.3]), means, np.stack([np.diag([0.1, 0.02, 0.05]), 0.04 * np.eye(SIZE)]))
    rng = np.random.default_rng(3)
    rows, rest = projections(rng, draw(rng, 8000, *exact), 0.2)
    found = best_mixture(rows, rest, jr.key(0))
    held = projections(rng, draw(rng, 4000, *exact), 0.2)
    log_evidence = jax.jit(jax.vmap(lambda *x: found.measured(*x).log_evidence))(*held)
    best = np.array([condition(*exact, a, b)[3] for a, b in zip(*(np.asarray(x, float) for x in held), strict=True)])
    gaussian = np.array(
        [
            condition(np.ones(1), np.zeros((1, SIZE)), np.eye(SIZE)[None], a, b)[3]
            for a, b in zip(*(np.asarray(x, float) for x in held), strict=True)
        ]
    )
    assert np.mean(best - gaussian) > 0.2
    # Some 20 numbers that are found from 7,000 records cost half of 20/7,000 each.
    assert abs(np.mean(best - np.asarray(log_evidence))) < 0.01
    weights = np.exp(np.asarray(found.log_weights))
    left = weights[np.asarray(found.means)[:, 0] < 0].sum()
    assert abs(left - 0.3) < 4.5 * np.sqrt(0.21 / 7000) + 0.005


@pytest.mark.slow
def test_a_gaussian_is_no_mixture():
    rng = np.random.default_rng(4)
    assert best_mixture(*projections(rng, rng.normal(size=(4000, SIZE)), 0.5), jr.key(0)) is None
    assert may_be_mixed(8, 400) and not may_be_mixed(9, 400) and not may_be_mixed(1, 399)


NOISE, MODES = 0.1, np.array([[2.0, 0.0, 5.0], [-2.0, 1.0, 5.0]])


def project(signal, along):
    return along @ signal


def two_modes(rng, number):
    return MODES[(rng.random(number) < 0.4).astype(int)] + 0.3 * rng.normal(size=(number, SIZE))


def measure(rng, signals):
    along = rng.normal(size=(len(signals), 2, 1, SIZE))
    clean = np.einsum("nvij,nj->nvi", along, signals)
    single = lambda x: np.asarray(x, np.float32)
    return si.View(single(clean + NOISE * rng.normal(size=clean.shape)), single(along))


@pytest.fixture(scope="module")
def problem():
    signal = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    return si.StochasticInverseProblem(project, noise=NOISE, signal=signal)


@pytest.fixture(scope="module")
def trained(problem):
    rng = np.random.default_rng(5)
    return problem.fit(measure(rng, two_modes(rng, 900)), key=jr.key(0), steps=1, batch_size=16).problem


@pytest.mark.slow
def test_an_untrained_network_is_the_mixtures_exact_denoiser(trained):
    noised, rng = trained.noised, np.random.default_rng(6)
    mixture, units = trained.data_info.mixture, trained.data_info.units
    assert mixture is not None
    signal = two_modes(rng, 1)
    context = jax.tree.map(lambda x: x[0], measure(rng, signal))
    covariances = np.einsum(
        "kji,ki,kli->kjl", *(np.asarray(x, float) for x in (mixture.vectors, mixture.variances, mixture.vectors))
    )
    root, mean = np.asarray(units.root, float), np.asarray(units.mean, float)
    rows = np.asarray(context.params[:, 0], float) / NOISE
    rest = np.asarray(context.observation[:, 0], float) / NOISE - rows @ mean
    exact = (np.exp(np.asarray(mixture.log_weights, float)), np.asarray(mixture.means, float), covariances)
    for log_snr in (-6.0, 0.0, 6.0):
        sigma = 1 / np.sqrt(1 + np.exp(log_snr))
        alpha = np.sqrt(1 - sigma**2)
        noisy = alpha * np.linalg.solve(root, signal[0] - mean) + sigma * rng.normal(size=SIZE)
        every = np.concatenate([rows @ root, alpha / sigma * np.eye(SIZE)])
        weights, means, _, _ = condition(*exact, every, np.append(rest, noisy / sigma))
        level = NoiseLevel(jnp.float32(alpha), jnp.float32(sigma))
        encoded = encode_context(noised, noised.as_context(context))
        denoised = noised.denoise(jnp.float32(noisy), level, encoded, None).observation
        # One step of training moves a network by next to nothing.
        np.testing.assert_allclose(ravel_pytree(denoised)[0], weights @ means, atol=0.01)


def three_narrow_modes(trained):
    """The trained problem with a prior of three modes, 17 of their standard deviations apart, and its densities at
    signals that are drawn of noise, twice."""
    weights = np.array([0.3, 0.3, 0.4])
    means = np.array([[-1.2, 0, 0], [0.2, 0.3, 0], [1.0, -0.3, 0]])
    covariances = np.broadcast_to(np.diag([0.05, 1.0, 1.0]) ** 2, (3, SIZE, SIZE))
    shrink = lambda d: (d.shrinkage.value[1], d.mixture.value)
    silent = jnp.zeros_like(trained.denoiser.shrinkage.value[1])
    denoiser = eqx.tree_at(shrink, trained.denoiser, (silent, as_mixture(weights, means, covariances)))
    problem = dataclasses.replace(trained, denoiser=denoiser).noised
    nothing = encode_context(problem, problem.as_context(None))
    both = jax.tree.map(lambda x: jnp.stack([x, x]), nothing)
    densities = lambda start, num_steps: two_densities(problem, both, lambda z: z, start, num_steps)
    return weights, means, densities


@pytest.mark.thorough
def test_densities_along_the_flow_tell_narrow_modes_apart(trained):
    number = 5000
    weights, means, densities = three_narrow_modes(trained)
    # Whatever the densities are off by, rounds learn again and again.
    one = lambda start: densities(start, min(si.ImportanceSampling().num_steps, OF_ROUNDS.num_steps))
    z, found = jax.jit(jax.vmap(one))(jr.normal(jr.key(3), (number, SIZE)))
    along, logs = np.asarray(z, float), np.asarray(found, float)
    steps = (along[:, None] - means) / np.array([0.05, 1.0, 1.0])
    exact = np.logaddexp.reduce(np.log(weights) - 0.5 * np.sum(steps**2, -1), 1)
    exact -= 1.5 * np.log(2 * np.pi) + np.log(0.05)
    # The law of the draws: none between the modes, and as many at each as there should be.
    nearest = np.min(np.abs(steps[:, :, 0]), 1)
    assert np.mean(nearest > 4) < 0.001
    np.testing.assert_allclose(np.bincount(np.argmin(np.abs(steps[..., 0]), 1)) / number, weights, atol=0.03)
    # Half of the mean absolute ratio to one is the total variation.
    for log in logs.T:
        assert 0.5 * np.mean(np.abs(np.exp(log - exact) - 1)) < 0.003


@pytest.mark.thorough
def test_densities_of_draws_are_exact_at_any_number_of_steps(trained):
    """They are those of the steps as taken, however coarsely these follow the flow."""
    densities = three_narrow_modes(trained)[2]

    def one(start):
        derivative, logs = jax.jacfwd(lambda start: densities(start, 3), has_aux=True)(start)
        return logs[0], jax.scipy.stats.norm.logpdf(start).sum() - jnp.linalg.slogdet(derivative)[1]

    found, exact = jax.jit(jax.vmap(one))(jr.normal(jr.key(3), (200, SIZE)))
    np.testing.assert_allclose(found, exact, atol=0.01)


@pytest.mark.slow
def test_the_first_signals_are_drawn_from_the_mixture(problem):
    rng = np.random.default_rng(7)
    signals = two_modes(rng, 4000)
    data = jax.tree.map(jnp.asarray, measure(rng, signals))
    data = si.View(data.observation[:, :1], data.params[:, :1], jnp.ones((4000, 1), bool))
    units = measure_units(data.observation, standardise=True)
    begin = find_start(problem, Records(data, None), problem.signal, units, None, True, jr.key(0))
    measured = Measured(problem.forward, problem.noise, units)
    one = jax.jit(jax.vmap(lambda view, key: first_signal(begin, measured, problem.signal, view, key)))
    drawn = np.asarray(one(data, jr.split(jr.key(1), 4000)), float)
    # Between the modes of the Gaussian there would be as many as at them.
    assert np.mean(np.abs(drawn[:, 0]) < 0.7) < 0.01
    assert abs(np.mean(drawn[:, 0] < 0) - np.mean(signals[:, 0] < 0)) < 0.02


@pytest.mark.thorough
def test_a_mixture_is_saved(trained, tmp_path):
    trained.save(tmp_path / "problem")
    loaded = si.load(tmp_path / "problem", forward=project)
    for name in ("log_weights", "means", "vectors", "variances"):
        np.testing.assert_array_equal(*(getattr(x.data_info.mixture, name) for x in (loaded, trained)))
    context = jax.tree.map(lambda x: x[0], measure(np.random.default_rng(8), MODES[:1]))
    draws = [x.posterior(context).sample(jr.key(2), 8) for x in (loaded, trained)]
    np.testing.assert_array_equal(*draws)
