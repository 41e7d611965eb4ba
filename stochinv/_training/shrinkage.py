r"""By how much a network's correction is to be shrunk, for signals that it was not trained on.

At each of some noise levels the errors `e` that are left by the exact denoiser of a Gaussian, and the network's
corrections `r` of these, give the factor `Σ e·r / Σ r²`, no less than 0 and no more than 1: of all it makes the mean
square of `e − λ r` least. A network that has learned the signals of its training by heart corrects others by what has
nothing to do with them, and its factor is near 0; one that has learned their law keeps its correction.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import Key, Signal, Structure
from .._denoiser.gaussian_residual import NUM_LEVELS
from .._noising import noise_target
from .._problem_base import encode_context
from .._sampler.guidance import guides
from .._sampling import LARGEST_CORRECTED
from .._structure import count_entries
from .._view import View
from .contexts import simulated_context

# How many numbers at least tell the factor at each level.
ERRORS = 2**16


def shrinks(denoiser: Any, signal: Structure) -> bool:
    """Whether a denoiser, `None` for the default, corrects a Gaussian of so many entries that its network may learn
    signals by heart."""
    return (denoiser is None or guides(denoiser)) and count_entries(signal) > LARGEST_CORRECTED


@eqx.filter_jit
def shrink(problem: Any, signals: Signal, weights: Float[Array, "signals n"] | None, views: View, key: Key) -> Any:
    """A problem whose denoiser's correction is shrunk to what it is good for.

    **Arguments:**

    - `problem`: a trained problem of signals, whose denoiser is a [`stochinv.GaussianResidual`][].
    - `signals`: signals in raw units that it was not trained on, with a leading axis.
    - `weights`: how much the errors of their entries count, or `None`.
    - `views`: views of which contexts are simulated, with a mask; leading (signal, views) axes.
    - `key`: a PRNG key.
    """
    number = jax.tree.leaves(signals)[0].shape[0]
    log_snrs = jnp.linspace(problem.schedule.log_snr(1.0), problem.schedule.log_snr(0.0), NUM_LEVELS)
    times = jax.vmap(problem.schedule.inverse)(log_snrs)
    repeats = math.ceil(ERRORS / (number * count_entries(problem.signal)))
    views_key, noise_key = jr.split(key)
    views = simulated_context(problem)(signals, views, key=views_key)

    def one(inputs: Any) -> Float[Array, "levels 2"]:
        signal, weights, views, key = inputs
        context, clean = encode_context(problem, views), problem.units.standardise(signal)

        def products(t, key):
            noisy, level = noise_target(problem.schedule, clean, t, key)
            output, needed = problem.denoiser.corrections(noisy, level, context, clean)
            weighted = output if weights is None else weights * output
            return jnp.stack([weighted @ needed, weighted @ output])

        keys = jr.split(key, (NUM_LEVELS, repeats))
        return jnp.mean(jax.vmap(jax.vmap(products, (None, 0)))(times, keys), 1)

    found = jnp.sum(in_chunks(one, (signals, weights, views, jr.split(noise_key, number)), 8), 0)
    # No correction at all is as good as it is.
    factors = jnp.where(found[:, 1] > 0, jnp.clip(found[:, 0] / found[:, 1], 0, 1), 1)
    return eqx.tree_at(lambda p: p.denoiser.shrinkage.value, problem, (log_snrs, factors))
