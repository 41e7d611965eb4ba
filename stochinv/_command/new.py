r"""`stochinv new`: a script to start from, for a field."""

import ast
import importlib.resources
import importlib.util
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import tyro

from .files import Refusal

Field: TypeAlias = Literal["deconvolution", "dynamics", "inpainting", "mri", "own", "tomography"]


def new(
    field: Annotated[Field | None, tyro.conf.Positional, tyro.conf.arg(help="The field; none lists them all.")] = None,
    path: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(help="The script, or a folder for it; FIELD.py in this folder by default."),
    ] = None,
):
    """Writes a script to start from: made-up data, a forward model, a fit, draws, a check and a picture."""
    if field is None:
        print("Fields, each for `stochinv new FIELD`:")
        for name in get_args(Field):
            print(f"  {name:14} {about(name)}")
        return
    path = _as_target(field, path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter(field))
    except FileExistsError as error:
        raise Refusal(f"`path` is {path}, which exists; give another one, or remove it.") from error
    except OSError as error:
        raise Refusal(f"`path` is {path}, which cannot be written ({error.strerror}); give another one.") from error
    print(f"{path}: {about(field)}\nRun it by `python {path}`.")
    print(f"Look at its forward model, or at yours in its place, by `stochinv check {path}:forward`.")
    if importlib.util.find_spec("matplotlib") is None:
        print("Its picture needs Matplotlib: `pip install 'stochinv[plot]'`.")


def starter(field: str) -> str:
    """The text of a script."""
    return importlib.resources.files("stochinv").joinpath("_starters", f"{field}.py").read_text(encoding="utf-8")


def about(field: str) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(starter(field))) or "").splitlines()[0]


def _as_target(field, path):
    """The file that is written."""
    path = Path(f"{field}.py") if path is None else path / f"{field}.py" if path.is_dir() else path
    if path.suffix != ".py":
        raise Refusal(
            f"`path` must be a folder or end in .py, got {str(path)!r}; write {str(path.with_suffix('.py'))!r}."
        )
    return path
