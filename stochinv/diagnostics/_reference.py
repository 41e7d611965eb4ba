r"""The reference posterior where prior and likelihood are known: MCMC by the No-U-Turn sampler.

For `s ~ p(s)` and measurements `o_v ~ p(o | f(s, φ_v))` the density `p(s) ∏_v p(o_v | f(s, φ_v))` is that of the
posterior `p(s | c)` up to a constant (Hoffman and Gelman 2014, "The No-U-Turn sampler").
"""

import warnings
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_instance
from .._custom_types import AnyCallable, Context, Key, PyTree, Signal
from .._forward.base import AbstractForwardModel, as_forward_model
from .._lazy import is_distribution, numpyro
from .._noise import AbstractNoise, as_noise
from .._view import View, structure, take_views, view_mask

R_HAT_LIMIT, ESS_LIMIT = 1.01, 400


@final
class ReferencePosterior(eqx.Module):
    """Samples of a reference posterior, and figures that tell whether to trust them.

    **Arguments:**

    - `chains`: signals with two leading axes, (chains, draws).
    - `r_hat`: split R-hat of every entry of the signal, in its structure; at most 1.01 where chains agree.
    - `ess`: the effective number of samples of every entry of the signal, over all chains.
    - `num_divergences`: how many draws followed a diverging trajectory; any but 0 hints at regions that the chains
        could not enter.
    """

    chains: Signal
    r_hat: PyTree
    ess: PyTree
    num_divergences: int

    @property
    def samples(self) -> Signal:
        """The signals of all chains, with one leading axis."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.chains)


def reference_posterior(
    prior: Any,
    forward: AbstractForwardModel | AnyCallable,
    noise: PyTree,
    context: Context,
    *,
    key: Key,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    **options: Any,
) -> ReferencePosterior:
    """Samples `p(s | c)` by MCMC, where prior and likelihood can be written down.

    It warns where the chains disagree (R-hat above 1.01), are short (fewer than 400 effective samples) or diverge.

    **Arguments:**

    - `prior`: the law of the signal: a `numpyro.distributions.Distribution`, or a NumPyro model without arguments
        that returns the signal. Continuous sites only.
    - `forward`: the forward model of one view, differentiable in the signal.
    - `noise`: the standard deviation `τ > 0` of Gaussian measurement noise, in raw units: a scalar, or a PyTree of
        scalars in the structure of an observation. Or the likelihood: a callable from a noise-free measurement to
        NumPyro distributions of the measurement, in its structure.
    - `context`: a [`stochinv.View`][] in raw units with a views axis; views that its mask leaves out do not count.
    - `key`: a PRNG key.
    - `num_samples`, `num_warmup`: the draws that each chain keeps, at least 4, and those that it takes before to adapt.
    - `num_chains`: how many chains run, all at once.
    - `options`: passed on to `numpyro.infer.NUTS`, such as `target_accept_prob` or `init_strategy`.

    **Returns:**

    A [`stochinv.diagnostics.ReferencePosterior`][].

    **Raises:**

    `ValueError` if `noise` is not positive or not structured as a measurement, or if `context` is not a `View`.
    """
    _check_run(context, num_samples, num_warmup, num_chains)
    context = jax.tree.map(jnp.asarray, context)
    draw_signal, measured = _as_model(prior), as_likelihood(noise, context)
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(_posterior_model(draw_signal, as_forward_model(forward), measured, context), **options),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, extra_fields=("diverging",))
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace():
        treedef = jax.tree.structure(draw_signal())
    draws = mcmc.get_samples(group_by_chain=True)
    chains = treedef.unflatten([draws[f"_leaf_{number}"] for number in range(treedef.num_leaves)])
    diverged = int(np.sum(jax.device_get(mcmc.get_extra_fields()["diverging"])))
    result = ReferencePosterior(chains, jax.tree.map(_r_hat, chains), jax.tree.map(_ess, chains), diverged)
    _warn(result)
    return result


def _check_run(context, num_samples, num_warmup, num_chains):
    check_instance("`context`", context, View, "a `stochinv.View` with a views axis")
    least = {"num_samples": (num_samples, 4), "num_warmup": (num_warmup, 0), "num_chains": (num_chains, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"`{name}` must be at least {smallest}, got {value}; give a larger one.")
    if not bool(jnp.any(view_mask(context))):
        raise ValueError("`context` has no view that counts: its `mask` is False everywhere; sample the prior instead.")


def _as_model(prior):
    """The prior as a NumPyro model."""
    return (lambda: numpyro.sample("signal", prior)) if is_distribution(prior) else prior


def _posterior_model(draw_signal, forward, measured, context):
    """A NumPyro model of the posterior, with a deterministic site for each leaf of the signal."""
    # What a masked view holds may be anything: another view stands in for it, and is then not counted.
    keep = view_mask(context)
    index = jnp.where(keep, jnp.arange(keep.size), jnp.argmax(keep))
    views = take_views(View(context.observation, context.params), index)

    def model():
        signal = draw_signal()
        for number, leaf in enumerate(jax.tree.leaves(signal)):
            numpyro.deterministic(f"_leaf_{number}", leaf)
        log_likelihood = lambda v: measured.log_prob(v.observation, forward(signal, v.params))
        numpyro.factor("measurements", jnp.sum(jnp.where(keep, jax.vmap(log_likelihood)(views), 0)))
        return signal

    return model


def as_likelihood(noise: AbstractNoise | PyTree | AnyCallable, context: View, num_axes: int = 1) -> AbstractNoise:
    """The noise that a user gave, as the likelihood of measurements with leading axes, `num_axes` of them.

    **Raises:**

    `ValueError` if there is none, or if it is not that of such measurements.
    """
    noise = as_noise(noise)
    if noise.exact:
        raise ValueError(f"`noise` must be positive, got {noise}; give its standard deviation, or an `AbstractNoise`.")
    noise.check(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[num_axes:], x.dtype), structure(context.observation))
    )
    return noise


def _r_hat(x):
    x = np.asarray(x, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Entries that never vary are known, not stuck.
        return np.where(np.ptp(x, (0, 1)) == 0, 1.0, numpyro.diagnostics.split_gelman_rubin(x))


def _ess(x):
    x = np.asarray(x, np.float64)
    half = x.shape[1] // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        size = numpyro.diagnostics.effective_sample_size(np.concatenate([x[:, :half], x[:, -half:]]))
    return np.where(np.ptp(x, (0, 1)) == 0, float(x.shape[0] * x.shape[1]), size)


def _named(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [("signal" + jax.tree_util.keystr(path), x) for path, x in leaves]


def _warn(result):
    """Warns of every figure that is bad, with its value and where it is worst."""
    problems = []
    for name, x in _named(result.r_hat):
        if not np.all(x <= R_HAT_LIMIT):
            problems.append(f"R-hat of `{name}` is up to {np.max(x):.3g} (limit {R_HAT_LIMIT})")
    for name, x in _named(result.ess):
        if not np.all(x >= ESS_LIMIT):
            problems.append(f"ESS of `{name}` is down to {np.min(x):.3g} (limit {ESS_LIMIT})")
    if result.num_divergences:
        problems.append(f"{result.num_divergences} draws diverged")
    if problems:
        warnings.warn(
            f"The reference posterior is not to be trusted: {'; '.join(problems)}. Take more warm-up and samples, "
            "reparametrise the prior, or raise `target_accept_prob`.",
            stacklevel=3,
        )
