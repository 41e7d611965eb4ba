r"""`fit` in signal space: checks, the start, and the rounds of expectation maximisation around the loop of training."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import optax

from .._checks import check_integer, check_key
from .._coordinates import Coordinates, RealForward
from .._custom_types import AnyCallable, Key, Signal, Structure
from .._data_info import describe
from .._grid import is_costly
from .._pairs import Pairs
from .._simulated import Simulated, as_law
from .._structure import same_structure
from .._view import View, count
from .batches import ArrayBatches, seed_of
from .checks import check_closures, check_training
from .ema import AbstractEMA
from .expectation_maximisation import Rounds, prepare_signals, repeat_records
from .history import History
from .known_signals import KnownSignals
from .law_of_draws import room_for_law, told
from .loop import Options, Run, check_options, check_parts
from .plan import LAST, MOST_ROUNDS, RATE, RATE_FOR_IMAGES, EMAOfRounds, Plan, batch_size_of, plan_of
from .records import Records, as_records
from .shrinkage import shrinks
from .state import start_state
from .watch import Watch, number_held_out, warn_never_close

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
    check_integer("`rounds`", 1 if rounds is None else rounds)
    refuse_validation(options.validation)
    prepare_key, rounds_key, train_key, watch_key = jr.split(key, 4)
    given_size = options.batch_size
    of_round = lambda signal: plan_of(steps, rounds, signal).length * batch_size_of(given_size, signal, None)
    found, records = as_records(problem, data, known, given_size, of_round, rounds_key)
    user = dataclasses.replace(problem, signal=found)
    guess = as_start(start, user.coordinates)
    # From here on all is real and without bounds.
    problem, records = in_real_numbers(user), records.in_coordinates(user.coordinates)
    signal = problem.signal
    number = None if records.source is not None else count(records.views)
    options = dataclasses.replace(options, batch_size=batch_size_of(given_size, signal, number))
    check_parts(options, options.batch_size)
    plan, records, held_out = make_plan(problem, records, options, steps, rounds, watch_key)
    options = dataclasses.replace(options, steps=plan.steps)
    if guess is not None and not records.unknown:
        raise ValueError("`start` is where signals that are unknown start, but all signals are known; leave it out.")
    problem, begin = prepare_signals(problem, records, signal, guess, standardise, prepare_key)
    check_closures(problem.denoiser)
    seed = seed_of(key)
    usual = plan.optimizer(RATE_FOR_IMAGES if is_costly(signal) else RATE)
    given |= {"optimizer": optimizer or usual, "ema": None if ema is None else EMAOfRounds(ema, plan)}
    given |= {"precision": options.precision, "accumulate": options.accumulate, "roles": None}
    number, records = records.unknown, repeat_records(problem.noised, records, plan, options.batch_size)
    noised = room_for_law(problem.noised, number if records.unknown == number else 0)
    state = start_state(noised, steps=options.steps, key=train_key, **given)
    if records.unknown:
        schedule = Rounds(state.problem, records, begin, guess, rounds_key, plan, options.batch_size, held_out)
    else:
        schedule = KnownSignals(state.problem, records, rounds_key, plan, held_out)
    watch = Watch(state.problem, held_out.views, watch_key) if plan.settles and held_out is not None else None
    batches = ArrayBatches((records.views, records.signals), options.batch_size, seed)
    configuration = {"key": list(seed), "standardise": standardise, "gradient_clip": gradient_clip} | records.told()
    configuration |= {"measurement_noise": problem.noise, "plan": dataclasses.astuple(plan)}
    public = lambda trained: told(user, trained, problem.data_info)
    run = Run(state, batches, options, configuration, began, schedule, watch, public, optimizer is None)
    return look_back(*run.run(), short=steps is not None or rounds is not None)


def in_real_numbers(problem: Any) -> Any:
    """The problem whose signals are the coordinates of those of a user's."""
    coordinates = problem.coordinates
    forward = RealForward(problem.forward, coordinates)
    return dataclasses.replace(problem, forward=forward, signal=coordinates.structure(), support=None)


def refuse_validation(validation: Any):
    if validation is not None:
        raise ValueError(
            "`validation` is not used in signal space, whose training signals change from round to round; leave it out."
        )


def look_back(trained: Any, history: History, *, short: bool) -> tuple[Any, History]:
    """What training returns, with a warning where draws never came near the data, unless it was meant to be `short`."""
    if not short and not history.interrupted:
        warn_never_close(history.residual)
    return trained, history


def make_plan(
    problem: Any, records: Records, options: Options, steps: int | None, rounds: int | None, key: Key
) -> tuple[Plan, Records, Records | None]:
    """Which steps there are in which rounds, the records to train on, and those that are held out, if any: to tell when
    short rounds gain no more, and by how much a network's correction is to be shrunk."""
    signal, may_shrink = problem.signal, shrinks(problem.denoiser, problem.signal)
    if not records.unknown and records.observed is None:
        whole = options.seconds is None
        plan = plan_of_known(records, signal, options.batch_size, steps, rounds, whole=whole)
        number = number_held_out(count(records.views), options.batch_size) if may_shrink and not records.source else 0
        return plan, *records.hold_out(number, key)
    free = steps is None and rounds is None
    number = number_held_out(records.unknown, options.batch_size) if free or may_shrink else 0
    records, held_out = records.hold_out(number, key)
    return plan_of(steps, rounds, signal, settles=free and number > 0), records, held_out


def plan_of_known(
    records: Records, signal: Structure, batch_size: int, steps: int | None, rounds: int | None, *, whole: bool
) -> Plan:
    """All rounds are one where all signals are known, unless it is not known when training ends: not `whole`."""
    plan = plan_of(steps, rounds, signal)
    total = plan.steps
    if steps is None and rounds is None:
        total = plan.length * (LAST if is_costly(signal) else MOST_ROUNDS)
        if records.source is None:
            total = min(total, max(plan.length, MOST_EPOCHS * count(records.views) // batch_size))
    return Plan(plan.length, 0 if whole else total, total)


def as_start(start: Any, coordinates: Coordinates) -> AnyCallable | None:
    """A law of signals that a user guesses, as a callable from a key to a signal's coordinates.

    **Raises:**

    `ValueError` if it is neither a NumPyro distribution nor a callable, or draws something else.
    """
    if start is None:
        return None
    draw = as_law("`start`", start)
    drawn = jax.eval_shape(draw, jr.key(0))
    if not same_structure(drawn, coordinates.like):
        found, wanted = describe(drawn), describe(coordinates.like)
        raise ValueError(f"`start` draws {found}, but the signal is {wanted}; change one of them.")
    coordinates.check("start", draw(jr.key(0)))
    return eqx.Partial(draw_coordinates, draw, coordinates)


def draw_coordinates(draw: AnyCallable, coordinates: Coordinates, key: Key) -> Signal:
    return coordinates.from_signal(draw(key))
