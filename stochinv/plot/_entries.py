r"""Signals of few numbers: their joint law, and how well it tells the true ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_number
from .._custom_types import PyTree
from ._common import as_entries, as_labels, check_few, check_same_entries, new_figure

if TYPE_CHECKING:
    import matplotlib.figure

MOST_IN_CORNER, MOST_RECOVERED, COLUMNS = 10, 24, 4
MOST_DOTS, SMOOTHING, HELD = 2000, np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256, (0.9, 0.5)
COLOURS = {"draws": "C0", "reference": "0.15", "truth": "C3"}


def corner(
    draws: PyTree,
    *,
    reference: PyTree | None = None,
    truth: PyTree | None = None,
    names: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
    """Draws the marginal law of every entry of a signal, and of every two.

    On the diagonal are histograms of single entries; below it draws are dots, at most 2,000 of them.

    **Arguments:**

    - `draws`: signals, leaves of shape `(draws, ...)`, in all at most 10 numbers each; a complex one is two.
    - `reference`: draws to compare with, like `draws`, in any number; for instance `samples` of
        [`stochinv.diagnostics.reference_posterior`][]. Contours of a smoothed histogram hold
        50 and 90 % of them.
    - `truth`: the signal itself, leaves of shape `(...)`; red lines.
    - `names`: of the entries, in the order of the PyTree; by default its keys, with the index in the array.

    **Returns:**

    A figure.

    **Raises:**

    `ValueError` for signals of more entries, for others in `reference` or `truth` than in `draws`, and for values that
    are not finite.
    """
    remedy = "leave these draws out"
    drawn = as_entries("draws", draws, ("draws",), remedy)
    check_few("draws", drawn, MOST_IN_CORNER)
    labels = as_labels(names, drawn)
    samples = {"draws": list(drawn.values())}
    if reference is not None:
        others = as_entries("reference", reference, ("draws",), remedy)
        check_same_entries("reference", others, drawn)
        samples["reference"] = list(others.values())
    true = None
    if truth is not None:
        known = as_entries("truth", truth, (), "give the true signal")
        check_same_entries("truth", known, drawn)
        true = [x.item() for x in known.values()]
    return _corner(samples, true, labels)


def _corner(samples, true, labels):
    number = len(labels)
    figure = new_figure(1.5 * number + 0.6, 1.5 * number + 0.4)
    axes = figure.subplots(number, number, squeeze=False, sharex="col")
    fewest = min(len(x[0]) for x in samples.values())
    edges = [_edges([x[i] for x in samples.values()], None if true is None else true[i], fewest) for i in range(number)]
    for row, column in np.ndindex(number, number):
        ax = axes[row, column]
        ax.tick_params(labelsize=7, labelleft=column == 0)
        ax.locator_params(nbins=4)
        if row < column:
            ax.set_axis_off()
        elif row == column:
            _marginal(ax, {name: x[row] for name, x in samples.items()}, edges[row])
        else:
            _joint(ax, {name: (x[column], x[row]) for name, x in samples.items()}, edges[column], edges[row])
        if row >= column and true is not None:
            ax.axvline(true[column], color=COLOURS["truth"], lw=1, label="truth")
            if row > column:
                ax.axhline(true[row], color=COLOURS["truth"], lw=1)
    for i, label in enumerate(labels):
        axes[-1, i].set_xlabel(label, fontsize=8)
        if i:
            axes[i, 0].set_ylabel(label, fontsize=8)
    if len(samples) > 1 or true is not None:
        handles = axes[0, 0].get_legend_handles_labels()
        axes[0, -1].legend(*handles, loc="upper right", fontsize=7, frameon=False)
    return figure


def _marginal(ax, samples, edges):
    for name, x in samples.items():
        ax.hist(x, edges, density=True, histtype="step", color=COLOURS[name], lw=1.2, label=name)
    ax.set(yticks=[], xlim=edges[[0, -1]])


def _joint(ax, samples, across, up):
    """Dots, and for the reference the contours of a smoothed histogram, at levels that hold shares of its draws."""
    x, y = samples["draws"]
    some = slice(None, None, -(-len(x) // MOST_DOTS))
    ax.plot(x[some], y[some], ".", ms=2, mew=0, alpha=0.5, color=COLOURS["draws"], rasterized=True)
    if "reference" in samples:
        counts = np.histogram2d(*samples["reference"], bins=[across, up])[0]
        smooth = lambda x: np.convolve(x, SMOOTHING, "same")
        density = np.apply_along_axis(smooth, 0, np.apply_along_axis(smooth, 1, counts))
        falling = np.argsort(-density, None)
        held = np.cumsum(counts.flat[falling]) / counts.sum()
        levels = np.unique([density.flat[falling[np.searchsorted(held, share)]] for share in HELD])
        centres = [(x[1:] + x[:-1]) / 2 for x in (across, up)]
        ax.contour(*centres, density.T, levels=levels, colors=COLOURS["reference"], linewidths=0.8)
    ax.set(xlim=across[[0, -1]], ylim=up[[0, -1]])


def _edges(arrays, value, number):
    """The edges of bins over everything, twice as many as the cube root of the number of draws, as in Rice's rule."""
    low, high = _span(arrays, value)
    return np.linspace(low, high, 1 + max(round(2 * number ** (1 / 3)), len(SMOOTHING)))


def _span(arrays, value):
    """The limits of an axis, a twentieth wider than what is on it."""
    everything = np.concatenate([*arrays, [] if value is None else [value]])
    low, high = everything.min(), everything.max()
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def recovery(
    draws: PyTree,
    truth: PyTree,
    *,
    level: float = 0.9,
    names: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
    """Draws posterior mean and interval against the truth, for many records, in a panel for every entry.

    The title tells how many of the intervals hold the truth; [`stochinv.diagnostics.sbc_ranks`][] tells whether that
    may be chance.

    **Arguments:**

    - `draws`: signals, leaves of shape `(records, draws, ...)`, in all at most 24 numbers each; a complex one is two.
    - `truth`: the true signals, leaves of shape `(records, ...)`.
    - `level`: of the central intervals, in `(0, 1)`.
    - `names`: of the entries, as in [`stochinv.plot.corner`][].

    **Returns:**

    A figure.

    **Raises:**

    `ValueError` for signals of more entries, for other records or entries in `truth` than in `draws`, and for values
    that are not finite.
    """
    check_number("`level`", level, "a number between 0 and 1, such as 0.9", lambda x: 0 < x < 1, arrays=False)
    drawn = as_entries("draws", draws, ("records", "draws"), "leave these records out")
    known = as_entries("truth", truth, ("records",), "leave these records out")
    check_few("draws", drawn, MOST_RECOVERED)
    check_same_entries("truth", known, drawn)
    records = [len(next(iter(x.values()))) for x in (known, drawn)]
    if records[0] != records[1]:
        raise ValueError(f"`truth` has {records[0]} records, but `draws` has {records[1]}; give one truth for each.")
    labels = as_labels(names, drawn)
    columns = min(len(labels), COLUMNS)
    rows = -(-len(labels) // columns)
    figure = new_figure(2.4 * columns, 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, label, x, true in zip(axes, labels, drawn.values(), known.values(), strict=False):
        _recovered(ax, x, true, level)
        ax.set_title(f"{label}\n{ax.get_title()}", fontsize=8)
    for ax in axes[len(labels) :]:
        ax.set_axis_off()
    figure.supxlabel("truth", fontsize=8)
    figure.supylabel(f"posterior mean and {level:.0%} interval", fontsize=8)
    return figure


def _recovered(ax: Any, draws: np.ndarray, truth: np.ndarray, level: float):
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1)
    held = np.mean((low <= truth) & (truth <= high))
    ends = _span([low, high, truth], None)
    ax.plot(ends, ends, color="0.4", lw=0.8, ls=":")
    ax.vlines(truth, low, high, color=COLOURS["draws"], lw=0.8, alpha=0.4)
    ax.plot(truth, draws.mean(1), ".", ms=4, mew=0, color=COLOURS["draws"])
    ax.tick_params(labelsize=7)
    ax.set(xlim=ends, ylim=ends, aspect="equal", title=f"{held:.0%} hold the truth")
