"""Modules import downwards only, as the layout of the library says."""

import ast
import pathlib
import pickle
import subprocess
import sys

import pytest

import stochinv as si
from stochinv import _lazy

ROOT = pathlib.Path(si.__file__).parent
# What a module may import at its top: lower levels only. Within a level, no cycles (checked separately).
LEVELS = [
    [
        "_custom_types",
        "_lazy",
        "_checks",
        "_chunks",
        "_frozen",
        "_archive",
        "_describe",
        "_structure",
        "_pareto",
        "_mixture",
        "_normal",
        "_ranks",
    ],
    ["_tracker", "_grid"],
    ["_view", "_schedule", "_forward.base"],
    ["_complex"],
    ["_data_info"],
    ["_coordinates"],
    [
        "_whitening",
        "_contexts",
        "_pairs",
        "_simulated",
        "_noising",
        "_noise",
        "_poisson",
        "_poisson_gaussian",
        "_denoiser.base",
        "_objective.base",
        "_sampler.base",
        "_training.ema",
        "_training.history",
    ],
    ["_problem_base"],
    ["_forward", "_denoiser", "_objective", "_sampler", "_sampling", "_log_prob", "_signal_problem", "_space"],
    # Renderers and networks: a denoiser that nobody gave is made of the latter.
    ["forward", "nn"],
    ["_training", "_numpyro", "_instrument", "_mode", "_posterior", "_save"],
    ["_check", "_fit"],
    ["_problem"],
    ["_load"],
    ["data", "diagnostics", "trackers"],
    ["plot", "_command.files"],
    ["report"],
    ["_command"],
    ["", "__main__", "_starters"],
]
# What no namespace of ready-made parts may be imported by.
CORE = {"_view", "_schedule", "_noise", "_problem_base", "_forward", "_denoiser", "_objective", "_sampler", "_log_prob"}
NAMESPACES = {"forward", "nn", "data", "diagnostics", "plot", "trackers"}
# Half of the time of an import, and needed by some features alone.
HEAVY = {"numpyro", "orbax", "scipy.special", "scipy.stats", "tqdm.auto", "arviz", "matplotlib", "sklearn", "skimage"}
HEAVY.add("tyro")  # for the command line
AFTER_IMPORT = """
import sys
import equinox, diffrax, jax, optax
before = set(sys.modules)
import stochinv
from jax._src import xla_bridge
print(*sorted(set(sys.modules) - before), sep=",")
print(xla_bridge.backends_are_initialized())
"""


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


def level(name):
    exact = [i for i, names in enumerate(LEVELS) if name in names]
    package = [i for i, names in enumerate(LEVELS) if name.split(".")[0] in names]
    assert exact or package, f"`{name}` is in no level of tests/test_imports.py"
    return (exact or package)[0]


def imported(path):
    """The library's modules that a file imports, anywhere in it."""
    parts = ("stochinv", *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(parts[: len(parts) - node.level]) if node.level else []
        base += node.module.split(".") if node.module else []
        if base[:1] != ["stochinv"]:
            continue
        for alias in node.names:
            target = (
                [*base, alias.name]
                if (ROOT.parent.joinpath(*base) / f"{alias.name}.py").exists()
                or (ROOT.parent.joinpath(*base) / alias.name).is_dir()
                else base
            )
            yield ".".join(target[1:])


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    name = module_name(path)
    for other in imported(path):
        assert level(other) <= level(name), f"`{name}` imports `{other}`, which lies above it"


def test_no_cycles():
    graph = {module_name(path): set(imported(path)) for path in FILES}

    def visit(name, above):
        assert name not in above, f"cycle of imports: {' -> '.join([*above, name])}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*above, name])
            done.add(name)

    done = set()
    for name in graph:
        visit(name, [])


def test_the_core_imports_no_namespace():
    for path in FILES:
        name = module_name(path)
        if name.split(".")[0] in CORE:
            for other in imported(path):
                assert other.split(".")[0] not in NAMESPACES, f"{name} imports {other}"


def test_heavy_packages_wait_and_so_do_devices():
    """Until a feature needs them. Devices wait for what a user sets of JAX after the import."""
    options = {"capture_output": True, "text": True, "check": True}
    loaded, initialised = subprocess.run([sys.executable, "-c", AFTER_IMPORT], **options).stdout.split()
    assert not HEAVY & set(loaded.split(","))
    assert initialised == "False"


@pytest.mark.parametrize("name", [n for n, x in vars(_lazy).items() if isinstance(x, _lazy.LazyModule)])
def test_lazy_modules_are_the_modules(name):
    lazy = getattr(_lazy, name)
    module = __import__(lazy.__name__, fromlist=["_"])
    public = next(n for n, x in vars(module).items() if not n.startswith("_") and callable(x))
    assert getattr(lazy, public) is getattr(module, public)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lazy.no_such_name


def test_distributions_are_told():
    assert not _lazy.is_distribution(lambda key: key)
    law = _lazy.numpyro.distributions.Normal(0.0, 1.0)
    assert _lazy.is_distribution(law)
    assert _lazy.is_distribution(pickle.loads(pickle.dumps(law)))
