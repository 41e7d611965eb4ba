"""By how much signals miss the measurements that they were drawn from, in standard deviations of the noise."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import FloatScalar, Signal
from .._data_info import destandardise_view
from .._denoiser.evidence import Measured
from .._noise import is_sized
from .._problem_base import context_units
from .._signal_problem import SignalProblem
from .._structure import count_entries
from .._view import View, view_mask

# The mean square of a record counts as no more than this, or than so many times that of the middle one.
LOST, TIMES_MEDIAN = 25.0, 4.0


def residual(
    problem: SignalProblem, measured: Measured, signal: Signal, views: View
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of squares by which a signal misses views, in standard deviations of the noise, and of how many entries.

    Both are 0 where the size of the noise is not known.
    """
    raw = destandardise_view(context_units(problem), views)
    if not is_sized(measured.noise, jax.tree.map(lambda x: x[0], raw.observation)):
        return jnp.zeros(()), jnp.zeros(())
    rest = jax.tree.map(lambda o, e, n: (o - e) / n, raw.observation, *measured.expect(signal, raw))
    squares, mask = jax.vmap(lambda x: jnp.sum(ravel_pytree(x)[0] ** 2))(rest), view_mask(views)
    return jnp.sum(jnp.where(mask, squares, 0)), jnp.sum(mask) * (count_entries(rest) / mask.size)


def root_mean_square(squares: Float[Array, " records"], counts: Float[Array, " records"]) -> FloatScalar:
    """The root mean square over all entries of many records, of which few that are far off count little.

    Where a forward model is not affine the signal of one record in a hundred may be lost in a valley far from the
    right one, and would hide how all others are.
    """
    means = squares / jnp.maximum(counts, 1)
    most = jnp.maximum(LOST, TIMES_MEDIAN * jnp.median(means))
    return jnp.sqrt(jnp.sum(jnp.minimum(means, most) * counts) / jnp.maximum(jnp.sum(counts), 1))
