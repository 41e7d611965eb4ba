r"""`fit` in signal space: checks, the start, and the rounds of expectation maximisation around the loop of training."""

import dataclasses
import time
from typing import Any

import jax
import jax.random as jr
import optax

from .._checks import check_integer, check_key
from .._custom_types import AnyCallable, Key, Structure
from .._data_info import describe
from .._pairs import Pairs
from .._simulated import Simulated, as_law
from .._structure import same_structure
from .._view import View
from .batches import ArrayBatches
from .checks import check_closures, check_training
from .ema import AbstractEMA
from .expectation_maximisation import Rounds, prepare_signals
from .known_signals import KnownSignals
from .loop import Options, Run, check_options, seed_of
from .records import as_records
from .state import start_state


def train_signals(
    problem: Any,
    data: View | Pairs | Simulated,
    *,
    known: Pairs | None,
    key: Key,
    options: Options,
    rounds: int,
    start: Any,
    optimizer: optax.GradientTransformation | None,
    gradient_clip: float | None,
    ema: AbstractEMA | None,
    standardise: bool,
) -> tuple[Any, Any]:
    """What `fit` does in signal space, with all its defaults filled in."""
    began = time.perf_counter()
    check_key(key)
    check_options(options)
    given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema}
    check_training(steps=options.steps, roles=None, standardise=standardise, **given)
    check_integer("`rounds`", rounds)
    if options.validation is not None:
        raise ValueError(
            "`validation` is not used in signal space, whose training signals change from round to round; leave it out."
        )
    prepare_key, rounds_key, train_key = jr.split(key, 3)
    length = -(-options.steps // rounds)
    signal, records = as_records(problem, data, known, options.batch_size, length, rounds_key)
    guess = as_start(start, signal)
    if guess is not None and records.source is not None:
        raise ValueError("`start` is where signals that are unknown start, but all signals are known; leave it out.")
    problem, begin = prepare_signals(problem, records, signal, guess, standardise, prepare_key)
    check_closures(problem.denoiser)
    seed = seed_of(key)
    state = start_state(problem.noised, steps=options.steps, key=train_key, roles=None, **given)
    if records.source is None:
        schedule = Rounds(state.problem, records, begin, guess, rounds_key, length, options.batch_size)
    else:
        schedule = KnownSignals(state.problem, records.source, rounds_key, length)
    batches = ArrayBatches((records.views, records.signals), options.batch_size, seed)
    configuration = {"key": list(seed), "standardise": standardise, "gradient_clip": gradient_clip, "rounds": rounds}
    configuration |= {"measurement_noise": problem.noise}
    public = lambda trained: dataclasses.replace(problem, denoiser=trained.denoiser)
    return Run(state, batches, options, configuration, began, schedule, public).run()


def as_start(start: Any, signal: Structure) -> AnyCallable | None:
    """A law of signals that a user guesses, as a callable from a key to a signal.

    **Raises:**

    `ValueError` if it is neither a NumPyro distribution nor a callable, or draws something else.
    """
    if start is None:
        return None
    draw = as_law("`start`", start)
    drawn = jax.eval_shape(draw, jr.key(0))
    if not same_structure(drawn, signal):
        raise ValueError(f"`start` draws {describe(drawn)}, but the signal is {describe(signal)}; change one of them.")
    return draw
