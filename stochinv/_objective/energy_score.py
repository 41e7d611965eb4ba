r"""The energy score of predicted measurements: a proper score of their whole law, for stochastic denoisers."""

from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import _likelihood as likelihood
from .._custom_types import AnyCallable, FloatScalar, Key
from .._forward.base import as_multi_view
from .._noise import noise_target, uniform_log_snr
from .._view import Example, View, view_mask
from .base import AbstractObjective
from .squared_error import unit_weight


@final
class EnergyScore(AbstractObjective):
    """`mean_m ‖v̂_m − v‖^β − ½ mean_{m≠n} ‖v̂_m − v̂_n‖^β` for draws `v̂_m` of the denoiser's predicted measurements.

    `v` joins the target, the novel views and, if it has a weight, the context. The score is strictly proper: its
    minimiser's predictions follow the true *joint* law of `v` given `(o_t, c)`, for any forward model. The norm is the
    root of the weighted mean square over all entries of `v`.

    Where the noise of measurements is not Gaussian, only novel views are scored, with simulated noise and a target that
    is pure noise.

    **Arguments:**

    - `num_samples`: the number `M ≥ 2` of draws per record; the estimator is unbiased for each.
    - `beta`: the exponent, `0 < β < 2`.
    - `weighting`: the weight of a record as a function of its [`stochinv.NoiseLevel`][].
    - `target_weight`, `novel_weight`, `context_weight`: the weights of squared differences in the norm, at least 0. A
        target of weight 0 is not predicted at all, which saves time where novel measurements are parts of the target's
        view. The context may be scored only where measurements have no noise.
    - `marginal_weight`: the weight of the mean score of the target and each view by themselves, added to that of their
        joint law, at least 0. The sum stays strictly proper; what the context determines is learned sooner, since it
        is not outweighed by what other views leave open.
    - `local_weight`: the weight of the mean score of each pixel by itself, the entries along the last axis, added to
        the others, at least 0. In many dimensions the score of all entries together hardly tells a mixture of two
        modes from their mean, where much else is uncertain; that of few does. The sum stays strictly proper.
    - `regulariser`: a callable `(signal, params) -> scalar` added to the loss, its weight included, or `None`.
    - `sample_time`: draws the training's `t ∈ [0, 1]`, a callable `(schedule, key) -> t` such as
        [`stochinv.uniform_time`][] and [`stochinv.uniform_log_snr`][].

    ??? cite "Source"

        Gneiting and Raftery 2007, "Strictly proper scoring rules", section 5.1; De Bortoli et al. 2025, "Distributional
        diffusion models with scoring rules".
    """

    num_samples: int = 4
    beta: float = 1.0
    weighting: AnyCallable = unit_weight
    target_weight: float = 1.0
    novel_weight: float = 1.0
    context_weight: float = 0.0
    marginal_weight: float = 0.0
    local_weight: float = 0.0
    regulariser: AnyCallable | None = None
    sample_time: AnyCallable = uniform_log_snr
    stochastic: ClassVar[bool] = True

    def __check_init__(self):
        if self.num_samples < 2:
            raise ValueError(f"EnergyScore: `num_samples` must be at least 2, got {self.num_samples}.")
        if not 0 < self.beta < 2:
            raise ValueError(f"EnergyScore: `beta` must lie strictly between 0 and 2, got {self.beta}.")
        for name in ("target_weight", "novel_weight", "context_weight", "marginal_weight", "local_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"EnergyScore: `{name}` must be at least 0, got {getattr(self, name)}.")

    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        if callable(problem.noise):
            return self._simulated(problem, example, key)
        target, novel, context = example.target, example.novel, example.context
        time_key, noise_key, draws_key = jr.split(key, 3)
        t = self.sample_time(problem.schedule, time_key)
        noisy, level = noise_target(problem.schedule, target.observation, t, noise_key)
        scored: list[tuple[View, float]] = [] if novel is None else [(novel, self.novel_weight)]
        if self.context_weight > 0:
            if not isinstance(context, View):
                raise ValueError("EnergyScore: `context_weight` needs a context that is a `View`; set it to 0.")
            scored.append((context, self.context_weight))
        if self.target_weight == 0 and not scored:
            raise ValueError(
                "EnergyScore: with `target_weight=0` novel measurements are needed, or a context to score."
            )

        def predict(key):
            denoise_key, target_key, novel_key = jr.split(key, 3)
            signals, log_shares = problem.components(noisy, level, context, target.params, key=denoise_key)

            def measure(signal):
                predicted = []
                if self.target_weight > 0:
                    observation = problem.standardise(problem.forward(signal, target.params))
                    predicted.append(problem.measured(noisy, level, observation, key=target_key))
                for view, _ in scored:
                    stack = as_multi_view(problem.forward)(signal, view.params)
                    predicted.append(problem.standardise(problem.add_noise(stack, key=novel_key, stacked=True)))
                penalty = 0.0 if self.regulariser is None else self.regulariser(signal, target.params)
                return ravel_pytree(predicted)[0], jnp.asarray(penalty, observed.dtype)

            return *_of_each(measure, signals), jnp.exp(log_shares).astype(observed.dtype)

        parts = [view.observation for view, _ in scored]
        weights = [_weights(view, weight) for view, weight in scored]
        if self.target_weight > 0:
            parts = [target.observation, *parts]
            weights = [jax.tree.map(lambda x: jnp.full(x.shape, self.target_weight), target.observation), *weights]
        observed, _ = ravel_pytree(parts)
        weights = ravel_pytree(weights)[0].astype(observed.dtype)
        predicted, penalty, shares = jax.vmap(predict)(jr.split(draws_key, self.num_samples))
        error, spread = energy_terms(predicted, observed, weights / weights.size, self.beta, shares)
        if self.marginal_weight > 0:
            stacks = [view.observation for view, _ in scored]
            if self.target_weight > 0:
                stacks = [jax.tree.map(lambda x: x[None], target.observation), *stacks]
            alone = [
                energy_terms(
                    predicted[..., part], observed[part], weights[part] / weights[part].size, self.beta, shares
                )
                for part in _parts(stacks)
            ]
            errors, spreads = (jnp.mean(jnp.stack(x)) for x in zip(*alone, strict=True))
            error, spread = error + self.marginal_weight * errors, spread + self.marginal_weight * spreads
        if self.local_weight > 0:
            errors, spreads = local_terms(predicted, parts, observed, weights, self.beta, shares)
            error, spread = error + self.local_weight * errors, spread + self.local_weight * spreads
        return self._loss(error, spread, self.weighting(level), jnp.sum(shares * penalty, -1))

    def _simulated(self, problem, example, key):
        """The score of novel views under any law of their noise, from pure noise in one step."""
        target, novel, context = example.target, example.novel, example.context
        noise_key, draws_key = jr.split(key)
        noisy, level = noise_target(problem.schedule, target.observation, 1.0, noise_key)
        mask = view_mask(novel)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), novel.observation)
        path = likelihood.has_path(problem.noise, one)

        def predict(key):
            denoise_key, *noise_keys = jr.split(key, 3)
            signals, log_shares = problem.components(noisy, level, context, target.params, key=denoise_key)

            def measure(signal):
                clean = as_multi_view(problem.forward)(signal, novel.params)
                penalty = 0.0 if self.regulariser is None else self.regulariser(signal, target.params)

                def simulate(key):
                    drawn = problem.add_noise(clean, key=key, stacked=True)
                    if path:
                        return ravel_pytree(problem.standardise(drawn))[0], jnp.zeros((), observed.dtype)
                    drawn = jax.lax.stop_gradient(drawn)
                    logs = jax.vmap(lambda o, x: likelihood.log_prob(problem.noise, o, x))(clean, drawn)
                    return ravel_pytree(problem.standardise(drawn))[0], jnp.sum(jnp.where(mask, logs, 0))

                return *jax.vmap(simulate)(jnp.stack(noise_keys)), jnp.asarray(penalty, observed.dtype)

            return *_of_each(measure, signals), jnp.exp(log_shares).astype(observed.dtype)

        observed, _ = ravel_pytree(novel.observation)
        weights = ravel_pytree(_weights(novel, self.novel_weight))[0].astype(observed.dtype)
        weights = weights / weights.size
        drawn, logs, penalty, shares = jax.vmap(predict)(jr.split(draws_key, self.num_samples))
        first = drawn[:, :, 0]
        error, spread = energy_terms(first, observed, weights, self.beta, shares)
        if not path:
            distance = lambda a, b: _norm_power(a - b, weights, self.beta)
            to_first = lambda a: jnp.sum(shares * jax.vmap(jax.vmap(lambda b: distance(a, b)))(first), -1)
            apart = 1 - jnp.eye(self.num_samples, dtype=observed.dtype)
            costs = jax.vmap(jax.vmap(jax.vmap(lambda a: distance(a, observed))))(drawn)
            to_others = jax.vmap(jax.vmap(jax.vmap(to_first)))(drawn)
            costs = costs - jnp.sum(to_others * apart[:, None, None], -1) / (self.num_samples - 1)
            pull = jax.lax.stop_gradient(shares * (costs[..., 0] - costs[..., 1]))
            surrogate = 0.5 * jnp.mean(jnp.sum(pull * (logs[..., 0] - logs[..., 1]), -1))
            error = error + (surrogate - jax.lax.stop_gradient(surrogate))
        return self._loss(error, spread, self.weighting(level), jnp.sum(shares * penalty, -1))

    def _loss(self, error, spread, weight, penalty):
        parts = {"error": error, "spread": spread}
        loss = weight * (error - spread)
        if self.regulariser is not None:
            parts["regulariser"] = jnp.mean(penalty)
            loss = loss + parts["regulariser"]
        return loss, parts


def energy_terms(
    predicted: Any, observed: Any, weights: Any, beta: float, shares: Any = None
) -> tuple[FloatScalar, FloatScalar]:
    """`mean_m ‖v̂_m − v‖^β` and the unbiased `½ mean_{m≠n} ‖v̂_m − v̂_n‖^β`, with a weighted norm.

    **Arguments:**

    - `predicted`: the draws, shape `(M, n)`; or with `shares` their components, shape `(M, K, n)`.
    - `observed`: the observed vector, shape `(n,)`.
    - `weights`: weights of the squares, shape `(n,)`.
    - `beta`: the exponent.
    - `shares`: the probabilities of the components, shape `(M, K)`; means are taken over them.
    """
    distance = lambda a, b: _norm_power(a - b, weights, beta)
    if shares is None or shares.shape[1] == 1:
        predicted = predicted if shares is None else predicted[:, 0]
        first, second = jnp.triu_indices(len(predicted), 1)
        errors = jax.vmap(lambda v: distance(v, observed))(predicted)
        return jnp.mean(errors), 0.5 * jnp.mean(jax.vmap(distance)(predicted[first], predicted[second]))
    errors = jax.vmap(jax.vmap(lambda v: distance(v, observed)))(predicted)
    rows, columns = jnp.triu_indices(len(predicted), 1)

    def pair(m, n):
        between = jax.vmap(lambda a: jax.vmap(lambda b: distance(a, b))(predicted[n]))(predicted[m])
        return shares[m] @ between @ shares[n]

    return jnp.mean(jnp.sum(shares * errors, -1)), 0.5 * jnp.mean(jax.vmap(pair)(rows, columns))


def local_terms(
    predicted: Any, parts: Any, observed: Any, weights: Any, beta: float, shares: Any
) -> tuple[FloatScalar, FloatScalar]:
    """The means of both terms over pixels: the vectors along the last axis of each array of `parts`.

    **Arguments:** as of `energy_terms`, and

    - `parts`: arrays in the shapes of what was raveled.
    """
    errors, spreads, first = [], [], 0
    for part in jax.tree.leaves(parts):
        channels = part.shape[-1] if part.ndim else 1
        last = first + part.size

        def pixels(x, first=first, last=last, channels=channels):
            return jnp.moveaxis(x[..., first:last].reshape(*x.shape[:-1], -1, channels), -2, 0)

        terms = jax.vmap(lambda draws, truth, weights: energy_terms(draws, truth, weights, beta, shares))
        error, spread = terms(pixels(predicted), pixels(observed), pixels(weights) / channels)
        errors, spreads, first = [*errors, error], [*spreads, spread], last
    return jnp.mean(jnp.concatenate(errors)), jnp.mean(jnp.concatenate(spreads))


def _of_each(measure, signals):
    """`measure` of every component; of a single one without a map, which costs a quarter of a training step."""
    if len(jax.tree.leaves(signals)[0]) > 1:
        return jax.vmap(measure)(signals)
    return jax.tree.map(lambda x: x[None], measure(jax.tree.map(lambda x: x[0], signals)))


def _norm_power(difference, weights, beta):
    """`‖d‖^β` with a gradient that is 0, not NaN, at `d = 0`."""
    square = jnp.sum(weights * difference**2)
    zero = square == 0  # and not `> 0`, which would hide NaN
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, square) ** (beta / 2))


def _parts(stacks):
    """Where each observation of stacks of observations is in all of them raveled."""
    label = lambda stack, first: jax.tree.map(
        lambda x: np.broadcast_to(np.arange(first, first + len(x)).reshape(-1, *(1,) * (x.ndim - 1)), x.shape), stack
    )
    lengths = [len(jax.tree.leaves(stack)[0]) for stack in stacks]
    starts = np.cumsum([0, *lengths])
    labels = jax.tree.leaves([label(stack, start) for stack, start in zip(stacks, starts, strict=False)])
    labels = np.concatenate([x.ravel() for x in labels])
    return [np.flatnonzero(labels == i) for i in range(starts[-1])]


def _weights(view, weight):
    """The weight of every entry of a stack of views."""
    per_view = weight * view_mask(view)
    expand = lambda x: jnp.broadcast_to(per_view.reshape(per_view.shape + (1,) * (x.ndim - 1)), x.shape)
    return jax.tree.map(expand, view.observation)
