"""The documentation names everything public, and its code runs.

A block of a page is run after the blocks before it, in one namespace per page, without training for long and with short
chains. A block under the line `<!-- not run -->` is compiled alone, and the names of the library in it are looked up.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import stochinv as si
from stochinv import _problem

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/index.md",
    pytest.param("docs/getting-started.md", marks=pytest.mark.slow),
    pytest.param("docs/bring-your-own.md", marks=pytest.mark.slow),
    "docs/command-line.md",
    "docs/how-to-choose.md",
    pytest.param("docs/simulators.md", marks=pytest.mark.slow),
    pytest.param("docs/trust.md", marks=pytest.mark.slow),
    pytest.param("docs/coming-from.md", marks=pytest.mark.slow),
    pytest.param("docs/extending.md", marks=pytest.mark.slow),
    "docs/performance.md",
    pytest.param("docs/api/plot.md", marks=pytest.mark.slow),
    "docs/gallery/inverse-graphics.md",
    "docs/gallery/motion.md",
    pytest.param("docs/gallery/gan-inversion.md", marks=pytest.mark.slow),
    pytest.param("docs/gallery/tomography.md", marks=pytest.mark.slow),
    pytest.param("docs/gallery/mri.md", marks=pytest.mark.slow),
    pytest.param("docs/gallery/darcy.md", marks=pytest.mark.slow),
    pytest.param("docs/gallery/astronomy.md", marks=pytest.mark.slow),
    pytest.param("docs/gallery/phase-retrieval.md", marks=pytest.mark.slow),
)
NAMESPACES = {
    "stochinv": si,
    "stochinv.forward": si.forward,
    "stochinv.nn": si.nn,
    "stochinv.diagnostics": si.diagnostics,
    "stochinv.data": si.data,
    "stochinv.plot": si.plot,
    "stochinv.trackers": si.trackers,
}
NAMES = [
    f"{prefix}.{name}"
    for prefix, namespace in NAMESPACES.items()
    for name, value in vars(namespace).items()
    if not name.startswith("_") and not inspect.ismodule(value)
]
DIRECTIVE = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.MULTILINE)
DIRECTIVES = {
    match[1]: re.findall(r"^ +- (\w+)$", match[2], re.MULTILINE)
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
    for match in DIRECTIVE.finditer(page.read_text(encoding="utf-8") + "\n")
}
BLOCK = re.compile(r"^(<!-- not run -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


PICTURES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs").rglob("*")
    if path.suffix in (".avif", ".gif", ".jpeg", ".jpg", ".mp4", ".png", ".svg", ".webm", ".webp")
)


def look_up(name):
    return functools.reduce(getattr, name.split(".")[1:], si)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_documented(name):
    value = look_up(name)
    doc = value.__doc__
    # A dataclass without a docstring is given its signature as one.
    assert doc and not doc.startswith(name.split(".")[-1] + "("), f"{name} has no docstring"
    assert name in DIRECTIVES, f"{name} is on no page of docs/api"
    if inspect.isclass(value):
        members = {m: getattr(value, m) for m in vars(value) if not m.startswith("_")}
        bare = [m for m, v in members.items() if (callable(v) or isinstance(v, property)) and not inspect.getdoc(v)]
        assert not bare, f"methods of {name} have no docstring: {bare}"


def test_reference_names_exist():
    assert set(DIRECTIVES) <= set(NAMES)
    for name, members in DIRECTIVES.items():
        # Annotated without a value, as the class variable of an abstract objective.
        missing = [m for m in members if not hasattr(look_up(name), m) and m not in look_up(name).__annotations__]
        assert not missing, f"{name} has no {missing}"


@pytest.mark.parametrize("path", PICTURES)
def test_picture_is_small(path):
    limit = 2_000_000 if path.endswith((".gif", ".mp4", ".webm")) else 300_000
    size = (ROOT / path).stat().st_size
    assert size < limit, f"{path} has {size} bytes, of at most {limit}: compress it"


def blocks(page):
    """Line number, code and whether it is to be run, for every Python block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text[: match.start(2)].count("\n"), match[2], match[1] is None) for match in BLOCK.finditer(text)]


def traced_train(problem, data, *, key, options, **settings):
    """All of a fit but its steps: checks, the denoiser, and one step, traced but not compiled.

    Short fits are done, with two steps.
    """
    if options.steps <= 500:
        return _TRAIN(problem, data, key=key, options=dataclasses.replace(options, steps=2), **settings)
    data = jax.tree.map(jnp.asarray, data)
    state = si.init(problem, data, key=key, roles=options.roles, steps=options.steps, **settings)
    batch = jax.tree.map(lambda x: x[:2], data)
    eqx.filter_eval_shape(lambda: si.step(state, batch))
    return state.trained, si.History()


def short_signals(problem, data, *, rounds, steps, **settings):
    """A fit in signal space of two steps."""
    return _TRAIN_SIGNALS(problem, data, steps=2, rounds=1, **settings)


_TRAIN, _TRAIN_SIGNALS = _problem.train, _problem.train_signals
_REFERENCE = si.diagnostics.reference_posterior


def short_chains(*args, **options):
    """A reference posterior of one short chain."""
    return _REFERENCE(*args, **options | {"num_samples": 8, "num_warmup": 8, "num_chains": 1})


def test_notebooks_are_the_pages(monkeypatch):
    """Each has the code of its page that is run, in order, and valid cells."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_hooks")
    notebooks = importlib.import_module("notebooks")
    tested = [page.values[0] if hasattr(page, "values") else page for page in PAGES]
    assert len(notebooks.PAGES) >= 5
    for page in notebooks.PAGES:
        assert f"docs/{page}" in tested
        made = notebooks.notebook((ROOT / "docs" / page).read_text(encoding="utf-8"))
        title, *cells = made["cells"]
        assert title["source"].startswith("# ")
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        assert code[1:] == [source.strip() for _, source, run in blocks(f"docs/{page}") if run]
        assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
        assert not any(
            "](" in cell["source"].replace("](http", "") for cell in cells if cell["cell_type"] == "markdown"
        )


@pytest.mark.thorough
@pytest.mark.parametrize("page", PAGES)
def test_code_of_page(page, monkeypatch, tmp_path):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(blocks(page)) == text.count("```python"), "a block that is not recognised, perhaps indented"
    if page == "docs/index.md":
        assert [code for _, code, _ in blocks(page)] == [code for _, code, _ in blocks("README.md")]
        return
    monkeypatch.setattr(_problem, "train", traced_train)
    monkeypatch.setattr(_problem, "train_signals", short_signals)
    monkeypatch.setattr(si.diagnostics, "reference_posterior", short_chains)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, source, run in blocks(page):
        code = compile("\n" * line + source, page, "exec")
        if run:
            exec(code, namespace)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("si."):
                look_up(ast.unparse(node))
