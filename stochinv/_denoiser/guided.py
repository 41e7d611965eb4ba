"""Guidance: a denoiser that heeds the context more, or less, than the posterior does."""

from typing import final

import jax
import jax.numpy as jnp

from .._custom_types import AnyCallable, Context, Key, Observation, Params, Signal
from .._schedule import NoiseLevel
from .._view import View, is_view
from .base import AbstractDenoiser, encode


@final
class GuidedDenoiser(AbstractDenoiser):
    """`D(∅) + w (D(c) − D(∅))`: the signal given no context, moved `w` times as far as the context moves it.

    Exchange the denoiser of a trained problem for it. In signal space all are trained for that; in measurement space it
    has to have been trained with dropped contexts, as by `RandomViews(context=(0, 1))`. With `w = 1` it is that
    denoiser. With `w > 1` samples agree more with the context, differ less, and are **not** samples of the posterior.
    Both signals are drawn with the same key, so their difference is that of the contexts; where draws choose one of
    several signals, the two choices may differ all the same.

    **Arguments:**

    - `denoiser`: a denoiser; its context is a [`stochinv.View`][] with a mask.
    - `weight`: the guidance `w`, at least 0.

    **Raises:**

    `ValueError` if `weight` is negative or, at a call, the context is no [`stochinv.View`][] with a mask.

    ??? cite "Source"

        Ho and Salimans 2022, "Classifier-free diffusion guidance", equation 6, for signals.
    """

    denoiser: AnyCallable
    weight: float

    def __check_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"GuidedDenoiser: `weight` must be at least 0, got {self.weight}.")

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        if not is_view(context) or context.mask is None:
            raise ValueError(
                "GuidedDenoiser: `context` must be a `View` with a mask, as of training with dropped contexts "
                f"(`RandomViews(context=(0, 1))`), got {type(context).__name__} without one."
            )
        nothing = View(context.observation, context.params, jnp.zeros_like(context.mask))
        contexts = (encode(self.denoiser, x) for x in (context, nothing))
        given, free = (self.denoiser(noisy, level, x, params, key=key) for x in contexts)
        return jax.tree.map(lambda g, f: f + self.weight * (g - f), given, free)
