r"""What a training run is reported to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import matplotlib.figure


@runtime_checkable
class Tracker(Protocol):
    """What `fit(..., tracker=...)` reports to: any object with these three methods.

    One that raises is told nothing more, and training goes on.
    """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Takes the configuration, before the first step.

        **Arguments:**

        - `params`: strings and numbers by their names.
        """
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes what was measured.

        **Arguments:**

        - `metrics`: numbers by their names.
        - `step`: the number of steps done. It does not fall, unless a run goes on from a checkpoint.
        """
        ...

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int) -> None:
        """Takes a picture. `fit` draws none; callbacks may.

        **Arguments:**

        - `name`: what is shown.
        - `figure`: a Matplotlib figure.
        - `step`: the number of steps done.
        """
        ...
