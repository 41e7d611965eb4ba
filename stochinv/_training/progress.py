r"""How far training is, for people: a bar in terminals and notebooks, a line now and then in logs."""

import sys
import time
from typing import Any

from .._lazy import tqdm_auto

# Seconds between two lines where no bar can be drawn.
LINE_EVERY = 30.0


def make_progress(show: bool | None, total: int, done: int) -> "Bar | Lines":
    """Where progress goes: by default a bar where someone watches, else a line now and then.

    **Arguments:**

    - `show`: `True` for a bar, `False` for nothing, `None` for the default.
    - `total`, `done`: the number of steps, and of those done before.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return Lines(total, done) if show is None and not watched else Bar(total, done, show is False)


class Bar:
    """A progress bar with the loss and the rate, or, where it is disabled, nothing."""

    def __init__(self, total: int, done: int, disable: bool) -> None:
        options = {"unit": "step", "dynamic_ncols": True, "desc": "compiling", "disable": disable}
        self._bar: Any = tqdm_auto.tqdm(total=total, initial=done, **options)
        self._rounds: dict[str, Any] = {}

    def compiled(self):
        """Training starts: its rate is counted from here."""
        self._bar.set_description("training")
        self._bar.start_t = time.time()

    def drawing(self, now: bool):
        """Signals are being drawn between two rounds, or no more."""
        self._bar.set_description("drawing signals" if now else "training")

    def round(self, number: int, score: float):
        """After so many rounds held-out measurements are predicted with this score."""
        self._rounds = {"round": number + 1, "score": f"{score:.4g}"}

    def shorten(self, total: int):
        """There will be no more steps than so many."""
        self._bar.total = total

    def step(self):
        """One step is done."""
        self._bar.update()

    def loss(self, step: int, value: float):
        """The mean loss since the last look is known."""
        self._bar.set_postfix(loss=f"{value:.4g}", **self._rounds)

    def close(self):
        """Training has ended."""
        self._bar.close()


class Lines:
    """A line on standard error now and then, for logs of jobs that nobody watches."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._last = self._start = time.perf_counter()
        self._rounds = ""

    def compiled(self):
        """Training starts: its rate is counted from here."""
        self._start = time.perf_counter()

    def drawing(self, now: bool):
        """Signals are being drawn between two rounds, or no more."""

    def round(self, number: int, score: float):
        """After so many rounds held-out measurements are predicted with this score."""
        self._rounds = f", round {number + 1}, score {score:.4g}"

    def shorten(self, total: int):
        """There will be no more steps than so many."""
        self._total = total

    def step(self):
        """One step is done."""

    def loss(self, step: int, value: float):
        """The mean loss since the last look is known."""
        now = time.perf_counter()
        if now - self._last >= LINE_EVERY:
            rate = (step - self._done) / (now - self._start)
            print(
                f"stochinv: step {step}/{self._total}, loss {value:.4g}{self._rounds}, {rate:.3g} steps/s",
                file=sys.stderr,
                flush=True,
            )
            self._last = now

    def close(self):
        """Training has ended."""
