from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import pytest
import scipy.stats

import stochinv as si
from helpers import condition, measure
from stochinv import diagnostics
from stochinv.diagnostics._bands import binomial_cdf, uniform_band
from stochinv.diagnostics._measurement import _mean_test

matplotlib.use("Agg")


def gaussian(seed, *, records=1000, draws=99, size=3, narrow=1.0, shift=0.0):
    """Posterior draws and truths of a conjugate Gaussian problem, with planted faults."""
    rng = np.random.default_rng(seed)
    truths = rng.normal(size=(records, size))
    rows = np.asarray([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])[:, :size]
    observed = truths @ rows.T + 0.5 * rng.normal(size=(records, 2))
    zero = np.zeros((size, 1))
    mean, covariance = condition(zero, np.eye(size), rows, observed.T, 0.25 * np.eye(2))
    root = np.linalg.cholesky(covariance)
    noise = rng.normal(size=(records, draws, size))
    samples = mean.T[:, None] + shift * np.sqrt(np.diag(covariance)) + narrow * noise @ root.T
    return jnp.asarray(samples, jnp.float32), jnp.asarray(truths, jnp.float32)


FAULTS = {"too_narrow": {"narrow": 0.8}, "too_wide": {"narrow": 1.25}, "shifted": {"shift": 0.3}}
TESTS = {"sbc": diagnostics.sbc_ranks, "tarp": diagnostics.tarp}


@pytest.mark.parametrize("test", TESTS)
def test_an_exact_posterior_is_uniform(test):
    result = TESTS[test](*gaussian(0), key=jr.key(0))
    assert result.uniform and result.p_value > 0.05
    assert result.ranks.shape == (1000, 3 if test == "sbc" else 1) and result.num_draws == 99
    inside = (result.coverage_band[0][:, None] <= result.coverage) & (
        result.coverage <= result.coverage_band[1][:, None]
    )
    assert inside.all()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("test", TESTS)
def test_planted_faults_are_found(test, fault):
    if (test, fault) == ("tarp", "shifted"):
        # A shift's effect on the distances averages out over reference points on all sides of the truths.
        references = jnp.full((1000, 3), 3.0)
        result = diagnostics.tarp(*gaussian(0, **FAULTS[fault]), key=jr.key(0), references=references)
    else:
        result = TESTS[test](*gaussian(0, **FAULTS[fault]), key=jr.key(0))
    assert not result.uniform and result.p_value < 0.01


def test_coverage_of_a_posterior_that_is_too_narrow():
    result = diagnostics.sbc_ranks(*gaussian(0, narrow=0.8), key=jr.key(0), levels=(0.8,))
    # The central 80 % of the draws is 0.8 · 1.2816 standard deviations wide on either side: 69.5 % of the truths. The
    # quantiles of 99 draws are off by 1 % at most.
    assert np.all(np.abs(result.coverage - 0.695) < 4 * np.sqrt(0.695 * 0.305 / 1000) + 0.01)


def test_ties_are_broken_at_random():
    draws, truths = gaussian(0, records=2000)
    result = diagnostics.sbc_ranks(jnp.round(draws), jnp.round(truths), key=jr.key(0))
    assert result.uniform
    constant = diagnostics.sbc_ranks(jnp.zeros((2000, 9, 1)), jnp.zeros((2000, 1)), key=jr.key(0))
    assert constant.uniform and set(constant.ranks.ravel()) == set(range(10))


def test_draws_may_be_trees():
    draws, truths = gaussian(0, records=50)
    tree = lambda x: {"a": x[..., :1], "b": x[..., 1:]}
    result = diagnostics.sbc_ranks(tree(draws), tree(truths), key=jr.key(0))
    np.testing.assert_array_equal(result.ranks, diagnostics.sbc_ranks(draws, truths, key=jr.key(0)).ranks)


def test_binomial_law():
    points = np.asarray([0.001, 0.3, 0.999])
    expected = scipy.stats.binom.cdf(np.arange(51)[None], 50, points[:, None])
    np.testing.assert_allclose(binomial_cdf(50, points), expected, rtol=1e-12)


def test_false_alarms_of_the_band_are_as_many_as_stated():
    rng = np.random.default_rng(0)
    number, points, repeats = 200, np.arange(1, 20) / 20, 1000
    counts = (rng.uniform(size=(repeats, number, 1)) <= points).sum(1)
    band = uniform_band(counts, number, points, 0.1, rng, 4000)
    outside = ((counts / number < band.lower - 1e-9) | (counts / number > band.upper + 1e-9)).any(1)
    # Five standard errors of both simulations; counts are discrete, so that the band may err on the safe side by 0.03.
    error = 5 * np.sqrt(0.09 * (1 / repeats + 1 / 4000))
    assert 0.1 - error - 0.03 < outside.mean() < 0.1 + error
    assert abs((band.p_values <= 0.1).mean() - outside.mean()) < 0.02


def test_false_alarms_over_records_of_dependent_entries():
    """Entries of one record share most of their noise; a band for independent entries would fail here."""
    rng = np.random.default_rng(0)
    records, entries, repeats = 60, 50, 400
    points = np.asarray([0.25, 0.5, 0.75])
    alarms, naive = 0, 0
    for _ in range(repeats):
        noise = 0.9 * rng.normal(size=(records, 1)) + np.sqrt(1 - 0.81) * rng.normal(size=(records, entries))
        cuts = np.asarray([-0.67449, 0.0, 0.67449])
        shares = (noise[:, :, None] <= cuts).mean(1)
        _, p_value = _mean_test(shares, points, float(entries), 0.9, rng, 500)
        alarms += p_value <= 0.1
        naive += abs(shares.mean(0)[1] - 0.5) > 1.645 * 0.5 / np.sqrt(records * entries)
    # Five standard errors, and 0.03 for the central limit theorem.
    assert abs(alarms / repeats - 0.1) < 5 * np.sqrt(0.09 / repeats) + 0.03
    assert naive / repeats > 0.5


def test_errors_of_ranks():
    draws, truths = gaussian(0, records=20)
    with pytest.raises(ValueError, match="`draws` must be"):
        diagnostics.sbc_ranks(draws[:10], truths, key=jr.key(0))
    with pytest.raises(ValueError, match="two leading axes"):
        diagnostics.sbc_ranks(truths[:, 0], truths[:, 0], key=jr.key(0))
    with pytest.raises(ValueError, match="101 quantities"):
        diagnostics.sbc_ranks(jnp.zeros((20, 9, 101)), jnp.zeros((20, 101)), key=jr.key(0))
    with pytest.raises(ValueError, match="`levels`"):
        diagnostics.sbc_ranks(draws, truths, key=jr.key(0), levels=(1.0,))
    with pytest.raises(ValueError, match="`references`"):
        diagnostics.tarp(draws, truths, key=jr.key(0), references=truths[:3])


class Faulty(si.AbstractDenoiser):
    """Draws with their deviation from the mean scaled, and shifted."""

    denoiser: si.GaussianDenoiser
    narrow: Any = 1.0
    shift: Any = 0.0

    def __call__(self, noisy, level, context, params, *, key=None):
        mean = self.denoiser(noisy, level, context, params)
        draw = mean if key is None else self.denoiser(noisy, level, context, params, key=key)
        return mean + self.narrow * (draw - mean) + self.shift


SIZE, ENTRIES = 6, 3


def held_out(seed, records, noise, views=4):
    """Measurements of signals by random matrices, `views` of each."""
    rng = np.random.default_rng(seed)
    signals = rng.normal(size=(records, SIZE)) * np.linspace(1.5, 0.5, SIZE)
    matrices = rng.normal(size=(records, views, ENTRIES, SIZE))
    observed = np.einsum("rvij,rj->rvi", matrices, signals) + noise * rng.normal(size=(records, views, ENTRIES))
    return si.View(jnp.asarray(observed, jnp.float32), jnp.asarray(matrices, jnp.float32))


def measured_problem(noise=0.5, narrow=1.0, shift=0.0):
    forward = si.ForwardFunction(measure)
    covariance = jnp.asarray(np.diag(np.linspace(1.5, 0.5, SIZE) ** 2), jnp.float32)
    exact = si.GaussianDenoiser(forward, jnp.zeros(SIZE), covariance, noise=noise)
    return si.StochasticInverseProblem(
        forward,
        Faulty(exact, jnp.asarray(narrow), jnp.asarray(shift)),
        objective=si.ProperScore(),
        noise=noise,
        signal=jax.ShapeDtypeStruct((SIZE,), jnp.float32),
    )


SAMPLER, ROLES = si.Ancestral(num_steps=1), si.RandomViews(1, 1, 2)


def calibrate(problem, data, **options):
    arguments = dict(roles=ROLES, num_samples=63, sampler=SAMPLER, batch_size=50)
    return diagnostics.measurement_calibration(problem, data, key=jr.key(1), **(arguments | options))


@pytest.mark.slow
def test_measurements_of_an_exact_posterior():
    result = calibrate(measured_problem(), held_out(0, 400, 0.5))
    assert result.calibrated and result.projections.uniform
    assert np.all((result.coverage_band[0] <= result.levels) & (result.levels <= result.coverage_band[1]))
    assert result.record_coverage.shape == (400, 3) and result.projections.ranks.shape == (400, 2)
    np.testing.assert_allclose(result.coverage, result.record_coverage.mean(0))


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [{"narrow": 0.8}, {"shift": 0.6}, {"narrow": 1.25}], ids=str)
def test_faults_are_found_from_measurements_alone(fault):
    result = calibrate(measured_problem(0.1, **fault), held_out(0, 400, 0.1))
    assert not result.calibrated and result.p_value < 0.01


@pytest.mark.slow
def test_two_steps_and_examples_with_a_target_alone():
    data = held_out(0, 200, 0.5)
    stack = jax.tree.map(lambda x: x[:, :2], data)
    example = si.Example(stack, jax.tree.map(lambda x: x[:, 2], data))
    result = calibrate(measured_problem(), example, roles=None, sampler=si.Ancestral(num_steps=2))
    assert result.calibrated and result.projections.uniform


@pytest.mark.slow
def test_masked_novel_views_do_not_count():
    data = held_out(0, 200, 0.5)
    observation = data.observation.at[:, 3].set(1e3)
    novel = si.View(observation[:, 2:], data.params[:, 2:], jnp.tile(jnp.asarray([True, False]), (200, 1)))
    take = lambda view: jax.tree.map(lambda x: x[:, view], data)
    example = si.Example(jax.tree.map(lambda x: x[:, :1], data), take(1), novel)
    assert calibrate(measured_problem(), example, roles=None).calibrated


@pytest.mark.slow
def test_measurements_that_are_rounded_and_clipped():
    data = held_out(0, 400, 0.5)
    rounded = si.View(jnp.clip(jnp.round(data.observation), -1, 2), data.params)
    assert calibrate(measured_problem(), rounded, resolution=1, limits=(-1, 2)).calibrated
    assert not calibrate(measured_problem(), rounded).calibrated


@pytest.mark.slow
def test_wrong_dependence_between_entries_is_found_by_projections():
    """The measurement's entries are equal, and are predicted to be independent."""
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(400, 1)), 8, 1)
    example = si.Example(None, si.View(jnp.asarray(same, jnp.float32)))
    denoiser = si.GaussianDenoiser(lambda s, params: s, jnp.zeros(8), jnp.eye(8))
    problem = si.StochasticInverseProblem(
        lambda s, params: s,
        denoiser,
        objective=si.ProperScore(),
        signal=jax.ShapeDtypeStruct((8,), jnp.float32),
    )
    result = calibrate(problem, example, roles=None)
    assert result.coverage_p_value > 0.01 and result.ecdf_p_value > 0.01
    assert result.projections.p_value < 0.01


def test_errors_of_measurements():
    problem, data = measured_problem(), held_out(0, 10, 0.5)
    with pytest.raises(ValueError, match="`roles` are needed"):
        calibrate(problem, data, roles=None)
    with pytest.raises(ValueError, match="`roles` are for a `View`"):
        calibrate(problem, si.Example(None, jax.tree.map(lambda x: x[:, 0], data)))
    with pytest.raises(ValueError, match="at least 8 records"):
        calibrate(problem, jax.tree.map(lambda x: x[:5], data))
    with pytest.raises(ValueError, match="`resolution` must be positive"):
        calibrate(problem, data, resolution=0)


def window_model(size):
    return si.forward.Mask(), jnp.zeros((size, size, 1))


def test_identifiability_of_masks():
    forward, image = window_model(4)
    masks = np.zeros((3, 4, 4, 1), np.float32)
    masks[0, :2, :2] = masks[1, 1:3, 1:3] = 1
    masks[2, 0, 0] = 2
    result = diagnostics.identifiability(forward, image[None], jnp.asarray(masks))
    seen = masks.any(0)
    assert result.rank == seen.sum() == 7
    np.testing.assert_allclose(result.unseen_share, ~seen, atol=1e-6)
    np.testing.assert_allclose(result.singular_values**2, np.sort((masks**2).sum(0).ravel())[::-1], atol=1e-6)
    draws = jnp.asarray(np.random.default_rng(0).normal(size=(500, 4, 4, 1)), jnp.float32)
    split = result.split(draws)
    np.testing.assert_allclose(split.seen**2 + split.unseen**2, np.var(draws, 0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(split.unseen[~seen], np.std(draws, 0, ddof=1)[~seen], rtol=1e-4)
    # A share of independent unit variances, nine of sixteen; each has the relative standard error √(2/500).
    assert abs(split.unseen_share - 9 / 16) < 5 * np.sqrt(2 / 500 / 16)


def test_identifiability_of_a_known_null_space():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    matrices = jnp.asarray(rng.normal(size=(7, 2, 5)) @ basis[:, :5].T, jnp.float32)
    signals = jnp.zeros((2, 8))
    function = lambda s, params: {"first": (params @ s)[:1], "rest": (params @ s)[1:]}
    result = diagnostics.identifiability(function, signals, matrices, noise={"first": 0.5, "rest": 2.0})
    assert result.rank == 5 and result.unseen.shape == (8, 3)
    np.testing.assert_allclose(result.unseen @ result.unseen.T, basis[:, 5:] @ basis[:, 5:].T, atol=1e-5)
    scaled = np.asarray(matrices, np.float64) / np.asarray([[0.5], [2.0]])
    gram = np.einsum("pij,pik->jk", scaled, scaled)
    np.testing.assert_allclose(result.singular_values**2, np.linalg.eigvalsh(gram)[::-1], atol=1e-4 * gram.max())


@pytest.mark.parametrize("unit", [1e-21, 1e21])
def test_identifiability_in_any_unit(unit):
    """Of measurements, with their noise or without, and of signals."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 5)), jnp.float32)
    forward = lambda s, params: params @ s
    measure = lambda matrix, noise: diagnostics.identifiability(forward, jnp.zeros((1, 5)), matrix, noise=noise)
    plain = measure(matrix, 0.5)
    seen = lambda result: result.singular_values[: result.rank]
    np.testing.assert_allclose(seen(measure(unit * matrix, 0.5 * unit)), seen(plain), rtol=1e-3)
    other = measure(unit * matrix, None)
    np.testing.assert_allclose(seen(other) / unit, seen(plain) / 2, rtol=1e-3)
    assert other.rank == measure(matrix, 0.5 * unit).rank == 3
    draws = jnp.asarray(np.random.default_rng(1).normal(size=(20, 5)), jnp.float32)
    np.testing.assert_allclose(plain.split(unit * draws).unseen / unit, plain.split(draws).unseen, rtol=1e-4)


def test_identifiability_of_a_nonlinear_model_without_params():
    """A product is seen along its gradient alone, at several signals in all directions."""
    product = lambda s, params: s["a"] * s["b"]
    signals = {"a": jnp.asarray([1.0, 1.0]), "b": jnp.asarray([2.0, -2.0])}
    one = diagnostics.identifiability(product, jax.tree.map(lambda x: x[:1], signals), None)
    assert one.rank == 1
    np.testing.assert_allclose(np.abs(one.unseen[:, 0]), np.asarray([1, 2]) / np.sqrt(5), atol=1e-6)
    assert diagnostics.identifiability(product, signals, None).rank == 2


def test_identifiability_of_a_model_with_a_derivative_of_its_own():
    @jax.custom_vjp
    def model(signal, params):
        return jnp.concatenate([signal, signal])[:5] ** 2

    model.defvjp(lambda s, p: (model(s, p), s), lambda s, g: (2 * s * (g[:3] + jnp.pad(g[3:], (0, 1))), None))
    signals = jnp.array([[1.0, 2.0, 3.0]])
    found = diagnostics.identifiability(model, signals, None)
    np.testing.assert_allclose(found.singular_values**2, [36.0, 32.0, 8.0], rtol=1e-5)


def test_identifiability_of_a_problem_uses_its_noise():
    problem = measured_problem(0.5)
    matrices = held_out(0, 1, 0.5).params[0]
    result = diagnostics.identifiability(problem, jnp.zeros((1, SIZE)), matrices)
    plain = diagnostics.identifiability(problem.forward, jnp.zeros((1, SIZE)), matrices)
    np.testing.assert_allclose(result.singular_values, 2 * plain.singular_values, rtol=1e-4)


@pytest.mark.thorough
def test_complex_draws_are_their_parts():
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.complex64(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    parts = lambda x: np.stack([x.real, x.imag], -1)
    x, y, one = draw(20, 3), draw(30, 3), draw(3)
    for distance in (diagnostics.energy_distance, partial(diagnostics.sliced_wasserstein, key=jr.key(0))):
        assert distance(x, y) == distance(parts(x), parts(y)) > 0
    for score in (diagnostics.energy_score, diagnostics.crps):
        assert score(x, one) == score(parts(x), parts(one))
    draws, truths = draw(20, 7, 3), draw(20, 3)
    for test in (diagnostics.sbc_ranks, diagnostics.tarp):
        found, same = (test(*pair, key=jr.key(0)).ranks for pair in ((draws, truths), (parts(draws), parts(truths))))
        np.testing.assert_array_equal(found, same)
    row = draw(1, 3)
    found = diagnostics.identifiability(lambda signal, row: row @ signal, x[:1], row)
    matrix = np.concatenate([np.stack([row.real, -row.imag], -1), np.stack([row.imag, row.real], -1)]).reshape(2, 6)
    assert found.rank == 2
    np.testing.assert_allclose(found.singular_values[:2], np.linalg.svd(matrix)[1], rtol=1e-5)
    np.testing.assert_allclose(matrix @ found.unseen, 0, atol=1e-5)


def test_errors_of_identifiability():
    with pytest.raises(ValueError, match="5000 entries"):
        diagnostics.identifiability(lambda s, params: s, jnp.zeros((1, 5000)), None)
    with pytest.raises(ValueError, match="`tolerance`"):
        diagnostics.identifiability(lambda s, params: s, jnp.zeros((1, 5)), None, tolerance=2.0)
    with pytest.raises(ValueError, match="`draws` must be"):
        diagnostics.identifiability(lambda s, params: s, jnp.zeros((1, 5)), None).split(jnp.zeros((4, 3)))


@pytest.mark.slow
def test_plots():
    import matplotlib.axes
    import matplotlib.pyplot as plt

    calibration = diagnostics.sbc_ranks(*gaussian(0, records=100), key=jr.key(0))
    measurements = calibrate(measured_problem(), held_out(0, 400, 0.5))
    forward, image = window_model(4)
    seen = diagnostics.identifiability(forward, image[None], jnp.ones((1, 4, 4, 1)).at[0, 0].set(0))
    draws = jr.normal(jr.key(0), (20, 4, 4, 1))
    _, ax = plt.subplots()
    assert calibration.plot(ax) is ax
    for plot in (
        calibration.plot_coverage,
        measurements.plot,
        measurements.plot_coverage,
        seen.plot,
        lambda: seen.plot(draws=draws),
        seen.plot_spectrum,
    ):
        ax = plot()
        assert isinstance(ax, matplotlib.axes.Axes)
        ax.figure.canvas.draw()
    plt.close("all")
