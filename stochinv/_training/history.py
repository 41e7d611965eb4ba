r"""What was seen during training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(repr=False)
class History:
    """What was seen during training.

    **Arguments:**

    - `loss`: the mean loss of each step's batch, shape `(steps,)`.
    - `validation_steps`, `validation_loss`: after how many steps the loss of held-out records was taken, and its
        values.
    - `residual`: in signal space, by how much the signals drawn after each round but the last miss the given
        measurements, in standard deviations of the noise: near 1 where all is well. A record counts as 5 at most, or as
        twice the middle one.
    - `score`: in signal space, how well held-out records were explained after each round, the less the better; empty
        where `steps` or `rounds` were given. Where draws are corrected by importance weights it is minus the logarithm
        of the density of a record's measurements, and elsewhere the energy score by which one of them is predicted from
        the others, in standard deviations.
    - `coverage`: in the second case, how much of these measurements central intervals of 50, 80 and 90 % held.
    - `seconds`: how long training took, compilation included.
    - `compile_seconds`: how much of that was compilation.
    - `interrupted`: whether Ctrl-C or SIGTERM ended training before its last step.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    validation_steps: list[int] = dataclasses.field(default_factory=list)
    validation_loss: list[float] = dataclasses.field(default_factory=list)
    residual: list[float] = dataclasses.field(default_factory=list)
    score: list[float] = dataclasses.field(default_factory=list)
    coverage: list[list[float]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    compile_seconds: float = 0.0
    interrupted: bool = False

    def __repr__(self) -> str:
        parts = [f"{len(self.loss)} steps in {self.seconds:.0f} s"]
        if self.loss:
            parts.append(f"loss {self.loss[0]:.4g} -> {np.mean(self.loss[-50:]):.4g}")
        if self.validation_loss:
            parts.append(f"validation loss {self.validation_loss[-1]:.4g}")
        if self.residual:
            parts.append(f"{len(self.residual) + 1} rounds, residual {self.residual[-1]:.2f}")
        if self.score:
            parts.append(f"score of held-out records {self.score[0]:.4g} -> {self.score[-1]:.4g}")
        return f"History({', '.join(parts + ['interrupted'] * self.interrupted)})"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback of `fit` is given.

    **Arguments:**

    - `step`: the number of steps done.
    - `loss`: the mean loss since the last call.
    - `metrics`: the parts of the loss at the last step.
    - `history`: the [`stochinv.History`][] so far.
    - `current_problem`: a function that returns the problem as trained so far.
    """

    step: int
    loss: float
    metrics: dict[str, float]
    history: History
    current_problem: Callable[[], Any]
