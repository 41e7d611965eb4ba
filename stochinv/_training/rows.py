"""What records say of signals, as linear measurements with standard normal noise."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .._chunks import in_chunks
from .._custom_types import Signal, Structure
from .._data_info import AbstractUnits
from .._denoiser.evidence import LEAST_NOISE, Measured, as_rows
from .._structure import zeros_of
from .._view import View


def records_as_rows(
    measured: Measured,
    coordinates: AbstractUnits,
    signal: Structure,
    views: View,
    signals: Signal | None,
    index: Int[Array, " records"],
) -> tuple[Float[Array, "records m n"], Float[Array, "records m"]]:
    """What records say of signals in some coordinates, as measurements with standard normal noise.

    **Arguments:**

    - `measured`: how signals are measured.
    - `coordinates`: the coordinates.
    - `signal`: the structure of a signal.
    - `views`: the views of records, in standardised units.
    - `signals`: known signals, or `None`.
    - `index`: which of these is that of a record; negative where it is not known.
    """
    flat, unravel = zeros_of(signal)
    white = lambda z: coordinates.destandardise(unravel(z))

    def one(inputs):
        view, index = inputs
        rows, rest = as_rows(measured.evidence("dense", white, flat, view), flat.size)
        if signals is None:
            return rows, rest
        z = ravel_pytree(coordinates.standardise(jax.tree.map(lambda x: x[index], signals)))[0]
        filled = jnp.zeros((flat.size, flat.size), flat.dtype).at[: rest.size].set(rows)
        sure = jnp.eye(flat.size, dtype=flat.dtype) / LEAST_NOISE
        rest = jnp.zeros_like(z).at[: rest.size].set(rest)
        return jnp.where(index < 0, filled, sure), jnp.where(index < 0, rest, sure @ z)

    return in_chunks(one, (views, index))
