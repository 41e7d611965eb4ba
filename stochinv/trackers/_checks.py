from typing import Any


def check_run_or_options(user: str, run: Any, options: dict[str, Any]):
    """Raises a `ValueError` if both a run and options of a new one are given."""
    if run is not None and options:
        raise ValueError(f"{user}: `run` is given, and so are options of a new one, {sorted(options)}; give either.")
