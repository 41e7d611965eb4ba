r"""Noising a measurement."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from ._custom_types import FloatScalarLike, Key, Observation
from ._schedule import AbstractNoiseSchedule, NoiseLevel


def noise_level(schedule: AbstractNoiseSchedule, t: FloatScalarLike, like: Observation) -> NoiseLevel:
    """The noise level at `t` in the dtype of a measurement, which it must not promote."""
    dtype = jnp.result_type(*jax.tree.leaves(like))
    return jax.tree.map(lambda x: x.astype(dtype), schedule.level(t))


def scaled_normal(like: Observation, scale: PyTree, key: Key) -> Observation:
    """Gaussian noise in the shape of a measurement; `scale` is a scalar, or a PyTree of scalars like it."""
    leaves, treedef = jax.tree.flatten(like)
    scales = jax.tree.leaves(scale)
    scales = scales * len(leaves) if len(scales) == 1 else scales
    keys = jr.split(key, len(leaves))
    noise = [s * jr.normal(k, x.shape, x.dtype) for k, x, s in zip(keys, leaves, scales, strict=True)]
    return jax.tree.unflatten(treedef, noise)


def noise_target(
    schedule: AbstractNoiseSchedule, observation: Observation, t: FloatScalarLike, key: Key
) -> tuple[Observation, NoiseLevel]:
    """`o_t = α(t) o + σ(t) ε` and its noise level."""
    level = noise_level(schedule, t, observation)
    noise = scaled_normal(observation, level.sigma, key)
    return jax.tree.map(lambda o, e: level.alpha * o + e, observation, noise), level
