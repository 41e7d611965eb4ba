r"""Reports for TensorBoard."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from .._checks import check_path
from ._optional import optional

if TYPE_CHECKING:
    import matplotlib.figure


@final
class TensorBoardTracker:
    """Reports in a folder that TensorBoard shows.

    It needs tensorboardX, which writes event files without TensorFlow, PyTorch or TensorBoard: `pip install
    stochinv[tensorboard]`.

    **Arguments:**

    - `folder`: where event files go; one for each run, so that runs can be told apart.

    **Raises:**

    `ValueError` if it is no path, `ImportError` without tensorboardX.
    """

    def __init__(self, folder: str | os.PathLike):
        check_path("TensorBoardTracker: `folder`", folder)
        self._writer = optional("tensorboardX", "TensorBoardTracker", "tensorboard").SummaryWriter(os.fspath(folder))

    def log_params(self, params: Mapping[str, Any]):
        """Writes the configuration as a table, under *Text*."""
        rows = [f"| {name} | `{value}` |" for name, value in params.items()]
        self._writer.add_text("configuration", "\n".join(["| name | value |", "|---|---|", *rows]))
        self._writer.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int):
        """Writes a scalar for each number."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int):
        """Writes an image."""
        self._writer.add_figure(name, figure, step, close=False)
        self._writer.flush()
