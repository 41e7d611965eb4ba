"""Signal space: posteriors against closed forms, from measurements alone."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import stochinv as si
from refusals import without_annotations
from stochinv._denoiser.evidence import Measured
from stochinv._denoiser.least_squares import levenberg_marquardt
from stochinv._pairs import SimulatedContext
from stochinv._problem_base import encode_context
from stochinv._sampling import default_sampler
from stochinv._training.expectation_maximisation import Rounds
from stochinv._training.gaussian import best_gaussian
from stochinv._training.plan import Plan
from stochinv._training.records import Records

NOISE = 0.2
MEAN = np.array([1.0, -1.0, 0.5])
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
SIGNAL = jax.ShapeDtypeStruct((3,), jnp.float32)


def measure(signal, matrix):
    return matrix @ signal


def records(number=2000, views=2, seed=0):
    """Measurements of a Gaussian signal, each of two random projections; by NumPy."""
    rng = np.random.default_rng(seed)
    signals = rng.multivariate_normal(MEAN, COVARIANCE, size=number)
    matrices = rng.normal(size=(number, views, 2, 3))
    clean = np.einsum("nvij,nj->nvi", matrices, signals)
    noisy = clean + NOISE * rng.normal(size=clean.shape)
    return si.View(np.float32(noisy), np.float32(matrices))


def problem(**options):
    return si.StochasticInverseProblem(measure, **{"noise": NOISE, "signal": SIGNAL} | options)


def fit(data=None, **options):
    settings = {"key": jr.key(0), "steps": 24, "rounds": 2, "batch_size": 64, "progress": False}
    return problem().fit(records() if data is None else data, **settings | options)


@pytest.fixture(scope="module")
def fitted():
    return fit()


def posterior_of(views, mean=MEAN, covariance=COVARIANCE):
    """The exact posterior of a Gaussian signal given a stack of views."""
    matrix = np.concatenate(views.params).astype(float)
    precision = np.linalg.inv(covariance) + matrix.T @ matrix / NOISE**2
    shift = np.linalg.solve(covariance, mean) + matrix.T @ np.concatenate(views.observation) / NOISE**2
    return np.linalg.solve(precision, shift), np.linalg.inv(precision)


def given(number, seed=5):
    one = records(1, 2, seed)
    return si.View(one.observation[0, :number], one.params[0, :number])


@pytest.mark.thorough
@pytest.mark.parametrize("number", [1, 2])
def test_posteriors_are_those_of_a_gaussian(fitted, number):
    context = given(number)
    mean, covariance = posterior_of(context)
    draws = np.asarray(fitted.problem.posterior(context).sample(jr.key(1), 1000), float)
    # 2,000 records tell each entry of the prior's covariance to some 4 %, which one view leaves in one direction.
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * spread.max() / np.sqrt(1000) + 0.05)
    np.testing.assert_allclose(draws.std(0), spread, rtol=4 / np.sqrt(2000) + 0.05)


@pytest.mark.thorough
def test_nothing_given_is_the_prior(fitted):
    draws = np.asarray(fitted.problem.posterior().sample(jr.key(2), 1000), float)
    np.testing.assert_allclose(draws.mean(0), MEAN, atol=4 / np.sqrt(1000) + 0.05)
    np.testing.assert_allclose(np.cov(draws.T), COVARIANCE, atol=4 * np.sqrt(2 / 1000) + 0.05)


@pytest.mark.slow
def test_the_density_is_that_of_the_signal():
    """One step of the warm-up leaves the network as it was made: the exact denoiser of the best Gaussian."""
    start, context = fit(steps=1, rounds=1).problem, given(2)
    units = start.data_info.units
    mean, covariance = posterior_of(context, *(np.asarray(x, float) for x in (units.mean, units.root @ units.root.T)))
    posterior = start.posterior(context)
    points = np.float32(np.random.default_rng(0).multivariate_normal(mean, covariance, size=5))
    exact = stats.multivariate_normal(mean, covariance).logpdf(points)
    got = jax.vmap(posterior.log_prob)(points)
    # The schedule's last noise, 0.002 of the signal's, is 2 % of the posterior's narrowest direction.
    np.testing.assert_allclose(got, exact, atol=0.04)
    law = posterior.to_numpyro()
    np.testing.assert_allclose(law.log_prob(points), got, atol=1e-3)
    assert law.sample(jr.key(0), (4,)).shape == (4, 3)


@pytest.mark.slow
def test_the_score_is_that_of_the_signal():
    """In raw units, of the noised signal given two views, where the network is as it was made."""
    start, context = fit(steps=1, rounds=1).problem, given(2)
    units, level = start.data_info.units, si.NoiseLevel(jnp.float32(0.8), jnp.float32(0.6))
    prior = np.asarray(units.root @ units.root.T, float)
    mean, covariance = posterior_of(context, np.asarray(units.mean, float), prior)
    # `mean + W (α z + σ ε)`, with `s = mean + W z`.
    total = 0.8**2 * covariance + 0.6**2 * prior
    centre = units.mean + 0.8 * (mean - units.mean)
    noisy = jnp.array([0.3, 0.2, 1.0])
    got = start.score(noisy, level, context, None)
    np.testing.assert_allclose(got, np.linalg.solve(total, centre - noisy), rtol=1e-3, atol=1e-3)
    assert start.observation_structure(None) == SIGNAL
    assert jnp.isfinite(start.loss(si.Example(start.noised.as_context(context), si.View(noisy)), key=jr.key(0))[0])


@pytest.mark.thorough
def test_one_view_needs_no_axis_and_masked_views_say_nothing(fitted):
    context = given(2)
    one = si.View(context.observation[0], context.params[0])
    stack = si.View(context.observation[:1], context.params[:1])
    hidden = si.View(context.observation * np.array([[1], [1e3]], np.float32), context.params, np.array([True, False]))
    draw = lambda context: np.asarray(fitted.problem.posterior(context).sample(jr.key(1), 3))
    np.testing.assert_array_equal(draw(one), draw(stack))
    np.testing.assert_array_equal(draw(hidden), draw(stack))


@pytest.mark.thorough
def test_predictions_are_measurements(fitted):
    context = given(2)
    predicted = np.asarray(fitted.problem.posterior(context).predict(jr.key(3), context.params[0], 500))
    spread = np.sqrt(NOISE**2 + np.diag(context.params[0] @ posterior_of(context)[1] @ context.params[0].T))
    assert np.all(np.abs(predicted.mean(0) - context.observation[0]) < 4 * spread)
    np.testing.assert_allclose(predicted.std(0), spread, rtol=4 / np.sqrt(1000) + 0.05)


@pytest.mark.thorough
def test_effective_sample_size(fitted):
    posterior = fitted.problem.posterior(given(2))
    assert posterior.effective_sample_size(jr.key(0), 200) > 150
    exact = dataclasses.replace(fitted.problem, noise=si.GaussianNoise(0.0))
    with pytest.raises(ValueError, match="needs a likelihood"):
        exact.posterior(given(2)).effective_sample_size(jr.key(0))


@pytest.mark.slow
def test_weights_correct_a_network_that_is_wrong(fitted):
    """A network of another law of signals as the proposal: weights are for its own prior, with the known likelihood."""
    context = given(2)
    whitening = fitted.problem.data_info.units
    wide = dataclasses.replace(whitening, root=1.5 * whitening.root, inverse=whitening.inverse / 1.5)
    noised = fitted.problem.noised
    info = dataclasses.replace(noised.data_info, units=wide)
    measured = noised.denoiser.known.value[1]
    # Told that measurements are noisier than they are, it draws too wide.
    blunt = Measured(measured.forward, si.GaussianNoise(2 * NOISE), measured.units)
    denoiser = rebuilt(noised.denoiser, wide, blunt)
    wrong = dataclasses.replace(noised, denoiser=denoiser, data_info=info)
    encoded = encode_context(wrong, wrong.as_context(context))
    draws, log_weights = jax.jit(lambda key: si.ImportanceSampling().propose(wrong, encoded, key, 4000))(jr.key(4))
    weights = np.asarray(jax.nn.softmax(log_weights), float)
    draws = np.asarray(draws, float)
    matrix = np.concatenate(context.params).astype(float)
    prior = np.asarray(wide.root @ wide.root.T, float)
    covariance = np.linalg.inv(np.linalg.inv(prior) + matrix.T @ matrix / NOISE**2)
    shift = np.linalg.solve(prior, np.asarray(wide.mean)) + matrix.T @ np.concatenate(context.observation) / NOISE**2
    size = 1 / np.sum(weights**2)
    mean = weights @ draws
    spread = np.sqrt(np.diag(covariance))
    assert 400 < size < 3000
    assert np.all(np.abs(mean - covariance @ shift) < 4 * spread / np.sqrt(size))
    np.testing.assert_allclose(np.sqrt(weights @ (draws - mean) ** 2), spread, rtol=4 / np.sqrt(2 * size))
    assert np.all(draws.std(0) > 1.3 * spread)


def rebuilt(denoiser, whitening, measured):
    return si.GaussianResidual(
        whitening,
        denoiser.signal,
        measured.forward,
        measured.noise,
        measured.units,
        form=denoiser.form,
        network=denoiser.network,
        embedding=denoiser.embedding,
    )


def evidence_of(data):
    """What each record says of a signal, by NumPy."""
    matrix = data.params.reshape(len(data.params), -1, 3).astype(float)
    observed = data.observation.reshape(len(matrix), -1)
    precision = np.einsum("nki,nkj->nij", matrix, matrix) / NOISE**2
    return precision, np.einsum("nki,nk->ni", matrix, observed) / NOISE**2


def marginal_log_likelihood(data, mean, covariance):
    matrix = data.params.reshape(len(data.params), -1, 3).astype(float)
    observed = data.observation.reshape(len(matrix), -1).astype(float)
    total = matrix @ covariance @ matrix.transpose(0, 2, 1) + NOISE**2 * np.eye(matrix.shape[1])
    gap = observed - matrix @ mean
    quadratic = np.einsum("nk,nk->n", gap, np.linalg.solve(total, gap[..., None])[..., 0])
    return -0.5 * np.mean(quadratic + np.linalg.slogdet(total)[1])


def test_the_best_gaussian_is_the_true_one_and_no_round_is_less_likely():
    """One projection to two of three entries each: no record sees a whole signal."""
    data = records(4000, views=1, seed=1)
    precision, shift = (jnp.asarray(x, jnp.float32) for x in evidence_of(data))
    found = [jax.jit(best_gaussian, static_argnums=2)(precision, shift, rounds) for rounds in (1, 3, 10, 60)]
    likelihoods = [marginal_log_likelihood(data, *(np.asarray(x, float) for x in law)) for law in found]
    assert np.all(np.diff(likelihoods) > -1e-4)
    assert likelihoods[-1] > marginal_log_likelihood(data, MEAN, COVARIANCE) - 1e-4
    mean, covariance = found[-1]
    np.testing.assert_allclose(mean, MEAN, atol=0.1)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.12)


@pytest.mark.thorough
def test_simulated_contexts_are_measurements_of_the_signals():
    data = jax.tree.map(jnp.asarray, records(500))
    data = si.View(data.observation, data.params, jnp.ones((500, 2), bool).at[:250, 1].set(False))
    signals = jr.normal(jr.key(0), (500, 3))
    roles = SimulatedContext(si.ForwardFunction(measure), si.GaussianNoise(NOISE), 0.1)
    views = jax.vmap(roles.deal)(data, jr.split(jr.key(1), 500))
    context = jax.vmap(roles.observe)(signals, views, jr.split(jr.key(2), 500))
    rest = np.asarray(context.observation - jnp.einsum("nvij,nj->nvi", context.params, signals))
    assert abs(rest.std() / NOISE - 1) < 4 / np.sqrt(2 * rest.size)
    number = np.asarray(context.mask.sum(1))
    # None in 10 % and all in 15 %; in the rest one view, of those that have two in four of five cases.
    shares = np.array([0.1, 0.45 + 0.5 * 0.75 * 4 / 5, 0.5 * (0.15 + 0.75 / 5)])
    counts = np.bincount(number, minlength=3)
    assert np.all(np.abs(counts - 500 * shares) < 4 * np.sqrt(500 * shares * (1 - shares)))


def test_levenberg_marquardt_finds_the_most_likely_signal():
    misfit = lambda z: jnp.stack([10 * (jnp.exp(z[0]) - 2.0), 5 * (z[0] + jnp.sin(z[1]) - 1.0)])
    found, rest, matrix = jax.jit(lambda z: levenberg_marquardt(misfit, z, num_steps=30))(jnp.zeros(2))
    cost = lambda z: jnp.sum(misfit(z) ** 2) + jnp.sum(z**2)
    np.testing.assert_allclose(jax.grad(cost)(found), 0, atol=0.05)
    np.testing.assert_allclose(rest, misfit(found), atol=1e-5)
    np.testing.assert_allclose(matrix, jax.jacobian(misfit)(found), atol=1e-2)


@pytest.mark.slow
def test_a_forward_model_that_is_not_affine_and_has_no_derivative():
    """A callback that JAX cannot differentiate; the truth by brute force on a grid."""
    rng = np.random.default_rng(0)
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)

    def curve(signal, times):
        def compute(s, t):
            s = np.asarray(s)[..., None]
            return np.float32(np.exp(0.5 * s) * np.sin(np.asarray(t) + s))

        return jax.pure_callback(compute, shape, signal[0], times, vmap_method="broadcast_all")

    number = 1500
    signals, times = rng.normal(size=number), rng.uniform(0, 3, size=(number, 1, 2))
    clean = np.exp(0.5 * signals)[:, None, None] * np.sin(times + signals[:, None, None])
    data = si.View(np.float32(clean + 0.3 * rng.normal(size=clean.shape)), np.float32(times))
    curved = si.StochasticInverseProblem(curve, noise=0.3, signal=jax.ShapeDtypeStruct((1,), jnp.float32))
    result = curved.fit(data, key=jr.key(0), steps=600, rounds=2, batch_size=128, progress=False)
    grid = np.linspace(-4, 4, 4001)
    for observation, params in zip(data.observation[:3], data.params[:3], strict=True):
        observed, at = observation[0], params[0]
        predicted = np.exp(0.5 * grid)[:, None] * np.sin(at + grid[:, None])
        weight = np.exp(-0.5 * grid**2 - 0.5 * np.sum((predicted - observed) ** 2, 1) / 0.3**2)
        weight /= weight.sum()
        mean = weight @ grid
        std = np.sqrt(weight @ (grid - mean) ** 2)
        draws = np.asarray(result.problem.posterior(si.View(observation, params)).sample(jr.key(1), 800))
        assert abs(draws.mean() - mean) < 4 * std / np.sqrt(800) + 0.15 * std
        assert abs(draws.std() / std - 1) < 4 / np.sqrt(1600) + 0.2


@pytest.mark.thorough
def test_saved_and_loaded(fitted, tmp_path):
    fitted.problem.save(tmp_path / "signals.stochinv")
    loaded = si.load(tmp_path / "signals.stochinv", measure)
    draw = lambda p: np.asarray(p.posterior(given(2)).sample(jr.key(1), 5))
    np.testing.assert_array_equal(draw(loaded), draw(fitted.problem))
    assert "SignalSpace" in repr(loaded)
    with pytest.raises(ValueError, match="`forward` measures a fixed signal otherwise"):
        si.load(tmp_path / "signals.stochinv", lambda s, p: 2 * (p @ s))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "stop", [12, pytest.param(7, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_bit_for_bit(tmp_path, stop):
    """Where a round ends, within one, and within the next."""
    data = records(200)
    whole = fit(data)
    options = {"checkpoint": tmp_path, "checkpoint_every": 100}
    end = lambda progress: progress.step == stop
    fit(data, callbacks=[end], log_every=1, **options)
    rest = fit(data, **options)
    assert rest.history.loss == whole.history.loss and rest.history.residual == whole.history.residual
    for a, b in zip(jax.tree.leaves(rest.problem), jax.tree.leaves(whole.problem), strict=True):
        np.testing.assert_array_equal(a, b)


def test_draws_explain_what_was_measured(fitted):
    assert abs(fitted.history.residual[0] - 1) < 0.1
    assert "2 rounds, residual" in repr(fitted)


@pytest.mark.slow
def test_a_round_draws_what_it_has_time_for(fitted):
    """Signals of those records whose turn it is; the others keep theirs, and all are learned from."""
    data, noised = records(2000), fitted.problem.noised
    # Draws are weighted where the Gaussian is not known to be conditioned exactly.
    noised = dataclasses.replace(noised, data_info=dataclasses.replace(noised.data_info, affine=False))
    data = jax.tree.map(jnp.asarray, si.View(data.observation, data.params, np.ones((2000, 2), bool)))
    rounds = Rounds(noised, Records(data, None), None, None, jr.key(0), Plan(60, 180, 300), 64)
    states, residuals = [np.asarray(rounds.kept.signals)], []
    for number, last in ((1, False), (2, False), (3, True)):
        residuals += rounds.draw(noised, number, last=last)
        states.append(np.asarray(rounds.kept.signals))
    changed = [np.any(a != b, 1) for a, b in zip(states[:-1], states[1:], strict=True)]
    # 60 steps of 64 records take as long as 48 draws, but 256 are drawn at once; the last round is twice as long.
    numbers = [x.sum() for x in changed]
    assert 128 < numbers[0] <= 256 and 128 < numbers[1] <= 256 < numbers[2] <= 512
    assert np.all(np.sum(changed, 0) <= 1)
    np.testing.assert_allclose(residuals, 1, atol=0.15)
    drawn = np.asarray(rounds.signals, float)
    assert drawn.shape == (2000, 3) and len(np.unique(drawn, axis=0)) == 2000
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=4 / np.sqrt(2000) + 0.05)
    np.testing.assert_allclose(np.cov(drawn.T), COVARIANCE, atol=4 * np.sqrt(2 / 2000) + 0.05)


@pytest.mark.thorough
def test_draws_that_are_not_weighted_are_many(fitted):
    """All are learned from while they are few."""
    data, noised = records(2000), fitted.problem.noised
    data = jax.tree.map(jnp.asarray, si.View(data.observation, data.params, np.ones((2000, 2), bool)))
    rounds = Rounds(noised, Records(data, None), None, None, jr.key(0), Plan(60, 120, 240), 64)
    before = np.asarray(rounds.kept.signals)
    (residual,) = rounds.draw(noised, 1, last=False)
    assert abs(residual - 1) < 0.15
    # 60 steps of 64 records take as long as 480 draws.
    assert np.sum(np.any(before != np.asarray(rounds.kept.signals), 1)) == 480
    drawn = np.asarray(rounds.signals, float)
    assert drawn.shape == (2000, 3) and len(np.unique(drawn, axis=0)) == 2000


@pytest.mark.thorough
def test_signals_that_knew_nothing_are_not_learned_from_again(fitted):
    """Those of a guess, once others are drawn given what was measured."""
    data, guess = records(2000), lambda key: 100.0 + jr.normal(key, (3,))
    data = jax.tree.map(jnp.asarray, si.View(data.observation, data.params, np.ones((2000, 2), bool)))
    rounds = Rounds(fitted.problem.noised, Records(data, None), None, guess, jr.key(0), Plan(60, 120, 240), 64)
    assert np.all(np.asarray(rounds.signals) > 50)
    rounds.draw(fitted.problem.noised, 1, last=False)
    drawn = np.asarray(rounds.signals)
    assert drawn.shape == (2000, 3) and len(np.unique(drawn[:, 0])) == 480 and np.all(np.abs(drawn) < 50)


@pytest.mark.thorough
def test_only_draws_given_something_are_corrected(fitted):
    noised = fitted.problem.noised
    assert default_sampler(noised) == si.ImportanceSampling()
    assert default_sampler(noised, given=False) == si.ExponentialAdams()
    prior, plain = fitted.problem.posterior(), fitted.problem.posterior(sampler=si.ExponentialAdams())
    np.testing.assert_array_equal(prior.sample(jr.key(0), 4), plain.sample(jr.key(0), 4))


@pytest.mark.slow
def test_training_goes_on(fitted):
    """In the coordinates of before, from signals that the trained denoiser draws."""
    data = records(300, seed=3)
    again = fitted.problem.fit(data, key=jr.key(4), steps=8, rounds=2, batch_size=64, progress=False)
    np.testing.assert_array_equal(again.problem.data_info.units.root, fitted.problem.data_info.units.root)
    draws = np.asarray(again.problem.posterior(given(2)).sample(jr.key(1), 500), float)
    mean, covariance = posterior_of(given(2))
    assert np.all(np.abs(draws.mean(0) - mean) < 0.5 * np.sqrt(np.diag(covariance)))
    three = records(300, views=3)
    with pytest.raises(ValueError, match=r"`data\[0\]` is .* go on with data like those of the first fit"):
        fitted.problem.fit(three, key=jr.key(4), steps=8, rounds=2, progress=False)


@pytest.mark.thorough
def test_a_law_to_start_from():
    draw = lambda key: 3.0 + jr.normal(key, (3,))
    result = fit(records(200), start=draw)
    np.testing.assert_allclose(result.problem.data_info.units.mean, 3.0, atol=0.1)


BAD = [
    (lambda: fit(validation=records(10)), "`validation` is not used in signal space"),
    (lambda: fit(rounds=0), "`rounds` must be an integer of at least 1, got 0"),
    (lambda: fit(start=3.0), "`start` must be a NumPyro distribution or a callable"),
    (
        lambda: fit(start=lambda key: jr.normal(key, (2,))),
        r"`start` draws float32\[2\], but the signal is float32\[3\]",
    ),
    (
        lambda: fit(si.View(np.ones((90, 2), np.float32), np.ones((90,), np.float32))),
        "leading \\(record, views\\) axes",
    ),
    (lambda: fit(si.View(np.ones((90, 2, 2), bool), records(90).params)), "must be floating-point arrays"),
    (lambda: problem(signal=None).fit(records(90), key=jr.key(0)), "`signal` is not known"),
    (
        lambda: problem(signal=jax.ShapeDtypeStruct((3000,), jnp.float32)).fit(records(90), key=jr.key(0)),
        "`signal` has 3000 entries, but signal space takes up to 2048",
    ),
    (
        lambda: si.StochasticInverseProblem(
            lambda signal, matrix: jnp.sin(matrix @ signal[:3]), signal=jax.ShapeDtypeStruct((300,), jnp.float32)
        ).fit(records(90), key=jr.key(0)),
        "`signal` has 300 entries, but signal space takes up to 256 where `forward` is not affine",
    ),
    (
        lambda: problem(space=si.SignalSpace()).fit(records(90), key=jr.key(0), roles=si.RandomViews(1, 1)),
        "`space` is `SignalSpace\\(\\)`, whose `data` must be a `View`",
    ),
    (lambda: problem(space="signal"), "`space` must be `SignalSpace\\(\\)`"),
    (lambda: problem(space=si.SignalSpace), "`space` is the class SignalSpace"),
    (lambda: si.SignalSpace(sample_time=1.0), "SignalSpace: `sample_time` must be"),
    (lambda: si.ImportanceSampling(num_proposals=1), "ImportanceSampling: `num_proposals` must be"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_wrong_is_said(call, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        call()


CONTEXTS = [
    (lambda: given(2).observation, "`context` is float32\\[2, 2\\], but must be a `View`"),
    (lambda: jax.tree.map(lambda x: np.repeat(x, 2, 0), given(2)), "`context` has 4 views, but records .* had 2"),
    (lambda: si.View(np.ones((1, 3), np.float32), given(1).params), "`context` is .* is expected; give 1 to 2 views"),
    (lambda: si.View(given(1).observation * np.nan, given(1).params), "`context.*` has 2 NaN or infinite values"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("context", "message"), CONTEXTS)
def test_contexts_that_are_none(fitted, context, message):
    with pytest.raises(ValueError, match=message):
        fitted.problem.posterior(context())
