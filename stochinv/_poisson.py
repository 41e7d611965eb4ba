"""Counting noise: a detector counts what arrives."""

from typing import ClassVar, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import numbers
from ._custom_types import FloatScalar, FloatScalarLike, Key, Observation, PyTree, Structure
from ._lazy import numpyro
from ._noise import AbstractNoise, NoiseLaw, as_scale

COUNTS = NoiseLaw(lambda rates: jax.tree.map(numpyro.distributions.Poisson, rates))


@final
class PoissonNoise(AbstractNoise):
    """Counting noise: `o = gain · N` with `N ~ Poisson((ô + background) / gain)`.

    Its mean is `ô + background`, which must be positive, and its variance `gain · (ô + background)`.

    **Arguments:**

    - `gain`: what one count measures, positive, in raw units.
    - `background`: the expected measurement where `ô = 0`, at least 0, in raw units.

    **Raises:**

    `ValueError` if an argument is out of its range.
    """

    gain: Float[Array, ""]
    background: Float[Array, ""]
    every_level: ClassVar[bool] = False

    def __init__(self, gain: FloatScalarLike = 1.0, background: FloatScalarLike = 0.0) -> None:
        self.gain = as_scale(gain, "PoissonNoise: `gain`", positive=True)
        self.background = as_scale(background, "PoissonNoise: `background`")

    def __repr__(self) -> str:
        return f"PoissonNoise(gain={numbers(self.gain)}, background={numbers(self.background)})"

    @property
    def exact(self) -> bool:
        return False

    def _counts(self, observation):
        return jax.tree.map(lambda x: x / self.gain.astype(x.dtype), observation)

    def _measured(self, counts):
        return jax.tree.map(lambda x: x * self.gain.astype(x.dtype), counts)

    def _rates(self, clean):
        return jax.tree.map(lambda x: (x + self.background.astype(x.dtype)) / self.gain.astype(x.dtype), clean)

    def sample(self, key: Key, clean: Observation) -> Observation:
        return self._measured(COUNTS.sample(key, self._rates(clean)))

    def log_prob(self, observation: Observation, clean: Observation) -> FloatScalar:
        return COUNTS.log_prob(self._counts(observation), self._rates(clean))

    def mean(self, clean: Observation) -> Observation:
        return self._measured(self._rates(clean))

    def std(self, clean: Observation) -> PyTree:
        return self._measured(jax.tree.map(jnp.sqrt, self._rates(clean)))

    def draws(self, key: Key, clean: Observation) -> tuple[Observation, Float[Array, " draws"]]:
        counts, log_probs = COUNTS.draws(key, self._rates(clean))
        return self._measured(counts), log_probs

    def gaussian_scale(self, clean: Observation) -> None:
        """Of counts and other laws there is none."""

    def check(self, clean: Structure) -> None:
        """Counting noise suits every measurement."""
