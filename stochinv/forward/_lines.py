"""Which lines of k-space to measure. Their number is fixed, so that the shapes of measurements are."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from .._checks import check_integer, check_key, check_number, shown
from .._custom_types import FloatScalarLike, Key


def random_lines(
    height: int, number: int, *, centre: int = 0, power: FloatScalarLike = 2.0, key: Key
) -> Int[Array, " number"]:
    """Lines of k-space drawn at random, more of them near its centre.

    The `centre` lines around the line `height // 2` are always measured. The others are drawn one after the other
    without replacement, the line `j` with a probability proportional to `(1 - |j - c| / (c + 1)) ** power`, where
    `c = height // 2`.

    **Arguments:**

    - `height`: the number of all lines, at least 1.
    - `number`: how many are measured, between 1 and `height`.
    - `centre`: how many of them are in the block at the centre, between 0 and `number`.
    - `power`: how fast the density falls, at least 0; at 0 all lines are as likely.
    - `key`: a PRNG key.

    **Returns:**

    The indices of the lines, in increasing order and without repeats.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Densities: Lustig, Donoho and Pauly 2007, "Sparse MRI: the application of compressed sensing for rapid MR
        imaging". Drawing without replacement by adding Gumbel noise: Kool, van Hoof and Welling 2019, "Stochastic beams
        and where to find them".
    """
    _check(height, number, centre, key)
    check_number("`power`", power, "a finite number of at least 0", lambda x: x >= 0)
    middle = height // 2
    logits = power * jnp.log1p(-jnp.abs(jnp.arange(height) - middle) / (middle + 1))
    scores = logits + jr.gumbel(key, (height,))
    scores = scores.at[_block(height, centre)].set(jnp.inf)
    return jnp.sort(jax.lax.top_k(scores, number)[1])


def equispaced_lines(height: int, number: int, *, centre: int = 0, key: Key) -> Int[Array, " number"]:
    """Lines of k-space at equal distances from a random one on, and a block at its centre.

    The `centre` lines around the line `height // 2` are always measured. Of the `n` others every `n / m`-th is, where
    `m = number - centre`: of these, in order, the `(o + i n) // m`-th for `i = 0, …, m - 1`, with an offset `o` that is
    drawn uniformly from `0, …, n - 1`. Each is measured with probability `m / n`.

    **Arguments:**

    - `height`, `number`, `centre`, `key`: as of [`stochinv.forward.random_lines`][].

    **Returns:**

    The indices of the lines, in increasing order and without repeats.

    **Raises:**

    `ValueError` if an argument is out of its range.
    """
    _check(height, number, centre, key)
    block = _block(height, centre)
    others = np.setdiff1d(np.arange(height), block)
    count = number - centre
    offset = jr.randint(key, (), 0, max(len(others), 1))
    chosen = jnp.asarray(others)[(offset + len(others) * np.arange(count)) // max(count, 1)]
    return jnp.sort(jnp.concatenate([jnp.asarray(block), chosen]))


def _block(height, centre):
    """The lines around the middle one; of an even number, one more before it."""
    return height // 2 - centre // 2 + np.arange(centre)


def _check(height, number, centre, key):
    check_key(key)
    check_integer("`height`", height)
    check_integer("`number`", number)
    check_integer("`centre`", centre, 0)
    if not centre <= number <= height:
        raise ValueError(
            f"`number` must be between `centre` and `height`, {centre} and {height}, got {shown(number)}; measure "
            "fewer lines or choose a smaller block."
        )
