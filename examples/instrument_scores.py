"""How good draws of signals are, and simpler answers: figures that the examples of instruments share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import stochinv as si


def score(draws, truth, repeated, observed, std):
    """Scores of draws of many records' signals, as a dictionary of numbers.

    - `energy_score`: in the units of an entry; lower is better.
    - `coverage_90`: the share of entries within the draws' central intervals of 90 %.
    - `residual`: the root mean square by which draws miss what was given, in standard deviations of the noise.

    Takes draws `(records, draws, *signal)`, true signals `(records, *signal)`, the draws' measurements without noise
    `(records, draws, ...)`, what was given `(records, ...)`, and the standard deviation of its noise, of each part if
    complex, in any shape that `repeated` broadcasts with.
    """
    misfit = parts(repeated - jnp.asarray(observed)[:, None]) / jnp.asarray(std)[..., None]
    return {
        "energy_score": energy_score(draws, truth),
        "coverage_90": coverage(draws, truth),
        "residual": float(jnp.sqrt(jnp.mean(misfit**2))),
    }


def energy_score(draws, truth):
    scores = jax.lax.map(lambda x: si.diagnostics.energy_score(*x), (jnp.asarray(draws), jnp.asarray(truth)))
    return float(jnp.mean(scores))


def coverage(draws, truth, level=0.9):
    """The share of the signals' entries, or their parts, within central intervals of draws; ties count at random."""
    draws, truth = parts(draws), parts(truth)
    keys = jr.split(jr.key(0), len(truth))
    ranks = jax.lax.map(lambda x: si.diagnostics.fractional_ranks(x[0], x[1], key=x[2]), (draws, truth, keys))
    return float(jnp.mean(jnp.abs(ranks - 0.5) <= level / 2))


def parts(x):
    """Real and imaginary parts along a new last axis, of length 1 for real values."""
    x = jnp.asarray(x)
    return jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x[..., None]


def repeat(forward, draws, contexts):
    """What draws `(records, draws, *signal)` measure at the parameters of their contexts, without noise, with axes
    `(records, draws, views, ...)`."""
    one = lambda inputs: jax.vmap(jax.vmap(forward, (None, 0)), (0, None))(*inputs)
    return jax.jit(lambda *inputs: jax.lax.map(one, inputs))(draws, contexts.params)


def with_errors_of_others(estimates, truth):
    """A point estimate as a prediction: with the errors of the other records' estimates added, draws are
    `(records, records - 1, *signal)`. These errors are known from the truth, which favours it."""
    errors = jnp.asarray(truth) - estimates
    others = jax.vmap(lambda i: jnp.delete(errors, i, axis=0, assume_unique_indices=True))(jnp.arange(len(errors)))
    return estimates[:, None] + others


def gaussian_of_fit(problem, contexts, *, key, num_samples):
    """Draws of the Gaussian that a fit of signals of more than 16 entries corrects: those of a network of zeros."""
    silent = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_inexact_array(x) else x, problem.denoiser.network)
    problem = eqx.tree_at(lambda x: x.denoiser.network, problem, silent)
    return problem.sample_many(contexts, key=key, num_samples=num_samples).signal


def print_scores(figures, names):
    """A table of what `score` tells of several answers, by the ends of their keys in `figures`, and of seconds."""
    print(f"{'':<38}" + "".join(f"{name:>18}" for name in names.values()))
    for key in ("energy_score", "coverage_90", "residual"):
        print(f"{key:<38}" + "".join(f"{figures[key + name]:>18.3f}" for name in names))
    seconds = "".join(f"{figures[key]:>18.1f}" for key in ("train_seconds", "sample_seconds"))
    print(f"{'seconds of training, of sampling':<38}{seconds}\n")


def print_figures(title, figures, names):
    """The energy scores of several answers, each by the end of its key in `figures`, and all other figures.

    - `names`: those ends, by the answers' names.
    """
    print(f"\n{title}")
    for name, key in names.items():
        print(f"  {name:<52}{figures['energy_score' + key]:8.3f}")
    for name in sorted(set(figures) - {"energy_score" + key for key in names.values()}):
        print(f"{name.replace('_', ' '):<54}{figures[name]:8.3f}")
