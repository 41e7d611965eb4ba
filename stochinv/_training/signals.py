r"""`fit` in signal space: checks, the start, and the rounds of expectation maximisation around the loop of training."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from .._checks import check_integer, check_key
from .._custom_types import AnyCallable, Key, Structure
from .._data_info import describe
from .._pairs import Pairs
from .._sampling import LARGEST_VECTOR
from .._simulated import Simulated, as_law
from .._structure import same_structure
from .._view import View
from .batches import ArrayBatches
from .checks import check_closures, check_training
from .ema import AbstractEMA, RestartedEMA
from .expectation_maximisation import Rounds, prepare_signals
from .known_signals import KnownSignals
from .loop import Options, Run, check_options, seed_of
from .records import Records, as_records, count
from .state import start_state
from .watch import Watch, number_held_out

# Steps in a round: of signals that a perceptron denoises, and of images. Rounds where nothing tells when to end, and
# the most where held-out measurements do.
LENGTH, LENGTH_FOR_IMAGES = 500, 250
ROUNDS, MOST_ROUNDS = 8, 24
# How often a signal that is known is learned from at most.
MOST_EPOCHS = 300


def train_signals(
    problem: Any,
    data: View | Pairs | Simulated,
    *,
    known: Pairs | None,
    key: Key,
    options: Options,
    steps: int | None,
    rounds: int | None,
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
    check_training(steps=1 if steps is None else steps, roles=None, standardise=standardise, **given)
    if rounds is not None:
        check_integer("`rounds`", rounds)
    if options.validation is not None:
        raise ValueError(
            "`validation` is not used in signal space, whose training signals change from round to round; leave it out."
        )
    prepare_key, rounds_key, train_key, watch_key = jr.split(key, 4)
    of_round = lambda signal: length_of(steps, rounds, signal)
    signal, records = as_records(problem, data, known, options.batch_size, of_round, rounds_key)
    length = of_round(signal)
    options, records, held_out = plan(records, signal, options, steps, rounds, watch_key)
    guess = as_start(start, signal)
    if guess is not None and not records.unknown:
        raise ValueError("`start` is where signals that are unknown start, but all signals are known; leave it out.")
    problem, begin = prepare_signals(problem, records, signal, guess, standardise, prepare_key)
    check_closures(problem.denoiser)
    seed = seed_of(key)
    # Where signals and the end are known, all rounds are one.
    cycle = length if records.unknown or options.seconds is not None else options.steps
    given["optimizer"] = in_cycles(cycle) if optimizer is None else optimizer
    given["ema"] = None if ema is None else RestartedEMA(ema, cycle)
    state = start_state(problem.noised, steps=options.steps, key=train_key, roles=None, **given)
    if records.unknown:
        schedule = Rounds(state.problem, records, begin, guess, rounds_key, length, options.batch_size)
    else:
        pairs = Pairs(records.signals, records.views)
        schedule = KnownSignals(state.problem, pairs, records.source, rounds_key, length)
    watch = None if held_out is None else Watch(state.problem, held_out, watch_key)
    batches = ArrayBatches((records.views, records.signals), options.batch_size, seed)
    configuration = {"key": list(seed), "standardise": standardise, "gradient_clip": gradient_clip, "length": length}
    configuration |= {"measurement_noise": problem.noise}
    public = lambda trained: dataclasses.replace(problem, denoiser=trained.denoiser)
    return Run(state, batches, options, configuration, began, schedule, watch, public).run()


def plan(
    records: Records, signal: Structure, options: Options, steps: int | None, rounds: int | None, key: Key
) -> tuple[Options, Records, View | None]:
    """The number of steps at most, the records to train on, and those that are held out to tell when to end, if any."""
    if steps is not None:
        return options, records, None
    length, held_out = length_of(None, rounds, signal), None
    if rounds is not None:
        steps = length * rounds
    elif not records.unknown:
        steps = steps_for_known(records, signal, options.batch_size)
    elif number := number_held_out(records.unknown, options.batch_size):
        records, held_out = records.hold_out(number, key)
        steps = length * MOST_ROUNDS
    else:
        steps = length * ROUNDS
    return dataclasses.replace(options, steps=steps), records, held_out


def length_of(steps: int | None, rounds: int | None, signal: Structure) -> int:
    """The number of steps in a round."""
    usual = LENGTH_FOR_IMAGES if is_large(signal) else LENGTH
    if steps is None:
        return usual
    return min(usual, -(-steps // ROUNDS)) if rounds is None else -(-steps // rounds)


def steps_for_known(records: Records, signal: Structure, batch_size: int) -> int:
    """The number of steps where all signals are known and nothing was said."""
    length = length_of(None, None, signal)
    steps = length * (ROUNDS if is_large(signal) else MOST_ROUNDS)
    if records.source is not None:
        return steps
    return min(steps, max(length, MOST_EPOCHS * count(records.views) // batch_size))


def is_large(signal: Structure) -> bool:
    """Whether a signal has more entries than a perceptron denoises."""
    return sum(x.size for x in jax.tree.leaves(signal)) > LARGEST_VECTOR


def in_cycles(length: int) -> optax.GradientTransformation:
    """Adam, whose learning rate rises and falls in every so many steps: signals are drawn anew, and training may end,
    when it is low."""
    cycle = optax.warmup_cosine_decay_schedule(0.0, 1e-3, max(length // 10, 1), max(length, 2), 1e-5)
    return optax.adam(lambda count: cycle(jnp.mod(count, length)))


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
