"""What single observations say of predictions: scores, to be averaged over held-out records."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._complex import as_parts
from .._custom_types import FloatScalar, PyTree
from ._common import as_rows, largest


def energy_score(samples: PyTree, observed: PyTree) -> FloatScalar:
    """`mean_m ‖x_m − o‖ − ½ mean_{m≠n} ‖x_m − x_n‖`, unbiased: the score of predictions of the *joint* law of `o`.

    The norm is the root mean square over all entries. Of laws that predict `o`, the true one has the least expected
    score; one sample is scored as a prediction without spread.

    **Arguments:**

    - `samples`: predictions of a measurement, leaves of shape `(samples, ...)`.
    - `observed`: the measurement, in the structure of one sample.

    **Returns:**

    A scalar in the units of the measurement.

    **Raises:**

    `ValueError` if samples and measurement differ in their number of entries.

    ??? cite "Source"

        Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
    """
    rows, value = _checked(samples, observed)
    rows = rows - value
    scale = largest(rows)
    rows = rows / scale
    norm = lambda difference: jnp.sqrt(jnp.mean(difference**2, -1))
    pairs = jnp.sum(jax.lax.map(lambda row: jnp.sum(norm(rows - row)), rows))
    return scale * (jnp.mean(norm(rows)) - pairs / _twice_the_pairs(rows))


def crps(samples: PyTree, observed: PyTree) -> FloatScalar:
    """The continuous ranked probability score, unbiased, mean over entries: the energy score of each by itself.

    It takes, returns and raises what [`stochinv.diagnostics.energy_score`][] does.

    ??? cite "Source"

        Gneiting and Raftery 2007, equation 21.
    """
    rows, value = _checked(samples, observed)
    number = len(rows)
    # Of the sorted values the i-th is the larger one of i pairs, and the smaller one of the others.
    larger = 2 * jnp.arange(number) - (number - 1)
    pairs = 2 * larger.astype(rows.dtype) @ jnp.sort(rows, axis=0)
    return jnp.mean(jnp.mean(jnp.abs(rows - value), 0) - pairs / _twice_the_pairs(rows))


def _checked(samples, observed):
    rows, value = as_rows("samples", samples), ravel_pytree(as_parts(jax.tree.map(jnp.asarray, observed)))[0]
    if rows.shape[1] != value.size:
        raise ValueError(
            f"`samples` must predict all of `observed`, got {rows.shape[1]} and {value.size} entries; give `samples` a "
            "leading axis and the structure of `observed`."
        )
    return rows, value


def _twice_the_pairs(rows):
    number = len(rows)
    return max(2 * number * (number - 1), 1)
