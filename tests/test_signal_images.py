"""Signal space for images: what is given is repeated, and an untrained network draws from the Gaussian's posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._denoiser.evidence import Measured
from stochinv._training import gaussian_start
from stochinv._training.expectation_maximisation import UNSEEN, Rounds
from stochinv._training.plan import Plan
from stochinv._training.records import Records, as_masked

SIZE, NOISE = 17, 0.1
IMAGE = jax.ShapeDtypeStruct((SIZE, SIZE, 1), jnp.float32)


def covariance():
    """Smooth images, by NumPy."""
    distance = (np.arange(SIZE)[:, None] - np.arange(SIZE)) ** 2
    line = np.exp(-distance / 18)
    return np.kron(line, line) + 0.05 * np.eye(SIZE**2)


def images(rng, number):
    root = np.linalg.cholesky(covariance())
    return (2.0 + rng.normal(size=(number, SIZE**2)) @ root.T).reshape(number, *IMAGE.shape)


def mask(image, kept):
    return kept * image


def project(image, rows):
    return rows @ image.ravel()


def noisy(rng, clean):
    return np.float32(clean + NOISE * rng.normal(size=clean.shape))


def masked(rng, number):
    kept = (rng.random((number, 2, *IMAGE.shape)) < 0.3).astype(np.float32)
    return si.View(np.float32(kept * noisy(rng, images(rng, number)[:, None])), kept)


def projected(rng, number):
    rows = rng.normal(size=(number, 2, 4, SIZE**2)).astype(np.float32) / SIZE
    return si.View(noisy(rng, np.einsum("nvki,ni->nvk", rows, images(rng, number).reshape(number, -1))), rows)


def fit(forward, data):
    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=IMAGE)
    return problem.fit(data, key=jr.key(0), steps=1, rounds=1, batch_size=8, progress=False).problem


@pytest.fixture(scope="module")
def of_projections():
    return fit(project, projected(np.random.default_rng(0), 1024))


@pytest.fixture(scope="module")
def of_masks():
    return fit(mask, masked(np.random.default_rng(0), 256))


def first(views):
    return jax.tree.map(lambda x: x[0], views)


def assert_posterior(posterior, context, noise):
    """The Gaussian that was found is conditioned by NumPy; looked at along the projections, and across them."""
    units = posterior.problem.data_info.units
    prior = np.asarray(units.root, float) @ np.asarray(units.root, float).T
    rows = context.params.reshape(-1, SIZE**2).astype(float)
    across = rows @ prior
    gain = np.linalg.solve(across @ rows.T + noise**2 * np.eye(len(rows)), across)
    mean = np.asarray(units.mean, float)
    mean = mean + gain.T @ (context.observation.ravel() - rows @ mean)
    law = prior - gain.T @ across
    draws = np.asarray(posterior.sample(jr.key(0), 400), float).reshape(400, -1)
    looks = np.concatenate([rows, np.random.default_rng(2).normal(size=(4, SIZE**2)) / SIZE])
    spread = np.sqrt(np.einsum("ki,ij,kj->k", looks, law, looks))
    seen = draws @ looks.T
    assert np.all(np.abs(seen.mean(0) - looks @ mean) < (4 / np.sqrt(100) + 0.05) * spread)
    np.testing.assert_allclose(seen.std(0), spread, rtol=4 / np.sqrt(200) + 0.03)


@pytest.mark.parametrize("sampler", [None, si.Guidance(si.ExponentialAdams(12), num_iterations=1)])
@pytest.mark.slow
def test_posteriors_given_few_projections(of_projections, sampler):
    assert of_projections.data_info.form == "dense"
    context = first(projected(np.random.default_rng(1), 1))
    assert_posterior(of_projections.posterior(context, sampler=sampler), context, NOISE)


@pytest.mark.slow
def test_posteriors_under_another_instrument(of_projections):
    """One row a view, five of them, with more noise."""
    rng = np.random.default_rng(3)
    rows = np.float32(rng.normal(size=(5, 1, SIZE**2)) / SIZE)
    observed = np.einsum("vki,i->vk", rows, images(rng, 1).ravel()) + 0.4 * rng.normal(size=(5, 1))
    context = si.View(np.float32(observed), rows)
    posterior = of_projections.posterior(context, forward=lambda image, row: project(image, row), noise=0.4)
    assert "guided by another instrument" in repr(posterior)
    assert_posterior(posterior, context, 0.4)
    with pytest.raises(ValueError, match="have no weights"):
        posterior.effective_sample_size(jr.key(0))
    with pytest.raises(ValueError, match="has no density"):
        posterior.log_prob(jnp.zeros(IMAGE.shape))


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [None, si.Guidance(si.ExponentialAdams(12), num_iterations=1)])
def test_measurements_without_noise_are_repeated(of_projections, sampler):
    """They are taken to have noise of a thousandth of their standard deviation."""
    exact = dataclasses.replace(of_projections, noise=si.GaussianNoise(0.0))
    denoiser, units = of_projections.denoiser, of_projections.data_info.context_units
    options = {"form": denoiser.form, "network": denoiser.network, "embedding": denoiser.embedding}
    denoiser = si.GaussianResidual(denoiser.coordinates, IMAGE, exact.forward, exact.noise, units, **options)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2, 4, SIZE**2)).astype(np.float32) / SIZE
    context = si.View(np.float32(rows @ images(rng, 1).ravel()), rows)
    draws = dataclasses.replace(exact, denoiser=denoiser).posterior(context, sampler=sampler).sample(jr.key(0), 16)
    missed = np.einsum("vki,ni->nvk", rows, np.reshape(draws, (16, -1))) - context.observation
    std = float(units.std)
    # 128 numbers, of which five standard deviations are not exceeded; some of them are missed.
    assert 1e-4 * std < np.abs(missed).max() < 5e-3 * std
    assert np.std(draws, 0).mean() > 0.5


@pytest.mark.thorough
def test_the_gaussian_of_few_projections_is_near_the_true_one(of_projections):
    """How much of the variance of fresh images it explains, by the expected log-likelihood of NumPy's law."""
    units = of_projections.data_info.units
    found = np.asarray(units.root, float) @ np.asarray(units.root, float).T
    truth = covariance()
    np.testing.assert_allclose(np.trace(found) / np.trace(truth), 1, atol=0.1)
    leading = np.linalg.eigh(truth)[1][:, -8:]
    shares = np.diag(leading.T @ found @ leading) / np.diag(leading.T @ truth @ leading)
    # Six rounds from smooth images leave these 15 to 30 % short.
    np.testing.assert_allclose(shares, 1, atol=0.35)
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_masks_are_told_pixel_by_pixel_and_what_is_given_is_repeated(of_masks):
    assert of_masks.data_info.form == "diagonal"
    context = first(masked(np.random.default_rng(1), 1))
    draws = np.asarray(of_masks.posterior(context).sample(jr.key(0), 64), float)
    twice = (context.params.sum(0) == 2)[None]
    once = context.params.sum(0) == 1
    known = (context.params * context.observation).sum(0) / np.maximum(context.params.sum(0), 1)
    residual = (draws - known)[:, once] / NOISE
    assert np.abs(residual.mean()) < 0.2
    np.testing.assert_allclose(residual.std(), 1, atol=0.1)
    np.testing.assert_allclose((draws - known)[np.broadcast_to(twice, draws.shape)].std() / NOISE, 0.5**0.5, atol=0.1)
    # Pixels that were not measured vary as much as images do.
    np.testing.assert_allclose(draws[:, context.params.sum(0) == 0].std(), np.sqrt(1.05), rtol=0.2)


@pytest.mark.slow
def test_what_the_network_drew_itself_hardly_counts(of_masks):
    """Errors of pixels that were measured count in full, whichever record's signal a step learns from."""
    data = jax.tree.map(jnp.asarray, masked(np.random.default_rng(2), 40))
    data = si.View(data.observation, data.params, jnp.ones((40, 2), bool))
    rounds = Rounds(of_masks.noised, Records(data, None), None, None, jr.key(0), Plan(4, 8, 16), 8)
    example = rounds.records(of_masks.noised, 0)
    weights = np.asarray(example.target.params)
    seen = np.asarray(data.params).max(1).reshape(40, -1)
    of_record = lambda image, record: np.abs((image - data.observation[record]) * data.params[record]).max() < 6 * NOISE
    signals = np.asarray(example.target.observation)
    for signal, weight in zip(signals[:8], weights[:8], strict=True):
        (record,) = (i for i in range(40) if of_record(signal, i))
        np.testing.assert_allclose(weight, np.where(seen[record] > 0, 1.0, UNSEEN), atol=0.02)
    of = lambda weights: dataclasses.replace(example, target=si.View(example.target.observation, weights))
    one = lambda example: jax.tree.map(lambda x: x[0], example)
    loss = lambda weights: of_masks.noised.loss(one(of(jnp.asarray(weights))), key=jr.key(0))[0]
    plain, none = loss(np.ones_like(weights)), loss(np.zeros_like(weights))
    assert none == 0 and loss(weights) < plain
    np.testing.assert_allclose(loss(0.5 * np.ones_like(weights)), 0.5 * plain, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["of_masks", "of_projections"])
def test_saved_and_loaded(request, which, tmp_path):
    problem = request.getfixturevalue(which)
    problem.save(tmp_path / "image.si")
    loaded = si.load(tmp_path / "image.si", forward=mask if which == "of_masks" else project)
    draw = lambda problem: np.asarray(problem.posterior().sample(jr.key(0), 2))
    np.testing.assert_array_equal(draw(loaded), draw(problem))


@pytest.mark.slow
def test_the_gaussian_where_as_many_entries_are_measured_as_there_are(monkeypatch):
    """Online, and never by rounds over all records. 600 records of noisy images, through a basis of their own each."""
    monkeypatch.setattr(gaussian_start, "best_gaussian", None)
    monkeypatch.setattr(gaussian_start, "IMAGE_ROUNDS", (12, 64))
    rng = np.random.default_rng(0)
    signals = images(rng, 600).reshape(600, -1)
    orders, signs = rng.permuted(np.tile(np.arange(SIZE**2), (600, 1)), axis=1), rng.choice([-1.0, 1.0], (600, SIZE**2))
    rows = noisy(rng, np.take_along_axis(signals, orders, 1) * signs)
    data = si.View(rows[:, None], (orders[:, None], np.float32(signs)[:, None]))
    forward = si.ForwardFunction(lambda image, params: image.ravel()[params[0]] * params[1])
    measured = Measured(forward, si.GaussianNoise(NOISE), si.Units())
    records = Records(as_masked(jax.tree.map(jnp.asarray, data)), None)
    found = gaussian_start.gaussian_of_data(measured, IMAGE, 1.0, records, "dense", jr.key(0))
    # 1.02 is the standard deviation of a pixel; the last rounds, of 64 records each, count little.
    np.testing.assert_allclose(found.mean, 2.0, atol=5 * 1.02 / np.sqrt(600))
    expected = np.cov(signals.T)
    # The law itself is 0.15 away from that of these 600 images.
    error = np.linalg.norm(found.root @ found.root.T - expected) / np.linalg.norm(expected)
    assert error < 0.1
