"""Ranks of values among draws, ties broken at random."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ._custom_types import Key


def random_rank(draws: Float[Array, "draws *shape"], value: Float[Array, "*shape"], key: Key) -> Int[Array, "*shape"]:
    """The rank of a value among draws, `0 … draws`; ties are broken at random."""
    below = jnp.sum(draws < value, 0)
    ties = jnp.sum(draws == value, 0)
    return below + jr.randint(key, value.shape, 0, ties + 1)


def fractional_ranks(
    samples: Float[Array, "samples *shape"], observed: Float[Array, "*shape"], *, key: Key
) -> Float[Array, "*shape"]:
    """The rank of each entry of a measurement among predictions of it, spread at random over `[0, 1]`.

    Where the predictions have the law of the measurement, every rank is uniform on `[0, 1]`, for any number of samples
    and with ties too, which are broken at random: round both to the levels at which measurements are recorded. The
    share of entries within the central interval of level `p` is that of `|rank − ½| ≤ p / 2`.

    **Arguments:**

    - `samples`: predictions, shape `(samples, *shape)`.
    - `observed`: the measurement.
    - `key`: a PRNG key.

    **Returns:**

    Ranks in `[0, 1]`.
    """
    rank_key, spread_key = jr.split(key)
    ranks = random_rank(samples, observed, rank_key)
    return (ranks + jr.uniform(spread_key, ranks.shape)) / (len(samples) + 1)
