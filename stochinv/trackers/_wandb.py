r"""Reports to Weights & Biases."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from .._lazy import optional
from ._checks import check_run_or_options

if TYPE_CHECKING:
    import matplotlib.figure


@final
class WandbTracker:
    """Reports to a run of Weights & Biases.

    It needs wandb: `pip install 'stochinv[wandb]'`. The run ends with the process, or by `tracker.run.finish()`.

    **Arguments:**

    - `run`: a run, as `wandb.init` returns it; `None` begins one.
    - `options`: those of `wandb.init` for a new run, such as `project="mri"`; with `id=...` and `resume="allow"` a
        training that goes on from a checkpoint goes on in the same run.

    **Raises:**

    `ValueError` for both a run and options, `ImportError` without wandb.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        check_run_or_options("WandbTracker", run, options)
        self._wandb = optional("wandb", "WandbTracker needs wandb", "wandb")
        self.run: Any = self._wandb.init(**options) if run is None else run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        self.run.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers; W&B leaves out those of steps before the last."""
        self.run.log(dict(metrics), step=step)

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int) -> None:
        """Logs an image."""
        self.run.log({name: self._wandb.Image(figure)}, step=step)
