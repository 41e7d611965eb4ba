r"""The reference posterior by brute force: draws of the prior, weighted by the likelihood of the measurements.

For draws $s_i \sim p(s)$ and weights $w_i = p(c \mid s_i)$,

$$
\mathbb{E}[h(s) \mid c] \approx \frac{\sum_i w_i\, h(s_i)}{\sum_i w_i} ,
\qquad
p(c) \approx \frac{1}{N} \sum_i w_i ,
\qquad
\mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2} .
$$

The *effective sample size* is about how many draws of the posterior are worth as much (Liu 2001, "Monte Carlo
strategies in scientific computing", section 2.5.3).
"""

import functools
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import check_instance
from .._custom_types import AnyCallable, Key, PyTree, Signal
from .._forward.base import AbstractForwardModel, as_forward_model
from .._view import View, view_mask
from ._common import check_at_least_one, leading_size
from ._reference import as_likelihood


@final
class ReweightedPosterior(eqx.Module):
    """The posteriors of a signal given each of several contexts, by reweighted draws of the prior.

    **Arguments:**

    - `mean`: the posterior means of the summary, leaves of shape `(contexts, ...)`.
    - `samples`: signals drawn from the weighted ones with replacement, leaves of shape `(contexts, draws, ...)`; draws
        repeat where there are more than the effective sample size allows.
    - `ess`: the effective sample size for each context. A posterior mean of a quantity with standard deviation `σ` has
        a standard error of about `σ/√ESS`. It is 0, and the mean NaN, where no draw has a likelihood.
    - `log_evidence`: `log p(c)` for each context.
    """

    mean: PyTree
    samples: Signal
    ess: Float[Array, " contexts"]
    log_evidence: Float[Array, " contexts"]


class _Sums(eqx.Module):
    """What is kept of the chunks so far, for one context."""

    log_total: Any
    log_squares: Any
    mean: Any
    samples: Any


def reweighted_posterior(
    prior: AnyCallable,
    forward: AbstractForwardModel | AnyCallable,
    noise: PyTree,
    contexts: View,
    *,
    summary: AnyCallable | None = None,
    key: Key,
    num_samples: int = 1_000_000,
    num_draws: int = 1000,
    chunk_size: int = 10_000,
) -> ReweightedPosterior:
    """Reweights draws of the prior by the likelihood of measurements, for many contexts at once.

    It suits priors that are cheap to draw from and contexts that leave much open. Look at the effective sample size: it
    falls exponentially with what the context says.

    **Arguments:**

    - `prior`: a callable from a PRNG key to a signal.
    - `forward`: the forward model of one view. What it does before it uses its parameters is done once for all
        contexts.
    - `noise`: as of [`stochinv.diagnostics.reference_posterior`][].
    - `contexts`: a [`stochinv.View`][] in raw units with leading axes (contexts, views).
    - `summary`: a callable from a signal to a PyTree of arrays whose posterior means are wanted; by default the signal
        itself.
    - `key`: a PRNG key.
    - `num_samples`: how many signals are drawn from the prior, rounded up to whole chunks.
    - `num_draws`: how many signals are drawn from each posterior.
    - `chunk_size`: how many are held at once; memory grows with it times the number of contexts.

    **Returns:**

    A [`stochinv.diagnostics.ReweightedPosterior`][].

    **Raises:**

    `ValueError` if `noise` is not positive or not structured as a measurement, if `contexts` is not a `View`, or if a
    number is not positive.
    """
    check_at_least_one(num_samples=num_samples, num_draws=num_draws, chunk_size=chunk_size)
    check_instance("`contexts`", contexts, View, "a `stochinv.View` with leading axes (contexts, views)")
    contexts, number = jax.tree.map(jnp.asarray, contexts), leading_size("contexts", contexts)
    measured = as_likelihood(noise, contexts, 2)
    reduce = (lambda signal: signal) if summary is None else summary
    forward = as_forward_model(forward)
    chunk_size = min(chunk_size, num_samples)
    num_chunks = -(-num_samples // chunk_size)
    chunk = lambda sums, index: _add_chunk(
        sums, prior, forward, measured, reduce, contexts, jr.fold_in(key, index), chunk_size, num_draws
    )
    sums: Any = functools.reduce(chunk, range(num_chunks), None)
    possible = sums.log_total > -jnp.inf
    ess = jnp.where(possible, jnp.exp(2 * sums.log_total - sums.log_squares), 0)
    mean = jax.tree.map(lambda x: jnp.where(possible.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan), sums.mean)
    return ReweightedPosterior(
        mean, sums.samples, ess.reshape(number), sums.log_total - jnp.log(float(num_chunks * chunk_size))
    )


@eqx.filter_jit
def _add_chunk(sums, prior, forward, measured, summary, contexts, key, chunk_size, num_draws):
    prior_key, chunk_key, keep_key = jr.split(key, 3)
    signals = jax.vmap(prior)(jr.split(prior_key, chunk_size))
    summaries = jax.vmap(summary)(signals)

    def log_weights(signal):
        def one(context):
            per_view = jax.vmap(lambda v: measured.log_prob(v.observation, forward(signal, v.params)))
            return jnp.sum(jnp.where(view_mask(context), per_view(context), 0))

        return jax.vmap(one)(contexts)

    logs = jax.vmap(log_weights, out_axes=1)(signals)

    def summed(logs, key):
        log_total = jax.nn.logsumexp(logs)
        # None of few draws may explain a context.
        weights = jnp.where(log_total > -jnp.inf, jax.nn.softmax(logs), 0)
        mean = jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), summaries)
        # Of a running sum, the first entry that exceeds a uniform number.
        running = jnp.cumsum(weights)
        drawn = jnp.searchsorted(running, jr.uniform(key, (num_draws,)) * running[-1], side="right")
        chosen = jnp.minimum(drawn, chunk_size - 1)
        return _Sums(log_total, jax.nn.logsumexp(2 * logs), mean, jax.tree.map(lambda x: x[chosen], signals))

    new = jax.vmap(summed)(logs, jr.split(chunk_key, logs.shape[0]))
    if sums is None:
        return new

    def merge(old, new, key):
        log_total = jnp.logaddexp(old.log_total, new.log_total)
        share = jnp.where(new.log_total > -jnp.inf, jnp.exp(new.log_total - log_total), 0)
        mean = jax.tree.map(lambda a, b: a + share * (b - a), old.mean, new.mean)
        replace = jr.uniform(key, (num_draws,)) < share
        choose = lambda a, b: jnp.where(replace.reshape(-1, *(1,) * (a.ndim - 1)), b, a)
        samples = jax.tree.map(choose, old.samples, new.samples)
        return _Sums(log_total, jnp.logaddexp(old.log_squares, new.log_squares), mean, samples)

    return jax.vmap(merge)(sums, new, jr.split(keep_key, logs.shape[0]))
