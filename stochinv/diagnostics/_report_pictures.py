r"""The pictures of a report, each for a light and for a dark page, as text that needs no file beside it."""

import base64
import io
from typing import Any, NamedTuple

import jax
import numpy as np

from .._lazy import optional
from ._common import flatten_draws
from ._findings import Findings
from ._held_out import HeldOut

# Of how many values at most histograms are drawn, and the widest that a column of a page is, in inches.
MOST_VALUES, WIDTH = 100_000, 7.2
FINE_LEVELS = np.arange(0.05, 1, 0.05)
INK = {"light": "#1c2733", "dark": "#e3e8ee"}
COLOURS = {"light": ("#2458a6", "#b4501e"), "dark": ("#7fb0ff", "#ffab73")}


class Picture(NamedTuple):
    """A picture in both schemes, as the addresses of `data:`, what it shows to who cannot see it, and its caption."""

    light: str
    dark: str
    says: str
    caption: str


def pictures(found: HeldOut, findings: Findings) -> list[Picture]:
    """All pictures of a report.

    **Raises:**

    `ImportError` without Matplotlib.
    """
    drawn = [_coverage_picture(found, findings), _usual_picture(found, findings)]
    return drawn if found.residuals is None else [drawn[0], _residual_picture(found, findings), drawn[1]]


def _coverage_picture(found, findings):
    curves = {"unseen measurements": _shares(found.predicted, found.unseen)}
    if found.signals is not None:
        curves["true signals"] = _shares(found.drawn, found.signals)
    error = 1.96 * np.sqrt(FINE_LEVELS * (1 - FINE_LEVELS) / findings.records)

    def draw(figure, colours, ink):
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color=ink, lw=1, ls=":", label="right")
        low, high = np.clip([FINE_LEVELS - error, FINE_LEVELS + error], 0, 1)
        ax.fill_between(FINE_LEVELS, low, high, color=ink, alpha=0.15, lw=0, label="right, up to chance")
        for (name, shares), colour, marker in zip(curves.items(), colours, "os", strict=False):
            ax.plot(FINE_LEVELS, shares, color=colour, marker=marker, ms=4, lw=1.5, label=name)
        ax.set(xlabel="promised share inside the interval", ylabel="true share inside", xlim=(0, 1), ylim=(0, 1))
        ax.set_aspect("equal")
        ax.legend(loc="upper left", frameon=False)

    shares = ", ".join(f"{x.share:.0%} of the {x.level:.0%} promised" for x in findings.coverage)
    return _picture(
        draw,
        4.6,
        f"True against promised shares of unseen measurements inside intervals: {shares}.",
        "An interval that promises to hold 90 % of values should hold 90 % of them: points on the dotted line. Below "
        "it the posteriors are too sure of themselves, above it not sure enough. The shaded band is where points lie "
        "by chance, of a single number per record.",
    )


def _shares(draws: Any, values: Any) -> np.ndarray:
    """Coverage of central intervals, each rank spread evenly over its part of `[0, 1]`, which is larger for ties."""
    draws, values = np.asarray(draws), np.asarray(values)
    cells = draws.shape[1] + 1
    low, high = (draws < values[:, None]).sum(1), (draws <= values[:, None]).sum(1) + 1
    inside = lambda level: np.minimum(high, cells * (1 + level) / 2) - np.maximum(low, cells * (1 - level) / 2)
    return np.array([np.mean(np.maximum(inside(level), 0) / (high - low)) for level in FINE_LEVELS])


def _residual_picture(found, findings):
    left = found.residuals
    differ = lambda predicted, observed, std: (observed[:, None] - predicted) / std
    tree = jax.tree.map(lambda *x: differ(*map(np.asarray, x)), left.predicted, left.observed, left.std)
    counts = np.broadcast_to(np.asarray(left.mask)[:, None], jax.tree.leaves(tree)[0].shape[:3])
    rows = jax.vmap(flatten_draws)(tree)[np.asarray(counts)].ravel()
    values = np.clip(rows[:: -(-rows.size // MOST_VALUES)], -5, 5)
    offsets = np.concatenate([np.ravel(x) for x in jax.tree.leaves(findings.residuals.offset)])
    edges, curve = np.linspace(-5, 5, 51), np.linspace(-5, 5, 201)

    def draw(figure, colours, ink):
        first, second = figure.subplots(1, 2)
        first.hist(values, edges, density=True, color=colours[0], alpha=0.6, label="found")
        first.plot(curve, np.exp(-0.5 * curve**2) / np.sqrt(2 * np.pi), color=ink, lw=1.2, ls=":", label="pure noise")
        first.set(xlabel="what draws leave, in noise stds", yticks=[])
        first.legend(loc="upper left", frameon=False, fontsize=8)
        second.axhline(0, color=ink, lw=1, ls=":")
        second.plot(offsets, ".", color=colours[0], ms=4)
        second.set(xlabel="number of the entry in a record", ylabel="mean over records, in noise stds")

    root = findings.residuals.rms
    return _picture(
        draw,
        3.2,
        f"What draws leave of the measurements: {root:.2f} standard deviations of the noise on average, 1 is right; "
        f"and its mean at each entry, at most {np.abs(offsets).max():.2f}, 0 is right.",
        "What remains of the given measurements when a drawn signal has explained them. Left: it should look like pure "
        "noise. Right: its mean at each place should be near 0; a place that stands out is one that the forward model "
        "has wrong.",
    )


def _usual_picture(found, findings):
    usual, likely = found.usual, found.likely
    low, high = np.quantile(np.concatenate([usual, likely]), [0.005, 1])
    edges = np.linspace(low, high + 1e-6 * max(abs(high), 1), 31)

    def draw(figure, colours, ink):
        ax = figure.subplots()
        ax.hist(np.clip(usual, low, high), edges, density=True, color=ink, alpha=0.25, label="records as learned")
        inside = np.clip(likely, low, high)
        ax.hist(inside, edges, density=True, histtype="step", color=colours[0], lw=1.6, label="held-out records")
        ax.set(xlabel="how likely a record is (further left: less)", yticks=[])
        ax.legend(loc="upper left", frameon=False)

    return _picture(
        draw,
        2.8,
        f"How likely held-out records are beside records that were learned: {len(findings.unusual)} of "
        f"{findings.records} are unusual.",
        "How likely each held-out record is, beside records that the trained model makes itself. Records far to the "
        "left are unlike what it learned from: do not rely on what it says of them.",
    )


def _picture(draw: Any, height: float, says: str, caption: str) -> Picture:
    return Picture(_address(draw, height, "light"), _address(draw, height, "dark"), says, caption)


def _address(draw: Any, height: float, scheme: str) -> str:
    """A picture as an address that is the picture itself."""
    need = ("Reports need Matplotlib", "diagnostics")
    matplotlib, figures = optional("matplotlib", *need), optional("matplotlib.figure", *need)
    ink = INK[scheme]
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**dict.fromkeys(names, ink), "axes.facecolor": "none", "font.size": 9}):
        figure = figures.Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
        draw(figure, COLOURS[scheme], ink)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
