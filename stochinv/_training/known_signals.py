r"""Training in signal space where all signals are known: the M-step of expectation maximisation alone.

Where the signals are simulated for one observation, a round narrows down where they are drawn.
"""

import abc
import time
from typing import Any

import equinox as eqx
import jax.random as jr

from .._chunks import in_chunks
from .._contexts import as_views
from .._custom_types import Key
from .._pairs import Pairs
from .._problem_base import encode_context
from .._sampling import default_sampler
from .._simulated import Region, everywhere, region_of
from .._view import Example, View
from .contexts import simulated_context
from .plan import Plan
from .records import Records
from .shrinkage import shrink

# How many draws of a posterior tell where it is.
DRAWS = 1024


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

    def renewed(self, problem: Any) -> Any:
        """A problem that is told what was found of the law of signals."""
        return problem

    def finish(self, problem: Any) -> Any:
        """The trained problem as it draws best."""
        return problem

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
    - `records`: the records, all of whose signals are known.
    - `key`: a PRNG key.
    - `plan`: how many steps there are, and in which cycles.
    - `held_out`: records that tell by how much the network's correction is to be shrunk, or `None`.
    """

    def __init__(self, problem: Any, records: Records, key: Key, plan: Plan, held_out: Records | None = None) -> None:
        self.began = time.perf_counter()
        self.plan = plan
        self._pairs, self._source, self._key = Pairs(records.signals, records.views), records.source, key
        self._held_out = held_out
        self._simulate = eqx.filter_jit(self._simulate_traced)
        # Where signals are drawn: all else follows from the key.
        self.kept: Region | None = None
        if records.observed is not None:
            self._observed = as_views(problem.data_info, records.observed, "Simulated: observed")
            self.kept = everywhere(problem.units, problem.signal)
            self._sampler = default_sampler(problem)
            self._find = eqx.filter_jit(self._find_traced)

    def records(self, problem: Any, number: int) -> Example:
        return self._simulate(problem, self._pairs, self._source, self.kept, jr.fold_in(self._key, number))

    def finish(self, problem: Any) -> Any:
        if self._held_out is None:
            return problem
        return shrink(problem, self._held_out.signals, None, self._held_out.views, self._key)

    def _simulate_traced(self, problem, pairs, source, region, key):
        pairs_key, roles_key = jr.split(key)
        pairs = pairs if source is None else source(pairs_key, region)
        roles = simulated_context(problem)
        views = roles(pairs.signal, pairs.view, key=roles_key)
        return Example(encode_records(problem, views), View(pairs.signal), None)

    def draw(self, problem: Any, number: int, *, last: bool) -> list[float]:
        if self.kept is not None:
            self.kept = self._find(problem, self._observed, jr.fold_in(jr.fold_in(self._key, number), 1))
        return []

    def _find_traced(self, problem, observed, key):
        context = encode_context(problem, observed)
        drawn = self._sampler.many(problem, context, None, key=key, num_samples=DRAWS, chunk_size=DRAWS)
        return region_of(problem.units, drawn.signal)


def encode_records(problem: Any, views: View) -> Any:
    """The contexts of records as the denoiser takes them."""
    return in_chunks(lambda view: encode_context(problem, view), views)
