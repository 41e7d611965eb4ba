r"""Distances between two laws that are known by samples.

All of them take samples as PyTrees whose leaves have a leading axis; a sample is raveled to a vector in `R^d`, and the
distance is in the units of its entries. A complex entry is two, its real and its imaginary part.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import FloatScalar, Key, PyTree
from .._lazy import optional
from ._common import as_pair, largest


def c2st(x: PyTree, y: PyTree, *, seed: int = 1, num_folds: int = 5) -> float:
    """Classifier two-sample test: how well a network tells two sets of samples apart.

    Both sets are scaled by the mean and standard deviation of `x`; the classifier has two hidden layers of `10 d`
    rectified units, as in the benchmark of the source. Training it takes seconds to minutes.

    **Arguments:**

    - `x`: reference samples, leaves of shape `(first, ...)`; entries must vary.
    - `y`: samples to compare, leaves of shape `(second, ...)`. Use as many as of `x`: otherwise chance is not 0.5.
    - `seed`: of the folds and of the network.
    - `num_folds`: folds of the cross-validation.

    **Returns:**

    The mean accuracy over the folds: about 0.5 where the laws are equal, 1 where they are disjoint.

    **Raises:**

    `ImportError` if scikit-learn is not installed; `ValueError` if an entry of `x` does not vary.

    ??? cite "Source"

        Lueckmann et al. 2021, "Benchmarking simulation-based inference", appendix M.1; Lopez-Paz & Oquab 2017,
        "Revisiting classifier two-sample tests".
    """
    need = ("`c2st` needs scikit-learn", "diagnostics")
    selection, networks = (optional(f"sklearn.{name}", *need) for name in ("model_selection", "neural_network"))
    first, second = (np.asarray(rows, np.float64) for rows in as_pair(x, y, num_folds))
    mean, std = first.mean(0), first.std(0, ddof=1)
    if not np.all(std > 0):
        raise ValueError(f"`x` must vary in every entry, but {np.flatnonzero(std == 0)} do not; leave them out.")
    data = (np.concatenate([first - mean, second - mean]) / std).astype(np.float32)
    label = np.concatenate([np.zeros(len(first)), np.ones(len(second))])
    width = 10 * first.shape[1]
    classifier = networks.MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=10000, solver="adam", random_state=seed
    )
    folds = selection.KFold(n_splits=num_folds, shuffle=True, random_state=seed)
    return float(np.mean(selection.cross_val_score(classifier, data, label, cv=folds, scoring="accuracy")))


def sliced_wasserstein(
    x: PyTree, y: PyTree, *, key: Key, num_projections: int = 256, p: float | int = 1, batch_size: int = 16
) -> FloatScalar:
    r"""Sliced Wasserstein distance `(E_θ W_p^p(θᵀx, θᵀy))^{1/p}`, `θ` uniform on the unit sphere.

    The distances on the line are exact, by sorting. Sets of unequal sizes are compared by their quantile functions,
    exactly too.

    **Arguments:**

    - `x`, `y`: samples, leaves of shape `(first, ...)` and `(second, ...)`.
    - `key`: a PRNG key for the directions.
    - `num_projections`: number of directions.
    - `p`: the order, at least 1.
    - `batch_size`: how many directions are handled at once.

    **Returns:**

    A scalar in the units of the samples.

    ??? cite "Source"

        Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures", definition 2.
    """
    if p < 1:
        raise ValueError(f"`p` must be at least 1, got {p}; 1 and 2 are usual.")
    if num_projections < 1:
        raise ValueError(f"`num_projections` must be at least 1, got {num_projections}; give some hundred.")
    first, second = as_pair(x, y, 1)
    return _sliced_wasserstein(first, second, key, num_projections, p, batch_size)


@jax.jit(static_argnames=("num_projections", "batch_size"))
def _sliced_wasserstein(first, second, key, num_projections, p, batch_size):
    n, m = first.shape[0], second.shape[0]
    first, second, scale = standard(first, second)
    directions = jr.normal(key, (num_projections, first.shape[1]), first.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    # Both quantile functions are constant between the jumps of either.
    jumps = np.unique(np.concatenate([np.arange(n + 1) / n, np.arange(m + 1) / m]))
    middle, width = (jumps[1:] + jumps[:-1]) / 2, jnp.asarray(np.diff(jumps), first.dtype)
    i, j = (middle * n).astype(int), (middle * m).astype(int)

    def distance(direction):
        a, b = (jnp.sort(jnp.matmul(rows, direction, precision="highest")) for rows in (first, second))
        return jnp.sum(width * jnp.abs(a[i] - b[j]) ** p)

    return scale * jnp.mean(jax.lax.map(distance, directions, batch_size=batch_size)) ** (1 / p)


def energy_distance(x: PyTree, y: PyTree, *, batch_size: int = 64) -> FloatScalar:
    r"""Energy distance `2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖`, unbiased.

    Euclidean norms, over pairs of distinct samples; memory grows with `batch_size` times the number of samples.
    (SciPy's `energy_distance` on the line is the square root of it.)

    **Arguments:**

    - `x`, `y`: samples, leaves of shape `(first, ...)` and `(second, ...)`, at least two each.
    - `batch_size`: how many rows of distances are held at once.

    **Returns:**

    A scalar in the units of the samples; negative values arise by chance where the laws are equal.

    ??? cite "Source"

        Székely & Rizzo 2013, "Energy statistics: a class of statistics based on distances", equation 5.
    """
    first, second = as_pair(x, y, 2)
    return _energy_distance(first, second, batch_size)


@jax.jit(static_argnames=("batch_size",))
def _energy_distance(first, second, batch_size):
    first, second, scale = standard(first, second)
    between = _mean_distance(first, second, batch_size)
    within = _mean_distance(first, first, batch_size, same=True) + _mean_distance(second, second, batch_size, same=True)
    return scale * (2 * between - within)


def standard(
    first: Float[Array, "first size"], second: Float[Array, "second size"]
) -> tuple[Float[Array, "first size"], Float[Array, "second size"], FloatScalar]:
    """Both sets less the mean of the first, in units of the largest entry that is left, and that unit."""
    centre = jnp.mean(first, 0)
    first, second = first - centre, second - centre
    scale = largest(first, second)
    return first / scale, second / scale, scale


def _mean_distance(first, second, batch_size, *, same=False):
    """The mean distance over all pairs; with `same` over pairs of distinct samples of one set."""
    squares = jnp.sum(second**2, 1)

    def row(inputs):
        index, sample = inputs
        squared = jnp.maximum(jnp.sum(sample**2) + squares - 2 * jnp.matmul(second, sample, precision="highest"), 0)
        values = jnp.sqrt(squared)
        return jnp.sum(jnp.where(jnp.arange(second.shape[0]) == index, 0, values)) if same else jnp.sum(values)

    total = jnp.sum(jax.lax.map(row, (jnp.arange(first.shape[0]), first), batch_size=batch_size) / first.shape[0])
    return total / (second.shape[0] - same)
