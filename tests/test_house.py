"""The library's own rules: short functions and files, imports at the top, and no branches on types.

Types are looked at where a user's input is converted (`as_…`), checked (`check_…`, `__check_init__`) or described, and
in the places listed here with their reasons.
"""

import ast
import pathlib

import pytest

import stochinv as si

ROOT = pathlib.Path(si.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FUNCTION, LONGEST_FILE = 60, 400
OPTIONAL = {"arviz", "imageio", "matplotlib", "PIL", "safetensors", "skimage", "sklearn"}
# Files that turn objects into data and back: looking at types is their work.
CONVERTERS = {"_describe.py", "_structure.py", "_archive.py"}
REASONS: dict[tuple[str, str], str] = {}


def name_of(path):
    return str(path.relative_to(ROOT))


def functions(path):
    """The functions of a file that are not inside another one, with their names."""

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield prefix + child.name, child
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")

    yield from visit(ast.parse(path.read_text()), "")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    for name, node in functions(path):
        length = node.end_lineno - node.lineno + 1
        assert length <= LONGEST_FUNCTION or name in SPELLED_OUT, f"`{name}` has {length} lines"


# Signatures with many documented arguments: all docstring, no code to speak of.
SPELLED_OUT = {"StochasticInverseProblem.fit"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_are_at_the_top(path):
    for name, node in functions(path):
        for child in ast.walk(node):
            modules = []
            if isinstance(child, ast.Import):
                modules = [alias.name for alias in child.names]
            if isinstance(child, ast.ImportFrom):
                modules = ["." * child.level + (child.module or "")]
            for module in modules:
                assert module.split(".")[0] in OPTIONAL, f"`{name}` imports `{module}`"


@pytest.mark.parametrize("path", [p for p in FILES if p.name not in CONVERTERS], ids=name_of)
def test_types_are_looked_at_where_input_is_converted(path):
    for name, node in functions(path):
        last = name.split(".")[-1].lstrip("_")
        if last.startswith(("as_", "check_")) or last == "check_init__":
            continue
        calls = [x.func.id for x in ast.walk(node) if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)]
        found = set(calls) & {"isinstance", "callable", "getattr", "hasattr", "issubclass"}
        assert not found or (name_of(path), name) in REASONS, f"`{name}` calls {sorted(found)}"


def test_reasons_are_needed():
    known = {(name_of(path), name) for path in FILES for name, _ in functions(path)}
    assert set(REASONS) <= known
