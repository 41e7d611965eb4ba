r"""Draws moved by the known likelihood: a Markov chain in the normal numbers behind signals.

A prior is a map `s = T(z)` of standard normal numbers: that of the law it was simulated from, or the probability-flow
ODE of the network given nothing. The move

`z' = √(1 − β²) z + β ξ`, `ξ ~ N(0, I)`,

leaves `N(0, I)` as it is, so that it is accepted with the probability `min(1, p(c | T(z')) / p(c | T(z)))`: by the
likelihood alone, without a density of the prior and without a derivative of the forward model. Its acceptance does not
fall as the signal is resolved more finely.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree

from .._checks import check_instance, check_integer
from .._custom_types import Context, Key, Params, PyTree
from .._data_info import describe, destandardise_view
from .._noising import numbered_key
from .._normal import check_law, from_normal, normal_structure, to_normal
from .._problem_base import context_units, encode_context
from .._structure import same_structure, zeros_of
from .base import AbstractIndependentSampler, AbstractSampler, Sample
from .exponential_adams import ExponentialAdams
from .importance import angles_to_noise, flow, view_of

# The share of accepted moves at which a random walk in many dimensions gets on best.
ACCEPTED = 0.234
# The first share of a move, and the smallest.
FIRST, LEAST = 0.3, 1e-4


@final
class CrankNicolson(AbstractIndependentSampler):
    """Draws of another sampler, moved by a Markov chain whose law in the long run is the posterior.

    For signals in signal space of any number of entries, and for forward models of any kind, such as generators. A draw
    that the network got wrong is made right, if there are enough moves to forget it: compare the laws of draws after
    `num_moves` and after twice as many. While the first half of the moves is made, `β` is found for each draw so that a
    move in four is accepted; the second half leaves the posterior as it is.

    **Arguments:**

    - `prior`: the law of signals in raw units, a NumPyro distribution, or a PyTree of these like the signal: that which
        training simulated from. `None` for the one that the network has learned, at 48 evaluations of it per move
        with 16 steps.
    - `sampler`: what draws where the chains start, a sampler for one problem. `None` for draws of the prior.
    - `num_moves`: how many moves each draw makes, of one evaluation of the forward model each.
    - `num_steps`: with the learned prior, how many Runge-Kutta steps, of three evaluations each, take noise to a
        signal. It is the prior of this number of steps.

    **Raises:**

    `ValueError` if `prior` is not made of normal numbers; an error if a chain ends where the likelihood is 0, as it is
    everywhere without noise.

    ??? cite "Source"

        Cotter, Roberts, Stuart and White 2013, "MCMC methods for functions: modifying old algorithms to make them
        faster", the preconditioned Crank-Nicolson proposal; Andrieu and Thoms 2008, "A tutorial on adaptive MCMC",
        algorithm 4, for the size of moves.
    """

    prior: PyTree = None
    sampler: AbstractSampler | None = ExponentialAdams()
    num_moves: int = 200
    num_steps: int = 16

    def __check_init__(self) -> None:
        if self.prior is not None:
            check_law("CrankNicolson: `prior`", self.prior)
        if self.sampler is not None:
            check_instance("CrankNicolson: `sampler`", self.sampler, AbstractSampler, "a sampler, or None")
        check_integer("CrankNicolson: `num_moves`", self.num_moves)
        check_integer("CrankNicolson: `num_steps`", self.num_steps)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        if problem.data_info is None or problem.data_info.context_units is None:
            raise ValueError(
                "CrankNicolson: the likelihood of a context is not known to this problem; `fit` it in signal space."
            )
        start_key, prior_key, move_key = jr.split(key, 3)
        zeros, unravel, to_signal, to_noise = self._maps(problem)
        views = destandardise_view(context_units(problem), view_of(context))

        def log_likelihood(z):
            value = problem.log_likelihood(to_signal(unravel(z)), views)
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        z = jr.normal(prior_key, zeros.shape, zeros.dtype)
        if self.sampler is not None:
            drawn = self.sampler(problem, context, params, key=start_key).signal
            start = ravel_pytree(to_noise(drawn))[0]
            z = jnp.where(jnp.all(jnp.isfinite(start)), start, z)

        def move(carry, index):
            z, log, log_beta = carry
            proposal_key, accept_key = jr.split(numbered_key(move_key, index))
            beta = jnp.exp(log_beta)
            ahead = jnp.sqrt(1 - beta**2) * z + beta * jr.normal(proposal_key, z.shape, z.dtype)
            log_ahead = log_likelihood(ahead)
            # From where the likelihood is 0, everywhere is as good.
            ratio = jnp.where(jnp.isneginf(log), 0.0, jnp.minimum(log_ahead - log, 0.0))
            accept = jnp.log(jr.uniform(accept_key, (), z.dtype)) < ratio
            gain = jnp.where(index < self.num_moves // 2, (index + 1.0) ** -0.6, 0.0)
            log_beta = jnp.clip(log_beta + gain * (jnp.exp(ratio) - ACCEPTED), jnp.log(LEAST), 0.0)
            z, log = jnp.where(accept, ahead, z), jnp.where(accept, log_ahead, log)
            return (z, log, log_beta.astype(z.dtype)), None

        first = (z, log_likelihood(z), jnp.log(jnp.asarray(FIRST, z.dtype)))
        indices = jnp.arange(self.num_moves, dtype=jnp.uint32)
        (z, log, _), _ = jax.lax.scan(move, first, indices)
        z = eqx.error_if(
            z,
            jnp.isneginf(log),
            "CrankNicolson: the likelihood of the context is 0 wherever a chain went; give the problem a `noise` "
            "that is not 0, or more `num_moves`.",
        )
        signal = to_signal(unravel(z))
        return Sample(signal, problem.forward(signal, params))

    def _maps(self, problem):
        """Zeros like the normal numbers behind a signal, how to unravel them, and the map to a signal and back."""
        if self.prior is None:
            zeros, unravel = zeros_of(problem.observation_structure(None))
            nothing = encode_context(problem, problem.as_context(None))
            angles = angles_to_noise(problem, self.num_steps, zeros.dtype)
            run = lambda z, angles: unravel(flow(problem, nothing, unravel, ravel_pytree(z)[0], angles)[0])
            to_signal = lambda z: problem.units.destandardise(run(z, angles[::-1]))
            return zeros, unravel, to_signal, lambda s: run(problem.units.standardise(s), angles)
        coordinates, like = problem.measure.coordinates, normal_structure(self.prior)
        if not same_structure(like, coordinates.like):
            raise ValueError(
                f"CrankNicolson: `prior` draws {describe(like)}, but the problem's signal is "
                f"{describe(coordinates.like)}; give the law of whole signals."
            )
        to_signal = lambda z: coordinates.from_signal(from_normal(self.prior, z))
        return *zeros_of(like), to_signal, lambda s: to_normal(self.prior, coordinates.to_signal(s))
