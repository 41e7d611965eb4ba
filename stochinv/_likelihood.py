r"""Measurement noise other than Gaussian: a callable from a noise-free measurement to NumPyro distributions.

A noisy target of a diffusion and its measurement noise are jointly Gaussian only if both are. For any other noise the
law of a measurement is compared by simulation, and its gradient is taken along the simulated path where the
distribution has one. Where it has none, as for counts, it is the score-function estimator of two independent draws
`y, y'`, which needs no baseline:

`∇ E[A(y)] = ½ E[(A(y) − A(y')) (∇ log p(y) − ∇ log p(y'))]`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from ._custom_types import AnyCallable, FloatScalar, Key, Observation


def is_distribution(x: Any) -> bool:
    import numpyro.distributions as dist

    return isinstance(x, dist.Distribution)


def has_path(likelihood: AnyCallable, observation: Observation) -> bool:
    """Whether draws can be differentiated with respect to the noise-free measurement."""
    found: list[Any] = []
    jax.eval_shape(lambda o: found.extend(jax.tree.leaves(likelihood(o), is_leaf=is_distribution)), observation)
    return all(law.has_rsample for law in found)


def draw(likelihood: AnyCallable, observation: Observation, key: Key) -> Observation:
    """A noisy measurement, in the number format of the noise-free one."""
    laws, treedef = jax.tree.flatten(likelihood(observation), is_leaf=is_distribution)
    keys = jr.split(key, max(len(laws), 1))
    drawn = treedef.unflatten([law.sample(k) for law, k in zip(laws, keys, strict=False)])
    return jax.tree.map(lambda x, o: x.astype(o.dtype), drawn, observation)


def log_prob(likelihood: AnyCallable, observation: Observation, value: Observation) -> FloatScalar:
    """The log-density, or the log-probability, of a noisy measurement given the noise-free one."""
    log_of = lambda law, x: jnp.sum(law.log_prob(x))
    logs = jax.tree.map(log_of, likelihood(observation), value, is_leaf=is_distribution)
    return sum(jax.tree.leaves(logs), jnp.zeros(()))


def check_likelihood(likelihood: AnyCallable, observation: Observation):
    """Raises a `ValueError` if a callable given as `noise` is not the law of measurements like `observation`."""
    remedy = "give a callable from a noise-free measurement to a NumPyro distribution of the same shape"
    found: list[Any] = []

    def simulate(clean):
        laws = likelihood(clean)
        found.extend(jax.tree.leaves(laws, is_leaf=is_distribution))
        return jax.tree.map(lambda law: law.sample(jr.key(0)), laws, is_leaf=is_distribution)

    try:
        drawn = jax.eval_shape(simulate, observation)
    except Exception as error:
        if all(map(is_distribution, found)):
            raise ValueError(
                f"`noise` fails on a noise-free measurement ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}); {remedy}."
            ) from error
        drawn = None
    if drawn is None or not found or not all(map(is_distribution, found)):
        raise ValueError(f"`noise` returns {found} for a noise-free measurement; {remedy}.")
    shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
    if shapes(drawn) != shapes(observation):
        raise ValueError(
            f"`noise` simulates measurements of shapes {shapes(drawn)[1]}, but the data's are "
            f"{shapes(observation)[1]}; {remedy}."
        )
