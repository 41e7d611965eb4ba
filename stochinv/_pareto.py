r"""Whether importance weights can be trusted: the shape of their largest ones.

Weights above a threshold follow a generalised Pareto law, `p(x) ∝ (1 + k x / σ)^(−1/k − 1)`, nearly. Its shape `k` says
how many moments they have, `1/k`: above 0.7 means of weighted draws are not to be relied on, however many there are
(Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling"). It is fitted as by Zhang and
Stephens (2009, "A new and efficient estimation method for the generalized Pareto distribution").
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._custom_types import FloatScalar

# Above it, means are not to be relied on.
LARGEST_SHAPE = 0.7
# What is known before the weights are: a shape of one half, as from ten further weights.
_USUAL_SHAPE, _WORTH = 0.5, 10
_SHARPNESS, _FEWEST = 3, 5


def pareto_k(log_weights: Float[Array, " draws"]) -> FloatScalar:
    """The shape `k` of the largest weights: a fifth of them, or three times the root of their number if that is less.

    Below 0.5 weights have a variance; above 0.7 means of weighted draws are not to be relied on.

    **Arguments:**

    - `log_weights`: the logarithms of the weights, up to a constant, shape `(draws,)`.

    **Returns:**

    A scalar; −∞ where the largest weights are all the same, and ∞ for fewer than 25 weights.

    ??? cite "Source"

        Vehtari et al. 2024, "Pareto smoothed importance sampling", section 2.2 and appendix.
    """
    number = min(math.ceil(0.2 * log_weights.size), math.ceil(3 * math.sqrt(log_weights.size)))
    if number < _FEWEST:
        return jnp.full((), jnp.inf)
    weights = jnp.sort(jnp.exp(log_weights - jnp.max(log_weights)))
    above = weights[-number:] - weights[-number - 1]
    spread = above[-1] > 10 * jnp.finfo(weights.dtype).eps
    fitted = _shape(jnp.where(spread, above, jnp.arange(1.0, number + 1)))
    shape = (number * fitted + _WORTH * _USUAL_SHAPE) / (number + _WORTH)
    return jnp.where(spread, shape, -jnp.inf)


def _shape(above: Float[Array, " number"]) -> FloatScalar:
    """The mean of `k` over a grid of `b = −k / σ`, weighted by the likelihood that is profiled over the other."""
    number = above.size
    size = 30 + int(math.sqrt(number))
    steps = 1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))
    quartile = above[int(number / 4 + 0.5) - 1]
    rates = 1 / above[-1] + steps / (_SHARPNESS * quartile)
    shapes = jax.vmap(lambda rate: jnp.mean(jnp.log1p(-rate * above)))(rates)
    log_likelihood = number * (jnp.log(-rates / shapes) - shapes - 1)
    rate = jax.nn.softmax(log_likelihood) @ rates
    return jnp.mean(jnp.log1p(-rate * above))
