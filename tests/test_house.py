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
# Files that turn objects into data and back: looking at types is their work.
CONVERTERS = {"_describe.py", "_structure.py", "_archive.py"}
REASONS = {
    ("_checks.py", "is_integer"): "a check",
    ("_checks.py", "is_traced"): "the one place that tells what is being traced",
    ("_checks.py", "numbers"): "arrays are shown by their values",
    ("_checks.py", "plain"): "settings given as NumPy scalars are converted",
    ("_checks.py", "shown"): "arrays are shown by their shapes",
    ("_coordinates.py", "is_bound"): "what a user gave",
    ("_denoiser/base.py", "components"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "decode"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "encode"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "encode_in_training"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "encode_again"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "is_standardised"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_denoiser/base.py", "normalised_error"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_forward/base.py", "known_signal_structure"): "an optional method of a user's forward model",
    ("_forward/base.py", "measures_stack"): "the one place that tells a stack of views from one view",
    ("_frozen.py", "owned_arrays"): "marks nodes of a PyTree",
    ("_frozen.py", "trainable"): "marks nodes of a PyTree",
    ("_lazy.py", "LazyModule.__getattr__"): "reads any name from a module",
    ("_lazy.py", "is_distribution"): "what a user gave, or a user's callable returned",
    ("_log_prob.py", "_solve"): "Diffrax wants no first step from this one of its controllers",
    ("_numpyro.py", "_is_array"): "parts the leaves of a PyTree",
    ("_sampler/guidance.py", "guides"): "a plain callable is a denoiser too, and has no abstraction to ask",
    ("_sampler/reverse_sde.py", "ReverseSDE._path"): "what a Diffrax solver asks of its Brownian path",
    ("_save.py", "_Reader._part"): "a check",
    ("_save.py", "_Reader.parts"): "fields by the names of a fixed list",
    ("_save.py", "_without_arrays"): "marks nodes of a PyTree",
    ("_save.py", "save"): "fields by the names of a fixed list",
    ("_simulated.py", "holds_signals"): "the one place that tells known signals from measurements alone",
    ("_structure.py", "is_opaque"): "marks nodes of a PyTree",
    ("_training/batches.py", "IterableBatches._get_state"): "iterators of grain can tell where they are, others cannot",
    ("_training/batches.py", "IterableBatches.state"): "some tell it in bytes",
    ("_view.py", "is_view"): "the one place that tells a View from another context",
    ("data/_video.py", "read_clips"): "a folder or files: input is converted",
    ("forward/_generator.py", "Generator.__init__"): "any callable is a generator; some know their latent code",
    ("forward/_volume.py", "VolumeRenderer.signal_structure"): "only cameras tell the resolution",
    ("nn/_lifting.py", "LiftingDenoiser._lifted"): "views that were not encoded are encoded",
    ("nn/_default.py", "_lifting_denoiser"): "a rule by the kind of the forward model",
    ("nn/_default.py", "default_denoiser"): "a rule by the kind of the forward model",
    ("nn/_weights.py", "load_weights"): "a check",
}


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
            assert not modules, f"`{name}` imports {modules}"


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
