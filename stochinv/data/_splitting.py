r"""Several independent measurements made of one.

Where a signal was measured once, these are the views that one would have had of shorter exposures. Together they say
exactly what the measurement said.
"""

import math

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Inexact, Num

from .._checks import check_integer, check_key, check_number, is_traced, shown
from .._complex import as_parts, from_parts
from .._custom_types import ArrayLike, FloatScalarLike, Key


def thin_counts(counts: Num[ArrayLike, "..."], shares: Float[ArrayLike, " parts"], key: Key) -> Float[Array, "..."]:
    """Deals every count to one of several parts, at random.

    If counts are Poisson with mean `λ`, then part `i` is Poisson with mean `shares[i] · λ`, and parts are independent.
    They add up to the counts. That is so of counts alone: divide by the gain of a camera first, and where its read-out
    adds noise, parts are neither Poisson nor independent.

    As views of a signal, shares are exposures: `View(thin_counts(counts, shares, key), shares)` for a forward model
    `lambda signal, share: share * rate(signal)` and `PoissonNoise()`.

    **Arguments:**

    - `counts`: integers of at least 0, in any number format and shape.
    - `shares`: of the parts, positive and with the sum 1.
    - `key`: a PRNG key.

    **Returns:**

    The parts, of a leading axis and the shape of `counts`, in single precision.

    **Raises:**

    `ValueError` if counts are no counts, or shares no shares.

    ??? cite "Source"

        Neufeld, Dharamshi, Gao & Witten (2024), "Data thinning for convolution-closed distributions", JMLR 25, of which
        the thinning of Poisson counts is the oldest example.
    """
    check_key(key)
    _check_counts(counts)
    _check_shares(shares)
    number, weights = jnp.asarray(counts, jnp.float32), jnp.asarray(shares, jnp.float32)
    parts = jr.multinomial(key, number, jnp.broadcast_to(weights, (*number.shape, weights.size)))
    return jnp.moveaxis(parts, -1, 0)


def split_gaussian(
    observation: Inexact[ArrayLike, "..."], std: FloatScalarLike, num: int, key: Key
) -> Inexact[Array, "..."]:
    """Splits a measurement with Gaussian noise into several, each with more of it.

    If an entry of the measurement is `m + std · η`, then each part is `m + √num · std · η'`, and the noise of parts is
    independent. Their mean is the measurement. For that `std` has to be right: where the noise's true standard
    deviation is `τ`, the covariance of any two parts is `τ² − std²`.

    As views of a signal they are repeats: `View(split_gaussian(observation, std, num, key), None)` with
    `noise=sqrt(num) * std`.

    **Arguments:**

    - `observation`: numbers of any shape; complex ones have noise on real and imaginary parts each.
    - `std`: the standard deviation of the noise, positive, in the units of the measurement.
    - `num`: how many parts, at least 2.
    - `key`: a PRNG key.

    **Returns:**

    The parts, of a leading axis and the shape of `observation`.

    **Raises:**

    `ValueError` if an argument is out of its range.

    ??? cite "Source"

        Leiner, Duan, Wasserman & Ramdas (2023), "Data fission: splitting a single data point", JASA, for two parts;
        Oliveira, Lei & Tibshirani (2021), "Unbiased risk estimation in the normal means problem via coupled bootstrap
        techniques", for their noise; Neufeld et al. (2024), "Data thinning for convolution-closed distributions", JMLR
        25, for any number.
    """
    check_key(key)
    check_number("split_gaussian: `std`", std, "a number above 0", lambda x: x > 0)
    check_integer("split_gaussian: `num`", num, 2)
    whole = jnp.asarray(observation)
    parts = as_parts(whole)
    added = jr.normal(key, (num, *parts.shape), parts.dtype)
    return from_parts(parts + math.sqrt(num) * std * (added - jnp.mean(added, 0)), whole)


def _check_counts(counts):
    if is_traced(counts):
        return
    values = np.asarray(counts)
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"thin_counts: `counts` must be numbers, got {shown(counts)}; give whole numbers of at least 0."
        )
    bad = values[~((values >= 0) & (values == np.floor(values)) & np.isfinite(values))]
    if bad.size:
        raise ValueError(
            f"thin_counts: `counts` must be whole numbers of at least 0, got {bad[0]}; divide measurements by their "
            "gain, and split those with Gaussian noise by `split_gaussian`."
        )


def _check_shares(shares):
    if is_traced(shares):
        return
    values = np.asarray(shares, np.float64)
    if values.ndim != 1 or values.size < 2 or not np.all(values > 0) or not math.isclose(values.sum(), 1, abs_tol=1e-5):
        raise ValueError(
            f"thin_counts: `shares` must be two or more positive numbers with the sum 1, got {shown(shares)}; divide "
            "them by their sum."
        )
