"""A problem that trains in milliseconds: a vector of three unknowns, measured by matrices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import stochinv as si

SIGNAL = jax.ShapeDtypeStruct((3,), jnp.float32)
ROLES = si.RandomViews(1, 1, 1)


def measure(signal, params):
    return params @ signal


class LinearDenoiser(eqx.Module):
    """A signal that is linear in the noisy target, and in the context's measurements."""

    target: Any
    context: Any

    def __init__(self, key, signal_size=3, size=2):
        first, second = jr.split(key)
        self.target = 0.3 * jr.normal(first, (signal_size, size))
        self.context = 0.3 * jr.normal(second, (signal_size, size))

    def __call__(self, noisy, level, context, params, *, key=None):
        signal = params.T @ (params @ (self.target @ noisy))
        if context is None:
            return signal
        seen = context.observation if isinstance(context, si.View) else context[None]
        weights = jnp.ones(len(seen)) if getattr(context, "mask", None) is None else context.mask
        return signal + jnp.einsum("sp,vp,v->s", self.context, seen, 1.0 * weights)


class RandomDenoiser(LinearDenoiser):
    """The same, and noise."""

    stochastic = True

    def __call__(self, noisy, level, context, params, *, key=None):
        signal = super().__call__(noisy, level, context, params)
        return signal if key is None else signal + 0.3 * jr.normal(key, (3,))


def views(num_records=24, num_views=4, seed=0):
    """Records of several measurements each."""
    rng = np.random.default_rng(seed)
    params = rng.normal(size=(num_records, num_views, 2, 3)).astype(np.float32)
    signals = rng.normal(size=(num_records, 3)).astype(np.float32)
    return si.View(jnp.einsum("nvij,nj->nvi", params, signals), jnp.asarray(params))


def examples(num_records=24, seed=0):
    """The same with their roles dealt."""
    data = views(num_records, seed=seed)
    part = lambda index: jax.tree.map(lambda x: x[:, index], data)
    return si.Example(part(slice(0, 1)), part(1), part(slice(2, 4)))


def problem(**options):
    options = {"denoiser": LinearDenoiser(jr.key(5)), "signal": SIGNAL, "objective": si.SquaredError(), **options}
    return si.StochasticInverseProblem(options.pop("forward", measure), **options)


def fit(problem, data, **options):
    options = {"key": jr.key(0), "steps": 6, "batch_size": 8, "progress": False, **options}
    return problem.fit(data, **options)


def assert_equal(a, b):
    """Two PyTrees of equal arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)
