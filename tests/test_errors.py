"""What fails while it runs: users' own exceptions are passed on, and nothing that was trained is lost.

And input that is good though unusual.
"""

import dataclasses
import os
import pathlib
import signal
import threading
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import stochinv as si
import training
from refusals import (
    altered,
    examples,
    fit,
    key,
    problem,
    problem_of,
    record,
    refuse,
    trained,
    with_target,
    without_annotations,
)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with without_annotations():
        yield


class Unplugged(Exception):
    """A user's own exception."""


def unplug(*args):
    raise Unplugged("no power\nsince noon")


def passed_on(call, kind=Unplugged, message="no power\nsince noon"):
    """The exception of a user, with the message it had."""
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    return caught.value


@pytest.mark.thorough
def test_exceptions_of_callbacks():
    late = lambda progress: unplug() if progress.step == 2 else None
    error = passed_on(lambda: fit(steps=4, log_every=1, callbacks=[late]))
    assert "2 of 4 steps were done; what was trained is the exception's `trained_problem`" in error.__notes__[-1]
    assert np.any(error.trained_problem.denoiser.target != problem().denoiser.target)


@pytest.mark.thorough
def test_exceptions_with_a_checkpoint(tmp_path):
    late = lambda progress: unplug() if progress.step == 2 else None
    error = passed_on(lambda: fit(steps=4, log_every=1, callbacks=[late], checkpoint=tmp_path))
    assert f"what was trained is in the checkpoint of step 2 in {tmp_path}" in error.__notes__[-1]
    assert len(fit(steps=4, checkpoint=tmp_path).history.loss) == 4


def first_batch(number=8):
    return jax.tree.map(lambda x: x[:number], examples())


def test_exceptions_of_iterables():
    def batches():
        yield first_batch()
        unplug()

    assert "1 of 4 steps" in passed_on(lambda: fit(batches(), steps=4)).__notes__[-1]
    passed_on(lambda: fit(map(unplug, [0])))


LATER = [
    pytest.param(5, "`data` gave .* for step 2, but .* before; give batches of", id="shorter"),
    pytest.param(None, "`data` gave None for step 2, but", id="none"),
    pytest.param("a", "`data` is 'a', but must be an array", id="string"),
]


@pytest.mark.parametrize("second, message", LATER)
def test_later_batches(second, message):
    batches = [first_batch(), first_batch(second) if isinstance(second, int) else second]
    refuse(lambda: fit(iter(batches), steps=4), message, compiles=True)


def test_nan_in_a_later_batch():
    bad = jax.tree.map(lambda x: x[:8], with_target(altered(examples().target.observation, 3, np.nan)))
    message = "The loss is nan at step 2: `data` has NaN or infinite values in the batch of that step; remove or fill"
    refuse(lambda: fit([first_batch(), bad]), message, FloatingPointError, compiles=True)


def test_a_rate_at_which_training_diverges():
    message = "The (loss|gradient) is .* at step 2: .* lower the learning rate, or"
    options = {"optimizer": optax.sgd(1e30), "gradient_clip": None, "steps": 20}
    refuse(lambda: fit(**options), message, FloatingPointError, compiles=True)


class Far(eqx.Module):
    """A denoiser whose signals are larger than any random signal that `fit` looks at."""

    size: Any

    def __call__(self, noisy, level, context, params, *, key=None):
        return self.size * jnp.ones(3)


def test_a_forward_model_that_fails_at_the_signals_of_training():
    narrow = lambda s, p: jnp.where(jnp.max(jnp.abs(s)) < 50, p @ s, jnp.nan)
    message = "at step 1: `forward` returns NaN or infinite measurements of 8 of 8 signals .*; make it finite"
    bad = problem_of(narrow, Far(jnp.asarray(100.0)))
    refuse(lambda: fit(problem=bad), message, FloatingPointError, compiles=True)


def checked(limit):
    return lambda s, p: eqx.error_if(p @ s, jnp.max(jnp.abs(s)) > limit, "the signal is too bright")


def stiff(s, p):
    solution = dfx.diffeqsolve(dfx.ODETerm(lambda t, y, a: -y), dfx.Tsit5(), 0.0, 100.0, 0.01, p @ s, max_steps=4)
    return solution.ys[-1]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "forward, message",
    [(checked(0.0), "the signal is too bright"), (stiff, "maximum number of solver steps")],
    ids=["error_if", "diffrax"],
)
def test_exceptions_of_a_forward_model_that_runs(forward, message):
    error = passed_on(lambda: fit(problem=problem_of(forward)), RuntimeError, message)
    assert "`forward` raised this before training" in error.__notes__[-1]


def test_exceptions_of_a_forward_model_in_training():
    bad = problem_of(checked(50.0), Far(jnp.asarray(100.0)))
    error = passed_on(lambda: fit(problem=bad), RuntimeError, "the signal is too bright")
    assert "0 of 2 steps were done; what was trained went with the step that failed" in error.__notes__[-1]


def test_exceptions_while_sampling():
    context, params = record().context, record().target.params
    passed_on(lambda: trained().sample(context, params, key=key(), sampler=lambda *args, key: unplug()))
    failing = dataclasses.replace(trained(), denoiser=lambda *args, key: unplug())
    passed_on(lambda: failing.sample(context, params, key=key()))


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_ctrl_c_keeps_what_was_trained():
    press = lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.step == 2 else None
    with pytest.warns(UserWarning, match="Training was interrupted after 2 of 9 steps; what was trained is returned"):
        result = fit(steps=9, log_every=1, callbacks=[press])
    assert result.history.interrupted and len(result.history.loss) == 2
    assert np.any(result.problem.denoiser.target != problem().denoiser.target)


def test_a_network_in_a_closure_is_not_trained():
    network = problem().denoiser

    class Denoiser(eqx.Module):
        scale: jax.Array
        function: Any

        def __call__(self, *args, key=None):
            return self.scale * self.function(*args)

    denoiser = Denoiser(jnp.ones(()), lambda *args: network(*args))
    with pytest.warns(UserWarning, match="`denoiser` holds a LinearDenoiser in the closure of .*lambda"):
        fit(problem=problem_of(denoiser=denoiser))


@jax.custom_vjp
def in_reverse_only(signal, params):
    return params @ signal


in_reverse_only.defvjp(lambda s, p: (p @ s, (s, p)), lambda kept, g: (kept[1].T @ g, jnp.outer(g, kept[0])))


@pytest.mark.slow
def test_a_forward_model_with_a_derivative_of_its_own_trains():
    # Affine, but not to be linearised; so are solvers of differential equations.
    result = fit(problem=problem_of(in_reverse_only))
    assert np.all(np.isfinite(result.history.loss)) and not result.problem.data_info.affine
    assert fit().problem.data_info.affine


def test_mixed_number_formats_in_double_precision(x64):
    mixed = with_target(np.asarray(examples().target.observation, np.float64))
    message = "`data` mixes number formats .*target.observation float64, .*novel.observation float32.*convert all"
    refuse(lambda: fit(mixed), message, compiles=True)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), examples())
    single = problem_of(lambda s, p: (p @ s).astype(jnp.float32), signal=None)
    refuse(lambda: fit(double, single), r"`forward` returns float32\[2\], but the data are float64\[2\]", compiles=True)


@pytest.mark.slow
def test_double_precision_trains(x64):
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), examples())
    denoiser = jax.tree.map(lambda x: x.astype(jnp.float64), training.LinearDenoiser(jr.key(0)))
    able = fit(double, problem_of(denoiser=denoiser, signal=None)).problem
    assert able.denoiser.target.dtype == jnp.float64
    context = jax.tree.map(lambda x: x[0], double.context)
    sample = able.sample(context, double.target.params[0], key=jr.key(0), sampler=si.Ancestral(2))
    assert sample.signal.dtype == jnp.float64


def test_unusual_numbers():
    schedule = si.CosineSchedule(np.float32(-9), 12)
    rule = np.float64(0.5) * si.Patches(si.EnergyRule(np.float32(1.5)), np.int64(2)) + si.KernelRule(1)
    objective = si.ProperScore(rule, np.int32(2), fair=1, score_target=np.True_)
    for noise in (0, np.float32(0.1), np.asarray(0.1), jnp.asarray(0.1), np.int64(1), jnp.asarray(1)):
        made = problem_of(noise=noise, schedule=schedule, objective=objective)
        assert np.allclose(made.noise.scale, noise) and np.isfinite(float(schedule.alpha(0.5)))
    assert si.RandomViews([np.int64(0), 2], np.int32(1)).context == (0, 2)
    sampler = si.Ancestral(np.int64(2), eta=jnp.asarray(0.5))
    drawn = trained().posterior(record().context, record().target.params, sampler=sampler).sample(key(), np.int64(3))
    assert drawn.shape == (3, 3)


@pytest.mark.slow
def test_unusual_options(tmp_path):
    seen = []
    options = {
        "steps": np.int64(2),
        "batch_size": np.int32(8),
        "gradient_clip": np.float32(1),
        "callbacks": (seen.append, lambda progress: None),
        "standardise": np.True_,
        "resume": np.False_,
        "checkpoint": pathlib.Path(tmp_path) / "a" / "b",
        "key": jr.PRNGKey(0),
        "validation": examples(),
    }
    result = fit(**options)
    assert len(seen) == 1 and len(result.history.loss) == 2 and np.isfinite(result.history.validation_loss[-1])
    result.problem.save(tmp_path / "problem.si")
    loaded = si.load(str(tmp_path / "problem.si"), training.measure, problem().denoiser)
    posterior = loaded.posterior(record().context, record().target.params, sampler=si.Ancestral(2))
    assert posterior.sample(jr.PRNGKey(1), 5).shape == (5, 3)
    assert posterior.sample(jr.PRNGKey(1)).shape == (3,)
    assert posterior.quantile(key(), [0.1, 0.9], 5).shape == (2, 3)
