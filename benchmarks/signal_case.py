"""What a row of the benchmark in signal space is, and how draws are compared with the truth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.random as jr
import numpy as np

import stochinv as si


@dataclass(frozen=True)
class Figure:
    """What was measured of a trained problem.

    `truth` is what exact posteriors have: 1 for a ratio, else the floor. `bar` is the range in which the value should
    lie.
    """

    measured: str
    value: float
    truth: float
    bar: tuple[float, float]

    @property
    def met(self) -> bool:
        return self.bar[0] <= self.value <= self.bar[1]


@dataclass(frozen=True)
class Case:
    """A problem to train in signal space, and the figures of a trained one.

    `settings` are those of `fit` that are not its defaults.
    """

    problem: si.StochasticInverseProblem
    data: si.View | si.Pairs
    assess: Callable[[si.StochasticInverseProblem], Sequence[Figure]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large a run is: as asked for, or tiny."""

    quick: bool
    seed: int

    def __call__(self, full: int, small: int) -> int:
        return small if self.quick else full


def records(observation, params=None) -> si.View:
    single = lambda x: None if x is None else np.asarray(x, np.float32)
    return si.View(single(observation), single(params))


def one_record(data: si.View, index: int, views: int | None = None) -> si.View:
    return jax.tree.map(lambda x: x[index, :views], data)


def draws_of(problem: si.StochasticInverseProblem, contexts: Sequence[Any], number: int) -> np.ndarray:
    """Signals given each context as rows, `(contexts, number, n)`."""
    drawn = [problem.posterior(x).sample(jr.key(100 + i), number) for i, x in enumerate(contexts)]
    return np.stack([np.asarray(x, np.float64).reshape(number, -1) for x in drawn])


def energy_score(draws: np.ndarray, truth: np.ndarray) -> float:
    """`mean ‖x − s‖ − ½ mean ‖x − x'‖` without bias, of the draws `(number, n)` given one context."""
    half = len(draws) // 2
    apart = np.linalg.norm(draws[:half] - draws[half : 2 * half], axis=-1).mean()
    return np.linalg.norm(draws - truth, axis=-1).mean() - 0.5 * apart


def score_ratio(draws: Iterable[np.ndarray], references: Iterable[np.ndarray], truths: np.ndarray) -> float:
    """The mean energy score over contexts, as a multiple of that of the true posteriors."""
    mean = lambda sets: np.mean([energy_score(x, s) for x, s in zip(sets, truths, strict=True)])
    return float(mean(draws) / mean(references))


def std_ratio(draws: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> float:
    """Standard deviations over those of the true posteriors: the median over contexts, of the entry for which it is
    farthest from 1."""
    ratios = np.median([x.std(0) / r.std(0) for x, r in zip(draws, references, strict=True)], axis=0)
    return float(ratios[np.argmax(np.abs(np.log(ratios)))])


def mean_error(draws: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> float:
    """By how much means miss those of the true posteriors, in their standard deviations: the root mean square."""
    errors = [(x.mean(0) - r.mean(0)) / r.std(0) for x, r in zip(draws, references, strict=True)]
    return float(np.sqrt(np.mean(np.square(errors))))


def within(share: float) -> tuple[float, float]:
    return 1 - share, 1 + share
