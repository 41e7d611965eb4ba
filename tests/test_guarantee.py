"""Posteriors that are learned from measurements alone are as near to the truth as the library claims.

In signal space problems, references and bars are those of `benchmarks/posterior_accuracy.py`, trained as there.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import stochinv as si

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import posterior_accuracy
from signal_case import Sizes
from signal_laws import SECOND_MODE, draw_angles, on_circle


@pytest.mark.guarantee
@pytest.mark.parametrize("name", ["pendulum", "jumps", "spectra", "concentrations"])
def test_posteriors_meet_their_bars(name):
    """A nonlinear solver, many dimensions, counts, and a bent posterior."""
    result = posterior_accuracy.run(name, Sizes(quick=False, seed=0))
    posterior_accuracy.print_table([result])
    missed = [
        f"{x['measured']} is {x['value']:.4g}, but should lie between {x['bar'][0]:g} and {x['bar'][1]:g}"
        for x in result["figures"]
        if not x["met"]
    ]
    assert not missed, f"{name}: {'; '.join(missed)} ({result['history']})"


def within_a_turn(signal, params):
    """Zero between -2π and 2π: whole turns, which no measurement sees, do not pile up in training."""
    return 0.1 * jnp.maximum(jnp.abs(signal) - 2 * jnp.pi, 0) ** 2


def angles_in_measurement_space(objective, steps, sampler_steps):
    """An angle with two modes, learned from points on the circle alone: draws by the number of sampler steps."""

    def batches():
        rng = np.random.default_rng(0)
        while True:
            yield si.Example(None, si.View(on_circle(draw_angles(rng, 256)).astype(np.float32)))

    problem = si.StochasticInverseProblem(
        lambda signal, params: jnp.stack([jnp.cos(signal), jnp.sin(signal)]),
        objective=replace(objective, regulariser=within_a_turn),
        signal=jax.ShapeDtypeStruct((), jnp.float32),
        space=si.MeasurementSpace(),
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 50, steps, 1e-5)
    trained = problem.fit(
        batches(), key=jr.key(0), steps=steps, optimizer=optax.adamw(schedule, b2=0.99, weight_decay=0.0)
    ).problem
    for number in sampler_steps:
        options = {"sampler": si.Ancestral(number), "num_samples": 20_000, "chunk_size": 20_000}
        yield np.asarray(trained.sample(None, None, key=jr.key(100), **options).signal)


def modes(angle):
    """The share of the second mode, and the standard deviations of both over 0.2."""
    second = np.cos(angle) < 0
    around = np.mod(angle - np.pi * second + np.pi, 2 * np.pi) - np.pi
    return second.mean(), around[~second].std() / 0.2, around[second].std() / 0.2


@pytest.mark.guarantee
def test_circle():
    """No linear forward model, two modes: their weights and widths. The standard error of a weight is 0.0035."""
    sampler_steps = (1, 4, 16, 64)
    for steps, angle in zip(
        sampler_steps, angles_in_measurement_space(si.ProperScore(), 8000, sampler_steps), strict=True
    ):
        share, first, second = modes(angle)
        print(steps, share, first, second)
        assert abs(share - SECOND_MODE) < 0.02
        if steps >= 16:
            assert abs(first - 1) < 0.1 and abs(second - 1) < 0.1


@pytest.mark.slow
def test_squared_error_gets_the_weights_of_modes_wrong():
    (angle,) = angles_in_measurement_space(si.SquaredError(), 2000, (64,))
    share = modes(angle)[0]
    print(share)
    assert abs(share - SECOND_MODE) > 0.05
