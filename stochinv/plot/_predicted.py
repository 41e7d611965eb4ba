r"""Predictions of measurements beside what was measured."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from .._checks import check_arrays, check_finite
from .._complex import as_parts
from .._custom_types import AnyCallable, ArrayLike
from .._noise import AbstractNoise, as_noise
from ._common import new_figure
from ._images import images

if TYPE_CHECKING:
    import matplotlib.figure

MOST_VIEWS, SHOWN_DRAWS = 6, 4
BANDS = ((0.05, 0.95), (0.25, 0.75))


def predicted(
    predictions: Inexact[ArrayLike, "draws ..."],
    observation: Inexact[ArrayLike, "..."],
    *,
    noise: float | int | AbstractNoise | AnyCallable,
) -> "matplotlib.figure.Figure":
    """Draws predictions of a measurement beside the measurement itself, and how far off they are.

    Residuals are the measurement minus the mean of the predictions, in standard deviations of the noise there. Of a
    measurement that was given they should mostly lie within two of these; of one that was not given they are larger by
    what the posterior does not know.

    Series are shown as dots in the bands that hold 50 and 90 % of the predictions, complex ones by their real and
    imaginary parts. Pictures are shown as by [`stochinv.plot.images`][]; residuals of several channels, or of complex
    numbers, as their root mean square.

    **Arguments:**

    - `predictions`: draws with the noise in them, as of [`stochinv.Posterior.predict`][]; shape `(draws, *shape)`, at
        least 2.
    - `observation`: what was measured, of one of the shapes `(length,)`, `(views, length)`,
        `(height, width, channels)` and `(views, height, width, channels)`, with 1 or 3 channels. At most 6 views are
        shown.
    - `noise`: as of the problem, `problem.noise`: a number is the standard deviation in raw units.

    **Returns:**

    A figure.

    **Raises:**

    `ValueError` for a measurement of another shape, for predictions of another shape than it, for values that are not
    finite, and for noise whose standard deviation is 0 or not known.
    """
    drawn, measured = as_views(predictions, observation)
    residual = _residual(drawn.mean(0), measured, as_noise(noise))
    if measured.ndim == 4:
        columns = {
            "measured": measured,
            "mean of\npredictions": drawn.mean(0),
            "predictions": np.moveaxis(drawn, 0, 1),
            "residual,\nnoise stds": residual,
        }
        return images(columns, own_scale="residual,\nnoise stds", num_records=MOST_VIEWS, num_draws=SHOWN_DRAWS)
    return _series(drawn, measured, residual)


def as_views(predictions: Any, observation: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions `(draws, views, ...)` and what was measured, `(views, ...)`; both series or both pictures."""
    for name, x in (("predictions", predictions), ("observation", observation)):
        check_arrays(name, x)
        check_finite(name, x, "leave these values out")
    drawn, measured = np.asarray(predictions), np.asarray(observation)
    channels = (1,) if np.iscomplexobj(measured) else (1, 3)
    pictures = measured.ndim in (3, 4) and measured.shape[-1] in channels
    if not measured.size or not (measured.ndim in (1, 2) or pictures):
        raise ValueError(
            f"`observation` must have shape (length,), (views, length), (height, width, channels) or (views, height, "
            f"width, channels), with {' or '.join(map(str, channels))} channels, got {measured.shape}; give the part "
            "of it that is to be seen."
        )
    if drawn.shape[1:] != measured.shape or len(drawn) < 2:
        raise ValueError(
            f"`predictions` must be at least 2 draws of shape (draws, {str(measured.shape)[1:-1].rstrip(',')}), like "
            f"`observation`, got shape {drawn.shape}; draw them by `posterior.predict(key, params, 100)`."
        )
    if np.iscomplexobj(drawn) != np.iscomplexobj(measured):
        raise ValueError(
            f"`predictions` must be complex if `observation` is, got {drawn.dtype} and {measured.dtype}; convert it."
        )
    return (drawn[:, None], measured[None]) if measured.ndim in (1, 3) else (drawn, measured)


def _residual(mean: np.ndarray, measured: np.ndarray, noise: AbstractNoise) -> np.ndarray:
    """What was measured minus what is predicted, in standard deviations of the noise.

    Of complex series as parts on a last axis, of complex pictures the root mean square of the parts.
    """
    parts = jnp.asarray(as_parts(mean))
    std = None if noise.exact else jax.vmap(noise.std)(parts)
    if std is None:
        raise ValueError(f"`noise` is {noise!r}, whose standard deviation is 0 or not known; give one that has it.")
    std = np.asarray(std)
    residual = (np.asarray(as_parts(measured)) - np.asarray(parts)) / np.where(std > 0, std, np.nan)
    return np.sqrt(np.mean(residual**2, -1)) if residual.ndim == 5 else residual


def _series(drawn: np.ndarray, measured: np.ndarray, residual: np.ndarray) -> Any:
    """Bands and dots at the left, residuals at the right, a row for each view and part."""
    if np.iscomplexobj(measured):
        parts = {"re ": (np.real, residual[..., 0]), "im ": (np.imag, residual[..., 1])}
    else:
        parts = {"": (np.asarray, residual)}
    views = min(len(measured), MOST_VIEWS)
    rows = [(name, view) for view in range(views) for name in parts]
    figure = new_figure(8.0, 1.7 * len(rows) + 0.7)
    axes = figure.subplots(len(rows), 2, squeeze=False, sharex=True)
    for (left, right), (name, view) in zip(axes, rows, strict=True):
        part, off = parts[name]
        _bands(left, part(drawn[:, view]), part(measured[view]))
        _residuals(right, off[view])
        left.set_ylabel(f"{name}view {view}" if views > 1 else name.strip(), fontsize=8)
    axes[0, 0].set_title("measured, in bands of predictions", fontsize=9)
    axes[0, 1].set_title("residual, noise stds", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower left", fontsize=7, frameon=False, ncols=3)
    return figure


def _bands(ax: Any, drawn: np.ndarray, measured: np.ndarray):
    places = np.arange(len(measured))
    for (low, high), alpha in zip(BANDS, (0.2, 0.4), strict=True):
        lower, upper = np.quantile(drawn, [low, high], axis=0)
        ax.fill_between(places, lower, upper, color="C0", alpha=alpha, lw=0, label=f"{high - low:.0%} band")
    ax.plot(places, measured, "k.", ms=3, label="measured")
    ax.tick_params(labelsize=7)


def _residuals(ax: Any, residual: np.ndarray):
    ax.axhspan(-2, 2, color="0.5", alpha=0.2, lw=0)
    ax.axhline(0, color="0.4", lw=0.8, ls=":")
    ax.plot(np.arange(len(residual)), residual, "k.", ms=3)
    ends = 1.1 * np.abs(residual).max(initial=3, where=np.isfinite(residual))
    ax.set_ylim(-ends, ends)
    ax.tick_params(labelsize=7)
