r"""What watches training and never ends it: reports to a tracker, and the profile of some steps."""

import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._checks import shown
from .._custom_types import summary
from .._data_info import describe
from .._frozen import count_trained
from .._tracker import Tracker
from .history import History, Progress
from .state import State
from .watch import LEVELS

# Characters of a part's representation that are told.
LONGEST = 200


def configuration_of(
    problem: Any, state: State, options: Any, given: Mapping[str, Any], batch_size: int
) -> dict[str, str | int | float]:
    """A run's configuration in strings and numbers.

    **Arguments:**

    - `problem`: the problem as users have it, prepared.
    - `state`: the state before the first step.
    - `options`: the options of the loop.
    - `given`: what the run was given beside these, among them the words of its `key`.
    - `batch_size`: the number of records per step.
    """
    parts = {
        "forward": problem.forward,
        "space": problem.space,
        "noise": problem.noise,
        "schedule": problem.schedule,
        "objective": problem.noised.objective,
        "ema": state.ema,
        "roles": state.roles,
    }
    settings = {
        "signal": describe(problem.signal),
        "denoiser": type(problem.denoiser).__name__,
        "parameters": count_trained(problem.denoiser),
        "optimizer": optimizer_of(state),
        "gradient_clip": given["gradient_clip"],
        "standardise": given["standardise"],
        "steps": options.steps,
        "seconds": options.seconds,
        "batch_size": batch_size,
        "accumulate": options.accumulate,
        "precision": options.precision,
        "key": " ".join(map(str, given["key"])),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }
    told = {name: shown(part, LONGEST) for name, part in parts.items() if part is not None}
    return told | {name: value for name, value in settings.items() if value is not None}


def optimizer_of(state: State) -> str:
    """An optax transformation by what it keeps, since it has no name: such as `ScaleByAdam, ScaleBySchedule`."""
    kept = re.findall(r"namedtuple\[(\w+?)(?:State)?\]", str(jax.tree.structure(state.optimizer_state)))
    return ", ".join(dict.fromkeys(name for name in kept if not name.startswith(("Empty", "Masked")))) or "stateless"


class Tracking:
    """Tells a tracker of a run.

    **Arguments:**

    - `tracker`: the tracker, or `None`.
    - `configuration`: what it is told at once.
    - `history`: the run's, as it was before its first step: what is in it already is not told again.
    - `step`: the number of steps done before.
    """

    def __init__(
        self,
        tracker: Tracker | None,
        configuration: Callable[[], Mapping[str, Any]],
        history: History,
        step: int,
    ) -> None:
        self._tracker, self._history = tracker, history
        self._validations = len(history.validation_steps)
        self._rounds = {name: len(values) for name, values in self._of_rounds().items()}
        self._clock = step, time.perf_counter(), history.compile_seconds
        self._tell(lambda tracker: tracker.log_params(configuration()))

    @property
    def callbacks(self) -> list[Callable[[Progress], Any]]:
        """What is to be called at each look at the loss: nothing, where nothing is told."""
        return [] if self._tracker is None else [self.look]

    def look(self, progress: Progress):
        """Tells the loss, its parts and the speed, and the losses of validation before."""
        self._validation()
        self._log(progress.metrics | {"loss": progress.loss} | self._speed(progress.step), progress.step)

    def round(self, step: int):
        """Tells what a round of signal space has found, after so many steps."""
        found = self._of_rounds()
        new = {name: values[-1] for name, values in found.items() if len(values) > self._rounds[name]}
        self._rounds = {name: len(values) for name, values in found.items()}
        if new:
            self._log(new, step)

    def end(self, step: int):
        """Tells how long training took, and what was found since the last look."""
        self._validation()
        self.round(step)
        self._log({"seconds": self._history.seconds}, step)

    def _validation(self):
        new = slice(self._validations, None)
        self._validations = len(self._history.validation_steps)
        for step, loss in zip(self._history.validation_steps[new], self._history.validation_loss[new], strict=True):
            self._log({"validation_loss": loss}, step)

    def _of_rounds(self) -> dict[str, list[float]]:
        coverage = self._history.coverage
        shares = {f"coverage_{100 * level:.0f}": [row[i] for row in coverage] for i, level in enumerate(LEVELS)}
        return {"residual": self._history.residual, "score": self._history.score} | shares

    def _speed(self, step: int) -> dict[str, float]:
        """Steps per second since the last look, but for the step that was compiled."""
        before, then, compiled = self._clock
        self._clock = step, time.perf_counter(), self._history.compile_seconds
        compiling = self._clock[2] - compiled
        steps = step - before - (compiling > 0)
        return {"steps_per_second": steps / (self._clock[1] - then - compiling)} if steps > 0 else {}

    def _log(self, metrics: Mapping[str, float], step: int):
        self._tell(lambda tracker: tracker.log_metrics(metrics, step))

    def _tell(self, tell: Callable[[Tracker], Any]):
        if (tracker := self._tracker) is None:
            return
        what = f"The tracker {type(tracker).__name__} failed"
        remedy = "training goes on without it; mend it, or leave out `tracker`"
        if not harmless(lambda: tell(tracker), what, remedy):
            self._tracker = None


class Profiler:
    """Traces some steps by JAX's profiler.

    **Arguments:**

    - `profile`: after how many steps the trace begins, and of how many it is; `None` for no trace.
    - `checkpoint`: the folder of checkpoints, in which the trace's is.
    """

    def __init__(self, profile: tuple[int, int] | None, checkpoint: str | os.PathLike[str] | None) -> None:
        start, steps = (-1, 0) if profile is None else profile
        self._first, self._last = start, start + steps - 1
        self._folder = os.path.join(os.path.abspath(checkpoint or ""), "profile")
        self._tracing = self._awaited = False

    def step(self, number: int, advance: Callable, *args: Any) -> Any:
        """`advance(*args)`, the step after so many others, traced if it is to be."""
        self._awaited = number < self._first
        if number == self._first:
            jax.block_until_ready(args)
            self._tracing = self._try(lambda: jax.profiler.start_trace(self._folder))
        if not self._tracing:
            return advance(*args)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = advance(*args)
        if number == self._last:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self):
        """Ends a trace, and warns of one that never began."""
        if self._tracing:
            self._tracing = False
            self._try(jax.profiler.stop_trace)
        if self._awaited:
            self._awaited = False
            warnings.warn(
                f"Nothing was profiled: `profile` starts after {self._first} steps, and training ended before; give "
                "an earlier start.",
                stacklevel=2,
            )

    def _try(self, call: Callable[[], Any]) -> bool:
        remedy = "training goes on without it; end other profiles, and see whether the folder can be written to"
        return harmless(call, f"The profile in {self._folder} failed", remedy)


def harmless(call: Callable[[], Any], what: str, remedy: str) -> bool:
    """Calls, and makes a warning of an exception: whether there was none. Interrupts are passed on."""
    try:
        call()
    except Exception as error:
        warnings.warn(f"{what} ({summary(error)}); {remedy}.", stacklevel=2)
        return False
    return True
