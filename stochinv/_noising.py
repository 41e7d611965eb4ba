r"""Noising a measurement."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, UInt32

from ._custom_types import FloatScalar, FloatScalarLike, Key, Observation, PyTree
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
    keys = [key] if len(leaves) == 1 else jr.split(key, len(leaves))
    noise = [s * jr.normal(k, x.shape, x.dtype) for k, x, s in zip(keys, leaves, scales, strict=True)]
    return jax.tree.unflatten(treedef, noise)


def numbered_key(key: Key, number: UInt32[Array, ""]) -> Key:
    """The key of one step among many: the words of `key`, XOR `number`.

    Counter-based generators give independent streams for distinct keys, however alike they are (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3"). `jax.random.fold_in` runs the generator once more for it, which in
    the loop of a sampler takes as long as a small layer.
    """
    data = jr.key_data(key) ^ number
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jr.wrap_key_data(data, impl=jr.key_impl(key)) if typed else data


def noise_target(
    schedule: AbstractNoiseSchedule, observation: Observation, t: FloatScalarLike, key: Key
) -> tuple[Observation, NoiseLevel]:
    """`o_t = α(t) o + σ(t) ε` and its noise level."""
    level = noise_level(schedule, t, observation)
    noise = scaled_normal(observation, level.sigma, key)
    return jax.tree.map(lambda o, e: level.alpha * o + e, observation, noise), level


def uniform_time(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: `t` uniform in `[0, 1]`."""
    return jr.uniform(key)


def uniform_log_snr(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: the log signal-to-noise ratio uniform over the schedule's range."""
    return schedule.inverse(jr.uniform(key, minval=schedule.log_snr(1.0), maxval=schedule.log_snr(0.0)))


def middle_log_snr(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: most where images take shape, the log signal-to-noise ratio normal with mean -0.5 and
    standard deviation 2 within the schedule's range (Karras et al. 2022, "Elucidating the design space of
    diffusion-based generative models", section 5)."""
    log_snr = 2 * jr.normal(key) - 0.5
    return schedule.inverse(jnp.clip(log_snr, schedule.log_snr(1.0), schedule.log_snr(0.0)))


def half_middle_log_snr(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: half of them as [`stochinv.middle_log_snr`][], where signals that are hardly known take
    shape, and half as [`stochinv.uniform_log_snr`][], where those do that are known well."""
    which_key, level_key = jr.split(key)
    middle = jr.bernoulli(which_key)
    return jnp.where(middle, middle_log_snr(schedule, level_key), uniform_log_snr(schedule, level_key))


def pure_noise(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: `t = 1` alone, for samples in one step."""
    return jnp.ones(())


def mostly_noise(schedule: AbstractNoiseSchedule, key: Key) -> FloatScalar:
    """Noise levels of training: half of them `t = 1`, where every sample starts, the others uniform in `t`."""
    return jnp.minimum(2 * jr.uniform(key), 1)
