r"""Simultaneous bands for the empirical distribution function of independent uniform variates.

At points `z_1 < … < z_K` the number of `N` independent variates at or below `z_k` is binomial. The band is pointwise of
one and the same level `γ`, chosen so that a whole uniform sample stays inside with the wanted probability:

`γ_sample = min_k 2 min(P(B_k ≤ b_k), P(B_k ≥ b_k))`,

and `γ` is a low quantile of `γ_sample` over simulated uniform samples (Säilynoja, Bürkner & Vehtari 2022, "Graphical
test for discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison",
section 2 and algorithm 2). Ties in `γ_sample` go in favour of uniformity.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .._lazy import scipy_special


class Band(NamedTuple):
    """A simultaneous band at given points, and p-values of the samples tested."""

    lower: Float[np.ndarray, " points"]
    upper: Float[np.ndarray, " points"]
    p_values: Float[np.ndarray, " samples"]


def uniform_band(
    counts: Int[np.ndarray, "samples points"],
    number: int,
    points: Float[np.ndarray, " points"],
    error: float,
    rng: np.random.Generator,
    num_simulations: int,
) -> Band:
    """The band for the share of `number` uniform variates at or below each of the points.

    **Arguments:**

    - `counts`: how many variates of each sample tested are at or below each point.
    - `number`: `N`, the variates of a sample.
    - `points`: increasing, in `(0, 1)`.
    - `error`: the probability that a uniform sample leaves the band anywhere.
    - `rng`: for the simulation.
    - `num_simulations`: how many uniform samples are simulated.
    """
    cumulative = binomial_cdf(number, points)
    above = np.concatenate([np.ones((len(points), 1)), 1 - cumulative[:, :-1]], 1)
    two_sided = 2 * np.minimum(cumulative, above)
    level = lambda counts: two_sided[np.arange(len(points)), counts].min(-1)
    widths = np.diff(points, prepend=0.0, append=1.0)
    simulated = np.cumsum(rng.multinomial(number, widths / widths.sum(), num_simulations), 1)[:, :-1]
    levels = np.sort(level(simulated))
    # At least a share `1 − error` of the simulated samples are inside.
    gamma = levels[int(np.floor(error * num_simulations))]
    inside = two_sided >= gamma * (1 - 1e-12)
    lower = inside.argmax(1) / number
    upper = (number - inside[:, ::-1].argmax(1)) / number
    smaller = np.searchsorted(levels, level(counts) * (1 + 1e-12), side="right")
    return Band(lower, upper, (1 + smaller) / (1 + num_simulations))


def binomial_cdf(number: int, probabilities: Float[np.ndarray, " points"]) -> Float[np.ndarray, "points counts"]:
    """`P(B ≤ b)` for all `b = 0 … number`, by the incomplete beta function."""
    below = np.arange(number)
    cumulative = scipy_special.betaincc(below + 1, number - below, probabilities[:, None])
    return np.concatenate([cumulative, np.ones((len(probabilities), 1))], 1)
