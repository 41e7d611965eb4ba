r"""A function mapped over many records, some of them at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._custom_types import AnyCallable

CHUNK = 256


def in_chunks(function: AnyCallable, records: PyTree, size: int = CHUNK) -> PyTree:
    """Maps a function over records, `size` at a time, so that memory does not grow with their number.

    All chunks are of one size, the last one filled up with the first records: two programs for factorisations that run
    at the same time, as for a shorter last chunk, can wait for each other for ever on a processor of few cores.
    """
    number = jax.tree.leaves(records)[0].shape[0]
    chunk = min(size, number)
    index = jnp.arange(-(-number // chunk) * chunk) % number
    mapped = jax.lax.map(function, jax.tree.map(lambda x: x[index], records), batch_size=chunk)
    return jax.tree.map(lambda x: x[:number], mapped)
