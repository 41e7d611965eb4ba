r"""Training in signal space where all signals are known: the M-step of expectation maximisation alone."""

import abc
import time
from typing import Any

import equinox as eqx
import jax.random as jr

from .._chunks import in_chunks
from .._custom_types import AnyCallable, Key
from .._pairs import Pairs, SimulatedContext
from .._problem_base import encode_context
from .._view import Example, View
from .plan import Plan


class AbstractRounds(abc.ABC):
    """What the steps of training in signal space learn from, round by round.

    `plan` says which steps are in which, `began` when the first was begun to be prepared; `kept` is what a checkpoint
    keeps besides the state.
    """

    plan: Plan
    began: float
    kept: Any

    @abc.abstractmethod
    def records(self, problem: Any, number: int) -> Example:
        """What steps train on: signals, and contexts simulated from them for the time `number = 0, 1, …`."""

    @abc.abstractmethod
    def draw(self, problem: Any, number: int, *, last: bool) -> list[float]:
        """Signals are drawn for the time `number = 1, 2, …`, given the trained problem; for the `last` round's.

        **Returns:**

        By how much signals that were drawn miss the given measurements, where any were.
        """


class KnownSignals(AbstractRounds):
    """Rounds in which all signals are known.

    **Arguments:**

    - `problem`: the prepared problem of signals.
    - `pairs`: the records, where they are the same in all rounds.
    - `source`: a callable from a key to those of a round, or `None` where they are the same.
    - `key`: a PRNG key.
    - `plan`: how many steps there are, and in which cycles.
    """

    # They follow from the key.
    kept: Any = None

    def __init__(self, problem: Any, pairs: Pairs, source: AnyCallable | None, key: Key, plan: Plan):
        self.began = time.perf_counter()
        self.plan = plan
        self._pairs, self._source, self._key = pairs, source, key
        self._roles = SimulatedContext(problem.measure, problem.measurement_noise)
        self._simulate = eqx.filter_jit(self._simulate_traced)

    def records(self, problem: Any, number: int) -> Example:
        return self._simulate(problem, self._pairs, self._source, jr.fold_in(self._key, number))

    def _simulate_traced(self, problem, pairs, source, key):
        pairs_key, roles_key = jr.split(key)
        pairs = pairs if source is None else source(pairs_key)
        views = self._roles(pairs.signal, pairs.view, key=roles_key)
        return Example(encode_records(problem, views), View(pairs.signal), None)

    def draw(self, problem: Any, number: int, *, last: bool) -> list[float]:
        return []


def encode_records(problem: Any, views: View) -> Any:
    """The contexts of records as the denoiser takes them."""
    return in_chunks(lambda view: encode_context(problem, view), views)
