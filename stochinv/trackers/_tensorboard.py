r"""Reports for TensorBoard."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from .._checks import check_path
from .._lazy import optional

if TYPE_CHECKING:
    import matplotlib.figure


@final
class TensorBoardTracker:
    """Reports in a folder that TensorBoard shows.

    It needs tensorboardX, which writes event files without TensorFlow, PyTorch or TensorBoard:
    `pip install 'stochinv[tensorboard]'`.

    **Arguments:**

    - `folder`: where event files go; one for each run, so that runs can be told apart.

    **Raises:**

    `ValueError` if it is no path, `ImportError` without tensorboardX.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        check_path("TensorBoardTracker: `folder`", folder)
        self._tensorboard = optional("tensorboardX", "TensorBoardTracker needs tensorboardX", "tensorboard")
        os.makedirs(folder, exist_ok=True)
        # A `SummaryWriter` writes in a thread: when that fails nobody is told, and further reports wait for ever.
        writer = self._tensorboard.event_file_writer.EventsWriter
        self._writer = writer(os.path.join(folder, "events"), f".{time.time_ns()}")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Writes the configuration as a table, under *Text*."""
        rows = [f"| {name} | `{value}` |" for name, value in params.items()]
        table = "\n".join(["| name | value |", "|---|---|", *rows])
        self._write([self._tensorboard.summary.text("configuration", table)], 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes a scalar for each number."""
        self._write([self._tensorboard.summary.scalar(name, value) for name, value in metrics.items()], step)

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int) -> None:
        """Writes an image."""
        image = self._tensorboard.utils.figure_to_image(figure, close=False)
        self._write([self._tensorboard.summary.image(name, image)], step)

    def _write(self, summaries: list[Any], step: int):
        event = self._tensorboard.proto.event_pb2.Event
        for summary in summaries:
            self._writer.write_event(event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()
