r"""The best Gaussian: the law `N(m, S)` of signals under which noisy measurements of them are most likely.

By expectation maximisation in closed form (Dempster, Laird and Rubin 1977). In coordinates in which the present
Gaussian is white, `s = m + W z`, the measurements of record `i` say `Λ_i` and `b_i` of it (see `gaussian_residual`).
Given them `z_i` has the covariance `C_i = (I + Λ_i)⁻¹` and the mean `C_i b_i`. The next Gaussian has the mean of the
means, and the mean of `C_i` plus the covariance of the means. No round makes the measurements less likely.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._chunks import in_chunks as in_chunks

GAUSSIAN_ROUNDS = 50


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


def condition(
    precision: Float[Array, "n n"], shift: Float[Array, " n"], noise: Float[Array, " n"]
) -> Float[Array, " n"]:
    """A draw of a standard normal `z` given `Λ` and `b` of it, made of a draw `noise` of a standard normal."""
    root = jnp.linalg.cholesky(jnp.eye(shift.size, dtype=shift.dtype) + precision)
    half = jax.scipy.linalg.solve_triangular(root, shift, lower=True)
    return jax.scipy.linalg.solve_triangular(root.T, half + noise, lower=False)
