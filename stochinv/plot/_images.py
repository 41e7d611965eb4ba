r"""Pictures of many records beside each other."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Num

from .._checks import check_arrays, check_instance, check_integer, check_number, shown
from .._custom_types import ArrayLike
from ._common import new_figure

if TYPE_CHECKING:
    import matplotlib.figure

CELL, MARGIN, LINE = 0.8, 0.3, 0.14  # inches: a picture's width, a colour bar, a line of a title
UNKNOWN = "lightsteelblue"


class Column(NamedTuple):
    """Pictures under one title."""

    title: str
    pictures: np.ndarray  # (records, pictures, height, width, channels)
    apart: bool


class Scale(NamedTuple):
    """What colours mean."""

    colours: str
    low: float
    high: float


PHASE = Scale("twilight", -np.pi, np.pi)


def images(
    columns: Mapping[str, Num[ArrayLike, "..."]],
    *,
    own_scale: str | Collection[str] = (),
    limits: tuple[float | int, float | int] | None = None,
    num_records: int = 6,
    num_draws: int = 8,
) -> "matplotlib.figure.Figure":
    """Draws pictures beside each other: a row for each record, a column for each entry.

    Pictures of one channel are grey, of three in colour. All grey pictures of a row share one scale, from their least
    value to their largest, so that they are comparable. Columns in `own_scale` have one scale each for all rows, with a
    colour bar: from 0 to the largest value, or symmetric about 0 where there are values below. Pixels that are not
    known, NaN, are pale blue.

    Where there are complex pictures, each record has two rows: the magnitudes, and below them the phases on a cyclic
    scale.

    **Arguments:**

    - `columns`: titles, and pictures of shape `(records, height, width, channels)`, or
        `(records, draws, height, width, channels)` for several under one title; 1 or 3 channels, one if complex. Sizes
        may differ between columns.
    - `own_scale`: the titles of columns that are not comparable with the others, such as standard deviations, or
        measurements of another kind. Of three channels the root mean square is shown there.
    - `limits`: of the shared scale, for all rows: what is black and what is white, in the units of the pictures. Of
        colours too, for which it is `(0, 1)` by default.
    - `num_records`, `num_draws`: how many records, and draws of each, are shown at most: the first ones.

    **Returns:**

    A figure. Its first axes are those of the pictures, row by row.

    **Raises:**

    `ValueError` for pictures of another shape, for different numbers of records, for integers in colour without
    `limits`, and for titles in `own_scale` that are not in `columns`.
    """
    check_integer("`num_records`", num_records)
    check_integer("`num_draws`", num_draws)
    limits = as_limits(limits)
    parts = as_columns(columns, as_titles(own_scale, columns), num_records, num_draws)
    check_colours(columns, parts, limits)
    return _draw(parts, limits)


def _draw(parts: list[Column], limits: tuple[float, float] | None) -> Any:
    """A grid with a row for each record, or two."""
    rows = as_rows(parts)
    number = sum(x.pictures.shape[1] for x in parts)
    ratio = np.clip(max(x.pictures.shape[2] / x.pictures.shape[3] for x in parts), 0.2, 4)
    lines = max(x.title.count("\n") for x in parts) + 1
    has_phase, has_bars = any(phase for _, phase in rows), any(x.apart for x in parts)
    height = CELL * ratio * len(rows) + LINE * lines + MARGIN * has_bars + 0.1
    figure = new_figure(CELL * number + MARGIN * 1.5 * has_phase, height)
    axes = figure.subplots(len(rows), number, squeeze=False)
    own = {x.title: _own_scale(x.pictures) for x in parts if x.apart}
    for row, (record, phase) in zip(axes, rows, strict=True):
        cells = [(x, _picture(x.pictures[record, k], phase)) for x in parts for k in range(x.pictures.shape[1])]
        shared = PHASE if phase else _shared_scale([p for x, p in cells if not x.apart and p is not None], limits)
        for ax, (column, picture) in zip(row, cells, strict=True):
            ax.set(xticks=[], yticks=[], facecolor=UNKNOWN)
            if picture is None:
                ax.set_axis_off()
            else:
                _show(ax, picture, own[column.title] if column.apart and not phase else shared, limits)
    _label(figure, axes, parts, rows)
    return figure


def as_limits(limits: Any) -> tuple[float, float] | None:
    """Limits as two increasing numbers."""
    if limits is None:
        return None
    wanted = "a pair of numbers (black, white), the first below the second"
    check_instance("`limits`", limits, tuple | list, wanted)
    low, high = limits if len(limits) == 2 else (limits, limits)
    check_number("`limits`", low, wanted, arrays=False)
    check_number("`limits`", high, wanted, lambda x: low < x, arrays=False)
    return float(low), float(high)


def as_titles(own_scale: Any, columns: Any) -> set[str]:
    """The titles of the columns that have a scale of their own."""
    check_instance("`columns`", columns, Mapping, "a dictionary from titles to pictures")
    check_instance("`own_scale`", own_scale, Collection, "a title, or several")
    titles = {own_scale} if isinstance(own_scale, str) else set(own_scale)
    if unknown := sorted(map(str, titles - set(columns))):
        raise ValueError(
            f"`own_scale` names {unknown}, but `columns` has {shown(list(columns))}; give titles of these."
        )
    return titles


def as_columns(columns: Mapping[str, Any], apart: set[str], num_records: int, num_draws: int) -> list[Column]:
    """Every column as pictures with equal axes, and no more of them than are shown."""
    if not columns:
        raise ValueError("`columns` is empty; give a title and pictures.")
    parts = []
    for title, value in columns.items():
        check_arrays("columns", {title: value})
        x = np.asarray(value)
        most = 1 if np.iscomplexobj(x) else 3
        if x.ndim not in (4, 5) or x.shape[-1] not in (1, most) or 0 in x.shape:
            raise ValueError(
                f"`columns[{title!r}]` must be pictures of shape (records, height, width, channels) or (records, "
                f"draws, height, width, channels), with {'1 channel' if most == 1 else '1 or 3 channels'}, got shape "
                f"{x.shape}; add missing axes by `x[None]` and `x[..., None]`."
            )
        pictures = (x if x.ndim == 5 else x[:, None])[:num_records, :num_draws]
        parts.append((title, len(x), as_values(pictures, title in apart)))
    sizes = {title: size for title, size, _ in parts}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`columns` must have equally many records each, got {sizes}; give the same records.")
    return [Column(title, pictures, title in apart) for title, _, pictures in parts]


def as_values(pictures: np.ndarray, apart: bool) -> np.ndarray:
    """Pictures as numbers of full precision, with one channel where they are apart."""
    if np.iscomplexobj(pictures):
        return pictures.astype(np.complex128)
    values = pictures.astype(np.float64)
    if apart and values.shape[-1] == 3:
        return np.sqrt(np.mean(values**2, -1, keepdims=True))
    return values


def as_rows(columns: list[Column]) -> list[tuple[int, bool]]:
    """The record of each row, and whether the row shows phases."""
    phases = (False, True) if any(np.iscomplexobj(x.pictures) for x in columns) else (False,)
    return [(record, phase) for record in range(len(columns[0].pictures)) for phase in phases]


def check_colours(columns: Mapping[str, Any], parts: list[Column], limits: Any):
    """Raises a `ValueError` for colours in integers, of which it is not known what is white."""
    for x in parts:
        dtype = np.asarray(columns[x.title]).dtype
        if limits is None and x.pictures.shape[-1] == 3 and dtype.kind in "iu":
            raise ValueError(
                f"`limits` is None, but `columns[{x.title!r}]` is in colour and {dtype}; give what is black and white, "
                "such as `(0, 255)`."
            )


def _picture(x: np.ndarray, phase: bool) -> np.ndarray | None:
    """What a cell shows, if anything."""
    if np.iscomplexobj(x):
        return np.angle(x) if phase else np.abs(x)
    return None if phase else x


def _shared_scale(pictures: list[np.ndarray], limits: tuple[float, float] | None) -> Scale:
    grey = [x[np.isfinite(x)] for x in pictures if x.shape[-1] == 1]
    values = np.concatenate(grey) if grey else np.zeros(0)
    if limits is None:
        limits = (values.min(), values.max()) if values.size else (0.0, 1.0)
    return Scale("gray", *limits)


def _own_scale(pictures: np.ndarray) -> Scale:
    x = np.abs(pictures) if np.iscomplexobj(pictures) else pictures
    known = x[np.isfinite(x)]
    largest = np.abs(known).max(initial=0) or 1.0
    return Scale("RdBu_r", -largest, largest) if known.min(initial=0) < 0 else Scale("magma", 0.0, largest)


def _show(ax: Any, picture: np.ndarray, scale: Scale, limits: tuple[float, float] | None):
    if picture.shape[-1] == 1:
        ax.imshow(picture[..., 0], cmap=scale.colours, vmin=scale.low, vmax=scale.high)
        return
    low, high = limits or (0.0, 1.0)
    known = np.isfinite(picture).all(-1, keepdims=True)
    colours = np.clip((np.where(known, picture, low) - low) / (high - low), 0, 1)
    ax.imshow(np.concatenate([colours, known], -1))


def _label(figure: Any, axes: Any, parts: list[Column], rows: list[tuple[int, bool]]):
    """Titles above the middle of their pictures, and the colour bars."""
    first = 0
    for x in parts:
        number = x.pictures.shape[1]
        middle = first + number // 2
        axes[0, middle].set_title(x.title, fontsize=8, x=0.5 if number % 2 else -0.05)
        if x.apart:
            _own_bar(figure, axes[0, middle].images[0], axes[:, first : first + number])
        first += number
    phases = [ax for row, (_, phase) in zip(axes, rows, strict=True) if phase for ax in row if ax.images]
    if phases:
        options = {"shrink": min(1.0, 2 / len(rows)), "aspect": 12, "pad": 0.01}
        bar = figure.colorbar(phases[0].images[0], ax=axes, location="right", panchor=False, **options)
        bar.set_ticks([-np.pi, 0, np.pi], labels=["−π", "0", "π"])
        bar.set_label("phase", fontsize=7, labelpad=0)
        bar.ax.tick_params(labelsize=6, length=2, pad=1)


def _own_bar(figure: Any, picture: Any, axes: Any):
    """A colour bar below a column, no wider than it."""
    bar = figure.colorbar(picture, ax=axes, location="bottom", aspect=8, pad=0.01, panchor=False)
    ends = picture.get_clim()
    bar.set_ticks(ends, labels=[f"{x:.2g}" for x in ends])
    for text, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
        text.set_horizontalalignment(side)
    bar.ax.tick_params(labelsize=6, length=2, pad=1)
