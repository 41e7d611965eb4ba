r"""The squared error of predicted measurements: the objective of "Diffusion with Forward Models"."""

import warnings
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_number
from .._custom_types import AnyCallable, FloatScalar, Key
from .._forward.base import as_multi_view
from .._noising import noise_target, uniform_time
from .._schedule import NoiseLevel
from .._structure import count_entries
from .._view import Example, view_mask
from .base import AbstractObjective, check_functions, check_novel, left_open


def unit_weight(level: NoiseLevel) -> FloatScalar:
    """The weight 1 at every noise level."""
    return jnp.ones_like(level.alpha)


def snr_weight(level: NoiseLevel) -> FloatScalar:
    """The weight `1 + α²/σ²`, by which all noise levels ask the same precision of a network.

    It is the one to take for fine structure of posteriors, where the network's output is scaled by the uncertainty of a
    first estimate as in [`stochinv.NetworkDenoiser`][]. Fine structure shows at low noise alone, which
    [`stochinv.uniform_log_snr`][] gives its share of the training.

    **Arguments:**

    - `level`: the noise level.

    **Returns:**

    A scalar, at least 1.

    ??? cite "Source"

        Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1 (loss
        weighting, for data of unit variance).
    """
    return 1 + jnp.square(level.alpha / level.sigma)


@final
class SquaredError(AbstractObjective):
    """`w(t) ‖o − f(ŝ, φ)‖² + κ ‖o' − f(ŝ, φ')‖² + regulariser(ŝ, φ)`.

    Its minimiser predicts the mean of the measurement, so that the samples' *measurements* follow their true law for
    every forward model that can express that mean (all linear ones). Squared norms are means over the entries of a
    measurement, and over the novel views that count. With measurement noise the target is compared with
    `E[o | o_t, c] = ô + k (o_t − α ô)`, `k = α τ² / (α² τ² + σ²)`.

    **Arguments:**

    - `weighting`: the weight `w` of the target as a function of its [`stochinv.NoiseLevel`][]; 1 by default. See
        [`stochinv.snr_weight`][].
    - `novel_weight`: the weight `κ ≥ 0` of novel views.
    - `regulariser`: a callable `(signal, params) -> scalar` added to the loss, its weight included, or `None`.
    - `sample_time`: draws the training's `t ∈ [0, 1]`, a callable `(schedule, key) -> t` such as
        [`stochinv.uniform_time`][] and [`stochinv.uniform_log_snr`][].

    ??? cite "Source"

        Tewari et al. 2023, "Diffusion with forward models", equation 6.
    """

    weighting: AnyCallable = unit_weight
    novel_weight: float = 1.0
    regulariser: AnyCallable | None = None
    sample_time: AnyCallable = uniform_time
    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_functions("SquaredError", self)
        check_number("SquaredError: `novel_weight`", self.novel_weight, "at least 0", lambda x: x >= 0)

    def check(self, problem: Any, example: Example) -> None:
        check_novel(problem, example)
        if not problem.noise.every_level:
            raise ValueError(
                f"`objective` is a SquaredError, but `noise` is {problem.noise}, whose mean cannot be told from the "
                "noisy target; use `ProperScore()`."
            )
        if not problem.noise.exact and left_open(problem, example):
            warnings.warn(
                "`objective` is a SquaredError, but `noise` is positive and context and target leave the signal open: "
                "draws will be too narrow; use `ProperScore()`.",
                stacklevel=2,
            )

    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        target = example.target
        time_key, noise_key = jr.split(key)
        t = self.sample_time(problem.schedule, time_key)
        noisy, level = noise_target(problem.schedule, target.observation, t, noise_key)
        sample = problem.denoise(noisy, level, example.context, target.params)
        expected = problem.measured(noisy, level, sample.observation)
        parts = {"target": mean_square(expected, target.observation)}
        loss = self.weighting(level) * parts["target"]
        if example.novel is not None:
            forward = as_multi_view(problem.forward)
            predicted = problem.units.standardise(forward(sample.signal, example.novel.params))
            errors = jax.vmap(mean_square)(predicted, example.novel.observation)
            mask = view_mask(example.novel)
            parts["novel"] = jnp.sum(jnp.where(mask, errors, 0)) / jnp.maximum(jnp.sum(mask), 1)
            loss = loss + self.novel_weight * parts["novel"]
        if self.regulariser is not None:
            parts["regulariser"] = self.regulariser(sample.signal, target.params)
            loss = loss + parts["regulariser"]
        return loss, parts


def mean_square(a: Any, b: Any) -> FloatScalar:
    """The mean of squared differences over all entries of two PyTrees."""
    squares = [jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return jnp.sum(jnp.stack(squares)) / count_entries(a)
