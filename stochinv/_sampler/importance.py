r"""Draws corrected by the likelihood: importance sampling with the network as the proposal.

Signals `s_k ~ q(s | c)` get the weights `p(c | s_k) q(s_k) / q(s_k | c)`, with the known likelihood, and with the
densities of the network given nothing and given `c`. Both are those of the probability-flow ODE. In the angle `θ`,
`z_θ = cos θ z + sin θ ε`, it is

`dz_θ/dθ = (cos θ z_θ − ẑ) / sin θ`,

whatever the schedule, since a denoiser is told the log-SNR alone. Along it `d log q/dθ = −∇·(dz_θ/dθ)` (Song et al.
2021, equation 39).
"""

from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .._checks import check_integer
from .._chunks import over_keys, rounded
from .._custom_types import AnyCallable, BoolScalarLike, Context, FloatScalar, Key, Params, Signal
from .._data_info import destandardise_view
from .._problem_base import context_units, encode_context
from .._schedule import NoiseLevel
from .._structure import zeros_of
from .._view import View, is_view
from .base import AbstractSampler, Sample

# The fewest proposals that draws given one context are chosen from.
LEAST_POOL = 64
# Ralston's method of order 3, whose stages use the one before alone. Where modes part, many small steps do better than
# fewer of order 4: three narrow modes, 48 evaluations, an error of .001 in total variation against .006.
SHARES = np.array([0, 0.5, 0.75], np.float32)
WEIGHTS = np.array([2, 3, 4], np.float32) / 9
# Steps are even in `log(θ + FINEST)`: fine structure shows at small angles.
FINEST = 0.1


@final
class ImportanceSampling(AbstractSampler):
    """Draws of the network, chosen by how well the likelihood says that they fit.

    For signals of few entries in signal space, up to about 16: the variance of the weights grows with their number.
    All draws given one context are chosen from all of its proposals.

    **Arguments:**

    - `num_proposals`: how many proposals there are for each draw, whose number is rounded up by a quarter at most, and
        at least 64 of them in all. The law of the draws is right as their number grows.
    - `num_steps`: how many Runge-Kutta steps, of three evaluations each, take noise to a signal, or back.
    """

    num_proposals: int = 4
    num_steps: int = 16

    def __check_init__(self) -> None:
        check_integer("ImportanceSampling: `num_proposals`", self.num_proposals, 2)
        check_integer("ImportanceSampling: `num_steps`", self.num_steps)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        drawn = self.many(problem, context, params, key=key, num_samples=1, chunk_size=LEAST_POOL)
        return jax.tree.map(lambda x: x[0], drawn)

    def many(
        self, problem: Any, context: Context, params: Params, *, key: Key, num_samples: int, chunk_size: int
    ) -> Sample:
        propose_key, choice_key = jr.split(key)
        number = rounded(num_samples)
        pool = max(self.num_proposals * number, LEAST_POOL)
        proposals, log_weights = self.propose(problem, context, propose_key, pool, chunk_size)
        log_weights = eqx.error_if(
            log_weights,
            jnp.all(jnp.isneginf(log_weights)),
            "ImportanceSampling: no draw of the network explains the context, whose likelihood is 0 or NaN for all of "
            "them; look at the context and at the support of `noise`, or train for longer.",
        )
        signals = jax.tree.map(lambda x: x[:num_samples], choose(proposals, log_weights, choice_key, number))
        return Sample(signals, signals)

    def propose(
        self, problem: Any, context: Context, key: Key, number: int, chunk_size: int = 1024
    ) -> tuple[Signal, Float[Array, " number"]]:
        """Draws of the network, and the logarithms of their weights.

        **Arguments:**

        - `problem`: the problem of a signal.
        - `context`: the encoded context.
        - `key`: a PRNG key.
        - `number`: how many.
        - `chunk_size`: how many are drawn at once.
        """
        return over_keys(_propose, (self, problem, context), jr.split(key, number), chunk_size)

    def renew(self, problem: Any, context: Context, signal: Signal, key: Key) -> Signal:
        """A step of a Markov chain whose law in the long run is the posterior, however few the proposals: the present
        signal is chosen from again, with fresh ones.

        **Arguments:**

        - `problem`, `context`: as in `propose`.
        - `signal`: the present signal, in raw units; one of NaN is never chosen.
        - `key`: a PRNG key.

        ??? cite "Source"

            Andrieu, Lee and Vihola 2018, "Uniform ergodicity of the iterated conditional SMC and geometric ergodicity
            of particle Gibbs samplers", where it is iterated sampling importance resampling.
        """
        propose_key, choice_key = jr.split(key)
        weigh, size, dtype = self.weigh(problem, context)
        noise = jr.normal(propose_key, (self.num_proposals, *size), dtype)
        present = ravel_pytree(problem.units.standardise(signal))[0]
        drawn = jnp.arange(self.num_proposals + 1) < self.num_proposals
        signals, log_weights = jax.vmap(weigh)(jnp.concatenate([noise, present[None]]), drawn)
        index = jr.categorical(choice_key, log_weights)
        return jax.tree.map(lambda x: x[index], signals)

    def weigh(self, problem: Any, context: Context) -> tuple[AnyCallable, tuple[int, ...], Any]:
        """From noise, or a standardised signal, to a raw signal and the logarithm of its weight; and the shape and the
        dtype of what it takes."""
        view = destandardise_view(context_units(problem), view_of(context))
        nothing = encode_context(problem, problem.as_context(None))
        contexts = jax.tree.map(lambda *x: jnp.stack(x), context, nothing)
        flat, unravel = zeros_of(problem.observation_structure(None))

        def weigh(start: Any, drawn: Any = True):
            z, logs = two_densities(problem, contexts, unravel, start, self.num_steps, drawn)
            signal = problem.units.destandardise(unravel(z))
            log_weight = problem.log_likelihood(signal, view) + logs[1] - logs[0]
            return signal, jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)

        return weigh, flat.shape, flat.dtype


@eqx.filter_jit
def _propose(sampler, problem, context, keys):
    weigh, size, dtype = sampler.weigh(problem, context)
    return jax.vmap(lambda key: weigh(jr.normal(key, size, dtype)))(keys)


@eqx.filter_jit
def choose(proposals: Signal, log_weights: Float[Array, " proposals"], key: Key, number: int) -> Signal:
    """Draws chosen of proposals by their weights, even along the entry that varies most."""
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(proposals)
    index = systematic(log_weights, flat[:, jnp.argmax(jnp.var(flat, 0))], key, number)
    return jax.tree.map(lambda x: x[index], proposals)


def systematic(
    log_weights: Float[Array, " proposals"], values: Float[Array, " proposals"], key: Key, number: int
) -> Int[Array, " number"]:
    """Indices of proposals, each chosen as often as its weight says, rounded up or down at random, in random order.

    Neighbours in the order of their values stand in for each other: how many are chosen of a mode is rounded, too.

    ??? cite "Source"

        Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models"; Gerber, Chopin
        and Whiteley 2019, "Negative association, ordering and convergence of resampling methods", for the order.
    """
    offset_key, order_key = jr.split(key)
    order = jnp.argsort(values)
    total = jnp.cumsum(jax.nn.softmax(log_weights)[order])
    positions = (jnp.arange(number) + jr.uniform(offset_key)) / number
    index = jnp.searchsorted(total, positions * total[-1])
    return jr.permutation(order_key, order[jnp.minimum(index, log_weights.size - 1)])


def view_of(context: Any) -> View:
    """The views behind a context, encoded or not."""
    return context if is_view(context) else context.view


def two_densities(
    problem: Any,
    contexts: Context,
    unravel: AnyCallable,
    start: Float[Array, " n"],
    num_steps: int,
    drawn: BoolScalarLike = True,
) -> tuple[Float[Array, " n"], Float[Array, " 2"]]:
    """A raveled standardised signal, and the logarithms of its densities given each of two contexts.

    **Arguments:**

    - `problem`: the problem of a signal.
    - `contexts`: two encoded contexts, stacked.
    - `unravel`: from a raveled standardised signal to the signal.
    - `start`: the noise of which the signal is drawn given the first, or the signal.
    - `num_steps`: as of [`stochinv.ImportanceSampling`][].
    - `drawn`: whether it is drawn.
    """
    to_noise = angles_to_noise(problem, num_steps, start.dtype)
    first = jnp.where(drawn, to_noise[::-1], to_noise)

    def density(z, inputs):
        context, angles, drawn = inputs
        end, gained = flow(problem, context, unravel, z, angles)
        noise, signal = jnp.where(drawn, z, end), jnp.where(drawn, end, z)
        return signal, log_normal(noise) + jnp.where(drawn, -gained[0], gained[1])

    # Both in one loop, and compiled once.
    stages = (contexts, jnp.stack([first, to_noise]), jnp.stack([jnp.asarray(drawn), jnp.zeros((), bool)]))
    return jax.lax.scan(density, start, stages)


def log_density(
    problem: Any, context: Context, unravel: AnyCallable, z: Float[Array, " n"], num_steps: int
) -> FloatScalar:
    """The logarithm of the density of a raveled standardised signal given an encoded context."""
    noise, gained = flow(problem, context, unravel, z, angles_to_noise(problem, num_steps, z.dtype))
    return log_normal(noise) + gained[1]


def log_normal(x: Float[Array, " n"]) -> FloatScalar:
    return -0.5 * jnp.sum(x**2) - 0.5 * x.size * jnp.log(2 * jnp.pi)


def angles_to_noise(problem: Any, num_steps: int, dtype: Any) -> Float[Array, " steps"]:
    ends = [jnp.log(jnp.arctan(jnp.exp(-0.5 * problem.schedule.log_snr(t))) + FINEST) for t in (0.0, 1.0)]
    return (jnp.exp(ends[0] + (ends[1] - ends[0]) * jnp.linspace(0, 1, num_steps + 1)) - FINEST).astype(dtype)


def flow(
    problem: Any, context: Context, unravel: AnyCallable, start: Float[Array, " n"], angles: Float[Array, " steps"]
) -> tuple[Float[Array, " n"], Float[Array, " 2"]]:
    """Takes a raveled standardised signal from the first angle to the last, and tells what that does to the logarithm
    of volumes: by the steps as they are taken, and by the equation that they approximate.

    By the first the density of a draw is exact at any number of steps. Back to noise few steps may fold space, which
    makes the second the safer one. XLA computes nothing of them where only the signal is taken.
    """
    identity = jnp.eye(start.size, dtype=start.dtype)

    def advance(carry, angles):
        """A Runge-Kutta step; its stages are scanned to be compiled once."""
        z, gained = carry
        here, there = angles
        step = there - here

        def stage(carry, inputs):
            slope, derivative = carry
            share, weight = inputs
            ahead = partial(field, problem, context, unravel, here + share * step)
            slope, linear = jax.linearize(ahead, z + share * step * slope)
            local = jax.vmap(linear, out_axes=1)(identity)
            derivative = local @ (identity + share * step * derivative)
            return (slope, derivative), (weight * slope, weight * derivative, weight * jnp.trace(local))

        first = (jnp.zeros_like(z), jnp.zeros_like(identity))
        changes = jax.lax.scan(stage, first, (SHARES, WEIGHTS))[1]
        slope, derivative, divergence = (step * jnp.sum(x, 0) for x in changes)
        taken = jnp.linalg.slogdet(identity + derivative)[1]
        return (z + slope, gained + jnp.stack([taken, divergence])), None

    from_here = (start, jnp.zeros(2, start.dtype))
    return jax.lax.scan(advance, from_here, (angles[:-1], angles[1:]))[0]


def field(
    problem: Any, context: Context, unravel: AnyCallable, angle: FloatScalar, z: Float[Array, " n"]
) -> Float[Array, " n"]:
    """`dz_θ/dθ` of the probability-flow ODE."""
    level = NoiseLevel(jnp.cos(angle), jnp.sin(angle))
    denoised = ravel_pytree(problem.denoise(unravel(z), level, context, None).observation)[0]
    return jnp.asarray((level.alpha * z - denoised) / level.sigma)
