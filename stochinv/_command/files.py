r"""What users name on a command line: something in a Python file of their own, which is run for it."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Refusal(ValueError):
    """What a command says in one sentence instead of doing what it was asked for."""


def read_names(option: str, place: str) -> tuple[Mapping[str, Any], str]:
    """All names of a user's Python file, and the one that was asked for, which is among them.

    What the file raises as it is run is passed on.

    **Arguments:**

    - `option`: what the place is given as, for messages.
    - `place`: `FILE.py:NAME`.

    **Raises:**

    `Refusal` if that is not a file's path and a name, or if the file has nothing of that name.
    """
    path, _, name = place.rpartition(":")
    if not path.endswith(".py") or not os.path.isfile(path):
        raise Refusal(f"`{option}` must be a Python file and a name in it, got {place!r}; write `model.py:forward`.")
    names = _run(path)
    if name not in names:
        own = as_own(names)
        known = f"write one of {', '.join(own)}" if own else "define it there"
        raise Refusal(f"`{option}` names {name!r}, but {path} has no such name; {known}.")
    return names, name


def as_own(names: Mapping[str, Any]) -> list[str]:
    """The names of what can be called in a file."""
    return sorted(name for name, x in names.items() if callable(x) and not name.startswith("_"))


def _run(path: str) -> Mapping[str, Any]:
    """The names of a file, run as a module: what is below `if __name__ == "__main__":` is not."""
    folder, stem = str(Path(path).resolve().parent), Path(path).stem
    # The file may have the name of a module that is in use.
    name = stem if stem not in sys.modules else f"{stem}_of_user"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        error.add_note(f"{path} raised this as it was run.")
        raise
    return vars(module)
