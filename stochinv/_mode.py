r"""The most likely signal given a context: the mode of the posterior.

For signals of few entries `log p(c | s) + log q(s)` is maximised, with the known likelihood and the density of the
learned prior, or `log q(s | c)` where the likelihood is not known; by BFGS from the best of some draws.

For larger signals densities are dear. There the mode is followed from much noise to little: `z ← E[z | z_t = α z, c]`
climbs the density of the signal with noise of `σ/α` added, and is at rest at its modes (Cheng 1995, "Mean shift, mode
seeking, and clustering").
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree

from ._coordinates import Coordinates
from ._custom_types import Context, Key, Signal
from ._problem_base import encode_context
from ._sampler.importance import ImportanceSampling, log_density
from ._schedule import NoiseLevel
from ._structure import zeros_of

# The largest signal, in entries, whose density is maximised.
LARGEST_MAXIMISED = 64
# From which angle to which the mode is followed, in how many steps.
FIRST_ANGLE, LAST_ANGLE, NUM_STEPS = 1.2, 0.05, 64
TOLERANCE, MOST_STEPS = 1e-4, 128


@eqx.filter_jit
def find_mode(
    problem: Any, context: Context, coordinates: Coordinates, key: Key, number: int, likelihood_known: bool
) -> Signal:
    """The mode of a posterior, in the signal's coordinates.

    **Arguments:**

    - `problem`: the trained problem of signals.
    - `context`: the context in raw units.
    - `coordinates`: those of the signal, whose density is maximised; of large signals it is that of the coordinates.
    - `key`: a PRNG key.
    - `number`: from the best of how many draws densities are climbed.
    - `likelihood_known`: whether the likelihood is, besides the prior, rather than the posterior alone.
    """
    encoded = encode_context(problem, context)
    zeros, unravel = zeros_of(problem.observation_structure(None))
    raw = lambda z: problem.units.destandardise(unravel(z))
    if zeros.size > LARGEST_MAXIMISED:
        return raw(_follow(problem, encoded, zeros, unravel))
    sampler = ImportanceSampling()
    nothing = encode_context(problem, problem.as_context(None))

    def cost(z, _):
        log_volume = coordinates.log_volume(raw(z))
        if not likelihood_known:
            return log_volume - log_density(problem, encoded, unravel, z, sampler.num_steps)
        log_prior = log_density(problem, nothing, unravel, z, sampler.num_steps)
        return log_volume - log_prior - problem.log_likelihood(raw(z), context)

    draws, _ = sampler.propose(problem, encoded, key, number)
    starts = jax.vmap(lambda s: ravel_pytree(problem.units.standardise(s))[0])(draws)
    costs = jax.lax.map(lambda z: cost(z, None), starts, batch_size=number)
    start = starts[jnp.nanargmin(costs)]
    solver = optx.BFGS(rtol=TOLERANCE, atol=TOLERANCE)
    found = optx.minimise(cost, solver, start, max_steps=MOST_STEPS, throw=False).value
    return raw(jnp.where(cost(found, None) <= jnp.nanmin(costs), found, start))


def _follow(problem, context, zeros, unravel):
    """The mode as the noise falls."""

    def climb(z, angle):
        level = NoiseLevel(jnp.cos(angle), jnp.sin(angle))
        denoised = problem.denoise(unravel(level.alpha * z), level, context, None).observation
        return ravel_pytree(denoised)[0], None

    angles = jnp.geomspace(FIRST_ANGLE, LAST_ANGLE, NUM_STEPS, dtype=zeros.dtype)
    return jax.lax.scan(climb, zeros, angles)[0]
