"""How training in signal space decides when to end: by what predicts measurements that it does not see."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import without_annotations
from stochinv._training import signals, watch
from stochinv._training.records import Records
from stochinv._training.watch import LEVELS, Watch, has_settled, lost_track, number_held_out

NOISE, SIZE = 1.0, 2
SPREAD = np.array([2.0, 0.5])
SIGNAL = jax.ShapeDtypeStruct((SIZE,), jnp.float32)


def measure(signal, direction):
    return direction @ signal


def records(number=2000, views=2, seed=0, noise=NOISE):
    """Noisy projections of a Gaussian signal; by NumPy."""
    rng = np.random.default_rng(seed)
    drawn = SPREAD * rng.normal(size=(number, SIZE))
    directions = rng.normal(size=(number, views, SIZE))
    clean = np.einsum("nvj,nj->nv", directions, drawn)
    return si.View(np.float32(clean + noise * rng.normal(size=clean.shape)), np.float32(directions))


def fit(data=None, **options):
    problem = si.StochasticInverseProblem(measure, noise=NOISE, signal=SIGNAL)
    settings = {"key": jr.key(0), "batch_size": 64, "progress": False}
    return problem.fit(records() if data is None else data, **settings | options)


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(signals, "LENGTH", 12)
    monkeypatch.setattr(signals, "MOST_ROUNDS", 6)
    monkeypatch.setattr(watch, "MOST", 16)


def exact_scores(given, unseen, number=4000):
    """Energy scores of the exact predictions of one number."""
    rng, scores = np.random.default_rng(1), []
    for o, phi, target, along in zip(given.observation, given.params, unseen.observation, unseen.params, strict=True):
        precision = np.diag(1 / SPREAD**2) + phi.T @ phi / NOISE**2
        mean, covariance = np.linalg.solve(precision, phi.T @ o / NOISE**2), np.linalg.inv(precision)
        draws = along @ mean + np.sqrt(along @ covariance @ along + NOISE**2) * rng.normal(size=number)
        apart = np.abs(draws[: number // 2] - draws[number // 2 :]).mean()
        scores.append(np.abs(draws - target).mean() - apart / 2)
    return np.array(scores)


def test_scores_and_coverage_of_exact_posteriors_are_theirs():
    """One step leaves the network as it was made: the exact denoiser of the best Gaussian, which 2,000 records tell."""
    trained = fit(steps=1, rounds=1).problem
    held_out = records(512, seed=1)
    watch_views = dataclasses.replace(jax.tree.map(jnp.asarray, held_out), mask=jnp.ones((512, 2), bool))
    watching = Watch(trained.noised, watch_views, jr.key(2))
    score, coverage = watching.look(trained.noised)
    kept = np.asarray(watching._given.mask).argmax(1)
    pick = lambda x, index: np.take_along_axis(x, index.reshape(-1, 1, *[1] * (x.ndim - 2)), 1)
    given = jax.tree.map(lambda x: pick(np.asarray(x, float), kept), held_out)
    unseen = jax.tree.map(lambda x: pick(np.asarray(x, float), 1 - kept)[:, 0], held_out)
    exact = exact_scores(given, unseen) / float(trained.data_info.context_units.std)
    # Scores from 8 draws spread by about a third of themselves besides the records' own spread, which is shared.
    assert abs(score / exact.mean() - 1) < 4 * 0.33 / np.sqrt(512)
    for level, share in zip(LEVELS, coverage, strict=True):
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 512)
    # With measurements that have thrice the noise, predictions are too sure.
    noisier = dataclasses.replace(watch_views, observation=records(512, seed=1, noise=3 * NOISE).observation)
    _, coverage = Watch(trained.noised, noisier, jr.key(2)).look(trained.noised)
    assert coverage[-1] < 0.8


def test_training_ends_where_nothing_is_gained(short_rounds, monkeypatch, tmp_path):
    """The Gaussian from which it starts is exact here: no two rounds halve the score."""
    monkeypatch.setattr(watch, "LEAST_GAIN", 0.5)
    history = fit(checkpoint=tmp_path / "whole").history
    assert len(history.score) == len(history.coverage) == 3
    assert len(history.loss) == 12 * 3
    assert not history.interrupted
    assert "score of held-out measurements" in repr(history)
    # A run that the clock ends after one round goes on to the same end, bit for bit, and one that has ended is at it.
    first = fit(checkpoint=tmp_path / "parts", seconds=1e-3).history
    assert len(first.loss) == 12
    assert first.score == []
    for folder in ("parts", "whole"):
        rest = fit(checkpoint=tmp_path / folder).history
        assert rest.score == history.score
        assert rest.loss == history.loss


@pytest.mark.parametrize("number_known", [0, 20])
def test_records_held_out_are_not_trained_on(number_known):
    views = jax.tree.map(jnp.asarray, dataclasses.replace(records(60), mask=np.ones((60, 2), bool)))
    known = jnp.arange(20.0)[:, None] * jnp.ones(2) if number_known else None
    rest, out = Records(views, known).hold_out(10, jr.key(0))
    of = lambda views: np.asarray(views.observation)[:, 0].tolist()
    assert len(of(out)) == 10
    assert not set(of(out)) & set(of(rest.views))
    assert set(of(out)) | set(of(rest.views)) == set(of(views))
    assert rest.unknown == 50 - number_known
    # Those whose signals are known stay last, and in order.
    assert of(rest.views)[rest.unknown :] == of(views)[60 - number_known :]
    assert rest.signals is known


def pairs(number):
    rng = np.random.default_rng(0)
    return si.Pairs(np.float32(SPREAD * rng.normal(size=(number, SIZE))), records(number))


def test_how_often_signals_that_are_known_are_learned_from():
    steps = lambda number, **options: signals.steps_for_known(
        Records(records(number), jnp.zeros((number, 2)), **options), SIGNAL, 64
    )
    assert steps(100_000) == steps(100, source=pairs) == 12_000
    assert steps(640) == 3000
    assert steps(50) == 500
    image = jax.ShapeDtypeStruct((20, 20, 1), jnp.float32)
    assert signals.steps_for_known(Records(records(10**5), jnp.zeros((10**5, 2))), image, 64) == 2000


def test_nothing_is_held_out_of_signals_that_are_known(short_rounds, monkeypatch):
    cycles, make = [], signals.in_cycles
    monkeypatch.setattr(signals, "in_cycles", lambda cycle: make(cycles.append(cycle) or cycle))
    monkeypatch.setattr(signals, "MOST_EPOCHS", 2)
    history = fit(pairs(640)).history
    assert history.score == []
    assert cycles == [len(history.loss)] == [20]


def test_few_records_are_all_trained_on(short_rounds):
    history = fit(records(100)).history
    assert history.score == []
    assert len(history.loss) == 12 * signals.ROUNDS


def test_how_many_are_held_out():
    assert [number_held_out(n, 64) for n in (159, 160, 2000, 10**6)] == [0, 8, 100, 128]
    assert number_held_out(160, 160) == 0


def test_scores_settle():
    assert not has_settled([1.0, 1.0], 1)
    assert has_settled([1.0, 1.0, 0.999], 3)
    assert not has_settled([1.0, 1.0, 0.999], 4)
    assert not has_settled([1.0, 1.1, 0.9], 3)
    assert has_settled([1.0, 0.9, 0.899, 0.91], 3)
    assert not has_settled([1.0, 0.9, 0.8, 0.7], 3)


def test_leaving_the_data_ends_training():
    near = [[0.5, 0.8, 0.9]] * 3
    assert lost_track([1.0, 1.1], near) is None
    assert "miss the given measurements by 1.60" in str(lost_track([1.0, 1.6], near))
    # From a bad start the data are approached.
    assert lost_track([3.0, 2.0], near) is None
    assert lost_track([], near) is None
    assert "intervals of 90% hold 70%" in str(lost_track([1.0], [*near, [0.4, 0.6, 0.7]]))
    assert lost_track([1.0], [[0.2, 0.3, 0.4], [0.3, 0.4, 0.5]]) is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seconds": 0}, "`seconds` must be a positive number"),
        ({"seconds": "long"}, "`seconds` must be a positive number"),
        ({"rounds": 0}, "`rounds` must be an integer"),
        ({"steps": 1.5}, "`steps` must be an integer"),
        ({"roles": si.RandomViews(1), "rounds": 3}, "`rounds` is for the rounds of signal space"),
        ({"roles": si.RandomViews(1), "seconds": 60}, "`seconds` is for the rounds of signal space"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        fit(records(100), **options)
