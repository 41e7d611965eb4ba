r"""A test of one posterior, by a classifier that learned from all.

A classifier tells pairs of a true signal and its context from pairs of a draw and the context that it was drawn given.
What it says of draws given the one context that matters tells whether the posterior is right *there*, where no true
signal is known. The classifier regresses labels of ±1 by kernel ridge regression, whose expectation is the difference
of the classes' probabilities; its penalty is that of the least leave-one-out error. Of a right posterior the two
members of each pair may be exchanged, so that labels that are can be compared with those that are not, and one
decomposition of the kernel serves for all of them.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import check_key
from .._custom_types import Key, PyTree
from ._common import as_rows, check_at_least_one
from ._two_sample import gaussian_kernel, median_distance, permutation_p_value

# Penalties, of a kernel that is 1 at most: in steps so large that the best of them is nearly the best of all.
PENALTIES = (0.1, 1.0, 10.0, 100.0)


@final
class LocalC2ST(eqx.Module):
    """How well a classifier tells draws given one context from true signals.

    **Arguments:**

    - `statistic`: the mean square of the classifier's probability less one half, over the draws; 0 if it cannot tell
        them, a quarter if it is sure.
    - `p_value`: by permutation, of the posterior being right at that context.
    - `probability`: the classifier's probability that a draw is a true signal; where it is low, there should be fewer.
    """

    statistic: float
    p_value: float
    probability: Float[Array, " draws"]


def local_c2st(
    truths: PyTree,
    draws: PyTree,
    contexts: PyTree,
    *,
    context: PyTree,
    context_draws: PyTree,
    key: Key,
    num_permutations: int = 199,
) -> LocalC2ST:
    """Classifier two-sample test of the posterior given one context.

    Others' signals are learned from, at contexts like this one: the test is as good as these are many. All is held in
    memory, twice as many rows and columns of a kernel as there are records; a thousand take seconds.

    **Arguments:**

    - `truths`: known signals, leaves of shape `(records, ...)`, at least 10.
    - `draws`: one draw of the posterior given the context of each, leaves of shape `(records, ...)`.
    - `contexts`: these contexts, leaves of shape `(records, ...)`; numbers that say what was measured, and how.
    - `context`: the context that matters, leaves of shape `(...)`.
    - `context_draws`: draws given it, leaves of shape `(draws, ...)`.
    - `key`: a PRNG key, for the permutations.
    - `num_permutations`: how many there are.

    **Returns:**

    A [`stochinv.diagnostics.LocalC2ST`][].

    **Raises:**

    `ValueError` if numbers of records or of entries differ, and for fewer than 10 records.

    ??? cite "Source"

        Linhart, Gramfort and Rodrigues 2023, "L-C2ST: local diagnostics for posterior approximations in
        simulation-based inference", algorithms 1 and 2; Kim, Lee and Lei 2019, "Global and local two-sample tests via
        regression", for regression in the place of a network.
    """
    check_key(key)
    check_at_least_one(num_permutations=num_permutations)
    parts = {"truths": truths, "draws": draws, "contexts": contexts, "context_draws": context_draws}
    rows = {name: as_rows(name, x) for name, x in parts.items()}
    at = as_rows("context", jax.tree.map(lambda x: jnp.asarray(x)[None], context))
    _check_sizes({name: x.shape for name, x in rows.items()}, at.shape)
    swap_key, median_key = jr.split(key)
    number = len(rows["truths"])
    true, drawn = (jnp.concatenate([rows[name], rows["contexts"]], 1) for name in ("truths", "draws"))
    here = jnp.concatenate([rows["context_draws"], jnp.tile(at, (len(rows["context_draws"]), 1))], 1)
    signs = jr.rademacher(swap_key, (num_permutations, number), true.dtype)
    signs = jnp.concatenate([jnp.ones((1, number), true.dtype), signs])
    values, found = _regressed(true, drawn, here, signs, median_key)
    return LocalC2ST(float(values[0]), permutation_p_value(values), found)


def _check_sizes(sizes, at):
    records = {name: sizes[name][0] for name in ("truths", "draws", "contexts")}
    if len(set(records.values())) > 1 or records["truths"] < 10:
        raise ValueError(
            "`truths`, `draws` and `contexts` must have the same number of records, at least 10, got "
            f"{tuple(records.values())}; give one draw and one context for each true signal."
        )
    for name in ("draws", "context_draws"):
        if sizes[name][1] != sizes["truths"][1]:
            raise ValueError(
                f"`{name}` has signals of {sizes[name][1]} entries, but `truths` of {sizes['truths'][1]}; give signals "
                "alike."
            )
    if at[1] != sizes["contexts"][1]:
        raise ValueError(f"`context` has {at[1]} entries, but `contexts` {sizes['contexts'][1]}; give contexts alike.")


@jax.jit
def _regressed(true, drawn, here, signs, key):
    """The statistic for each row of labels, and the probability by the first."""
    both = jnp.concatenate([true, drawn])
    spread = jnp.std(both, 0)
    spread = jnp.where(spread > 0, spread, 1)
    both, here = both / spread, here / spread
    # The kernel knows differences alone, and those of entries far from 0 are lost to rounding.
    both, here = both - jnp.mean(both, 0), here - jnp.mean(both, 0)
    bandwidth = median_distance(both, key)
    values, vectors = jnp.linalg.eigh(gaussian_kernel(both, both, bandwidth))
    values = jnp.maximum(values, 0)
    labels = jnp.concatenate([signs, -signs], 1).T
    along = jnp.matmul(vectors.T, labels, precision="highest")

    def fit(penalty):
        shrunk = 1 / (values + penalty)
        weights = jnp.matmul(vectors, shrunk[:, None] * along, precision="highest")
        missed = weights / jnp.matmul(vectors**2, shrunk, precision="highest")[:, None]
        return weights, jnp.mean(missed**2, 0)

    weights, errors = jax.lax.map(fit, jnp.asarray(PENALTIES, both.dtype))
    best = jnp.argmin(errors, 0)
    chosen = jnp.take_along_axis(weights, best[None, None], 0)[0]
    found = jnp.matmul(gaussian_kernel(here, both, bandwidth), chosen, precision="highest")
    return jnp.mean((found / 2) ** 2, 0), jnp.clip(0.5 + found[:, 0] / 2, 0, 1)
