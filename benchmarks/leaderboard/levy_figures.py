"""How estimates and draws of Lévy processes are judged, and the estimates of variational methods."""

from collections.abc import Callable

import numpy as np
from levy_problem import Problem


def gaps(estimates: np.ndarray, best: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """By how many dB the squared error of an estimate is above that of the posterior mean `best`, signal by signal."""
    error = lambda x: np.mean((x - signals) ** 2, -1)
    return 10 * np.log10(error(estimates) / error(best))


def log_posterior(problem: Problem, measured: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """The log-density `(n, number)` of signals `(n, number, size)` given measurements `(n, m)`, up to a constant."""
    return problem.law.log_prob(jumps_of(signals)).sum(-1) + log_likelihood(problem, measured, signals)


def log_likelihood(problem: Problem, measured: np.ndarray, signals: np.ndarray) -> np.ndarray:
    misfit = (signals @ problem.operator.T - measured[:, None]) / problem.noise
    return -0.5 * np.sum(misfit**2, -1)


def jumps_of(signals: np.ndarray) -> np.ndarray:
    return np.diff(signals, axis=-1, prepend=0)


def coverage(problem: Problem, measured: np.ndarray, draws: np.ndarray, signals: np.ndarray) -> dict[str, float]:
    """How many true signals are in regions of level 0.9, and how far that is from 0.9.

    Of a law of jumps that may be none, jumps are compared after as much normal noise as in measurements was added.
    """
    rng, blur = np.random.default_rng(3), problem.noise

    def blurred(signals):
        jumps = jumps_of(signals)
        density = problem.law.blurred_log_prob(jumps + blur * rng.normal(size=jumps.shape), blur)
        return density.sum(-1) + log_likelihood(problem, measured, signals)

    def share(density):
        return float(np.mean(covered(density(draws), density(signals[:, None])[:, 0])))

    exact = share(lambda x: log_posterior(problem, measured, x))
    found = exact if problem.law.share == 1 else share(blurred)
    figures = {"coverage": found, "coverage's error": abs(found - 0.9)}
    return figures | ({"coverage, no blur": exact} if problem.law.share < 1 else {})


def covered(of_draws: np.ndarray, of_truth: np.ndarray, level: float = 0.9) -> np.ndarray:
    """Whether the region of highest density of draws, of that level, has the true signal.

    The region ends at the log-density that `level` of the draws, all of equal weight, reach.
    """
    ordered = np.sort(of_draws, 1)[:, ::-1]
    last = int(np.ceil(level * ordered.shape[1] - 1e-9)) - 1
    return of_truth >= ordered[:, last]


def best_of(estimate: Callable[[np.ndarray, float], np.ndarray], problem: Problem, weights: np.ndarray) -> np.ndarray:
    """Estimates of the tests' signals, with the weight whose estimates of the validation's signals err least."""
    signals, measured = problem.signals["validation"], problem.measured["validation"]
    errors = [np.mean((estimate(measured, weight) - signals) ** 2) for weight in weights]
    return estimate(problem.measured["test"], weights[np.argmin(errors)])


def quadratic(operator: np.ndarray) -> Callable[[np.ndarray, float], np.ndarray]:
    """`argmin ½ |A s − y|² + ½ λ |jumps|²`: with `λ = noise² / variance` the best linear estimate, by true moments."""
    differences = np.eye(operator.shape[1]) - np.eye(operator.shape[1], k=-1)

    def estimate(measured, weight):
        normal = operator.T @ operator + weight * differences.T @ differences
        return np.linalg.solve(normal, operator.T @ measured.T).T

    return estimate


def total_variation(operator: np.ndarray, rounds: int = 1000) -> Callable[[np.ndarray, float], np.ndarray]:
    """`argmin ½ |A s − y|² + λ |jumps|₁`, by the alternating direction method of multipliers (Boyd et al. 2011)."""
    differences = np.eye(operator.shape[1]) - np.eye(operator.shape[1], k=-1)

    def estimate(measured, weight):
        # A shrinkage by the typical jump, or a part of it, in each round.
        size = np.median(np.abs(measured)) / operator.shape[1] ** 0.5
        penalty = weight / size
        solve = np.linalg.inv(operator.T @ operator + penalty * differences.T @ differences)
        fixed = measured @ operator
        jumps = scaled = np.zeros((len(measured), operator.shape[1]))
        for _ in range(rounds):
            signals = (fixed + penalty * (jumps - scaled) @ differences) @ solve
            moved = signals @ differences.T + scaled
            jumps = np.sign(moved) * np.maximum(np.abs(moved) - size, 0)
            scaled = moved - jumps
        return np.cumsum(jumps, -1)

    return estimate
