r"""A network around importance resampling of candidates.

Where signals come from a known law that is cheap to draw from, such as the latent codes of a generator, draws
`s_1 … s_K` of it and the likelihood of what was measured make a sampler without any training: pick `s_k` with a
probability proportional to `p(c, o_t | s_k)` (Rubin 1988, "Using the SIR algorithm to simulate posterior
distributions"). It is right where many candidates explain the measurements, and stays what it is where none does. A
network moves the pick: `ŝ = s_k + network(features, s_k, z)`. A network of zeros leaves it.
"""

import math
from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from .._custom_types import AnyCallable, Context, FloatScalar, Key, Observation, Params
from .._frozen import Frozen
from .._schedule import NoiseLevel
from .base import AbstractDenoiser


@final
class ResamplingDenoiser(AbstractDenoiser):
    """A denoiser for vector signals that picks one of many candidates by its likelihood, and moves it by a network.

    With a key it picks at random and draws a latent code `z ~ N(0, I)` besides; without one it starts from the weighted
    mean of the candidates, and `z = 0`. The choice itself is not trained. Candidates are not saved with a problem: make
    the same again before loading one.

    **Arguments:**

    - `candidates`: signals of shape `(candidates, size)`, drawn from their law.
    - `log_likelihood`: a callable with the arguments of an encoder, `(noisy, level, context, params)`, that returns the
        log-likelihood of each candidate up to a constant, shape `(candidates,)`.
    - `encoder`: a callable with the same arguments that returns a vector of features.
    - `network`: a callable `(input, embedding) -> output`, such as [`stochinv.nn.MLP`][], from features, candidate and
        latent code to a vector like the signal.
    - `embedding`: a callable from the log-SNR to a vector.
    - `latent_size`: the length of `z`.

    **Raises:**

    `ValueError` if `candidates` is not a matrix.
    """

    candidates: Frozen
    log_likelihood: AnyCallable
    encoder: AnyCallable
    network: AnyCallable
    embedding: AnyCallable
    latent_size: int

    def __init__(
        self,
        candidates: Float[Array, "..."],
        log_likelihood: AnyCallable,
        encoder: AnyCallable,
        network: AnyCallable,
        embedding: AnyCallable,
        *,
        latent_size: int = 64,
    ) -> None:
        if jnp.ndim(candidates) != 2:
            raise ValueError(
                "ResamplingDenoiser: `candidates` must be of shape (candidates, size of a signal), got "
                f"{jnp.shape(candidates)}."
            )
        self.candidates = Frozen(candidates)
        self.log_likelihood = log_likelihood
        self.encoder = encoder
        self.network = network
        self.embedding = embedding
        self.latent_size = latent_size

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Float[Array, " size"]:
        candidates = self.candidates.value
        logs = jax.lax.stop_gradient(self.log_likelihood(noisy, level, context, params))
        weights = jax.nn.softmax(logs)
        code = jnp.zeros((self.latent_size,), candidates.dtype)
        if key is None:
            start = weights @ candidates
        else:
            pick_key, code_key = jr.split(key)
            start = candidates[pick(weights, jr.uniform(pick_key, dtype=weights.dtype))]
            code = jr.normal(code_key, code.shape, code.dtype)
        features = self.encoder(noisy, level, context, params)
        moved = self.network(jnp.concatenate([features, start, code]), self.embedding(level.log_snr))
        return start + moved


def pick(weights: Float[Array, " n"], share: FloatScalar) -> Int[Array, ""]:
    """The first index at which the running sum of weights exceeds a share of their total, `0 ≤ share < 1`.

    First among blocks, then within one: a running sum over all would take longer than everything else.
    """
    width = math.isqrt(weights.size - 1) + 1
    blocks = jnp.pad(weights, (0, -weights.size % width)).reshape(-1, width)
    sums = jnp.sum(blocks, 1)
    running = jnp.cumsum(sums)
    goal = share * running[-1]
    row = jnp.minimum(jnp.searchsorted(running, goal, side="right"), len(blocks) - 1)
    within = jnp.cumsum(blocks[row])
    rest = jnp.clip((goal - running[row] + sums[row]) / sums[row], 0, 1)
    column = jnp.searchsorted(within, jnp.minimum(rest, 1 - 1e-6) * within[-1], side="right")
    return jnp.minimum(row * width + column, weights.size - 1)
