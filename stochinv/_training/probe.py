r"""What a forward model does with random signals, before any training: finite, affine, differentiable?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._custom_types import AnyCallable, Key, Params, Structure, summary
from .._view import structure


def _random_signal(signal, key):
    leaves, treedef = jax.tree.flatten(signal)
    return treedef.unflatten(
        [jr.normal(k, x.shape, x.dtype) for k, x in zip(jr.split(key, len(leaves)), leaves, strict=True)]
    )


def _largest(tree):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]))


def is_affine(forward: AnyCallable, signal: Structure, params: Params, key: Key) -> bool:
    """Whether measurements of random signals are affine in them.

    **Raises:**

    `ValueError` if one of them is not finite.
    """

    @eqx.filter_jit
    def measure_all(forward, params, key):
        first, second = (_random_signal(signal, k) for k in jr.split(key))
        # A kink at 0, as of an absolute value, lies between a signal and its opposite.
        opposite = jax.tree.map(jnp.negative, first)
        at_first, at_second, at_opposite = (forward(s, params) for s in (first, second, opposite))

        def gap(other, at_other):
            at_middle = forward(jax.tree.map(lambda a, b: 0.5 * (a + b), first, other), params)
            return _largest(jax.tree.map(lambda a, b, m: 0.5 * a + 0.5 * b - m, at_first, at_other, at_middle))

        gaps = jnp.maximum(gap(second, at_second), gap(opposite, at_opposite))
        return gaps, _largest(at_first) + _largest(at_second)

    keys = jr.split(key, 3)
    gaps, sizes = (jnp.stack(x) for x in zip(*_run("measured", measure_all, forward, params, keys), strict=True))
    if not bool(jnp.all(jnp.isfinite(sizes))):
        raise ValueError(
            f"`forward` returns NaN or infinite measurements of {int(jnp.sum(~jnp.isfinite(sizes)))} of {len(keys)} "
            "random signals from N(0, I); make it finite for every signal, for instance by parameters that are "
            "positive by `jnp.exp`."
        )
    tolerance = 1e3 * jnp.finfo(sizes.dtype).eps
    return bool(jnp.all(gaps <= tolerance * sizes)) and _linearises(forward, signal, params)


def probe(forward: AnyCallable, signal: Structure, params: Params, key: Key) -> bool:
    """Whether `forward` is affine; looks at derivatives too.

    **Raises:**

    `ValueError` if measurements or derivatives are not finite, or if there is no derivative at all.
    """

    @eqx.filter_jit
    def differentiate(forward, params, key):
        signal_key, cotangent_key = jr.split(key)
        # Training needs reverse mode alone, and so do solvers with a derivative of their own.
        measured, pull_back = jax.vjp(lambda s: forward(s, params), _random_signal(signal, signal_key))
        (gradient,) = pull_back(_random_signal(structure(measured), cotangent_key))
        return _largest(gradient)

    affine = is_affine(forward, signal, params, key)
    keys = jr.split(key, 3)
    try:
        eqx.filter_eval_shape(differentiate, forward, params, keys[0])
    except Exception as error:
        raise ValueError(
            f"`forward` cannot be differentiated with respect to the signal ({summary(error)}); write it with "
            "differentiable JAX operations, or give it a `jax.custom_vjp`."
        ) from error
    derivatives = jnp.stack(_run("differentiated", differentiate, forward, params, keys))
    if not bool(jnp.all(jnp.isfinite(derivatives))):
        raise ValueError(
            "`forward` has NaN or infinite derivatives at random signals; make it differentiable everywhere."
        )
    if bool(jnp.all(derivatives == 0)):
        raise ValueError(
            "`forward` has zero derivative at random signals, so nothing can be learned through it; replace rounding, "
            "comparisons and integer conversions by differentiable operations."
        )
    return affine


def _run(what, function, forward, params, keys):
    """A user's own exception is passed on, with a note that says when it was raised."""
    try:
        return [function(forward, params, key) for key in keys]
    except Exception as error:
        error.add_note(f"`forward` raised this before training, as a random signal from N(0, I) was {what}.")
        raise


def _linearises(forward, signal, params) -> bool:
    """Whether there are derivatives in forward mode, which encoders of affine measurements linearise with."""
    try:
        jax.jit(lambda s: jax.jvp(lambda x: forward(x, params), (s,), (s,))).lower(signal)  # where it is refused
    except (TypeError, ValueError, NotImplementedError):
        # Of a `custom_vjp`, of a callback, and of an operation without a rule; `forward` itself was called before.
        return False
    return True
