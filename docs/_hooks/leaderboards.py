"""Puts the tables of the leaderboards into their page while the site is built, so that none goes stale.

A line `<!-- leaderboard: NAME -->` becomes the rows of `benchmarks/leaderboard/NAME.json`, which the scripts write.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "leaderboard"
MARK = re.compile(r"^<!-- leaderboard: (\w+) -->$", re.MULTILINE)


def table(rows: list[dict]) -> str:
    """A table of rows as `benchmarks/leaderboard/rows.py` keeps them; what meets its bar is in bold."""
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    head = ["problem", "method", "given", *names, "CPU s", "source"]
    lines = [head, ["---", "---", "---", *["---:"] * len(names), "---:", "---"]]
    last = None
    for row in rows:
        bars = row["bars"] or {}
        cells = [cell(row["figures"].get(name), bars.get(name)) for name in names]
        seconds = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}"
        problem = "" if row["problem"] == last else row["problem"]
        last = row["problem"]
        lines.append([problem, row["method"], row["given"], *cells, seconds, row["source"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: float | None, bar: float | None) -> str:
    if value is None:
        return ""
    return f"**{value:.3f}**" if bar is not None and value <= bar else f"{value:.3f}"


def on_page_markdown(markdown, page, config, files):
    """Replaces the marks of a page by tables."""
    read = lambda match: table(json.loads((FOLDER / f"{match[1]}.json").read_text(encoding="utf-8")))
    return MARK.sub(read, markdown)
