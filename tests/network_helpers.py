"""What the tests of `stochinv.nn` share: random numbers, layers and calls that compile fast."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from jaxtyping import TypeCheckError


def fast_key(seed):
    """A key of that generator of JAX which compiles fast."""
    return jr.key(seed, impl="rbg")


def normal(*shape, seed=1):
    """Random numbers from NumPy, which has nothing to compile for a new shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def with_noise(layer, seed=2):
    rng = np.random.default_rng(seed)
    return jtu.tree_map(lambda x: x + 0.3 * rng.standard_normal(x.shape), layer)


def cast(network, dtype):
    return jtu.tree_map(lambda x: jnp.asarray(np.asarray(x).astype(dtype)), network)


def compiled(f):
    """Compiles a function, and gives NumPy arrays, which compile nothing further."""
    jitted = eqx.filter_jit(f)
    return lambda *args: jtu.tree_map(np.asarray, jitted(*args))


def refuses(call, *words):
    """Checks that a call raises, in words unless run-time type checks came first."""
    with pytest.raises((ValueError, TypeCheckError)) as info:
        call()
    if info.type is ValueError:
        for word in words:
            assert word in str(info.value)
