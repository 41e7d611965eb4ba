r"""Networks that predict the noise, the velocity or the score of a noised signal, as denoisers.

With `x_t = α x + σ ε`, each of them tells the others:

`x̂ = (x_t − σ ε̂)/α`,  `x̂ = (α x_t − σ √(α²+σ²) v̂)/(α²+σ²)`,  `ε̂ = −σ ∇log p_t`,

where `v = (α ε − σ x)/√(α²+σ²)`, which is `α ε − σ x` under a schedule that preserves the variance.
"""

from typing import Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import AnyCallable, Context, Key, Observation, Params, Signal
from .._schedule import NoiseLevel
from .base import AbstractStandardisedDenoiser

PREDICTIONS = ("signal", "velocity", "noise", "score")


@final
class PredictionDenoiser(AbstractStandardisedDenoiser):
    """A network that predicts the noise, the velocity or the score of a noised signal, as a denoiser in signal space.

    For networks that come from elsewhere; whatever it predicts, it is trained by the same loss.

    **Arguments:**

    - `network`: a callable `(noisy, level, context, params, *, key) -> prediction`, whose prediction has the structure
        of the noised signal and is in its standardised units.
    - `predicts`: `"signal"` (`x`), `"velocity"` (`v = (α ε − σ x)/√(α²+σ²)`), `"noise"` (`ε`), or `"score"`
        (`∇ log p_t(x_t | c)`). An error in `"noise"` or `"score"` is an error in the signal that is `σ/α` or `σ²/α`
        times as large: more than a hundred times at the noisiest levels.

    **Raises:**

    `ValueError` if `predicts` is none of these, or, in `fit`, if a measurement is noised and not the signal.

    ??? cite "Source"

        Salimans and Ho 2022, "Progressive distillation for fast sampling of diffusion models", section 4, appendix D.
    """

    network: AnyCallable
    predicts: Literal["signal", "velocity", "noise", "score"] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.predicts not in PREDICTIONS:
            raise ValueError(f"PredictionDenoiser: `predicts` must be one of {PREDICTIONS}, got {self.predicts!r}.")

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        """The denoised signal, in standardised units."""
        alpha, sigma = jnp.asarray(level.alpha), jnp.asarray(level.sigma)
        size = jnp.sqrt(alpha**2 + sigma**2)
        of_noisy, of_prediction = {
            "signal": (0.0, 1.0),
            "velocity": (alpha / size**2, -sigma / size),
            "noise": (1 / alpha, -sigma / alpha),
            "score": (1 / alpha, sigma**2 / alpha),
        }[self.predicts]
        predicted = self.network(noisy, level, context, params, key=key)
        return jax.tree.map(lambda x, p: of_noisy * x + of_prediction * p, noisy, predicted)
