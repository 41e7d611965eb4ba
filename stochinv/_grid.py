"""Which signals lie on a grid: images, sequences and volumes, to which convolutional networks suit."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import Structure
from ._structure import count_entries

# The most entries of a signal that a perceptron denoises.
LARGEST_VECTOR = 256
# A last axis of at most so many entries is one of channels.
_MOST_CHANNELS = 16
# How long a sequence of fewer entries is, so that convolutions suit it better than a perceptron does.
_SHORTEST = 32


def is_large(signal: Structure) -> bool:
    """Whether a signal has more entries than a perceptron denoises."""
    return count_entries(signal) > LARGEST_VECTOR


def grid_of(signal: Structure) -> tuple[int, ...] | None:
    """The shape `(*space, channels)` of a signal on a grid of one to three axes; `None` for all others.

    Such a signal is one array of two to four axes. The last one is that of channels if it has at most 16 entries;
    otherwise there is one channel. Axes of one entry are none of space.
    """
    leaves = jax.tree.leaves(signal)
    if len(leaves) != 1 or not 2 <= len(leaves[0].shape) <= 4:
        return None
    *space, channels = leaves[0].shape
    if channels > _MOST_CHANNELS:
        space, channels = [*space, channels], 1
    space = [size for size in space if size > 1]
    return (*space, channels) if 1 <= len(space) <= 3 else None


def is_convolved(signal: Structure) -> bool:
    """Whether a convolutional network suits a signal: one on a grid that has more than 256 entries, or is a sequence of
    at least 32."""
    grid = grid_of(signal)
    if grid is None:
        return False
    return is_large(signal) or (len(grid) == 2 and grid[0] >= _SHORTEST)


def is_costly(signal: Structure) -> bool:
    """Whether a signal's network is costly: a convolutional one, or one of more than 256 entries."""
    return is_large(signal) or is_convolved(signal)


def smooth_covariance(signal: Structure) -> Float[Array, "n n"]:
    """The covariance of smooth signals on a grid, correlated over some pixels; of independent entries for others, and
    for sequences of few entries, whose records tell better than a guess how smooth they are."""
    dtype, grid = jnp.result_type(*jax.tree.leaves(signal)), grid_of(signal)
    identity = jnp.eye(count_entries(signal), dtype=dtype)
    if grid is None or (len(grid) == 2 and not is_large(signal)):
        return identity
    *space, channels = grid
    near = lambda n: jnp.exp(-0.125 * (jnp.arange(n)[:, None] - jnp.arange(n)) ** 2)
    return functools.reduce(jnp.kron, [*map(near, space), jnp.eye(channels)]).astype(dtype) + 0.02 * identity
