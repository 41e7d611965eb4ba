"""Posteriors that are learned from measurements alone, against closed forms and quadrature.

The problems and their references are those of `benchmarks/posterior_accuracy.py`, trained as there.
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path

import jax.random as jr
import numpy as np
import pytest

import stochinv as si

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import measurement_accuracy as accuracy
import posterior_accuracy
import posterior_problems as problems

ENERGY_SCORE = si.ProperScore()


@functools.cache
def trained(name, objective, *, training=1.0, noise=None):
    options = posterior_accuracy.Options(training=training)
    case = problems.PROBLEMS[name](options, objective)
    if noise is not None:
        case = replace(case, problem=replace(case.problem, noise=noise))
    return case, accuracy.train(case, options)[0]


def figures(case, problem, steps, samples):
    return accuracy.compare(case, problem, steps, posterior_accuracy.Options(samples=samples))


@pytest.mark.guarantee
def test_circle():
    """No linear forward model, two modes: their weights and widths. The standard error of a weight is 0.0035."""
    case, problem = trained("circle", ENERGY_SCORE)
    for steps in (1, 4, 16, 64):
        found = figures(case, problem, steps, 20_000)
        print(steps, found)
        assert abs(found["second_mode"] - problems.SECOND_MODE) < 0.02
        if steps >= 16:
            assert abs(found["first_std"] - 1) < 0.1 and abs(found["second_std"] - 1) < 0.1


@pytest.mark.slow
def test_squared_error_gets_the_weights_of_modes_wrong():
    case, problem = trained("circle", si.SquaredError(), training=0.25)
    found = figures(case, problem, 64, 20_000)
    print(found)
    assert abs(found["second_mode"] - problems.SECOND_MODE) > 0.05


@pytest.mark.guarantee
def test_null_space():
    """Directions that neither context nor target see, from one novel projection."""
    case, problem = trained("null_space", ENERGY_SCORE)
    floor = figures(case, None, 0, 4000)["distance"]
    for steps in (1, 4, 16):
        found = figures(case, problem, steps, 4000)
        print(steps, found, floor)
        assert found["distance"] < 3 * floor
        assert 0.85 < found["variance_ratio"] < 1.15


@pytest.mark.parametrize(
    "known", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.guarantee)]
)
def test_noise_as_large_as_the_signal(known):
    """Moments within 5 % of the reference's standard deviations, if and only if the noise is known."""
    case, problem = trained("noisy_linear", ENERGY_SCORE, training=0.3, noise=None if known else 0.0)
    for steps in (1, 4, 16):
        found = figures(case, problem, steps, 20_000)
        print(steps, found)
        worst = max(found["mean_error"], found["std_error"])
        assert worst < 0.05 if known else worst > 0.05


RARE = "modes of a share below one in a hundred come out at half of it or twice: the cosine's is off by 8 %"


@pytest.mark.guarantee
@pytest.mark.parametrize(
    ("known", "steps"),
    [
        pytest.param(True, 1, marks=pytest.mark.xfail(reason=RARE)),
        *[(True, 4), (True, 16), (False, 1), (False, 4), (False, 16)],
    ],
)
def test_circle_under_noise(known, steps):
    """Moments of what is measured within 5 % of the reference's standard deviations, if and only if the noise is known.

    Both are root mean squares over ten contexts; the standard error of a mean is below 0.7 %.
    """
    case, problem = trained("noisy_circle", ENERGY_SCORE, noise=None if known else 0.0)
    number, samples = len(case.contexts), 20_000
    reference = np.stack([case.reference(i, np.random.default_rng(i), 400_000) for i in range(number)])
    rows = np.stack([accuracy.draw(case, problem, i, steps, samples) for i in range(number)])
    size = lambda x: np.sqrt(np.mean(x**2, axis=0))
    mean_error, std_error = (
        np.max(size(of(rows) - of(reference)) / size(reference.std(1)))
        for of in (lambda x: x.mean(1), lambda x: x.std(1))
    )
    print(steps, mean_error, std_error)
    worst = max(mean_error, std_error)
    assert worst < 0.05 if known else worst > 0.05


@pytest.mark.slow
def test_signals_of_a_squared_error_are_too_narrow_under_noise():
    """Their covariance is that of the conditional mean `E[s | o, c]`, which is known."""
    case, problem = trained("noisy_linear", si.SquaredError(), training=0.3)
    root, noise = np.array([[1.0, 0.0], [0.8, 0.6]]), 1.0
    ratios, expected = [], []
    for index, (context, target) in enumerate(case.contexts):
        covariance = root @ root.T
        along = np.asarray(context.params[0, 0], np.float64)
        image = covariance @ along
        covariance = covariance - np.outer(image, image) / (along @ image + noise**2)
        direction = np.asarray(target[0], np.float64)
        image = covariance @ direction
        total = np.trace(covariance)
        expected.append(image @ image / (direction @ image + noise**2) / total)
        sample = problem.sample(context, target, key=jr.key(index), num_samples=20_000, chunk_size=20_000)
        ratios.append(np.asarray(sample.signal).var(0).sum() / total)
    print(np.round(ratios, 3), np.round(expected, 3))
    # The standard error of the mean ratio is 0.4 %, of ten with 1 % each or less.
    np.testing.assert_allclose(np.mean(ratios), np.mean(expected), rtol=0.02)
