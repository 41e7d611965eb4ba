r"""A function mapped over many records, or over many keys, some of them at a time."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from ._checks import is_traced
from ._custom_types import AnyCallable, Keys, PyTree

CHUNK = 256
# By how much one number of keys at once may be smaller than the next, and how many more draws than asked for may be
# made for the sake of larger ones.
FINER, MOST_WASTED = 8, 1.35
# The axis of a mesh over which the draws of a score are laid out.
DRAWS = "draws"


def in_chunks(function: AnyCallable, records: PyTree, size: int = CHUNK) -> PyTree:
    """Maps a function over records, `size` at a time, so that memory does not grow with their number.

    Under a mesh (`jax.set_mesh`) those that are mapped at a time are laid out over all of its devices.

    All chunks are of one size, the last one filled up with the first records: two programs for factorisations that run
    at the same time, as for a shorter last chunk, can wait for each other for ever on a processor of few cores.
    """
    number, devices = jax.tree.leaves(records)[0].shape[0], math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
    chunk = -(-min(size, number) // devices) * devices
    index = jnp.arange(-(-number // chunk) * chunk) % number
    parts = jax.tree.map(lambda x: x[index].reshape(-1, chunk, *x.shape[1:]), records)
    mapped = jax.lax.map(jax.vmap(function), _over_devices(parts))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], mapped)


def _over_devices(parts):
    """Arrays whose second axis, under a mesh that divides it, is laid out over all devices; one whose axes are explicit
    is the user's own to lay out over."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
    if not automatic or mesh.size == 1 or jax.tree.leaves(parts)[0].shape[1] % mesh.size:
        return parts
    return jax.lax.with_sharding_constraint(parts, PartitionSpec(None, mesh.axis_names))


def over_draws(keys: Keys) -> Keys:
    """The keys of a record's draws, under a mesh that has an axis for them laid out over it."""
    mesh = jax.sharding.get_abstract_mesh()
    if DRAWS not in mesh.axis_names:
        return keys
    devices = mesh.shape[DRAWS]
    if keys.shape[0] % devices:
        raise ValueError(
            f"`num_draws` of the objective is {keys.shape[0]}, which cannot be dealt to the {devices} devices of the "
            f'axis "{DRAWS}" (`sharding`); give a multiple of {devices}.'
        )
    return jax.lax.with_sharding_constraint(keys, PartitionSpec(DRAWS))


def over_keys(function: AnyCallable, shared: Any, keys: Keys, chunk_size: int) -> PyTree:
    """`function(*shared, keys)` for any number of keys, by few compiled programs.

    It is called with `chunk_size` keys, or an eighth, a 64th, … of that, one chunk after the other, the last one filled
    up with the first keys. Inside of a program that is being compiled anyway all are one loop over chunks.

    **Arguments:**

    - `function`: a compiled function; each of its answers, with a leading axis, depends on one key alone.
    - `shared`: its arguments before the keys.
    - `keys`: the keys.
    - `chunk_size`: the most keys at once.
    """
    number = keys.shape[0]
    traced = any(is_traced(x) for x in jax.tree.leaves((shared, keys)))
    width = min(chunk_size, number) if traced else chunk_width(number, chunk_size)
    if traced and width < number:
        found = jax.lax.map(lambda keys: function(*shared, keys), jnp.stack(_split(keys, width)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], found)
    # Two of them at the same time could wait for each other, as in `in_chunks`.
    found = [jax.block_until_ready(function(*shared, block)) for block in _split(keys, width)]
    return _join(found, number)


@partial(jax.jit, static_argnums=1)
def _split(keys, width):
    number = keys.shape[0]
    full = keys[np.arange(-(-number // width) * width) % number]
    return list(_over_devices(full.reshape(-1, width, *keys.shape[1:])))


@partial(jax.jit, static_argnums=1)
def _join(parts, number):
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:number], *parts)


def chunk_width(number: int, chunk_size: int) -> int:
    """The largest number of draws at once, of a few, with which not many more than `number` are made."""
    width = chunk_size
    while width > 1 and -(-number // width) * width > MOST_WASTED * number:
        width = max(width // FINER, 1)
    return width


def rounded(number: int) -> int:
    """A number rounded up to its three leading binary digits: by a quarter at most, and to four in each octave."""
    step = 1 << max(number.bit_length() - 3, 0)
    return -(-number // step) * step
