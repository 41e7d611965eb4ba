r"""The loop of `fit` around `init` and `step`: batches, progress, validation, checkpoints, interrupts."""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

from .._checks import check_key
from .._custom_types import Key
from .._data_info import check_structure
from .._problem_base import AbstractProblem
from .._tracker import Tracker
from .._view import Example, RandomViews, View, first_view, structure
from .batches import ArrayBatches, IterableBatches, as_batches, seed_of, warn_exhausted
from .checkpoint import Checkpoints
from .checks import check_batch, check_compute, check_data, check_loop, check_training
from .diagnose import all_finite, diagnose
from .ema import AbstractEMA
from .history import History, Progress
from .interrupts import interruptible
from .known_signals import AbstractRounds
from .layout import Layout, check_divides
from .plan import BATCH_SIZE, jump
from .progress import make_progress
from .state import Precision, State, init, loss_of_records, moving_part, step
from .tracking import Profiler, Tracking, configuration_of
from .watch import Watch, lost_track


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a `fit` that the loop reads, see [`stochinv.StochasticInverseProblem.fit`][]."""

    steps: int
    seconds: float | None
    batch_size: Any
    roles: RandomViews | None
    validation: Example | View | None
    validation_every: int
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    resume: bool
    callbacks: Sequence[Callable[[Progress], Any]]
    log_every: int
    tracker: Tracker | None
    profile: tuple[int, int] | None
    progress: bool | None
    layout: Layout | None
    precision: Precision
    accumulate: int


def train(
    problem: AbstractProblem,
    data: Example | View | Iterable[Any],
    *,
    key: Key,
    options: Options,
    optimizer: optax.GradientTransformation | None,
    gradient_clip: float | None,
    ema: AbstractEMA | None,
    standardise: bool,
) -> tuple[AbstractProblem, History]:
    """What `fit` does, with all its defaults filled in: the trained problem, and the history of its training."""
    start = time.perf_counter()
    check_key(key)
    check_options(options)
    given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema, "standardise": standardise}
    check_training(steps=options.steps, roles=options.roles, **given)
    check_data(data, options.validation, options.roles, problem.forward, options.batch_size)
    seed = seed_of(key)
    batches = as_batches(data, options.batch_size, seed)
    seen = batches.seen()
    check_batch(seen, options.roles, problem.forward)
    check_parts(options, batches.batch_size)
    if options.validation is not None:
        remedy = "give validation records like those of `data`"
        first = lambda records: first_view(structure(records))
        check_structure("validation[0]", first(options.validation), first(seen), remedy)
    given |= {"precision": options.precision, "accumulate": options.accumulate}
    state = init(problem, seen, key=key, roles=options.roles, steps=options.steps, **given)
    configuration = {"key": list(seed), "standardise": standardise, "gradient_clip": gradient_clip}
    return Run(state, batches, options, configuration, start).run()


def check_options(options: Options):
    """Whether the options that the loop reads are of their kinds and in their ranges."""
    check_loop(options, BATCH_SIZE if options.batch_size is None else options.batch_size)
    check_compute(options.precision, options.accumulate)


def check_parts(options: Options, batch_size: int):
    """Whether a batch of so many records can be worked on as asked for."""
    check_compute(options.precision, options.accumulate, batch_size)
    check_divides(options.layout, batch_size, options.accumulate)


class _NotFinite(FloatingPointError):
    """Raised by the loop itself, and not by somebody's code inside it."""


class Run:
    """A training run: the state, what surrounds it, and the order in which things happen."""

    def __init__(
        self,
        state: State,
        batches: ArrayBatches | IterableBatches,
        options: Options,
        configuration: dict[str, Any],
        start: float,
        rounds: AbstractRounds | None = None,
        watch: Watch | None = None,
        public: Callable[[Any], Any] = lambda problem: problem,
        counted: bool = True,
    ) -> None:
        self._layout = options.layout
        self._hold(state)
        self._records = self._replicate(batches.records if rounds is None else None)
        self._options, self._batches, self._start = options, batches, start
        self._rounds, self._watch, self._public, self._counted = rounds, watch, public, counted
        self._round_began = self._steps_began = start if rounds is None else rounds.began
        self._advance = jax.jit(self._advance_traced, donate_argnums=0)
        self._evaluate = jax.jit(self._evaluate_traced)
        self._finite = jax.jit(all_finite)
        self._validation = jax.tree.map(jnp.asarray, options.validation)
        self._validation_key = jr.fold_in(state.key, 2**32 - 1)
        self._history = History()
        self._pending: list[tuple[Array, Array, Array]] = []
        self._step = self._skipped = 0
        self._checkpoints = None
        if options.checkpoint is not None:
            self._checkpoints = Checkpoints(options.checkpoint, configuration | {"data": batches.described()}, state)
            self._resume(self._checkpoints)
        self._seconds_before = self._history.seconds
        told = lambda: configuration_of(public(state.problem), state, options, configuration, batches.batch_size)
        self._tracking = Tracking(options.tracker, told, self._history, self._step)
        self._profiler = Profiler(options.profile, options.checkpoint)

    def _replicate(self, tree):
        return tree if self._layout is None else self._layout.replicate(tree)

    def _hold(self, state: State):
        """Keeps a state in parts: what steps move, and all else."""
        moving, rest = eqx.partition(state, moving_part(state))
        fixed, self._static = eqx.partition(rest, eqx.is_array)
        self._moving = moving if self._layout is None else self._layout.place(moving)
        self._fixed = self._replicate(fixed)

    def _renew(self, rounds: AbstractRounds):
        state = self._state(self._moving, self._fixed)
        self._hold(eqx.tree_at(lambda s: s.problem, state, rounds.renewed(state.problem)))

    def _resume(self, checkpoints: Checkpoints):
        if not self._options.resume:
            checkpoints.clear()
        elif checkpoints.latest() is not None:
            kept = None if self._rounds is None else self._rounds.kept
            (self._moving, kept), record = checkpoints.restore((self._moving, kept))
            if self._rounds is not None:
                self._rounds.kept = kept
                self._renew(self._rounds)
            self._step, self._skipped = record["step"], record["skipped"]
            self._history = History(**record["history"])
            self._history.interrupted = False
            self._batches.restore(record["batches"], self._step)

    def _state(self, moving, fixed) -> State:
        return eqx.combine(moving, fixed, self._static)

    def _advance_traced(self, moving, fixed, batch, records):
        batch = batch if records is None else jax.tree.map(lambda x: x[batch], records)
        batch = batch if self._layout is None else self._layout.spread(batch)
        state, metrics = step(self._state(moving, fixed), batch)
        # Later batches of an iterable are not looked at before.
        data = jnp.asarray(True) if records is not None else all_finite(batch)
        moving = eqx.filter(state, moving_part(state))
        return moving if self._layout is None else self._layout.keep(moving), metrics | {"data": data}

    def _evaluate_traced(self, moving, fixed, records, key):
        problem, options = self._state(moving, fixed).trained, self._options
        return loss_of_records(problem, options.roles, records, key, options.batch_size)

    def _trained(self) -> AbstractProblem:
        # Copies, since the next step donates the buffers.
        trained = self._state(*jax.tree.map(jnp.array, (self._moving, self._fixed))).trained
        return trained if self._rounds is None else self._rounds.finish(trained)

    def run(self) -> tuple[AbstractProblem, History]:
        """Trains to the end, or until something ends it before: then nothing that was trained is lost."""
        bar = make_progress(self._options.progress, self._total, self._step)
        try:
            with interruptible() as interrupted:
                self._loop(bar, interrupted)
                self._finish(interrupted.is_set() and self._step < self._total)
                self._tracking.end(self._step)
        except _NotFinite:
            raise
        except BaseException as error:
            self._keep(error)
            raise
        finally:
            bar.close()
            self._profiler.close()
            if self._checkpoints is not None:
                self._checkpoints.close()
        return self._public(self._trained()), self._history

    def _loop(self, bar, interrupted):
        options, stop, first = self._options, False, self._step
        while self._step < self._total and not stop:
            if self._rounds is not None and not self._next_round(self._rounds, bar, first):
                break
            batch = self._batches.batch(self._step)
            if batch is None:
                warn_exhausted(self._step, self._total)
                break
            if self._layout is not None and self._records is None:
                batch = self._layout.gather(batch)
            before = time.perf_counter()
            given = self._moving, self._fixed, batch, self._records
            self._moving, metrics = self._profiler.step(self._step, self._advance, *given)
            self._pending.append((metrics["loss"], metrics["finite"], metrics["data"]))
            self._step += 1
            if self._step == first + 1:
                jax.block_until_ready(metrics)
                self._history.compile_seconds += time.perf_counter() - before
                bar.compiled()
            bar.step()
            last = self._step == self._total
            if self._validation is not None and (self._step % options.validation_every == 0 or last):
                self._validate()
            if self._step % options.log_every == 0 or last:
                stop = self._look(bar, metrics)
            if self._step % options.checkpoint_every == 0:
                self._save()
            stop = stop or interrupted.is_set()

    @property
    def _total(self) -> int:
        return self._options.steps - self._skipped

    def _next_round(self, rounds, bar, first) -> bool:
        """Where a round ends, draws the signals anew; where one begins, simulates what it trains on. `False` if there
        is to be none."""
        plan, position = rounds.plan, self._step + self._skipped
        if not plan.begins(position) and self._step != first:
            return True
        if plan.draws(position):
            self._flush()
            bar.drawing(True)
            trained = self._trained()
            if (there := self._after_round(trained, plan, position, bar)) is None:
                return False
            if there > position:
                self._skip(there - position)
                bar.shorten(self._total)
                position = there
            self._history.residual.extend(rounds.draw(trained, position // plan.length, last=position >= plan.last))
            self._renew(rounds)
            bar.drawing(False)
            self._tracking.round(self._step)
        records = rounds.records(self._state(self._moving, self._fixed).problem, position // plan.length)
        self._records = self._replicate(records)
        self._steps_began = time.perf_counter()
        return True

    def _after_round(self, trained, plan, position, bar) -> int | None:
        """The step with which training goes on after a round, or `None` if it ends here."""
        now, there, history = time.perf_counter(), position, self._history
        whole, of_steps, self._round_began = now - self._round_began, now - self._steps_began, now
        if (total := self._options.seconds) is not None:
            there = plan.next(position, total - self._seconds_before - now + self._start, whole, of_steps)
        if there != position:
            return there
        number, settled = position // plan.length, False
        if self._watch is not None:
            if len(history.score) < number:
                self._look_at_held_out(self._watch, trained)
            bar.round(number, history.score[-1])
            settled = self._watch.settled(history.score)
        if (wrong := lost_track(history.residual, history.coverage)) is not None:
            warnings.warn(f"Training ended after {number} rounds: {wrong}.", stacklevel=7)
            return None
        return max(position, plan.last) if settled else position

    def _look_at_held_out(self, watch, trained):
        score, coverage = watch.look(trained)
        self._history.score.append(score)
        self._history.coverage.extend([] if coverage is None else [coverage])

    def _skip(self, number: int):
        """Leaves out so many steps, for which there is nothing to learn."""
        self._skipped += number
        state = jump(self._state(self._moving, self._fixed), self._step + self._skipped, counted=self._counted)
        self._moving = eqx.filter(state, moving_part(state))

    def _validate(self):
        loss = self._evaluate(self._moving, self._fixed, self._validation, self._validation_key)
        self._history.validation_steps.append(self._step)
        self._history.validation_loss.append(float(loss))

    def _look(self, bar, metrics) -> bool:
        """Reads the losses, tells them to those who wait for them; whether one of these ends training."""
        loss = self._flush()
        bar.loss(self._step, loss)
        callbacks = [*self._tracking.callbacks, *self._options.callbacks]
        if not callbacks:
            return False
        parts = {name: float(x) for name, x in metrics.items() if name not in ("loss", "finite", "data")}
        progress = Progress(self._step, loss, parts, self._history, lambda: self._public(self._trained()))
        return any([bool(callback(progress)) for callback in callbacks])

    def _flush(self) -> float:
        """Reads the losses since the last look, and stops on a step that was not finite."""
        pending, self._pending = jax.device_get(self._pending), []
        for index, (loss, finite, data) in enumerate(pending):
            if not finite:
                self._fail(len(self._history.loss) + 1 + index, float(loss), bool(data))
        self._history.loss.extend(float(loss) for loss, _, _ in pending)
        self._history.seconds = self._seconds_before + time.perf_counter() - self._start
        return float(np.mean([loss for loss, _, _ in pending])) if pending else float("nan")

    def _kept(self) -> str:
        if self._checkpoints is None or self._checkpoints.latest() is None:
            return "no checkpoint was kept (give `checkpoint=`)"
        return f"the last good checkpoint is that of step {self._checkpoints.latest()} in {self._checkpoints.folder}"

    def _fail(self, number: int, loss: float, data: bool):
        # What arrays held at that step is known; of what an iterable yielded, no more than the structure.
        batch = None
        if self._records is not None:
            indices = self._batches.batch(number - 1)
            batch = jax.tree.map(lambda x: x[indices], self._records)
        what = f"The loss is {loss}" if not np.isfinite(loss) else "The gradient is NaN or infinite"
        cause = "`data` has NaN or infinite values in the batch of that step; remove or fill them"
        if data:
            cause = diagnose(self._state(self._moving, self._fixed), batch)
        raise _NotFinite(f"{what} at step {number}: {cause}; {self._kept()}.")

    def _save(self):
        self._flush()
        if not self._finite(self._moving):
            raise _NotFinite(
                f"The parameters are NaN or infinite after step {self._step}: the optimiser's step was too long; lower "
                f"the learning rate; {self._kept()}."
            )
        if self._checkpoints is not None:
            record = {
                "step": self._step,
                "skipped": self._skipped,
                "history": dataclasses.asdict(self._history),
                "batches": self._batches.state(),
            }
            self._checkpoints.save(self._step, (self._moving, self._rounds and self._rounds.kept), record)

    def _finish(self, interrupted: bool):
        self._history.interrupted = interrupted
        if self._watch is not None and self._rounds is not None and self._step == self._total:
            plan = self._rounds.plan
            if len(self._history.score) == (plan.last - self._skipped) // plan.length:
                self._look_at_held_out(self._watch, self._trained())
        self._save()
        if interrupted:
            where = "" if self._checkpoints is None else f", and a checkpoint was written to {self._checkpoints.folder}"
            warnings.warn(
                f"Training was interrupted after {self._step} of {self._total} steps; what was trained is "
                f"returned{where}.",
                stacklevel=6,
            )

    def _keep(self, error: BaseException):
        """Keeps what was trained before somebody else's exception is passed on."""
        done = f"stochinv: {self._step} of {self._total} steps were done; what was trained"
        if jax.process_count() > 1:  # The others may be gone, and nothing can be done without them.
            error.add_note(f"{done} since then is lost, as all processes are needed to keep it; {self._kept()}.")
            return
        if any(x.is_deleted() for x in jax.tree.leaves(self._moving)):
            error.add_note(f"{done} went with the step that failed, which had been given its memory; {self._kept()}.")
            return
        try:
            self._save()
        except Exception as second:
            error.add_note(f"stochinv could not keep what was trained before ({type(second).__name__}: {second}).")
            return
        if self._checkpoints is None:
            error.trained_problem = self._public(self._trained())  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(f"{done} is the exception's `trained_problem`; {self._kept()}.")
        else:
            error.add_note(f"{done} is in the checkpoint of step {self._step} in {self._checkpoints.folder}.")
