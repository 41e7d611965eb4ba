r"""What the tests of calibration found."""

from typing import TYPE_CHECKING, Any

from .._checks import check_instance
from .._custom_types import AnyCallable
from ..diagnostics import Calibration, MeasurementCalibration
from ._common import new_figure

if TYPE_CHECKING:
    import matplotlib.figure


def calibration(result: Calibration | MeasurementCalibration) -> "matplotlib.figure.Figure":
    """Draws what a test of calibration found: the law of the ranks, and coverage against the nominal level.

    The first panel is the empirical distribution function of the ranks minus the uniform one, which tells what a
    histogram of the ranks would, and needs no bins; an exact posterior stays in the band. Of measurements there is a
    third panel, the ranks of the random linear functionals. [Trust your posterior](../trust.md) tells what shapes mean.

    **Arguments:**

    - `result`: of [`stochinv.diagnostics.sbc_ranks`][], [`stochinv.diagnostics.tarp`][] or
        [`stochinv.diagnostics.measurement_calibration`][].

    **Returns:**

    A figure.

    **Raises:**

    `ValueError` for anything else.
    """
    panels = as_panels(result)
    figure = new_figure(3.4 * len(panels), 2.8)
    for ax, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        panel(ax)
        ax.tick_params(labelsize=7)
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_legend().get_texts()):
            text.set_fontsize(8)
    return figure


def as_panels(result: Any) -> list[AnyCallable]:
    """What a result can draw on axes."""
    kinds = (Calibration, MeasurementCalibration)
    check_instance("`result`", result, kinds, "a result of `sbc_ranks`, `tarp` or `measurement_calibration`")
    panels = [result.plot, result.plot_coverage]
    return panels + [_projections(result)] * isinstance(result, MeasurementCalibration)


def _projections(result):
    def draw(ax):
        result.projections.plot(ax)
        ax.set_xlabel("fractional rank of random projections")

    return draw
