r"""A function mapped over many records, some of them at a time."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from ._custom_types import AnyCallable

CHUNK = 256


def in_chunks(function: AnyCallable, records: PyTree, size: int = CHUNK) -> PyTree:
    """Maps a function over records, `size` at a time, so that memory does not grow with their number.

    Under a mesh (`jax.set_mesh`) those that are mapped at a time are laid out over all of its devices.

    All chunks are of one size, the last one filled up with the first records: two programs for factorisations that run
    at the same time, as for a shorter last chunk, can wait for each other for ever on a processor of few cores.
    """
    number, mesh = jax.tree.leaves(records)[0].shape[0], jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    chunk = -(-min(size, number) // devices) * devices
    index = jnp.arange(-(-number // chunk) * chunk) % number
    parts = jax.tree.map(lambda x: x[index].reshape(-1, chunk, *x.shape[1:]), records)
    if devices > 1:
        parts = jax.lax.with_sharding_constraint(parts, PartitionSpec(None, mesh.axis_names))
    mapped = jax.lax.map(jax.vmap(function), parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], mapped)
