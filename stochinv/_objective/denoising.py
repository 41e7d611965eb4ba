r"""The error of the denoised signal: the objective of signal space."""

from typing import Any, ClassVar, final

import jax.numpy as jnp
import jax.random as jr

from .._checks import check_callable
from .._custom_types import AnyCallable, FloatScalar, Key
from .._denoiser.base import normalised_error
from .._noising import noise_target, uniform_log_snr
from .._view import Example
from .base import AbstractObjective


@final
class DenoisingError(AbstractObjective):
    """The mean square of the denoised signal's error, in units in which a first estimate has errors of size 1.

    Its minimiser is the conditional mean of the signal, and with it the score of the noised signal, at every noise
    level (Vincent 2011). For a denoiser without an estimate of its own the unit is that of a standard normal signal,
    `1/√(1 + α²/σ²)` (Karras et al. 2022).

    Parameters of the target are weights of its entries' errors.

    **Arguments:**

    - `sample_time`: draws the training's `t ∈ [0, 1]`, a callable `(schedule, key) -> t` such as
        [`stochinv.uniform_log_snr`][].

    ??? cite "Source"

        Vincent 2011, "A connection between score matching and denoising autoencoders"; Karras et al. 2022,
        "Elucidating the design space of diffusion-based generative models", section 5.
    """

    sample_time: AnyCallable = uniform_log_snr
    stochastic: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_callable("DenoisingError: `sample_time`", self.sample_time, "a callable such as `uniform_log_snr`")

    def check(self, problem: Any, example: Example) -> None:
        """Signals that are known are denoised under every condition."""

    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        time_key, noise_key = jr.split(key)
        clean = example.target.observation
        t = self.sample_time(problem.schedule, time_key)
        noisy, level = noise_target(problem.schedule, clean, t, noise_key)
        error = normalised_error(problem, noisy, level, example.context, clean)
        if example.target.params is not None:
            error = jnp.sqrt(example.target.params) * error
        return jnp.mean(error**2), {}
