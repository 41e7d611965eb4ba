"""The program `stochinv`: scripts to start from, what it says of forward models, and what it refuses."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import pytest

import stochinv as si
from stochinv._command import check, forward_checks, main, new
from stochinv._view import as_signal

FIELDS = get_args(new.Field)
MODEL = """
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import stochinv as si

signal = jax.ShapeDtypeStruct((2,), jnp.float32)
params = jr.normal(jr.key(0), (5, 3, 2))
named = {"angles": jnp.ones((6, 3)), "offset": jnp.zeros(6)}
view = si.View(jnp.ones((4, 2, 3)), jr.normal(jr.key(0), (4, 2, 3, 2)))
ragged = {"a": jnp.ones((6, 3)), "b": jnp.ones(5)}
calls = []


def linear(signal, matrix):
    return matrix @ signal


def curved(signal, matrix):
    return {"sine": jnp.sin(matrix @ signal)}


def half(signal, matrix):
    return matrix[:, :1] @ signal[:1]


def noisy(signal, matrix):
    return matrix @ signal + np.random.normal(size=3)


def numpy(signal, matrix):
    return np.sin(matrix @ np.asarray(signal))


def branching(signal, matrix):
    return matrix @ signal if signal[0] > 0 else -matrix @ signal


def root(signal, matrix):
    return jnp.sqrt(matrix @ signal)


def rounded(signal, matrix):
    return jnp.round(10 * matrix @ signal)


def integers(signal, matrix):
    return jnp.round(matrix @ signal).astype(int)


def constant(signal, matrix):
    return matrix[:, 0]


def kinked(signal, matrix):
    return matrix @ signal + jnp.sqrt(jnp.sum((signal - signal) ** 2))


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))


def wrong_rule(signal, matrix):
    return doubled(matrix @ signal)


def backwards_alone(signal, matrix):
    return right(matrix @ signal)


@jax.custom_vjp
def right(x):
    return 2 * x


right.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def failing(signal, matrix):
    raise RuntimeError("what a user wrote")


problem = si.StochasticInverseProblem(
    si.forward.CartesianMRI((4, 4)), noise=0.1, signal=jax.ShapeDtypeStruct((4, 4), jnp.complex64)
)
scans = si.forward.MRIScan(jnp.array([[0, 1], [2, 3], [1, 2]]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model in it, and nothing of it left behind in the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("model.py").write_text(MODEL)
    yield tmp_path
    sys.modules.pop("model", None)


def checked(name, capsys, *options):
    """Whether it is fit, and the table: what was found and the mark, by what was asked."""
    fit = check.check(f"model.py:{name}", *options)
    printed = capsys.readouterr().out
    rows = {line[2:26].strip(): line[27:].strip() for line in printed.splitlines() if line.startswith("  ")}
    return fit, rows, printed


@pytest.mark.thorough
def test_a_linear_forward_model_is_fit(folder, capsys):
    fit, rows, printed = checked("linear", capsys)
    assert fit and "\nFit for the library.\n" in printed
    assert "a signal float32[2] and params float32[3, 2]" in printed
    assert all(row.endswith("ok") for row in rows.values())
    assert rows["measurement"].startswith("float32[3]") and rows["affine"].startswith("yes")
    assert rows["identifiable"].startswith("2 of 2 directions seen by 5 measurements")
    assert "µs a measurement" in rows["time"]


@pytest.mark.thorough
def test_a_curved_forward_model_of_a_view_is_fit(folder, capsys):
    fit, rows, _ = checked("curved", capsys, None, "view")
    assert fit and rows["affine"].startswith("no") and "'sine'" not in rows["measurement"]
    assert rows["measurement"].startswith("{sine: float32[3]}")
    assert rows["identifiable"].startswith("2 of 2 directions seen by 8 measurements")
    assert rows["derivative, backwards"].startswith("as differences, to ")


@pytest.mark.thorough
def test_a_problem_of_complex_signals_is_looked_at(folder, capsys):
    fit, rows, printed = checked("problem", capsys, None, "scans")
    assert fit and rows["measurement"].startswith("complex64[1, 2, 4]")
    assert "complex64[4, 4]" in printed
    # Four rows of four complex numbers.
    assert rows["identifiable"].startswith("32 of 32")


UNFIT = {
    "noisy": ("deterministic", "without noise"),
    "numpy": ("compiled, jax.jit", "use `jnp` for NumPy"),
    "branching": ("compiled, jax.jit", "`jnp.where`"),
    "root": ("finite", "`jnp.exp`"),
    "integers": ("measurement", "floating-point"),
    "constant": ("depends on the signal", "say something of the signal"),
    "wrong_rule": ("derivative, backwards", "correct the rule"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_unfit_is_told_with_a_remedy(name, folder, capsys):
    fit, rows, printed = checked(name, capsys)
    what, remedy = UNFIT[name]
    assert not fit and "\nNot fit for the library.\n" in printed
    assert rows[what].endswith("wrong")
    (line,) = [x for x in printed.splitlines() if x.startswith(f"- {what}: ")]
    assert remedy in line and line.endswith(".")


@pytest.mark.thorough
def test_a_forward_model_without_derivatives_is_fit_for_signal_space(folder, capsys):
    for name, found in (("rounded", "zero"), ("kinked", "not finite")):
        fit, rows, printed = checked(name, capsys)
        assert fit and "\nFit for signal space alone.\n" in printed
        assert rows["derivative, backwards"].startswith(found) and "identifiable" not in rows
    fit, rows, printed = checked("backwards_alone", capsys)
    assert fit and "\nFit for the library.\n" in printed
    assert rows["derivative, forwards"].startswith("no: ") and "only affine forward models need it" in printed


def test_what_no_measurement_sees_is_told(folder, capsys):
    fit, rows, printed = checked("half", capsys)
    assert fit and rows["identifiable"].startswith("1 of 2 directions seen by 5 measurements")
    assert "but part of the signal is not measured" in printed and "vary the parameters more" in printed


def test_state_is_found():
    first = {"a": jnp.ones(3)}
    row = forward_checks.batched(lambda: {"a": 2 * jnp.ones(3)}, first)
    assert row.wrong and "keep no state" in row.remedy
    assert forward_checks.gap({"a": jnp.ones(3)}, {"b": jnp.ones(3)}) == float("inf")
    assert forward_checks.gap(jnp.ones(3), jnp.ones(2)) == float("inf")
    assert forward_checks.gap(jnp.array([jnp.nan, 1.0]), jnp.array([jnp.nan, 1.0])) == 0


def test_what_a_users_code_raises_is_passed_on(folder):
    with pytest.raises(RuntimeError, match="what a user wrote") as caught:
        check.check("model.py:failing")
    (note,) = caught.value.__notes__
    assert "`failing` raised this with a signal float32[2] and params float32[3, 2]" in note and "--params" in note
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        check.check("broken.py:forward")
    assert caught.value.__notes__ == ["broken.py raised this as it was run."]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and len(printed) < 300 and printed.endswith(".\n"), printed
    return printed


def test_what_is_missing_is_said(folder, capsys):
    asked = lambda *options: refused(capsys, "check", "model.py:linear", *options)
    Path("bare.py").write_text("forward = lambda signal, params: signal\nsize = 3\n")
    bare = lambda *options: refused(capsys, "check", "bare.py:forward", *options)
    assert "`--signal` is missing; give the shape of a signal" in bare()
    assert "`--params` is missing; give the shape" in bare("--signal", "2")
    assert "`--signal` is 'image', which the file does not have" in bare("--signal", "image")
    assert "must be a Python file and a name in it" in refused(capsys, "check", "model.py")
    assert "has no such name; write one of " in refused(capsys, "check", "model.py:nothing")
    assert "must name a function of a signal and parameters" in refused(capsys, "check", "bare.py:size")
    assert "all need a first axis" in asked("--params", "ragged")
    assert "nobody knows which integers are meant" in asked("--params", "3,2", "--params-dtype", "int32")
    assert "must be an array's number format" in asked("--params", "3,2", "--params-dtype", "single-ish")
    assert "--signal: `signal` must be a shape" in asked("--signal", "calls")


def test_shapes_are_read(folder):
    names = {"signal": jnp.ones((3, 1)), "params": {"x": jnp.arange(200.0)}}
    shape = lambda given, **options: check.as_structure(given, names, options.get("known"), "float32").shape
    assert shape(None) == (3, 1) and shape("28,28,1") == (28, 28, 1) and shape("4,") == (4,) and shape("scalar") == ()
    known = jax.ShapeDtypeStruct((7,), jnp.float32)
    assert shape(None, known=known) == (7,) and shape("4", known=known) == (4,)
    assert check.as_structure("2,2", names, None, "complex64").dtype == jnp.complex64
    spread = check.as_params(None, names, "float32")["x"]
    assert spread.shape == (64,) and spread[0] == 0 and spread[-1] == 199
    assert check.as_params("none", names, "float32") is None
    assert check.as_params("5", names, "float32").shape == (64, 5)
    assert check.as_params("5", names, "bool").dtype == jnp.bool_


def test_the_exit_status_tells(folder, capsys):
    main.main(["check", "model.py:linear", "--params", "3,2"])
    with pytest.raises(SystemExit) as caught:
        main.main(["check", "model.py:constant"])
    assert caught.value.code == 1
    assert "64 measurements" in capsys.readouterr().out


def test_scripts_are_listed_and_written(folder, capsys):
    main.main(["new"])
    listed = capsys.readouterr().out
    starters = sorted(path.stem for path in (Path(si.__file__).parent / "_starters").glob("*.py"))
    assert starters == sorted(FIELDS) and all(f"  {x} " in listed for x in FIELDS)
    Path("sub").mkdir()
    for path, written in (([], "own.py"), (["mine.py"], "mine.py"), (["sub"], "sub/own.py")):
        main.main(["new", "own", *path])
        said = capsys.readouterr().out
        assert Path(written).read_text(encoding="utf-8") == new.starter("own")
        assert f"Run it by `python {written}`." in said and f"`stochinv check {written}:forward`" in said
    Path("mine.py").write_text("my own work")
    assert "`path` is mine.py, which exists" in refused(capsys, "new", "own", "mine.py")
    assert Path("mine.py").read_text() == "my own work"
    assert "`path` must be a folder or end in .py, got 'mine'; write 'mine.py'" in refused(capsys, "new", "own", "mine")
    assert "cannot be written" in refused(capsys, "new", "own", "nowhere/own.py")


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_scripts_to_start_from_run(field, folder, capsys):
    main.main(["new", field])
    capsys.readouterr()
    runpy.run_path(f"{field}.py")["main"](records=120, steps=2)
    printed = capsys.readouterr().out
    assert "Check: 20 held-out records" in printed and f"{field}.png" in printed
    assert Path(f"{field}.png").stat().st_size > 5000
    try:
        assert check.check(f"{field}.py:forward")
    finally:
        sys.modules.pop(field, None)


@pytest.mark.thorough
@pytest.mark.parametrize("field", FIELDS)
def test_scripts_to_start_from_make_up_what_they_measure(field, folder):
    Path("script.py").write_text(new.starter(field))
    names = runpy.run_path("script.py")
    signals, observations, params = jax.eval_shape(lambda key: names["made_up"](6, key), jax.random.key(0))
    one = lambda tree, axes: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype), tree)
    assert one(signals, 1) == as_signal(names["signal"])
    assert jax.eval_shape(names["forward"], one(signals, 1), one(params, 2)) == one(observations, 2)
    assert jax.tree.map(lambda x: jnp.shape(x)[1:], names["params"]) == jax.tree.map(lambda x: x.shape[2:], params)


@pytest.mark.parametrize("field", FIELDS)
def test_scripts_say_what_they_print(field):
    text = new.starter(field)
    assert f"`python {field}.py`" in text and f"{field}.png" in text and "# Your own data go here" in text
    assert new.about(field).endswith(".") and len(new.about(field)) < 100


@pytest.mark.thorough
def test_the_program_starts():
    options = {"capture_output": True, "text": True, "check": True}
    said = subprocess.run([sys.executable, "-m", "stochinv", "--help"], **options).stdout
    assert all(x in said for x in ("new", "check", "report"))
