"""What a row of a leaderboard is, and how its table is printed and kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """What a method reaches on a problem.

    `given` is what it was allowed to see: measurements alone, clean signals, the prior. `source` tells where the
    figures are from: run here, another project's code at a commit, or a paper's table. `bars` are the largest values
    aimed at, of those figures that have one.
    """

    problem: str
    method: str
    given: str
    figures: Mapping[str, float]
    source: str
    bars: Mapping[str, float] | None = None
    cpu_seconds: float | None = None


def print_rows(rows: Sequence[Row]):
    """One table, problem by problem."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = [["problem", "method", "given", *names, "CPU s", "source"]]
    for row in rows:
        seconds = "" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}"
        cells = [f"{row.figures[name]:.3f}" if name in row.figures else "" for name in names]
        table.append([row.problem, row.method, row.given, *cells, seconds, row.source])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)).rstrip())


def save(rows: Sequence[Row], path: Path):
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())]
