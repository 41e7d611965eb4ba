r"""The best mixture of Gaussians: signals of few entries have laws that one Gaussian does not tell.

By expectation maximisation in closed form. The measurements `y_i = B_i z_i + ε` of record `i` give each component `k` a
weight `r_ik`, the mean `ẑ_ik` and the covariance `V_ik` (see [`stochinv._mixture`][]). The next components have the
weights `mean_i r_ik`, and as means and covariances those of the mixture of all `N(ẑ_ik, V_ik)` with the weights `r_ik`.
Rounds see some of the records, and count less and less (Cappé and Moulines 2009, "On-line
expectation-maximization algorithm for latent data models"). A few pseudo-records keep every covariance from collapsing
(Fraley and Raftery 2007, "Bayesian regularization for normal mixture estimation and model-based clustering").

How many components there are is told by the measurements of other records: as many as make them more likely.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._chunks import in_chunks
from .._custom_types import Key
from .._mixture import MOST_COMPONENTS, Mixture

# Signals of how many entries at most have a mixture, and of how many records for each component.
LARGEST_MIXED, LEAST_RECORDS = 8, 200
# Rounds, of how many records each, how many of these at once, and how much the first counts; the last is next to none.
ROUNDS, EACH, CHUNK, FIRST_SHARE = 400, 4096, 256, 0.5
# The share of records that tell how many components there are, and how many of these there are at most.
SHARE_ASKED, MOST_ASKED = 8, 4096
# How many splits are tried of the one Gaussian, of each of the two half as many, and so on: the first ones matter.
TRIES = 4
# How often twice the components may be no better.
PATIENCE = 2
# The variance of pseudo-records.
PSEUDO_VARIANCE = 1e-2


def may_be_mixed(size: int, number: int) -> bool:
    """Whether so many records of signals of so many entries can tell two components."""
    return size <= LARGEST_MIXED and number >= 2 * LEAST_RECORDS


def best_mixture(rows: Float[Array, "records m n"], rest: Float[Array, "records m"], key: Key) -> Mixture | None:
    """The best mixture, or `None` where no mixture is better than the standard normal.

    **Arguments:**

    - `rows`, `rest`: `B_i` and `y_i` of as many records as `may_be_mixed` says, in coordinates in which the best
        Gaussian is standard normal.
    - `key`: a PRNG key.
    """
    number, _, size = rows.shape
    order = jr.permutation(jr.fold_in(key, 0), number)
    asked, learned = jnp.split(order, [min(number // SHARE_ASKED, MOST_ASKED)])
    best, found, failures = None, _standard_normal(size, rows.dtype), 0
    score = _evidence(found, rows[asked], rest[asked])
    for turn in range(int(math.log2(min(MOST_COMPONENTS, number // LEAST_RECORDS)))):
        keys = jr.split(jr.fold_in(key, turn + 1), max(1, TRIES >> turn))
        tried = [fit_mixture(rows, rest, learned, _split(found, key)) for key in keys]
        found, _ = max(tried, key=lambda x: float(x[1]))
        new = _evidence(found, rows[asked], rest[asked])
        gains = np.asarray(new - score, np.float64)
        if gains.mean() > 2 * gains.std() / math.sqrt(gains.size):
            best, score, failures = found, new, 0
        else:
            failures += 1
        if failures == PATIENCE:
            break
    return best


def _standard_normal(size, dtype):
    one = lambda x: jnp.asarray(x, dtype)[None]
    return Mixture(one(0.0), one(np.zeros(size)), one(np.eye(size)), one(np.ones(size)))


@eqx.filter_jit
def _evidence(mixture, rows, rest):
    """The log-densities of what was measured of records."""
    return in_chunks(lambda x: mixture.measured(*x).log_evidence, (rows, rest), CHUNK)


def _split(mixture, key):
    """Each component in two, apart in a random direction by about its standard deviation."""
    along = 0.5 * jnp.sqrt(mixture.variances) * jr.normal(key, mixture.means.shape, mixture.means.dtype)
    apart = jnp.einsum("kji,ki->kj", mixture.vectors, along)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), mixture)
    means = jnp.concatenate([mixture.means + apart, mixture.means - apart])
    return Mixture(twice.log_weights - math.log(2), means, twice.vectors, twice.variances)


@eqx.filter_jit
def fit_mixture(rows, rest, learned, start):
    """The best mixture of the records `learned`, of as many components as that to start from, and the mean log-density
    of what was measured of them in the last rounds."""
    number, size = learned.size, rows.shape[2]
    chunk = min(CHUNK, number)
    each = min(EACH, number) // chunk * chunk
    parts = number // each

    def add(mixture, sums, inputs):
        said = jax.vmap(mixture.measured)(*inputs)
        weights = jax.vmap(lambda x: x.weights)(said)
        first = jnp.einsum("ik,ikj->kj", weights, said.means)
        second = jnp.einsum("ik,ikj,ikl->kjl", weights, said.means, said.means)
        explained = jnp.einsum("ik,ikmj,ikml->kjl", weights, said.across, said.gains)
        zeroth = jnp.sum(weights, 0)
        second = second + zeroth[:, None, None] * _covariances(mixture) - explained
        new = (zeroth, first, second, jnp.sum(jax.vmap(lambda x: x.log_evidence)(said)))
        return jax.tree.map(jnp.add, sums, new), None

    def one_round(carry, round):
        mixture, kept = carry
        index = jax.lax.dynamic_slice_in_dim(learned, round % parts * each, each)
        inputs = tuple(x[index].reshape(-1, chunk, *x.shape[1:]) for x in (rows, rest))
        sums, _ = jax.lax.scan(lambda *x: add(mixture, *x), jax.tree.map(jnp.zeros_like, kept), inputs)
        share = FIRST_SHARE * (1 - round / ROUNDS) if parts > 1 else 1.0
        kept = jax.tree.map(lambda old, new: old + share * (new / each - old), kept, sums)
        return (_maximise(kept, (size + 2) / number), kept), None

    share = jnp.exp(start.log_weights)
    second = _covariances(start) + start.means[:, :, None] * start.means[:, None, :]
    kept = (share, share[:, None] * start.means, share[:, None, None] * second, jnp.zeros((), rest.dtype))
    (mixture, kept), _ = jax.lax.scan(one_round, (start, kept), jnp.arange(ROUNDS))
    return mixture, kept[-1]


def _covariances(mixture):
    return jnp.einsum("kji,ki,kli->kjl", mixture.vectors, mixture.variances, mixture.vectors)


def _maximise(kept, pseudo):
    """The mixture of mean moments, and of so many pseudo-records for each record."""
    zeroth, first, second, _ = kept
    size = first.shape[1]
    # A component that no record is of stays where it is told to be by nothing but rounding: it has no weight.
    mass = zeroth[:, None] + 1e-10
    means = first / mass
    scatter = second - first[:, :, None] * means[:, None, :]
    scatter = 0.5 * (scatter + jnp.swapaxes(scatter, 1, 2)) + pseudo * PSEUDO_VARIANCE * jnp.eye(
        size, dtype=means.dtype
    )
    values, vectors = jnp.linalg.eigh(scatter / (mass + pseudo)[:, None])
    return Mixture(jnp.log(mass[:, 0] / jnp.sum(mass)), means, vectors, jnp.maximum(values, 1e-6))
