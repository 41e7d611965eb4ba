"""The benchmarks run at tiny sizes and write the figures that they print."""

import bz2
import importlib
import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name, *arguments):
        main = runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"]
        path = tmp_path / "figures.json"
        main(["--quick", "--json", str(path), *arguments])
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


@pytest.mark.slow
def test_samplers(run):
    figures, printed = run("samplers", "--samplers", "ExponentialAdams", "--skip", "unet", "memory")
    assert set(figures) == {"accuracy", "mlp"}
    enough = [x for x in figures["accuracy"] if x["evaluations"] == 24]
    assert len(enough) == 1
    # Ten times below the bar of 1 %: the benchmark's moments are exact.
    assert enough[0]["mean"] < 1e-3 and enough[0]["covariance"] < 1e-3
    assert all(np.isfinite(x["ratio"]) for x in figures["mlp"])
    assert "ExponentialAdams" in printed


@pytest.mark.thorough
def test_importing(run):
    figures, printed = run("importing")
    assert figures["ratio"] > 0 and "stochinv" in figures["added"]
    assert "what it stands on" in printed


@pytest.mark.slow
def test_memory(run):
    figures, printed = run("memory")
    assert figures[0]["step"] == "whole" and figures[0]["memory"] == 1
    assert all(x["megabytes"] > 0 and np.isfinite(x["time"]) for x in figures)
    assert "blocks computed twice" in printed


@pytest.mark.slow
def test_compiling(run):
    """No program holds data or keys as constants: other ones of the same shapes compile nothing."""
    figures, printed = run("compiling")
    assert [x["cache"] for x in figures] == ["empty", "the same again", "other data"]
    assert figures[0]["read"] < figures[0]["programs"]
    assert all(x["read"] == x["programs"] for x in figures[1:])
    assert "other data" in printed


@pytest.mark.slow
def test_training(run):
    figures, printed = run("training", "--networks", "MLP")
    assert [x["data"] for x in figures["steps"]] == ["arrays", "iterator"]
    assert all(np.isfinite(x["ratio"]) for x in figures["steps"])
    assert "MLP" in printed


@pytest.mark.slow
def test_posterior_accuracy(run):
    """Closed forms, sequential Monte Carlo and Gibbs sampling as references; counts, dynamics and masks."""
    names = ["pendulum", "jumps", "spectra", "density"]
    figures, printed = run("posterior_accuracy", "--problems", *names)
    assert [x["problem"] for x in figures] == names
    assert all(np.isfinite(x["value"]) and "truth" in x for row in figures for x in row["figures"])
    assert "energy score / truth's" in printed


@pytest.mark.slow
def test_simulators(run, tmp_path):
    """Of reference files, the names and the format; their numbers stand in for those of the package."""
    rng, names = np.random.default_rng(0), {"two_moons": (2, 2), "slcp": (8, 5)}
    for name, (measured, size) in names.items():
        for number in (1, 2):
            folder = tmp_path / "sbibm" / "tasks" / name / "files" / f"num_observation_{number}"
            folder.mkdir(parents=True)
            observed = rng.uniform(-1, 1, (1, measured))
            np.savetxt(folder / "observation.csv", observed, delimiter=",", header="names")
            with bz2.open(folder / "reference_posterior_samples.csv.bz2", "wt") as file:
                np.savetxt(file, rng.uniform(-1, 1, (60, size)), delimiter=",", header="names")
    figures, printed = run("posterior_accuracy", "--problems", *names, "--sbibm", str(tmp_path))
    assert [x["problem"] for x in figures] == list(names)
    assert all(0.4 < x["value"] <= 1 for row in figures for x in row["figures"])
    assert "C2ST" in printed
    with pytest.raises(SystemExit, match="two_moons needs `--sbibm FOLDER`"):
        run("posterior_accuracy", "--problems", "two_moons")


@pytest.mark.thorough
def test_noise_of_simulators(monkeypatch):
    """The crescent's density integrates to 1 and is that of its NumPy simulator, as is the density of four points."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    simulators = importlib.import_module("signal_simulators")
    theta = np.array([0.4, -0.7])
    centre, edges = simulators.fold(theta, np), np.linspace(-0.16, 0.16, 21)
    fine = np.linspace(-0.16, 0.16, 321)
    middle = np.stack(np.meshgrid(*[(fine[1:] + fine[:-1]) / 2] * 2, indexing="ij"), -1)
    density = np.exp(np.asarray(simulators.Crescent(jnp.zeros(2)).log_prob(jnp.asarray(middle)), np.float64))
    mass = density.reshape(20, 16, 20, 16).sum((1, 3)) * (fine[1] - fine[0]) ** 2
    assert np.isclose(mass.sum(), 1, atol=1e-4)
    drawn = simulators.simulate_two_moons(np.random.default_rng(0), np.tile(theta, (200_000, 1))) - centre
    counts, expected = np.histogram2d(*drawn.T, bins=[edges, edges])[0], 200_000 * mass
    often = expected > 20
    # Chi-square with as many degrees of freedom as bins: 4 standard deviations.
    assert np.sum((counts - expected)[often] ** 2 / expected[often]) < often.sum() + 4 * np.sqrt(2 * often.sum())

    theta = np.array([1.0, -2.0, 1.5, 0.7, -1.0])
    drawn = simulators.simulate_slcp(np.random.default_rng(0), np.tile(theta, (50, 1)))
    first, second, correlation = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
    across = correlation * first * second
    covariance: Any = [[first**2, across], [across, second**2]]
    exact = multivariate_normal(theta[:2], covariance).logpdf(drawn).sum(-1)
    found = jax.vmap(simulators.FourPoints(simulators.tell_gaussian(jnp.asarray(theta))).log_prob)(jnp.asarray(drawn))
    assert np.allclose(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_warping(run):
    figures, printed = run("warping")
    assert [x["what"] for x in figures["warps"]] == ["forward", "gradient"]
    assert all(np.isfinite(x["ratio"]) for x in [*figures["warps"], figures["steps"]])
    assert "map_coordinates" in printed


@pytest.mark.slow
def test_unet(run):
    pytest.importorskip("torch")
    figures, printed = run("unet")
    assert [x["what"] for x in figures["rows"]] == ["forward", "training step"] * 2
    assert all(np.isfinite(x["ratio"]) for x in figures["rows"])
    assert "PyTorch ms" in printed


GPU_PARTS = {
    "device",
    "transformer, float32",
    "transformer, bf16",
    "transformer, float32, in 4 parts",
    "rays",
    "unet",
    "quickstart, float32",
    "quickstart, bf16",
    "jumps",
}


def run_on_gpu(folder, python, *arguments):
    """What the script that measures on a GPU leaves: its exit status, and its figures."""
    settings = {"OUT": str(folder), "PYTHON": str(python), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    script = [str(BENCHMARKS / "gpu" / "run.sh"), *arguments]
    result = subprocess.run(script, env=os.environ | settings, capture_output=True, text=True, timeout=1800)
    figures = [json.loads(line) for line in (folder / "figures.jsonl").read_text(encoding="utf-8").splitlines()]
    # A header of two rows.
    assert len((folder / "figures.md").read_text(encoding="utf-8").splitlines()) == len(figures) + 2
    assert "finished after" in result.stdout
    return result.returncode, figures


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="`timeout` is of GNU")
def test_gpu(tmp_path):
    status, figures = run_on_gpu(tmp_path, sys.executable, "--quick")
    assert status == 0
    assert {x["part"] for x in figures} == GPU_PARTS
    assert all(isinstance(x["value"], str) or np.isfinite(x["value"]) for x in figures)
    assert "nan" not in {x["value"] for x in figures}
    for precision in ("float32", "bf16"):
        assert (tmp_path / f"quickstart-{precision}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="`timeout` is of GNU")
def test_gpu_parts_fail_alone(tmp_path):
    """Every part is tried and told of, also where nothing runs."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    status, figures = run_on_gpu(tmp_path / "out", python, "--quick", str(tmp_path))
    assert status == 1
    assert [x["part"] for x in figures[:2]] == ["install", "unpack"]
    assert len(figures) == 2 + len(GPU_PARTS)
    assert {(x["figure"], x["value"]) for x in figures} == {("failed", 3)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="`timeout` is of GNU")
def test_gpu_applications(tmp_path):
    status, figures = run_on_gpu(tmp_path, sys.executable, "--quick", "--applications")
    assert status == 0
    assert {x["part"] for x in figures} == {"device", "motion", "generators", "scenes"}
    for name in ("motion", "generators", "scenes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_gpu_requirements_are_the_projects():
    """Those of the library but JAX, which the machine has, and some of the examples'."""
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {x for x in project["dependencies"] if not x.startswith("jax>")}
    listed = set((BENCHMARKS / "gpu" / "requirements.txt").read_text(encoding="utf-8").split())
    assert needed <= listed <= needed | set(project["optional-dependencies"]["examples"])
