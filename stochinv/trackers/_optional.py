import importlib
from typing import Any


def optional(module: str, user: str, extra: str) -> Any:
    """A module of a package that only one tracker needs.

    **Raises:**

    `ImportError` if it is not installed, with the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{user} needs {module.split('.')[0]}: `pip install 'stochinv[{extra}]'`.") from error


def check_run_or_options(user: str, run: Any, options: dict[str, Any]):
    """Raises a `ValueError` if both a run and options of a new one are given."""
    if run is not None and options:
        raise ValueError(f"{user}: `run` is given, and so are options of a new one, {sorted(options)}; give either.")
