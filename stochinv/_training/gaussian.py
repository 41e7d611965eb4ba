r"""The best Gaussian: the law `N(m, S)` of signals under which noisy measurements of them are most likely.

By expectation maximisation in closed form (Dempster, Laird and Rubin 1977). In coordinates in which the present
Gaussian is white, `s = m + W z`, the measurements of record `i` say `Λ_i` and `b_i` of it (see `evidence`). Given them
`z_i` has the covariance `C_i = (I + Λ_i)⁻¹` and the mean `C_i b_i`. The next Gaussian has the mean of the means, and
the mean of `C_i` plus the covariance of the means. No round makes the measurements less likely.

Where fewer entries are measured than the signal has, `C_i = I − Bᵀ (I + B Bᵀ)⁻¹ B` with the `m × n` matrix
`B = R^(−1/2) A`, in `n² m` operations. Directions that vary by less than the noise are found slowly: of signals of more
than a few entries many rounds see some of the records each. Where single entries of large signals are measured, the
moments of those that were measured together are nearly as good, and need no rounds.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import AnyCallable, Key

GAUSSIAN_ROUNDS = 50
# Online rounds, and of how many records each, for vectors and for images; how many of these at once, and how much the
# first round counts; the last is next to none.
VECTOR_ROUNDS, IMAGE_ROUNDS = (400, 256), (60, 128)
FEW_CHUNK, FIRST_SHARE = 32, 0.5
# How many of them the start is fitted to.
FIRST_FEW = 256
# The covariance of two entries that were measured together in so many records is halved: the fewer, the less is known.
HALF_TRUST = 20


def best_gaussian(
    precision: Float[Array, "records n n"], shift: Float[Array, "records n"], rounds: int
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The mean and the covariance of the best Gaussian, starting from the standard normal.

    **Arguments:**

    - `precision`, `shift`: `Λ_i` and `b_i` of each record, in the coordinates in which the start is standard normal.
    - `rounds`: the number of rounds.
    """
    size = shift.shape[1]
    identity = jnp.eye(size, dtype=shift.dtype)

    def moments(mean, root, precision, shift):
        factor = jnp.linalg.cholesky(identity + root.T @ precision @ root)
        half = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        covariance = half.T @ half
        centre = covariance @ (root.T @ (shift - precision @ mean))
        return centre, covariance + jnp.outer(centre, centre)

    def one_round(carry, _):
        mean, root = carry
        centres, seconds = in_chunks(lambda x: moments(mean, root, *x), (precision, shift))
        centre = jnp.mean(centres, 0)
        covariance = jnp.mean(seconds, 0) - jnp.outer(centre, centre)
        return (mean + root @ centre, root @ jnp.linalg.cholesky(covariance)), None

    (mean, root), _ = jax.lax.scan(one_round, (jnp.zeros(size, shift.dtype), identity), None, length=rounds)
    return mean, root @ root.T


def online_gaussian(
    rows_of: AnyCallable, number: int, covariance: Float[Array, "n n"], rounds: tuple[int, int]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The best Gaussian of records, starting from the mean that fits all of them best.

    By online expectation maximisation: each round sees some of the records, and counts less than those before.

    **Arguments:**

    - `rows_of`: from the indices of some records to `B` of each, and to what was measured beyond a signal of zeros, in
        standard deviations of the noise. They are not kept: of images they are far larger than what was measured.
    - `number`: the number of records, in random order.
    - `covariance`: that of the start, up to a factor, which is found.
    - `rounds`: the number of rounds, and of records in each.

    ??? cite "Source"

        Cappé and Moulines 2009, "On-line expectation-maximization algorithm for latent data models".
    """
    length, most = rounds
    rows, rest = rows_of(jnp.arange(min(FIRST_FEW, number)))
    mean, covariance = _scaled_start(rows, rest, covariance)
    size = mean.size

    def condition(mean, covariance, inputs):
        matrix, rest = inputs
        across = matrix @ covariance
        factor = jnp.linalg.cholesky(jnp.eye(rest.size, dtype=rest.dtype) + across @ matrix.T)
        both = jnp.concatenate([across, (rest - matrix @ mean)[:, None]], 1)
        both = jax.scipy.linalg.solve_triangular(factor, both, lower=True)
        half, rest = both[:, :-1], both[:, -1]
        return half, half.T @ rest

    # Few records at a time, taken in turns: the mean of so many is right enough while the Gaussian is not.
    chunk = min(FEW_CHUNK, number)
    each = min(most, number) // chunk * chunk
    parts = number // each

    def one_round(carry, round):
        mean, covariance = carry

        def add(sums, index):
            gained, first, second = sums
            half, centre = jax.vmap(lambda *x: condition(mean, covariance, x))(*rows_of(index))
            half = half.reshape(-1, size)
            return (gained + half.T @ half, first + jnp.sum(centre, 0), second + centre.T @ centre), None

        index = (round % parts * each + jnp.arange(each)).reshape(-1, chunk)
        start = (jnp.zeros_like(covariance), jnp.zeros_like(mean), jnp.zeros_like(covariance))
        (gained, first, second), _ = jax.lax.scan(add, start, index)
        centre = first / each
        change = (second - gained) / each
        share = FIRST_SHARE * (1 - round / length) if parts > 1 else 1.0
        # The moments move by that share, not the covariance: that of the centre of so few records is no part of it.
        spread = share * 0.5 * (change + change.T) - share**2 * jnp.outer(centre, centre)
        return (mean + share * centre, covariance + spread), None

    return jax.lax.scan(one_round, (mean, covariance), jnp.arange(length))[0]


def _scaled_start(rows, rest, covariance):
    """The mean that fits all records best, and the covariance scaled to what is left."""
    number, _, size = rows.shape
    seen = jnp.sum(jnp.any(rows != 0, -1))
    every = rows.reshape(-1, size)
    # A mean as smooth as signals are, for which each record counts once: its measurements vary together.
    across = every @ covariance
    normal = across.T @ across
    spread = jnp.sum(across * every)
    ridge = spread / number * covariance
    mean = covariance @ jnp.linalg.solve(normal + ridge, across.T @ rest.ravel())
    left = rest - rows @ mean
    return mean, covariance * jnp.maximum(jnp.sum(left**2) - seen, 1e-3 * seen) / spread


def pairwise_gaussian(
    values: Float[Array, "records n"], shift: Float[Array, "records n"]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The moments of entries that were measured together, less what noise adds to them.

    **Arguments:**

    - `values`, `shift`: the diagonals of `Λ_i`, and `b_i`, of each record.
    """
    seen = values > 0
    mask = seen.astype(values.dtype)
    measured = jnp.where(seen, shift / jnp.where(seen, values, 1), 0)
    number = jnp.maximum(jnp.sum(mask, 0), 1)
    mean = jnp.sum(measured, 0) / number
    centred = mask * (measured - mean)
    together = mask.T @ mask
    covariance = centred.T @ centred / jnp.maximum(together, 1)
    noise = jnp.sum(jnp.where(seen, 1 / jnp.where(seen, values, 1), 0), 0) / number
    diagonal = jnp.diag(covariance)
    off = covariance * (1 - jnp.eye(mean.size, dtype=mean.dtype)) * together / (together + HALF_TRUST)
    return mean, off + jnp.diag(jnp.maximum(diagonal - noise, 0))


def condition(
    precision: Float[Array, "n n"], shift: Float[Array, " n"], noise: Float[Array, " n"]
) -> Float[Array, " n"]:
    """A draw of a standard normal `z` given `Λ` and `b` of it, made of a draw `noise` of a standard normal."""
    root = jnp.linalg.cholesky(jnp.eye(shift.size, dtype=shift.dtype) + precision)
    half = jax.scipy.linalg.solve_triangular(root, shift, lower=True)
    return jax.scipy.linalg.solve_triangular(root.T, half + noise, lower=False)


def condition_few(rows: Float[Array, "m n"], rest: Float[Array, " m"], key: Key) -> Float[Array, " n"]:
    """A draw of a standard normal `z` given `rest = B z + noise` with standard normal noise.

    A draw of the two together is corrected by its difference to what was measured (Matheron's rule).
    """
    z_key, noise_key = jr.split(key)
    z = jr.normal(z_key, rows.shape[1:], rows.dtype)
    rest = rest - rows @ z - jr.normal(noise_key, rest.shape, rest.dtype)
    factor = jnp.linalg.cholesky(jnp.eye(rest.size, dtype=rest.dtype) + rows @ rows.T)
    return z + rows.T @ jax.scipy.linalg.cho_solve((factor, True), rest)


def condition_entries(
    covariance: Float[Array, "n n"],
    values: Float[Array, " n"],
    shift: Float[Array, " n"],
    z: Float[Array, " n"],
    noise: Float[Array, " n"],
) -> Float[Array, " n"]:
    """A draw of `N(0, covariance)` given measurements of single entries, made of a draw `z` of it.

    By conjugate gradients: products with one matrix, which many records share.

    **Arguments:**

    - `values`, `shift`: the diagonal of `Λ`, and `b`.
    - `noise`: a draw of a standard normal.
    """
    scale = jnp.sqrt(values)
    rest = jnp.where(values > 0, shift / jnp.where(values > 0, scale, 1), 0) - scale * z - noise
    product = lambda x: x + scale * (covariance @ (scale * x))
    solution, _ = jax.scipy.sparse.linalg.cg(product, rest, tol=1e-3, maxiter=100)
    return z + covariance @ (scale * solution)
