r"""Reports in plain files."""

import csv
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from .._checks import check_path

if TYPE_CHECKING:
    import matplotlib.figure


@final
class CSVTracker:
    """Reports in a CSV file, a row for each number: `step,name,value`.

    Rows are appended to a file that is there, so a run that is resumed goes on in it; steps that it repeats are there
    twice. `pandas.read_csv(path).pivot_table("value", "step", "name")` has a column for each name. The configuration is
    beside the file in JSON, and figures in PNG; their names begin like the file's.

    **Arguments:**

    - `path`: the file, which ends in `.csv`; its folder is made where there is none.

    **Raises:**

    `ValueError` for another path, and for a file that has other columns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_path("CSVTracker: `path`", path)
        self.path: pathlib.Path = pathlib.Path(path)
        if self.path.suffix != ".csv":
            raise ValueError(f"CSVTracker: `path` must end in .csv, got {os.fspath(path)!r}; write 'run.csv'.")
        check_columns(self.path)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Writes the configuration, in place of an earlier one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.with_suffix(".json").write_text(json.dumps(dict(params), indent=2, default=str), encoding="utf-8")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends a row for each number."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(COLUMNS)
            writer.writerows((step, name, float(value)) for name, value in metrics.items())

    def log_figure(self, name: str, figure: "matplotlib.figure.Figure", step: int) -> None:
        """Writes a PNG file, with name and step at the end of its name."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path.with_name(f"{self.path.stem}-{name.replace('/', '-')}-{step}.png"))


COLUMNS = ["step", "name", "value"]


def check_columns(path: pathlib.Path):
    """Raises a `ValueError` if there is a file already, and rows cannot be appended to it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    if first not in ("", ",".join(COLUMNS)):
        raise ValueError(f"CSVTracker: {path} begins with {first[:80]!r}, with other columns; give another `path`.")
