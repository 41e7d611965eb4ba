r"""Entropic optimal transport between two sets of samples, its cost never stored whole.

For uniform weights and the cost `C_ij = ‖x_i − y_j‖²`, the dual potentials are the fixed point of

`f_i = −ε log mean_j exp((g_j − C_ij)/ε)`, `g_j = −ε log mean_i exp((f_i − C_ij)/ε)`,

and `W_ε(x, y) = mean f + mean g`, the entropy relative to the product of the weights. `ε` falls to its value from the
scale of the cost (Schmitzer 2019, "Stabilized sparse scaling algorithms for entropy regularized transport problems").
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._checks import check_number
from .._custom_types import FloatScalar, FloatScalarLike
from ._common import as_pair


def sinkhorn_divergence(
    x: PyTree,
    y: PyTree,
    *,
    epsilon: FloatScalarLike,
    batch_size: int = 1024,
    max_iterations: int = 5000,
    threshold: FloatScalarLike = 1e-3,
) -> FloatScalar:
    r"""Debiased entropic transport cost `S_ε(x, y) = W_ε(x, y) − ½ W_ε(x, x) − ½ W_ε(y, y)`, cost `‖a − b‖²`.

    **Arguments:**

    - `x`, `y`: samples, leaves of shape `(first, ...)` and `(second, ...)`.
    - `epsilon`: the entropic regularisation `ε > 0`, in squared units of the samples. Small ones need more iterations,
        and ones below 1e-6 of the squared spread lose their meaning in single precision.
    - `batch_size`: how many rows of the cost are computed at once.
    - `max_iterations`: most iterations of Sinkhorn's algorithm.
    - `threshold`: the error of the transport plan's marginals, summed in absolute value, at which it stops.

    **Returns:**

    A scalar in squared units of the samples: the squared 2-Wasserstein distance as `ε → 0`. NaN where the algorithm did
    not converge: raise `epsilon` or `max_iterations`.

    ??? cite "Source"

        Feydy et al. 2019, "Interpolating between optimal transport and MMD using Sinkhorn divergences", equations 3, 8
        and 25.
    """
    check_number("`epsilon`", epsilon, "a positive number", lambda x: x > 0)
    if batch_size < 1 or max_iterations < 1:
        raise ValueError(
            f"`batch_size` and `max_iterations` must be at least 1, got {batch_size} and {max_iterations}."
        )
    first, second = as_pair(x, y, 1)
    return _divergence(first, second, jnp.asarray(epsilon, first.dtype), batch_size, max_iterations, threshold)


@jax.jit(static_argnames=("batch_size",))
def _divergence(first, second, epsilon, batch_size, max_iterations, threshold):
    centre = jnp.mean(first, 0)
    first, second = first - centre, second - centre
    options = (epsilon, batch_size, max_iterations, threshold)
    between = _transport(first, second, *options, symmetric=False)
    within = _transport(first, first, *options, symmetric=True) + _transport(second, second, *options, symmetric=True)
    return between - within / 2


def _transport(first, second, epsilon, batch_size, max_iterations, threshold, *, symmetric):
    scale = jnp.mean(jnp.sum(first**2, 1)) + jnp.mean(jnp.sum(second**2, 1))

    def update(rows, columns, potential, epsilon):
        squares = jnp.sum(columns**2, 1)

        def one(row):
            product = jnp.matmul(columns, row, precision="highest")
            cost = jnp.maximum(jnp.sum(row**2) + squares - 2 * product, 0)
            values = (potential - cost) / epsilon
            return -epsilon * (jax.nn.logsumexp(values) - jnp.log(columns.shape[0]))

        return jax.lax.map(one, rows, batch_size=min(batch_size, rows.shape[0]))

    def step(state):
        f, g, index, _ = state
        current = jnp.maximum(epsilon, scale * 0.8**index)
        new = update(first, second, g, current)
        # The first marginal of the plan is `exp((f − new) / ε)` times the weights.
        error = jnp.where(current > epsilon, jnp.inf, jnp.mean(jnp.abs(jnp.expm1((f - new) / current))))
        if symmetric:
            new = (f + new) / 2
            return new, new, index + 1, error
        return new, update(second, first, new, current), index + 1, error

    start = (jnp.zeros(first.shape[0], first.dtype), jnp.zeros(second.shape[0], second.dtype), 0, jnp.inf)
    unfinished = lambda state: (state[2] < max_iterations) & ~(state[3] <= threshold)
    f, g, _, error = jax.lax.while_loop(unfinished, step, start)
    return jnp.where(error <= threshold, jnp.mean(f) + jnp.mean(g), jnp.nan)
