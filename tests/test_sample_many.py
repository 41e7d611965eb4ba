"""Draws given many contexts at once: those of one context after the other."""

import jax
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from refusals import COMPILED, without_annotations
from stochinv._chunks import chunk_width, rounded
from test_signal_space import posterior_of, problem, records


@pytest.fixture(scope="module")
def fitted():
    options = {"key": jr.key(0), "steps": 24, "rounds": 2, "batch_size": 64, "progress": False}
    return problem().fit(records(), **options).problem


def contexts(number=5, seed=7):
    """The second view is masked out in every other one, whatever it holds."""
    views = records(number, 2, seed)
    mask = np.ones((number, 2), bool)
    mask[::2, 1] = False
    return si.View(np.where(mask[..., None], views.observation, np.nan), views.params, mask)


@pytest.mark.slow
def test_draws_are_those_of_one_context_after_the_other(fitted):
    many = contexts()
    drawn = fitted.sample_many(many, key=jr.key(1), num_samples=4).signal
    assert drawn.shape == (5, 4, 3)
    for index, key in enumerate(jr.split(jr.key(1), 5)):
        one = jax.tree.map(lambda x, index=index: x[index], many)
        np.testing.assert_allclose(drawn[index], fitted.posterior(one).sample(key, 4), atol=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("chunk_size", [3, 8, 11])
def test_chunks_do_not_matter(fitted, chunk_size):
    """Fewer than one context's draws at once, and those of two contexts, whose last chunk is filled up."""
    draw = lambda size: fitted.sample_many(contexts(), key=jr.key(1), num_samples=4, chunk_size=size).signal
    np.testing.assert_allclose(draw(chunk_size), draw(1024), atol=2e-3)


@pytest.mark.slow
def test_draws_have_the_law_of_each_context(fitted):
    many = contexts(20)
    number = 200
    drawn = np.asarray(fitted.sample_many(many, key=jr.key(2), num_samples=number).signal, float)
    scores = []
    for index in range(20):
        kept = many.mask[index]
        mean, covariance = posterior_of(si.View(many.observation[index, kept], many.params[index, kept]))
        scores.append((drawn[index].mean(0) - mean) / np.sqrt(np.diag(covariance) / number))
    # Standard normal but for the error of the prior that was learned, 0.05 of a posterior's spread at most.
    assert np.sqrt(np.mean(np.square(scores))) < 1 + 4 / np.sqrt(2 * 60) + 0.05 * np.sqrt(number)


@pytest.mark.thorough
def test_one_program_for_all_contexts(fitted):
    draw = lambda seed: fitted.sample_many(contexts(seed=seed), key=jr.key(1), num_samples=4).signal
    draw(7)
    before = len(COMPILED)
    draw(8)
    assert len(COMPILED) == before


@pytest.mark.slow
def test_numbers_of_draws_share_programs():
    """The forward model is traced when the sampler is: for none of many numbers of draws after the first few."""
    traces = []

    def measure(signal, params):
        traces.append(None)
        return params @ signal

    signal = jax.ShapeDtypeStruct((3,), np.float32)
    corrected = si.StochasticInverseProblem(measure, signal=signal, noise=0.5)
    options = {"key": jr.key(0), "steps": 4, "rounds": 1, "batch_size": 64, "progress": False}
    trained = corrected.fit(records(), **options).problem
    sampler = si.ImportanceSampling(num_steps=2)
    posterior = trained.posterior(jax.tree.map(lambda x: x[0], records()), sampler=sampler)
    # Their four times as many proposals are made 1024, 128 and 16 at once.
    for number in [1000, 260, 17]:
        posterior.sample(jr.key(1), number)
    before = len(traces)
    assert before
    first = posterior.sample(jr.key(1), 1024)
    for number in [999, 900, 2500, 201, 33, 16, 1]:
        assert posterior.sample(jr.key(2), number).shape == (number, 3)
    assert len(traces) == before
    # Of numbers that are rounded to the same one, the draws are the same ones.
    np.testing.assert_allclose(posterior.sample(jr.key(1), 1000), first[:1000], atol=2e-3)
    many = lambda number: trained.sample_many(contexts(2), key=jr.key(1), num_samples=number, sampler=sampler).signal
    whole = many(128)
    before = len(traces)
    np.testing.assert_array_equal(many(113), whole[:, :113])
    assert len(traces) == before


@pytest.mark.slow
def test_more_draws_than_at_once_inside_of_a_program(fitted):
    posterior = fitted.posterior(jax.tree.map(lambda x: x[1], contexts()), sampler=si.ExponentialAdams(6))
    expected = posterior.sample(jr.key(1), 10)
    np.testing.assert_allclose(jax.jit(lambda k: posterior.sample(k, 10, chunk_size=4))(jr.key(1)), expected, atol=2e-3)
    np.testing.assert_allclose(posterior.sample(jr.key(1), 10, chunk_size=4), expected, atol=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "width"), [(1, 1), (2, 2), (3, 2), (16, 16), (200, 128), (900, 1024), (5000, 1024)])
def test_widths_waste_little(number, width):
    assert chunk_width(number, 1024) == width
    assert all(-(-n // w) * w <= 1.35 * n for n in range(1, 3000) for w in [chunk_width(n, 1000)])
    assert all(n <= rounded(n) <= 1.25 * n and rounded(rounded(n)) == rounded(n) for n in range(1, 3000))


@pytest.mark.thorough
def test_in_measurement_space():
    data = jax.tree.map(np.asarray, training.examples())
    trained = training.fit(training.problem(), data).problem
    drawn = trained.sample_many(data.context, data.target.params, key=jr.key(1), num_samples=3)
    assert drawn.signal.shape == (24, 3, 3) and drawn.observation.shape == (24, 3, 2)
    one = jax.tree.map(lambda x: x[5], (data.context, data.target.params))
    expected = trained.sample(*one, key=jr.split(jr.key(1), 24)[5], num_samples=3)
    np.testing.assert_allclose(drawn.signal[5], expected.signal, rtol=1e-4, atol=1e-4)


BAD = [
    (lambda p: p.sample_many(None, key=jr.key(0), num_samples=2), "all must have one leading contexts axis"),
    (lambda p: p.sample_many(contexts(), contexts(4).params, key=jr.key(0), num_samples=2), "one leading contexts ax"),
    (lambda p: p.sample_many(contexts(), key=jr.key(0), num_samples=0), "`num_samples` must be an integer of at least"),
    (lambda p: p.sample_many(contexts(), key=jr.key(0), num_samples=2, chunk_size=0), "`chunk_size` must be an"),
    (
        lambda p: p.sample_many(records(4, views=3), key=jr.key(0), num_samples=2),
        "`context` has 3 views, but records of training had 2",
    ),
    (
        lambda p: p.sample_many(
            si.View(np.nan * records(4).observation, records(4).params), key=jr.key(0), num_samples=2
        ),
        "`contexts.observation` has 16 NaN or infinite values",
    ),
    (lambda p: problem().sample_many(contexts(), key=jr.key(0), num_samples=2), "The problem is not trained"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(fitted, call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call(fitted)
