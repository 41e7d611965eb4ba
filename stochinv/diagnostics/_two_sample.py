r"""Tests of whether two sets of samples have one law, with p-values by permutation.

Where the laws are equal, the labels that tell which set a sample is of may be exchanged. So the rank of a statistic
among its values for permuted labels is uniform, whatever the statistic and however few samples there are. With weights
`w` of `1/n` for the first set and `−1/m` for the second, both statistics are quadratic forms over all samples,

`E = −Σ_ij w_i w_j ‖z_i − z_j‖`  and  `MMD² = Σ_ij w_i w_j exp(−‖z_i − z_j‖² / 2ℓ²)`,

and permutations share the matrix of distances, of which some rows at a time are held.
"""

from functools import partial
from typing import Any, Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_key
from .._custom_types import FloatScalar, Key, PyTree
from ._common import as_pair, check_at_least_one
from ._distances import standard

# Of how many samples the bandwidth is the median distance.
MOST_IN_MEDIAN = 500
# Statistics of permutations that differ by less, in the size of their terms, differ by rounding alone.
ROUNDING = 1e-6


@final
class TwoSampleTest(eqx.Module):
    """A statistic of two sets of samples, and how likely one law is to make it as large.

    **Arguments:**

    - `statistic`: the statistic; 0 for two sets that are the same.
    - `p_value`: the share of permutations whose statistic is at least as large, the one observed included.
    """

    statistic: float
    p_value: float


def two_sample_test(
    x: PyTree,
    y: PyTree,
    *,
    key: Key,
    statistic: Literal["energy", "kernel"] = "energy",
    num_permutations: int = 999,
    batch_size: int = 256,
) -> TwoSampleTest:
    r"""Whether two sets of samples have one law, by permutation of their labels.

    Norms are Euclidean: scale entries first where their units differ. The test is exact for independent samples; a
    Markov chain has to be thinned before.

    **Arguments:**

    - `x`, `y`: samples, leaves of shape `(first, ...)` and `(second, ...)`, at least two each.
    - `key`: a PRNG key, for the permutations.
    - `statistic`: `"energy"` for the energy distance, in the units of the samples; `"kernel"` for the squared maximum
        mean discrepancy, with a Gaussian kernel whose bandwidth is the median distance of all samples.
    - `num_permutations`: how many; the least p-value is one over their number plus one.
    - `batch_size`: how many rows of distances are held at once.

    **Returns:**

    A [`stochinv.diagnostics.TwoSampleTest`][].

    **Raises:**

    `ValueError` for any other `statistic`, for samples of different spaces, and for fewer than two of either.

    ??? cite "Source"

        Székely and Rizzo 2013, "Energy statistics: a class of statistics based on distances", section 4; Gretton et al.
        2012, "A kernel two-sample test", equation 5 and section 8 for the bandwidth.
    """
    check_key(key)
    check_at_least_one(num_permutations=num_permutations, batch_size=batch_size)
    if statistic not in MATRICES:
        raise ValueError(f"`statistic` must be one of {sorted(MATRICES)}, got {statistic!r}; choose one of them.")
    first, second, scale = standard(*as_pair(x, y, 2))
    n, m = len(first), len(second)
    label_key, median_key = jr.split(key)
    rows = jnp.concatenate([first, second])
    weights = jnp.concatenate([jnp.full(n, 1 / n), jnp.full(m, -1 / m)])
    weights = jnp.concatenate([weights[None], permuted(weights, label_key, num_permutations)])
    bandwidth = median_distance(rows, median_key)
    values = _forms(rows, weights, bandwidth, statistic, batch_size)
    size, unit = (float(scale), float(bandwidth)) if statistic == "energy" else (1.0, 1.0)
    return TwoSampleTest(size * float(values[0]), permutation_p_value(values, unit))


@partial(jax.jit, static_argnums=2)
def permuted(values: Float[Array, " n"], key: Key, number: int) -> Float[Array, "number n"]:
    """Random permutations of some numbers."""
    return jax.vmap(lambda key: jr.permutation(key, values))(jr.split(key, number))


def permutation_p_value(values: Any, unit: float = 1.0) -> float:
    """The share of statistics that are no less than the first, which is that observed.

    **Arguments:**

    - `values`: the statistics.
    - `unit`: the size of what they are sums of.
    """
    values = np.asarray(values, np.float64)
    return float(np.mean(values >= values[0] - ROUNDING * unit))


@jax.jit
def median_distance(rows: Float[Array, "n size"], key: Key) -> FloatScalar:
    """The median distance of samples, or of some of many; 1 if it is 0."""
    some = rows[jr.permutation(key, len(rows))[:MOST_IN_MEDIAN]]
    squares = _squares(some, some)
    upper = jnp.triu(jnp.ones(squares.shape, bool), 1)
    median = jnp.sqrt(jnp.nanmedian(jnp.where(upper, squares, jnp.nan)))
    return jnp.where(median > 0, median, 1)


def _squares(first, second):
    products = jnp.matmul(first, second.T, precision="highest")
    return jnp.maximum(jnp.sum(first**2, 1)[:, None] + jnp.sum(second**2, 1) - 2 * products, 0)


def gaussian_kernel(
    first: Float[Array, "first size"], second: Float[Array, "second size"], bandwidth: FloatScalar
) -> Float[Array, "first second"]:
    """`exp(−‖x − y‖² / 2ℓ²)` of all pairs."""
    return jnp.exp(-0.5 * _squares(first, second) / bandwidth**2)


MATRICES: dict[str, Any] = {
    "energy": lambda first, second, bandwidth: -jnp.sqrt(_squares(first, second)),
    "kernel": gaussian_kernel,
}


@partial(jax.jit, static_argnums=(3, 4))
def _forms(rows, weights, bandwidth, statistic, batch_size):
    def one(inputs):
        row, weight = inputs
        return weight * jnp.matmul(weights, MATRICES[statistic](row[None], rows, bandwidth)[0], precision="highest")

    return jnp.sum(jax.lax.map(one, (rows, weights.T), batch_size=batch_size), 0)
