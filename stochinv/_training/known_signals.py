r"""Training in signal space where all signals are known: the M-step of expectation maximisation alone."""

import abc
from typing import Any

import equinox as eqx
import jax.random as jr

from .._chunks import in_chunks
from .._custom_types import AnyCallable, Key, Signal
from .._pairs import Pairs, SimulatedContext
from .._problem_base import encode_context
from .._view import Example, View


class AbstractRounds(abc.ABC):
    """What the steps of training in signal space learn from, round by round.

    `length` is the number of steps in a round; `signals` is what a checkpoint keeps besides the state.
    """

    length: int
    signals: Signal

    @abc.abstractmethod
    def records(self, problem: Any, number: int) -> Example:
        """What the steps of round `number = 0, 1, …` train on: signals, and contexts simulated from them."""

    @abc.abstractmethod
    def draw(self, problem: Any, number: int) -> list[float]:
        """What happens before round `number = 1, 2, …`, given the trained problem.

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
    - `length`: the number of optimiser steps in a round.
    """

    # They follow from the key.
    signals: Signal = None

    def __init__(self, problem: Any, pairs: Pairs, source: AnyCallable | None, key: Key, length: int):
        self.length = length
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

    def draw(self, problem: Any, number: int) -> list[float]:
        return []


def encode_records(problem: Any, views: View) -> Any:
    """The contexts of records as the denoiser takes them."""
    return in_chunks(lambda view: encode_context(problem, view), views)
