"""How training in signal space decides when to end: by what predicts measurements that it does not see."""

import dataclasses
import types
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy import stats

import stochinv as si
from refusals import without_annotations
from stochinv._training import loop, plan, signals, watch
from stochinv._training.records import Records
from stochinv._training.residual import root_mean_square
from stochinv._training.watch import LEVELS, Watch, has_settled, lost_track, number_held_out, warn_never_close

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


def test_few_lost_records_do_not_hide_the_others():
    squares = jr.normal(jr.key(0), (1000, 2, 3)) ** 2
    mask = jnp.ones((1000, 2, 1)).at[::2, 1].set(0)
    total = lambda squares: root_mean_square(jnp.sum(squares * mask, (1, 2)), 3 * jnp.sum(mask, (1, 2)))
    error = 1 / np.sqrt(2 * 4500)
    assert abs(total(squares) - 1) < 4 * error
    # Seven that are off by 60 standard deviations make it 5 where all count alike.
    lost = squares.at[:7].set(3600.0)
    assert abs(total(lost) - np.sqrt(1 + 0.007 * 24)) < 4 * error
    # Where all are far off, it is told by how much.
    assert abs(total(400 * squares) - 20) < 20 * 4 * error
    assert root_mean_square(jnp.zeros(3), jnp.zeros(3)) == 0


def fit(data=None, **options):
    problem = si.StochasticInverseProblem(measure, noise=NOISE, signal=SIGNAL)
    settings = {"key": jr.key(0), "batch_size": 64, "progress": False}
    return problem.fit(records() if data is None else data, **settings | options)


@pytest.fixture
def fitted_state():
    problem = si.StochasticInverseProblem(measure, noise=NOISE, signal=SIGNAL, space=si.MeasurementSpace())
    return si.init(
        problem,
        records(64),
        key=jr.key(0),
        roles=si.RandomViews(0, novel=1),
        optimizer=optax.adam(optax.constant_schedule(1e-3)),
    )


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(plan, "LENGTH", 12)
    monkeypatch.setattr(plan, "LAST", 2)
    monkeypatch.setattr(plan, "MOST_ROUNDS", 6)
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


def exact_log_evidence(views):
    """The logarithm of how likely the true law makes two measurements."""
    laws = (
        stats.multivariate_normal(np.zeros(2), phi @ np.diag(SPREAD**2) @ phi.T + NOISE**2 * np.eye(2))
        for phi in views.params.astype(float)
    )
    return np.array([law.logpdf(o) for law, o in zip(laws, views.observation, strict=True)])


@pytest.mark.slow
def test_how_likely_held_out_records_are():
    """One step leaves the network as it was made: the exact denoiser of the best Gaussian, which 2,000 records tell."""
    trained, held_out = fit(steps=1, rounds=1).problem, records(256, seed=1)
    views = dataclasses.replace(jax.tree.map(jnp.asarray, held_out), mask=jnp.ones((256, 2), bool))
    look = lambda problem: Watch(problem.noised, views, jr.key(2)).look(problem.noised)[0]
    exact = -np.sort(exact_log_evidence(held_out))[256 // watch.SHARE :].mean()
    # Five parameters of a Gaussian that 2,000 records tell cost 5/2 nats of all of these, and weights of a right
    # proposal vary little.
    assert abs(look(trained) - exact) < 0.02
    # A prior that is twice as wide makes them less likely, by as much as a gain that matters many times over.
    whitening = trained.data_info.units
    wide = dataclasses.replace(whitening, root=2 * whitening.root, inverse=whitening.inverse / 2)
    wrong = dataclasses.replace(trained, data_info=dataclasses.replace(trained.data_info, units=wide))
    wrong = dataclasses.replace(wrong, denoiser=rebuilt(trained.denoiser, wide, trained.denoiser.known.value[1]))
    assert look(wrong) > exact + 10 * watch.LEAST_LOG_GAIN


@pytest.mark.thorough
def test_scores_and_coverage_of_exact_posteriors_are_theirs(monkeypatch):
    """As above, where no weights are known."""
    monkeypatch.setattr(watch, "corrects", lambda problem: False)
    monkeypatch.setattr(watch, "sampler_of_rounds", lambda problem: (si.ExponentialAdams(), 8))
    trained = fit(steps=1, rounds=1).problem
    held_out = records(512, seed=1)
    watch_views = dataclasses.replace(jax.tree.map(jnp.asarray, held_out), mask=jnp.ones((512, 2), bool))
    watching = Watch(trained.noised, watch_views, jr.key(2))
    score, coverage = watching.look(trained.noised)
    assert coverage is not None
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
    assert coverage is not None and coverage[-1] < 0.8


@pytest.mark.thorough
def test_coverage_of_few_counts_is_its_level():
    """Nine in ten are 0, and so are most of their predictions at the true rate."""
    problem = types.SimpleNamespace(
        data_info=None, units=si.Units(), measurement_noise=si.PoissonNoise(), measure=lambda signal, params: signal
    )
    counts = jr.poisson(jr.key(0), 0.1, (2000, 4)).astype(jnp.float32)
    look = lambda o, key: watch.predict(problem, jnp.full((32, 4), 0.1), si.View(o, None), key)["inside"]
    shares = jnp.mean(jax.vmap(look)(counts, jr.split(jr.key(1), 2000)), 0)
    for level, share in zip(LEVELS, shares, strict=True):
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / counts.size)


@pytest.mark.slow
def test_training_ends_where_nothing_is_gained(short_rounds, monkeypatch, tmp_path):
    """The Gaussian from which it starts is exact here: no two rounds gain as much."""
    monkeypatch.setattr(watch, "LEAST_LOG_GAIN", 0.5)
    history = fit(checkpoint=tmp_path / "whole").history
    # Four short rounds, and a last one that is as long as two.
    assert len(history.score) == 5 and history.coverage == []
    assert len(history.loss) == 12 * (4 + 2)
    assert not history.interrupted
    assert "score of held-out records" in repr(history)
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
    out = out.views
    of = lambda views: np.asarray(views.observation)[:, 0].tolist()
    assert len(of(out)) == 10
    assert not set(of(out)) & set(of(rest.views))
    assert set(of(out)) | set(of(rest.views)) == set(of(views))
    assert rest.unknown == 50 - number_known
    # Those whose signals are known stay last, and in order.
    assert of(rest.views)[rest.unknown :] == of(views)[60 - number_known :]
    assert rest.signals is known


def rebuilt(denoiser, coordinates, measured):
    parts = {"form": denoiser.form, "network": denoiser.network, "embedding": denoiser.embedding}
    known = (measured.forward, measured.noise, measured.units)
    return si.GaussianResidual(coordinates, denoiser.signal, *known, **parts)


def pairs(number):
    rng = np.random.default_rng(0)
    return si.Pairs(np.float32(SPREAD * rng.normal(size=(number, SIZE))), records(number))


def test_how_often_signals_that_are_known_are_learned_from():
    def steps(number, signal=SIGNAL, *, source=None, whole=True):
        known = Records(records(number), jnp.zeros((number, 2)), source=source)
        planned = signals.plan_of_known(known, signal, 64, None, None, whole=whole)
        # One cycle, but where it is not known when the clock ends training.
        assert planned.last == (0 if whole else planned.steps)
        return planned.steps

    assert steps(100_000) == steps(100, source=pairs) == steps(100_000, whole=False) == 12_000
    assert steps(640) == 3000
    assert steps(50) == 500
    assert steps(10**5, jax.ShapeDtypeStruct((20, 20, 1), jnp.float32)) == 2000


def test_half_of_the_steps_are_those_of_the_last_round():
    of = lambda steps, rounds: dataclasses.astuple(plan.plan_of(steps, rounds, SIGNAL))[:3]
    assert of(None, None) == (500, 3500, 7500)
    assert of(None, 3) == (500, 1000, 5000)
    assert of(4000, 5) == (500, 2000, 4000)
    assert of(700, None) == (50, 350, 700)
    assert of(901, 4) == (151, 453, 901)
    assert of(20, 1) == (20, 0, 20)
    assert of(1, 2) == (1, 1, 1)
    assert of(1, None) == (1, 1, 1)


def test_steps_that_are_left_out(fitted_state):
    """The rate goes on as if they had been done, where the optimiser is ours; a user's counts those that were."""
    counts = lambda state: [int(x) for _, x in optax.tree_utils.tree_get_all_with_path(state.optimizer_state, "count")]
    state = plan.jump(fitted_state, 12, counted=True)
    assert int(state.count) == 12 and set(counts(state)) == {12}
    state = plan.jump(fitted_state, 12, counted=False)
    assert int(state.count) == 12 and set(counts(state)) == {0}


def test_the_rate_falls_once_in_each_round():
    short = plan.Plan(length=20, last=60, steps=160)
    optimizer, params = short.optimizer(1e-3), jnp.zeros(())
    state, rates = optimizer.init(params), []
    for _ in range(160):
        update, state = optimizer.update(jnp.ones(()), state, params)
        rates.append(-float(update))
    # Adam's step for a gradient of 1 is the rate.
    ups = np.diff(rates) > 0
    assert [int(x) for x in np.flatnonzero(ups & ~np.roll(ups, 1))] == [0, 20, 40, 60]
    np.testing.assert_allclose([max(rates[:60]), max(rates[60:])], 1e-3, rtol=1e-3)
    average = plan.EMAOfRounds(si.PowerEMA(), short)
    assert [n for n in range(1, 161) if average.decay(jnp.asarray(n)) == 0] == [1, 21, 41, 61]


def test_how_much_time_is_left():
    short = plan.Plan(length=100, last=500, steps=900)
    # A round takes 3 s, of which 1 s is the last round's fourth part: the last one takes 6 s.
    there = lambda position, seconds: short.next(position, seconds, whole=3.0, of_steps=1.0)
    assert [there(100, x) for x in (2.9, 3.1, 4.1, 5.9, 6.1, 8.9, 9.1)] == [None, 800, 700, 600, 500, 500, 100]
    assert [there(500, x) for x in (2.9, 5.9, 6.1)] == [None, 600, 500]
    # Where all signals are known there are short rounds alone.
    assert [plan.Plan(100, 900, 900).next(100, x, 3.0, 1.0) for x in (2.9, 3.1)] == [None, 100]


@pytest.mark.slow
def test_nothing_is_held_out_of_signals_that_are_known(short_rounds, monkeypatch):
    monkeypatch.setattr(signals, "MOST_EPOCHS", 2)
    history = fit(pairs(640)).history
    assert history.score == []
    assert len(history.loss) == 20


@pytest.mark.slow
def test_few_records_are_all_trained_on(short_rounds):
    history = fit(records(100)).history
    assert history.score == []
    assert len(history.loss) == 12 * (plan.ROUNDS + plan.LAST)


def test_how_many_are_held_out():
    assert [number_held_out(n, 64) for n in (159, 160, 2000, 10**6)] == [0, 8, 100, 128]
    assert number_held_out(160, 160) == 0


def test_scores_settle():
    settled = lambda *args: has_settled(*args, logarithmic=False)
    assert not settled([1.0, 1.0, 1.0], 1)
    assert settled([1.0, 1.0, 1.0, 0.999], 4)
    assert not settled([1.0, 1.0, 1.0, 0.999], 5)
    assert not settled([1.0, 1.1, 1.1, 0.9], 4)
    assert settled([1.0, 0.9, 0.899, 0.91, 0.9], 4)
    assert not settled([1.0, 0.9, 0.8, 0.7, 0.6], 4)
    # A logarithm may be negative, and its zero means nothing.
    assert has_settled([-50.0, -50.002, -50.001, -50.0], 4, logarithmic=True)
    assert not has_settled([-50.0, -50.0, -50.02, -50.0], 4, logarithmic=True)


def test_leaving_the_data_ends_training():
    near = [[0.5, 0.8, 0.9]] * 3
    assert lost_track([1.0, 1.1], near) is None
    assert "miss the given measurements by 1.60" in str(lost_track([1.0, 1.6], near))
    # From a bad start the data are approached.
    assert lost_track([3.0, 2.0], near) is None
    assert lost_track([], near) is None
    # As a network that is told of measurements and no more.
    assert "come no nearer" in str(lost_track([13.4, 14.1, 14.5, 14.8], []))
    assert lost_track([13.4, 14.1, 14.5], []) is None
    assert lost_track([13.4, 9.0, 7.0, 5.0], []) is None
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


def test_draws_that_were_never_near_the_data_are_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for residual in ([], [1.0], [3.0, 1.4], [1.1, 3.0]):
            warn_never_close(residual)
    with pytest.warns(UserWarning, match="miss their own measurements by 2.50 standard deviations"):
        warn_never_close([3.0, 2.5])


@pytest.mark.slow
def test_rounds_whose_number_was_given_are_watched_too(monkeypatch):
    """Without held-out records residuals are all that there is to see."""
    monkeypatch.setattr(loop, "lost_track", lambda residual, coverage: "wrong" if residual and not coverage else None)
    with pytest.warns(UserWarning, match="Training ended after 2 rounds: wrong"):
        ended = fit(records(200), steps=24, rounds=4)
    # Two rounds of four steps each, and one draw between them.
    assert len(ended.history.loss) == 8 and len(ended.history.residual) == 1 and ended.history.score == []
