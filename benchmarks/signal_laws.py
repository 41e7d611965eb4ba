"""Laws of signals and the distance of draws from them, for `signal_closed_forms.py`; NumPy and SciPy alone."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist


def directions(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


SECOND_MODE = 0.4


def draw_angles(rng, n):
    return rng.normal(size=n) * 0.2 + np.pi * (rng.random(n) < SECOND_MODE)


def on_circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], -1)


MIXTURE_WEIGHTS = np.array([0.6, 0.4])
MIXTURE_MEANS = np.array([[1.0, 0.5, -0.5], [-1.0, -0.5, 0.8]])


def mixture_roots():
    rng = np.random.default_rng(0)
    return [np.linalg.qr(rng.normal(size=(3, 3)))[0] * np.array([0.5, 0.3, 0.2]) for _ in range(2)]


def draw_mixture(rng, n, weights, means, roots):
    second = rng.random(n) < weights[1]
    white = rng.normal(size=(n, means.shape[1]))
    return np.where(second[:, None], means[1] + white @ roots[1].T, means[0] + white @ roots[0].T)


def condition_mixture(direction, value):
    """Weights, means and roots of the mixture given that its projection has a value."""
    weights, means, roots = [], [], []
    for weight, mean, root in zip(MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots(), strict=True):
        covariance = root @ root.T
        image = covariance @ direction
        variance, residual = direction @ image, value - direction @ mean
        weights.append(weight * np.exp(-0.5 * residual**2 / variance) / np.sqrt(variance))
        means.append(mean + image * residual / variance)
        eigenvalues, basis = np.linalg.eigh(covariance - np.outer(image, image) / variance)
        roots.append(basis * np.sqrt(np.maximum(eigenvalues, 0)))
    return np.array(weights) / np.sum(weights), np.array(means), roots


def closed_curve(angle, size=5, modes=4):
    """Points `(..., size)` of a smooth closed curve, the same random one each time, with coordinates of unit size."""
    waves = np.arange(1, modes + 1)
    amplitudes = np.random.default_rng(4).normal(size=(2, size, modes)) / waves**1.5
    phases = waves * np.asarray(angle)[..., None, None]
    return np.sum(amplitudes[0] * np.cos(phases) + amplitudes[1] * np.sin(phases), -1) / np.sqrt(
        np.mean(np.sum(amplitudes**2 / 2, (0, 2)))
    )


def transport(rows, reference, largest=2048):
    """The squared 2-Wasserstein distance of at most so many points of each, exactly."""
    n = min(len(rows), len(reference), largest)
    cost = cdist(rows[:n], reference[:n], "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean())
