"""Two-sample tests: false alarms are as many as stated, and laws that are wrong are found."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

import refusals
from stochinv import diagnostics

LEVEL, WEIGHT, APART = 0.05, 0.1, 6.0
TESTS = {
    "energy": lambda x, y, key, **options: diagnostics.two_sample_test(x, y, key=key, **options),
    "kernel": lambda x, y, key, **options: diagnostics.two_sample_test(x, y, key=key, statistic="kernel", **options),
    "pqmass": lambda x, y, key, **options: diagnostics.pqmass(x, y, key=key, num_references=20, **options),
}
FAULTS = {"too wide": {"width": 1.2}, "too narrow": {"width": 0.8}, "shifted": {"shift": 0.5}, "no mode": {"weight": 0}}


def two_modes(rng, number, *, width=1.0, shift=0.0, weight=WEIGHT, size=3):
    """Two Gaussians, of which the second is far along the first axis; and its faults, along all axes."""
    far = APART * (rng.random(number) < weight)[:, None] * np.eye(size)[0]
    return jnp.asarray(width * rng.normal(size=(number, size)) + far + shift, jnp.float32)


def most_alarms(repeats):
    """The expected number, and four of its standard errors."""
    return LEVEL * repeats + 4 * np.sqrt(LEVEL * (1 - LEVEL) * repeats)


@pytest.mark.thorough
@pytest.mark.parametrize("test", TESTS)
def test_false_alarms_are_as_many_as_stated(test):
    rng, repeats = np.random.default_rng(0), 200
    sets = [(two_modes(rng, 50), two_modes(rng, 40)) for _ in range(repeats)]
    alarms = sum(TESTS[test](x, y, jr.key(i), num_permutations=99).p_value <= LEVEL for i, (x, y) in enumerate(sets))
    assert 0 < alarms <= most_alarms(repeats)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("test", TESTS)
def test_faults_are_found(test, fault):
    rng = np.random.default_rng(0)
    x, y = two_modes(rng, 800), two_modes(rng, 800, **FAULTS[fault])
    assert TESTS[test](x, y, jr.key(0), num_permutations=99).p_value == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("test", TESTS)
def test_faults_are_found_nine_times_out_of_ten(test, fault):
    rng = np.random.default_rng(1)
    sets = [(two_modes(rng, 800), two_modes(rng, 800, **FAULTS[fault])) for _ in range(30)]
    assert (
        sum(TESTS[test](x, y, jr.key(i), num_permutations=99).p_value <= LEVEL for i, (x, y) in enumerate(sets)) >= 27
    )


def test_statistics_by_brute_force():
    rng = np.random.default_rng(0)
    x, y = two_modes(rng, 40), two_modes(rng, 55, shift=0.4)
    both = np.concatenate([x, y])
    labels = np.r_[np.full(40, 1 / 40), np.full(55, -1 / 55)]
    distances = scipy.spatial.distance.cdist(both, both)
    kernel = np.exp(-0.5 * (distances / np.median(scipy.spatial.distance.pdist(both))) ** 2)
    for statistic, matrix in (("energy", -distances), ("kernel", kernel)):
        found = diagnostics.two_sample_test(x, y, key=jr.key(0), statistic=statistic, num_permutations=9, batch_size=7)
        np.testing.assert_allclose(found.statistic, labels @ matrix @ labels, rtol=1e-4)
    in_other_units = diagnostics.two_sample_test(1e18 * x, 1e18 * y, key=jr.key(0), num_permutations=9)
    np.testing.assert_allclose(in_other_units.statistic, 1e18 * (labels @ -distances @ labels), rtol=1e-4)


def test_samples_that_are_equal_are_not_told_apart():
    same = jnp.zeros((40, 2))
    for test in TESTS.values():
        assert test(same, same[:39], jr.key(0), num_permutations=9).p_value == 1


@pytest.mark.thorough
def test_the_law_of_counts_in_cells():
    """With many samples in each cell Pearson's statistic has the χ² law, for each set of cells."""
    rng, repeats = np.random.default_rng(0), 100
    p_values = [
        diagnostics.pqmass(
            two_modes(rng, 300),
            two_modes(rng, 300),
            key=jr.key(i),
            num_references=10,
            num_repeats=1,
            num_permutations=1,
        ).p_values[0]
        for i in range(repeats)
    ]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01
    found = diagnostics.pqmass(
        two_modes(rng, 300), two_modes(rng, 300), key=jr.key(0), num_references=10, num_repeats=4
    )
    assert found.chi_squared.shape == found.p_values.shape == (4,)


# Signals of two entries, each measured with noise as large as their spread.
def gaussian(rng, records, *, width=1.0, shift=0.0, where=-np.inf):
    """Signals, draws of a posterior that is wrong where the first measurement is above a limit, measurements, and the
    posterior."""
    signals = rng.normal(size=(records, 2))
    measured = signals + rng.normal(size=(records, 2))

    def posterior(measured):
        wrong = measured[:, :1] > where
        noise = np.where(wrong, width, 1.0) * rng.normal(size=measured.shape) + shift * wrong
        return measured / 2 + np.sqrt(0.5) * noise

    return signals, posterior(measured), measured, posterior


def local_p_value(rng, records, key, at=1.0, num_draws=100, **fault):
    signals, draws, measured, posterior = gaussian(rng, records, **fault)
    here = np.array([at, 0.0])
    given = posterior(np.tile(here, (num_draws, 1)))
    return diagnostics.local_c2st(
        signals, draws, measured, context=here, context_draws=given, key=key, num_permutations=99
    ).p_value


@pytest.mark.thorough
def test_false_alarms_at_one_context():
    rng, repeats = np.random.default_rng(0), 200
    alarms = sum(local_p_value(rng, 30, jr.key(i)) <= LEVEL for i in range(repeats))
    assert 0 < alarms <= most_alarms(repeats)


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [{"width": 0.6}, {"width": 1.5}, {"shift": 0.5}], ids=str)
def test_faults_at_one_context_are_found(fault):
    assert local_p_value(np.random.default_rng(0), 300, jr.key(0), **fault) == 0.01


@pytest.mark.thorough
def test_a_fault_elsewhere_shows_elsewhere():
    rng, fault = np.random.default_rng(0), {"shift": 1.0, "where": 0.5}
    assert local_p_value(rng, 300, jr.key(0), at=2.0, **fault) == 0.01
    signals, draws, measured, posterior = gaussian(rng, 300, **fault)
    statistic = {}
    for at in (-2.0, 2.0):
        here = np.array([at, 0.0])
        given = {"context": here, "context_draws": posterior(np.tile(here, (100, 1)))}
        found = diagnostics.local_c2st(signals, draws, measured, **given, key=jr.key(1), num_permutations=9)
        statistic[at] = found.statistic
        assert found.probability.shape == (100,) and 0 <= found.probability.min() <= found.probability.max() <= 1
    assert statistic[2.0] > 4 * statistic[-2.0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"width": 0.8}, {"width": 1.2}, {"shift": 0.5}], ids=str)
def test_small_faults_at_one_context_are_found_by_many_records(fault):
    rng = np.random.default_rng(1)
    assert sum(local_p_value(rng, 1000, jr.key(i), num_draws=200, **fault) <= LEVEL for i in range(10)) >= 9


def test_pareto_k_is_public():
    # A proposal half as wide as a normal law: weights with few moments.
    draws = 0.5 * jr.normal(jr.key(0), (4000,))
    assert diagnostics.pareto_k(1.5 * draws**2) > 0.7 > diagnostics.pareto_k(-0.1 * draws**2)


X, ROWS = jnp.zeros((20, 2)), jnp.zeros((20, 3))
HERE = {"context": jnp.zeros(3), "context_draws": X, "key": jr.key(0)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnostics.two_sample_test(X, X, key=jr.key(0), statistic="mean"), "`statistic` must be one of"),
        (lambda: diagnostics.two_sample_test(X, ROWS, key=jr.key(0)), "2 and 3 entries"),
        (lambda: diagnostics.two_sample_test(X, X[:1], key=jr.key(0)), "`y` must hold at least 2"),
        (lambda: diagnostics.two_sample_test(X, X, key=0), "`key` must be one PRNG key"),
        (lambda: diagnostics.pqmass(X, X, key=jr.key(0), num_references=20), "less than half of the 40 samples"),
        (lambda: diagnostics.pqmass(X, X, key=jr.key(0), num_repeats=0), "`num_repeats` must be at least 1"),
        (lambda: diagnostics.local_c2st(X, X[:9], ROWS, **HERE), "the same number of records"),
        (lambda: diagnostics.local_c2st(X, ROWS, ROWS, **HERE), "`draws` has signals of 3 entries"),
        (lambda: diagnostics.local_c2st(X, X, X, **HERE), "`context` has 3 entries, but `contexts` 2"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    refusals.refuse(call, message, compiles=True)
