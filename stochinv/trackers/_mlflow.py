r"""Reports to MLflow."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from .._lazy import optional
from ._checks import check_run_or_options

if TYPE_CHECKING:
    import matplotlib.figure


@final
class MLflowTracker:
    """Reports to a run of MLflow, at the tracking URI that is set.

    It needs MLflow: `pip install 'stochinv[mlflow]'`; for a tracking server `mlflow-skinny` is enough.

    **Arguments:**

    - `run`: a run, such as `mlflow.active_run()`; `None` begins one, which ends with the process, or by
        `mlflow.end_run()`.
    - `options`: those of `mlflow.start_run` for a new run, such as `run_name="mri"`; with `run_id=...` a training
        that goes on from a checkpoint goes on in the same run.

    **Raises:**

    `ValueError` for both a run and options, `ImportError` without MLflow.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        check_run_or_options("MLflowTracker", run, options)
        self._mlflow = optional("mlflow", "MLflowTracker needs mlflow", "mlflow")
        self.run: Any = self._mlflow.start_run(**options) if run is None else run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Adds parameters; those that the run has stay as they are, since MLflow lets none change."""
        known = self._mlflow.get_run(self.run.info.run_id).data.params
        new = {name: value for name, value in params.items() if name not in known}
        self._mlflow.log_params(new, run_id=self.run.info.run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers."""
        self._mlflow.log_metrics(dict(metrics), step=step, run_id=self.run.info.run_id)

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int) -> None:
        """Logs a PNG file, with name and step as its name."""
        client = self._mlflow.MlflowClient()
        client.log_figure(self.run.info.run_id, figure, f"{name}-{step}.png")
