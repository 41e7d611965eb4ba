r"""What training saw."""

from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_instance
from .._training.history import History
from .._training.watch import LEVELS
from ._common import new_figure

if TYPE_CHECKING:
    import matplotlib.figure

WINDOWS = 40


def history(history: History) -> "matplotlib.figure.Figure":
    """Draws the loss by step, and in signal space what each round found.

    The loss of every step is pale, and its mean over a fortieth of training strong; on a logarithmic scale where all
    are positive. Residual, score and coverage of rounds have panels of their own where they are known; see
    [`stochinv.History`][] for what they mean. Dotted lines are where they should be.

    **Arguments:**

    - `history`: of a fit, `fit.history`, or of one under way, `progress.history`.

    **Returns:**

    A figure.

    **Raises:**

    `ValueError` if no step was made.
    """
    check_instance("`history`", history, History, "a `History`, such as `fit.history`")
    if not history.loss:
        raise ValueError(f"`history` is {history!r}, but must hold a step to be drawn; give that of a longer fit.")
    panels = [_loss]
    panels += [_residual] * bool(history.residual)
    panels += [_score] * bool(history.score)
    panels += [_coverage] * bool(history.coverage)
    figure = new_figure(2.9 * len(panels) + 0.6, 2.5)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        panel(ax, history)
        ax.tick_params(labelsize=7)
        ax.title.set_fontsize(9)
        ax.xaxis.label.set_fontsize(8)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=7, frameon=False)
    return figure


def _loss(ax, history):
    loss = np.asarray(history.loss, np.float64)
    steps = 1 + np.arange(len(loss))
    window = max(len(loss) // WINDOWS, 1)
    smooth = np.convolve(loss, np.full(window, 1 / window), "valid")
    ax.plot(steps, loss, color="C0", lw=0.6, alpha=0.35)
    ax.plot(steps[: len(smooth)] + (window - 1) / 2, smooth, color="C0", lw=1.2, label="training")
    if history.validation_loss:
        ax.plot(history.validation_steps, history.validation_loss, color="C1", marker="o", ms=3, label="validation")
    ax.set(title="loss", xlabel="step")
    if min(loss.min(), *history.validation_loss, np.inf) > 0:
        ax.set_yscale("log")


def _rounds(ax, values, title):
    ax.plot(1 + np.arange(len(values)), values, marker="o", ms=3, lw=1.2)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(title=title, xlabel="round")


def _residual(ax, history):
    ax.axhline(1, color="0.4", lw=0.8, ls=":")
    _rounds(ax, history.residual, "residual, noise stds")


def _score(ax, history):
    _rounds(ax, history.score, "score of held-out records")


def _coverage(ax, history):
    coverage = np.asarray(history.coverage, np.float64)
    for i, level in enumerate(LEVELS):
        ax.axhline(level, color=f"C{i}", lw=0.8, ls=":")
    _rounds(ax, coverage, "coverage of held-out records")
    for line, level in zip(ax.lines[len(LEVELS) :], LEVELS, strict=True):
        line.set_label(f"{level:.0%} intervals")
    ax.set(ylim=(0, 1.02))
