r"""Proper scores of predicted measurements: objectives of their whole law, for stochastic denoisers."""

import warnings
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array

from .._checks import check_flag, check_integer, check_number
from .._chunks import over_draws
from .._custom_types import AnyCallable, FloatScalar, Key, Observation, PyTree
from .._denoiser.base import components
from .._forward.base import as_multi_view
from .._noising import noise_target, pure_noise, uniform_log_snr
from .._view import Example, View, view_mask
from .base import AbstractObjective, check_functions, check_novel, left_open
from .rules import AbstractScoringRule, EnergyRule, check_rule
from .squared_error import unit_weight


@final
class ProperScore(AbstractObjective):
    """`mean_m ρ(v̂_m, v) − ½ mean_{m≠n} ρ(v̂_m, v̂_n)` for draws `v̂_m` of the denoiser's predicted measurements.

    `v` joins the target and the novel views. For a strictly proper rule such as the energy score the minimiser's
    predictions follow the true *joint* law of `v` given `(o_t, c)`, for any forward model.

    Where the noise of measurements is not Gaussian, novel views alone are scored, with simulated noise and a target
    that is pure noise. With Gaussian noise novel views are needed too, unless `sample_time` is
    [`stochinv.pure_noise`][], where a target's own noise is not seen.

    **Arguments:**

    - `rule`: the [`stochinv.AbstractScoringRule`][] that compares; its distance is `ρ`.
    - `num_draws`: the number `M ≥ 2` of draws per record.
    - `fair`: 1 for an unbiased estimate of the score of the draws' law, 0 for the score of the `M` draws themselves,
        which is biased towards narrow laws and varies less; a mixture in between.
    - `score_target`: whether the target is scored. Without it no time goes into predicting it, where novel measurements
        are parts of the target's view.
    - `weighting`: the weight of a record as a function of its [`stochinv.NoiseLevel`][].
    - `regulariser`: a callable `(signal, params) -> scalar` added to the loss, its weight included, or `None`.
    - `sample_time`: draws the training's `t ∈ [0, 1]`, a callable `(schedule, key) -> t` such as
        [`stochinv.uniform_log_snr`][], [`stochinv.uniform_time`][], [`stochinv.mostly_noise`][] or
        [`stochinv.pure_noise`][].

    ??? cite "Source"

        Gneiting and Raftery 2007, "Strictly proper scoring rules"; De Bortoli et al. 2025, "Distributional diffusion
        models with scoring rules"; Lang et al. 2024, "AIFS-CRPS", for the mixture of the two estimates.
    """

    rule: AbstractScoringRule = EnergyRule()
    num_draws: int = 4
    fair: float = 1.0
    score_target: bool = True
    weighting: AnyCallable = unit_weight
    regulariser: AnyCallable | None = None
    sample_time: AnyCallable = uniform_log_snr
    stochastic: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_rule("ProperScore", self.rule)
        check_integer("ProperScore: `num_draws`", self.num_draws, 2)
        check_number("ProperScore: `fair`", self.fair, "a number between 0 and 1", lambda x: 0 <= x <= 1)
        check_flag("ProperScore: `score_target`", self.score_target)
        check_functions("ProperScore", self)

    def check(self, problem: Any, example: Example) -> None:
        # Of a target that is seen as pure noise its own noise is not seen: it is as good as a novel measurement.
        unseen = self.score_target and self.sample_time is pure_noise and problem.noise.every_level
        if not unseen:
            check_novel(problem, example)
        if example.novel is None and not self.score_target:
            raise ValueError(
                "ProperScore: with `score_target=False` novel measurements are needed (`Example.novel`, or `roles` "
                "with `novel=1`), since nothing else is scored."
            )
        if example.novel is None and example.context is not None and left_open(problem, example):
            warnings.warn(
                "ProperScore: no novel measurement is scored, but context and target leave the signal open: what "
                "neither sees is not learned; deal one by `RandomViews(novel=1)`.",
                stacklevel=2,
            )

    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        time_key, noise_key, draws_key = jr.split(key, 3)
        every_level = problem.noise.every_level
        t = self.sample_time(problem.schedule, time_key) if every_level else 1.0
        noisy, level = noise_target(problem.schedule, example.target.observation, t, noise_key)
        score_target = self.score_target and every_level
        observed = _observed(example, score_target)
        predict = lambda key: self._predict(problem, example, noisy, level, score_target, key)
        drawn, log_shares, penalty = jax.vmap(predict)(over_draws(jr.split(draws_key, self.num_draws)))
        shares = jnp.exp(log_shares).astype(jnp.result_type(level.alpha))
        if shares.shape[1] == 1:
            error, spread = self.rule.terms(jax.tree.map(lambda x: x[:, 0], drawn), observed)
        else:
            error, spread = self.rule.terms(drawn, observed, shares)
        spread = spread * (1 - (1 - self.fair) / self.num_draws)
        parts = {"error": error, "spread": spread}
        loss = self.weighting(level) * (error - spread)
        if self.regulariser is not None:
            parts["regulariser"] = jnp.mean(jnp.sum(shares * penalty, -1))
            loss = loss + parts["regulariser"]
        return loss, parts

    def _predict(self, problem, example, noisy, level, score_target, key):
        """One draw: predictions with a leading axis of components, the logarithms of their shares, and penalties."""
        denoise_key, target_key, novel_key = jr.split(key, 3)
        target, novel = example.target, example.novel
        arguments = (noisy, level, example.context, target.params)
        signals, log_shares = components(problem.denoiser, *arguments, key=denoise_key)

        def measure(signal):
            stacks, logs = [], jnp.zeros(1)
            if score_target:
                predicted = problem.units.standardise(problem.forward(signal, target.params))
                stacks.append(
                    jax.tree.map(lambda x: x[None], problem.measured(noisy, level, predicted, key=target_key))
                )
            if novel is not None:
                drawn, logs = _novel_draws(problem, signal, novel, novel_key)
                stacks = [jax.tree.map(lambda x: jnp.broadcast_to(x, (logs.size, *x.shape)), s) for s in stacks] + [
                    drawn
                ]
            else:
                stacks = [jax.tree.map(lambda x: x[None], s) for s in stacks]
            penalty = 0.0 if self.regulariser is None else self.regulariser(signal, target.params)
            return tuple(stacks), logs, jnp.broadcast_to(jnp.asarray(penalty, level.alpha.dtype), logs.shape)

        stacks, logs, penalty = _of_each(measure, signals)
        join = lambda x: x.reshape(-1, *x.shape[2:])
        return jax.tree.map(join, stacks), join(log_shares[:, None] + logs), join(penalty)


def _observed(example, score_target):
    """What is scored: a tuple of stacks of views, those that do not count set to 0."""
    stacks = [jax.tree.map(lambda x: x[None], example.target.observation)] if score_target else []
    if example.novel is not None:
        stacks.append(_blank(example.novel, example.novel.observation))
    return tuple(stacks)


def _blank(view: View, observation: Observation) -> PyTree:
    mask = view_mask(view)
    return jax.tree.map(lambda x: jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), observation)


def _novel_draws(problem: Any, signal: Any, novel: View, key: Key) -> tuple[PyTree, Array]:
    """Noisy novel measurements of a signal, standardised, with a leading axis of draws and their log-shares.

    Where noise has no path to differentiate along there are two draws, which share by the softmax of twice their
    log-probabilities, less what these are: one half each, with the gradient of the score-function estimator.
    """
    clean = as_multi_view(problem.forward)(signal, novel.params)
    keys = jr.split(key, view_mask(novel).size)
    drawn, logs = jax.vmap(problem.noise.draws, out_axes=1)(keys, clean)
    drawn = jax.vmap(lambda x: _blank(novel, problem.units.standardise(x)))(drawn)
    logs = jnp.sum(jnp.where(view_mask(novel), logs, 0), -1)
    return drawn, jax.nn.log_softmax(2 * (logs - jax.lax.stop_gradient(logs)))


def _of_each(measure, signals):
    """`measure` of every component; of a single one without a map, which costs a quarter of a training step."""
    if len(jtu.tree_leaves(signals)[0]) > 1:
        return jax.vmap(measure)(signals)
    return jax.tree.map(lambda x: x[None], measure(jax.tree.map(lambda x: x[0], signals)))
