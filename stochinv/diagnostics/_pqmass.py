r"""Whether two sets of samples fall alike into random cells of their space.

Points chosen at random of all samples divide the space into Voronoi cells. How many samples of each set are in each
cell is a table of counts, of independent rows and columns where the sets have one law, and Pearson's statistic of it
is then nearly `χ²` with as many degrees of freedom as there are cells, less one.
"""

from functools import partial
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._checks import check_key
from .._custom_types import Key, PyTree
from .._lazy import scipy_special
from ._common import as_pair, check_at_least_one
from ._distances import standard
from ._two_sample import permutation_p_value, permuted


@final
class PQMass(eqx.Module):
    """How alike two sets of samples fall into cells, for several sets of cells.

    **Arguments:**

    - `chi_squared`: Pearson's statistic for each set of cells.
    - `p_values`: that of each by the `χ²` law, uniform where the laws are equal; they are not independent.
    - `p_value`: of the mean statistic, by permutation; exact, however few samples there are in a cell.
    """

    chi_squared: Float[np.ndarray, " repeats"]
    p_values: Float[np.ndarray, " repeats"]
    p_value: float


def pqmass(
    x: PyTree, y: PyTree, *, key: Key, num_references: int = 50, num_repeats: int = 20, num_permutations: int = 999
) -> PQMass:
    """Whether two sets of samples have one law, by how many fall into random Voronoi cells.

    It needs no training and few assumptions, and works in many dimensions. Distances are Euclidean: scale entries first
    where their units differ.

    **Arguments:**

    - `x`, `y`: independent samples, leaves of shape `(first, ...)` and `(second, ...)`.
    - `key`: a PRNG key, for the cells and the permutations.
    - `num_references`: how many cells there are, at least 2; their reference points are taken out of the samples. With
        fewer than five samples of each set in a cell the `χ²` law is a rough one.
    - `num_repeats`: for how many sets of cells.
    - `num_permutations`: how many permutations of the labels there are.

    **Returns:**

    A [`stochinv.diagnostics.PQMass`][].

    **Raises:**

    `ValueError` for samples of different spaces, and where half of the samples or more would be reference points.

    ??? cite "Source"

        Lemos et al. 2024, "PQMass: probabilistic assessment of the quality of generative models using probability mass
        estimation", section 3.
    """
    check_key(key)
    check_at_least_one(num_references=num_references, num_repeats=num_repeats, num_permutations=num_permutations)
    first, second = as_pair(x, y, 2)
    if not 2 <= num_references < (len(first) + len(second)) / 2:
        raise ValueError(
            f"`num_references` must be at least 2 and less than half of the {len(first) + len(second)} samples, got "
            f"{num_references}; give a tenth of them at most."
        )
    first, second, _ = standard(first, second)
    label_key, cell_key = jr.split(key)
    labels = jnp.concatenate([jnp.ones(len(first)), jnp.zeros(len(second))])
    labels = jnp.concatenate([labels[None], permuted(labels, label_key, num_permutations)])
    rows = jnp.concatenate([first, second])
    counts = [_counts(rows, labels, key, num_references) for key in jr.split(cell_key, num_repeats)]
    statistics = np.stack([_pearson(*(np.asarray(x, np.float64) for x in found)) for found in counts])
    cells = np.array([np.count_nonzero(total) for _, total in counts])
    p_values = scipy_special.gammaincc((cells - 1) / 2, statistics[:, 0] / 2)
    return PQMass(statistics[:, 0], p_values, permutation_p_value(statistics.mean(0)))


@partial(jax.jit, static_argnums=3)
def _counts(rows, labels, key, num_references):
    """How many samples in each cell have a label of 1, for each row of labels, and how many samples there are in each.
    Some samples are the reference points, and do not count."""
    order = jr.permutation(key, len(rows))
    references, rest = rows[order[:num_references]], order[num_references:]
    offset = 0.5 * jnp.sum(references**2, 1)
    nearest = jnp.argmin(offset - jnp.matmul(rows[rest], references.T, precision="highest"), 1)
    cells = jax.nn.one_hot(nearest, num_references)
    return jnp.matmul(labels[:, rest], cells, precision="highest"), jnp.sum(cells, 0)


def _pearson(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Pearson's statistic of tables of two columns, of which `counts` is one and `total` the sum; whole numbers, so
    that columns that are alike give 0."""
    number, chosen = total.sum(), counts.sum(1, keepdims=True)
    spread = total * chosen * (number - chosen)
    return np.sum((number * counts - total * chosen) ** 2 / np.maximum(spread, 1), 1)
