r"""The noise of a camera: counts, and a read-out that adds Gaussian noise.

In units of one count, a measurement `x = o / gain` of a rate `λ` with the read-out's standard deviation `r` has the
density

`p(x) = Σₙ exp(−λ) λⁿ / n! · N(x; n, r²)`.

The terms are log-concave in `n`, so all that matter lie around the largest, at `n + r² log n ≈ x + r² log λ`, and
spread by about `s = (1/n + 1/r²)^(−½)`. The sum is over 49 of them, every `h`-th where `s > 4`: for so smooth a sum
that is the trapezoidal rule, whose error is of the order of `exp(−2π² (s/h)²)`. Poisson's probabilities are written as
deviances, `n log(n/λ) − n + λ`, which lose nothing where `n` and `λ` are large.
"""

import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float

from ._checks import numbers
from ._custom_types import FloatScalar, FloatScalarLike, Key, Observation, PyTree, Structure
from ._noise import AbstractNoise, as_scale
from ._noising import scaled_normal
from ._poisson import COUNTS

# How many terms are summed to either side of the largest, and to how many of their standard deviations at least.
_SIDE, _DEVIATIONS = 24, 6
# Added to rates, so that those of 0 have a logarithm.
_LEAST_RATE = 1e-24


@final
class PoissonGaussianNoise(AbstractNoise):
    """The noise of a camera: `o = gain · N + read_std · η` with `N ~ Poisson((ô + background) / gain)`, `η ~ N(0, 1)`.

    Its mean is `ô + background`, and its variance `gain · (ô + background) + read_std²`. A mean below 0 is taken for 0.
    An offset of the camera has to be subtracted from measurements first.

    The density is the sum over counts, cut off six standard deviations of its terms from the largest. In single
    precision log-densities are right to 3e-6 times one plus their size, at any rate up to a million counts. Each takes
    49 terms.

    **Arguments:**

    - `gain`: what one count (an electron) measures, positive, in raw units.
    - `read_std`: the standard deviation of the read-out, positive, in raw units; for none take
        [`stochinv.PoissonNoise`][].
    - `background`: the expected measurement where `ô = 0`, at least 0, in raw units.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Snyder, Hammoud & White (1993), "Image recovery from data acquired with a charge-coupled-device camera", JOSA A
        10, equation 2, for the model. Loader (2000), "Fast and accurate computation of binomial probabilities", for
        the deviance.
    """

    gain: Float[Array, ""]
    read_std: Float[Array, ""]
    background: Float[Array, ""]
    every_level: ClassVar[bool] = False

    def __init__(
        self, gain: FloatScalarLike = 1.0, read_std: FloatScalarLike = 1.0, background: FloatScalarLike = 0.0
    ) -> None:
        self.gain = as_scale(gain, "PoissonGaussianNoise: `gain`", positive=True)
        self.read_std = as_scale(read_std, "PoissonGaussianNoise: `read_std`", positive=True)
        self.background = as_scale(background, "PoissonGaussianNoise: `background`")

    def __repr__(self) -> str:
        gain, read_std, background = (numbers(x) for x in (self.gain, self.read_std, self.background))
        return f"PoissonGaussianNoise(gain={gain}, read_std={read_std}, background={background})"

    @property
    def exact(self) -> bool:
        return False

    def _rates(self, clean):
        rate = lambda x: jnp.maximum((x + self.background.astype(x.dtype)) / self.gain.astype(x.dtype), 0)
        return jax.tree.map(rate, clean)

    def sample(self, key: Key, clean: Observation) -> Observation:
        count_key, read_key = jr.split(key)
        counts = COUNTS.sample(count_key, self._rates(clean))
        read = scaled_normal(clean, self.read_std, read_key)
        return jax.tree.map(lambda n, e: self.gain.astype(n.dtype) * n + e.astype(n.dtype), counts, read)

    def log_prob(self, observation: Observation, clean: Observation) -> FloatScalar:
        read = self.read_std / self.gain
        log = lambda o, rate: jnp.sum(
            _log_density(jnp.ravel(o) / self.gain, jnp.ravel(rate), read) - jnp.log(self.gain)
        )
        logs = jax.tree.map(log, observation, self._rates(clean))
        return sum(jax.tree.leaves(logs), jnp.zeros(()))

    def mean(self, clean: Observation) -> Observation:
        return jax.tree.map(lambda rate: (self.gain * rate).astype(rate.dtype), self._rates(clean))

    def std(self, clean: Observation) -> PyTree:
        spread = lambda rate: jnp.sqrt(self.gain**2 * rate + self.read_std**2).astype(rate.dtype)
        return jax.tree.map(spread, self._rates(clean))

    def draws(self, key: Key, clean: Observation) -> tuple[Observation, Float[Array, " draws"]]:
        drawn = jax.vmap(lambda k: self.sample(k, jax.lax.stop_gradient(clean)))(jr.split(key))
        return drawn, jax.vmap(lambda o: self.log_prob(o, clean))(drawn)

    def gaussian_scale(self, clean: Observation) -> None:
        """Of counts there is none."""

    def check(self, clean: Structure) -> None:
        """A camera's noise suits every measurement."""


def _log_density(x, rate, read):
    """The log-density of `x` counts with the read-out's standard deviation `read`."""
    rate = rate + _LEAST_RATE
    number, step = jax.lax.stop_gradient(_terms(x, rate, read))
    possible, number = number >= 0, jnp.maximum(number, 0)
    log_poisson = -_deviance(number, rate[..., None]) - _log_factorial_rest(number)
    terms = jnp.where(possible, log_poisson - 0.5 * ((x[..., None] - number) / read) ** 2, -jnp.inf)
    return logsumexp(terms, -1) + jnp.log(step) - jnp.log(read) - 0.5 * math.log(2 * math.pi)


def _terms(x, rate, read):
    """The numbers of counts to sum over, on a last axis, and the step between them. Some may be negative."""
    variance = read**2
    most_likely = variance * _omega(x / variance + jnp.log(rate / variance))
    spread = 1 / jnp.sqrt(1 / jnp.maximum(most_likely, 1) + 1 / variance)
    step = jnp.maximum(jnp.ceil(spread * _DEVIATIONS / _SIDE), 1)
    return jnp.round(most_likely)[..., None] + step[..., None] * jnp.arange(-_SIDE, _SIDE + 1), step


def _omega(y):
    """Wright's function: the solution of `w + log w = y`, by Newton's method, right to single precision."""
    y = jnp.maximum(y, -80)  # below, `w` is no number of single precision
    w = jnp.where(y > 1, y - jnp.log(jnp.maximum(y, 1)), jnp.exp(jnp.minimum(y, 1)))
    for _ in range(4):
        w = w * (1 + y - jnp.log(w)) / (1 + w)
    return w


@jax.custom_jvp
def _deviance(number, rate):
    """`n log(n/λ) − n + λ`, by a series in `(n − λ) / (n + λ)` where it is small."""
    far = number * jnp.log(jnp.maximum(number, 1) / rate) - number + rate
    v = (number - rate) / (number + rate)
    near = (number - rate) * v + 2 * number * v**3 * (1 / 3 + v**2 / 5 + v**4 / 7)
    return jnp.where(jnp.abs(v) < 0.1, near, far)


@_deviance.defjvp
def _deviance_jvp(primals, tangents):
    """Its derivative by the rate, `1 − n/λ`, written so that rates near 0 do not underflow. Numbers are constants."""
    number, rate = primals
    return _deviance(number, rate), (rate - number) / rate * tangents[1]


def _log_factorial_rest(number):
    """`log n! − n log n + n`, by Stirling's series where `n` is large."""
    few, many = jnp.minimum(number, 16), jnp.maximum(number, 16)
    exact = gammaln(few + 1) - few * jnp.log(jnp.maximum(few, 1)) + few
    stirling = 0.5 * jnp.log(2 * math.pi * many) + 1 / (12 * many) - 1 / (360 * many**3)
    return jnp.where(number < 16, exact, stirling)
