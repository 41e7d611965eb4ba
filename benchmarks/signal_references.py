"""True posteriors of the benchmark's problems in signal space, by NumPy and SciPy alone."""

from collections.abc import Callable

import numpy as np
from scipy.linalg import solve_triangular


def runge_kutta(motion: Callable, state, step: float, number: int, np_=np):
    """States at `0, step, …, number · step` of `motion(state)`, by the classical Runge-Kutta method; stacked first."""
    states = [state]
    for _ in range(number):
        first = motion(state)
        second = motion(state + step / 2 * first)
        third = motion(state + step / 2 * second)
        fourth = motion(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(state)
    return np_.stack(states)


def tempered(
    rng: np.random.Generator,
    particles: np.ndarray,
    log_prior: Callable[[np.ndarray], np.ndarray],
    log_likelihood: Callable[[np.ndarray], np.ndarray],
    moves: int = 12,
) -> np.ndarray:
    """Draws of a posterior, by sequential Monte Carlo from draws of the prior (Del Moral et al. 2006).

    The power of the likelihood grows so that half of the particles stay effective; random-walk Metropolis moves of
    many sizes follow each time. All functions are of rows. For signals of few entries; modes keep their weights.
    """
    x, log_likely, power = particles, log_likelihood(particles), 0.0
    number, size = x.shape
    while power < 1:
        step = _next_step(log_likely, 1 - power)
        power = 1.0 if power + step > 1 - 1e-9 else power + step
        chosen = _systematic(rng, step * log_likely)
        x, log_likely = x[chosen], log_likely[chosen]
        root = np.linalg.cholesky(np.cov(x.T).reshape(size, size) + 1e-12 * np.eye(size)) * 2.4 / np.sqrt(size)
        for _ in range(moves if power < 1 else 4 * moves):
            scale = 2 ** rng.uniform(-5, 0.5, (number, 1))
            moved = x + scale * (rng.normal(size=x.shape) @ root.T)
            likely = log_likelihood(moved)
            gain = power * (likely - log_likely) + log_prior(moved) - log_prior(x)
            accepted = np.log(rng.random(number)) < gain
            x, log_likely = np.where(accepted[:, None], moved, x), np.where(accepted, likely, log_likely)
    return x


def _next_step(log_likely, most):
    """The largest step of the power after which half of the particles are effective."""

    def effective(step):
        weights = np.exp(step * (log_likely - np.max(log_likely)))
        return np.sum(weights) ** 2 / np.sum(weights**2)

    if effective(most) > len(log_likely) / 2:
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) > len(log_likely) / 2 else (low, middle)
    return high


def _systematic(rng, log_weights):
    edges = np.cumsum(np.exp(log_weights - np.max(log_weights)))
    edges = edges / edges[-1]
    return np.minimum(np.searchsorted(edges, (rng.random() + np.arange(len(edges))) / len(edges)), len(edges) - 1)


def standard_normal(x: np.ndarray) -> np.ndarray:
    """The log-density of rows under the standard normal, up to a constant."""
    return -0.5 * np.sum(x**2, -1)


def laplace_jumps(
    rng: np.random.Generator, observed: np.ndarray, seen: np.ndarray, noise: float, number: int, burn: int = 300
) -> np.ndarray:
    """Draws of `cumsum(jumps)` with standard Laplace jumps, given noisy values of the entries that are seen.

    By Gibbs sampling: a Laplace jump is normal with an exponential variance (Park and Casella 2008, "The Bayesian
    lasso"). Every second draw is kept.
    """
    size = len(seen)
    sums = np.tril(np.ones((size, size)))
    matrix, value = sums[seen] / noise, observed[seen] / noise
    precision, shift, variances, draws = matrix.T @ matrix, matrix.T @ value, np.ones(size), []
    for index in range(burn + 2 * number):
        root = np.linalg.cholesky(precision + np.diag(1 / variances))
        white = solve_triangular(root, shift, lower=True) + rng.normal(size=size)
        jumps = solve_triangular(root, white, lower=True, trans=1)
        variances = 1 / np.maximum(rng.wald(1 / np.maximum(np.abs(jumps), 1e-6), 1.0), 1e-12)
        if index >= burn and index % 2 == 0:
            draws.append(sums @ jumps)
    return np.array(draws)
