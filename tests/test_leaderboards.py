"""Leaderboards run at tiny sizes and keep the rows that they print; their exact references agree with brute force."""

import bz2
import importlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name, *arguments):
        main = runpy.run_path(str(BENCHMARKS / "leaderboard" / f"{name}.py"))["main"]
        path = tmp_path / "rows.json"
        main(["--quick", "--json", str(path), *arguments])
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_rows_are_kept(load, tmp_path, capsys):
    rows = load("leaderboard.rows")
    ours = rows.Row("a", "ours", "measurements", {"x": 0.5}, "run here", {"x": 0.6}, 3.0)
    kept = [ours, rows.Row("a", "theirs", "signals", {"y": 1.0}, "paper")]
    rows.save(kept, tmp_path / "rows.json")
    assert rows.load(tmp_path / "rows.json") == kept
    rows.print_rows(kept)
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "ours", "measurements", "0.500", "3", "run", "here"]


# sbibm's first observation of the Bernoulli GLM: a hundred tosses, and the sums of them that its own methods are given.
TOSSES = "1101111111100000011111110001110111100000111100001110001111001100011111001110000000111000111110000111"
SUMS = [56.0, 3.32306, 14.356438, 11.104893, -4.167525, -18.507809, -21.917496, -9.553517, -0.357257, -5.497825]


def test_bernoulli_glm_is_that_of_sbibm(load):
    """The design matrix gives the published sums of the published tosses; the prior's precision is summed by hand."""
    simulators = load("signal_simulators")
    tosses = np.array([float(x) for x in TOSSES])
    assert np.allclose(simulators.stimulus().T @ tosses, SUMS, atol=1e-5)
    root = simulators.smooth_root()
    precision = np.linalg.inv(root @ root.T)
    parameters = np.random.default_rng(0).normal(size=(5, 10))
    filters = np.pad(parameters[:, 1:], ((0, 0), (2, 0)))
    curved = filters[:, 2:] - 2 * filters[:, 1:-1] + filters[:, :-2] + np.sqrt(np.arange(9) / 9) * parameters[:, 1:]
    by_hand = 0.5 * parameters[:, 0] ** 2 + np.sum(curved**2, -1)
    assert np.allclose(np.einsum("ni,ij,nj->n", parameters, precision, parameters), by_hand)


def write_references(folder, name, *, measured, size, tosses=0):
    """Of reference files, the names and the format; their numbers stand in for those of the package."""
    rng = np.random.default_rng(0)
    for number in (1, 2):
        files = folder / "sbibm" / "tasks" / name / "files" / f"num_observation_{number}"
        files.mkdir(parents=True)
        np.savetxt(files / "observation.csv", rng.uniform(-1, 1, (1, measured)), delimiter=",", header="names")
        if tosses:
            raw = rng.integers(0, 2, (1, tosses))
            np.savetxt(files / "observation_raw.csv", raw, delimiter=",", header="names")
        with bz2.open(files / "reference_posterior_samples.csv.bz2", "wt") as file:
            np.savetxt(file, rng.uniform(-1, 1, (60, size)), delimiter=",", header="names")


@pytest.mark.slow
def test_sbibm(run, tmp_path):
    write_references(tmp_path, "two_moons", measured=2, size=2)
    write_references(tmp_path, "bernoulli_glm", measured=10, size=10, tosses=100)
    rows, printed = run("sbibm", "--sbibm", str(tmp_path), "--problems", "two_moons", "bernoulli_glm")
    assert [x["problem"] for x in rows if x["method"] == "stochinv"] == [
        *("two_moons, 10,000", "bernoulli_glm, 10,000"),
        *("two_moons, 30,000", "bernoulli_glm, 30,000"),
    ]
    assert all(0.4 < x["figures"]["C2ST"] <= 1 for x in rows)
    assert "GenSBI" in printed
    with pytest.raises(SystemExit, match="bernoulli_glm needs `--sbibm FOLDER`"):
        run("sbibm", "--sbibm", str(tmp_path / "nothing"), "--problems", "bernoulli_glm")


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_posterior_of_25_gaussians(load, rows):
    """Shares, means and covariance of the posterior, against draws of the prior weighted by the likelihood."""
    law = load("leaderboard.mixture25_law")
    given, number = law.MEASUREMENTS[rows], 400_000
    # As exact as it was, but for noise that leaves thousands of the draws with a say.
    given = law.Measurement(given.matrix, 1.0, given.observed)
    signals = law.draw(np.random.default_rng(0), number)
    logs = -0.5 * np.sum((signals @ given.matrix.T - given.observed) ** 2, -1)
    likelihood = np.exp(logs - logs.max())
    likelihood /= likelihood.sum()
    enough = 1 / np.sum(likelihood**2)
    assert enough > 2000
    nearest = np.argmin(np.sum((signals[:, None, :2] - law.means()[:, :2]) ** 2, -1), -1)
    weights, centres, covariance = law.posterior(given)
    shares = np.bincount(nearest, likelihood, len(weights))
    # Five standard errors, and the few draws that are nearer to another mean in their first two entries.
    assert np.all(np.abs(shares - weights) < 5 * np.sqrt(weights / enough) + 1e-3)
    mean = likelihood @ signals
    spread = (signals - mean).T @ (likelihood[:, None] * (signals - mean))
    exact_mean = weights @ centres
    exact = covariance + (centres - exact_mean).T @ (weights[:, None] * (centres - exact_mean))
    assert np.all(np.abs(mean - exact_mean) < 5 * np.sqrt(np.diag(exact) / enough))
    assert np.all(np.abs(spread - exact) < 10 * np.sqrt(np.outer(np.diag(exact), np.diag(exact)) / enough))
    drawn = law.draw_posterior(np.random.default_rng(1), 100_000, given)
    assert np.allclose(np.cov(drawn.T), exact, atol=0.02 * np.max(exact))


def test_largest_sliced_distance(load):
    """Of one direction in one dimension it is the best assignment, by brute force."""
    law, rng = load("leaderboard.mixture25_law"), np.random.default_rng(0)
    rows, reference = rng.normal(size=(8, 1)), rng.normal(1, 2, size=(24, 1))
    cost = (np.repeat(rows, 3, 0) - reference.T) ** 2
    brute = np.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert np.isclose(law.largest_sliced(rng, rows, reference, 1), brute)
    # A shift along a diagonal of three dimensions: of many directions one is nearly that.
    points = rng.normal(size=(50, 3))
    assert np.isclose(law.largest_sliced(rng, points, points + 1, 2000), np.sqrt(3), rtol=1e-2)


@pytest.mark.slow
def test_mixture25(run):
    rows, printed = run("mixture25", "--rows", "2", "4")
    assert [x["method"] for x in rows].count("stochinv") == 4
    assert all(np.isfinite(list(x["figures"].values())).all() for x in rows)
    assert "MCGDiff" in printed


def test_moons(load):
    """Half of the points on each arc, at a distance of 1 from its centre, with the spread that is told."""
    scsi = load("leaderboard.scsi_moons")
    points = scsi.moons(np.random.default_rng(0), 100_000)
    off = np.stack([np.linalg.norm(points - centre, axis=-1) - 1 for centre in ([0, 0], [1, 0.5])])
    nearest = np.argmin(np.abs(off), 0)
    # In the part that the arcs have to themselves there is no doubt which one a point is of.
    first = points[:, 0] < -0.3
    assert np.all(nearest[first] == 0)
    assert np.isclose(np.std(off[0, first]), scsi.SPREAD, rtol=0.05)
    share = np.arccos(0.3) / np.pi / 2
    assert np.isclose(first.mean(), share, atol=5 * np.sqrt(share / 100_000) + 1e-3)
    assert np.isclose(points.mean(0), [0.5, 0.25], atol=0.01).all()


NOTEBOOK = {
    "data-cell": "def sample(n):\n    return torch.zeros(n, 2)",
    "model-cell": "class Shift(nn.Module):\n    def forward(self, x): return x\n"
    "def flow(model, z, y): return model(y) + 1",
    "hparams-cell": "t_outer, t_inner = 5_000, 10\nmodel_em = Shift().to(device)\nglobal_step = 0\nsample_every = 1",
    "train-cell": "for k in range(t_outer):\n    for i in range(t_inner):\n"
    "        if sample_every: raise RuntimeError\n"
    "        global_step += 1\n        torch.linalg.svd(torch.randn(200, 200))",
}


def test_scsi_notebook(load, tmp_path):
    """A notebook like theirs is trained for about as long as asked for."""
    theirs = load("leaderboard.scsi_notebook")
    with pytest.raises(SystemExit, match="github.com/clarkmiyamoto/scsi"):
        theirs.read_cells(tmp_path)
    cells = [{"id": name, "cell_type": "code", "source": source} for name, source in NOTEBOOK.items()]
    (tmp_path / theirs.NOTEBOOK).write_text(json.dumps({"cells": cells}))
    pytest.importorskip("torch")
    measured = np.arange(6.0).reshape(3, 2)
    drawn, seconds, steps = theirs.recover(tmp_path, measured, cpu_seconds=3.0, seed=0)
    assert np.allclose(drawn, measured + 1)
    assert steps % 10 == 0 and 1 < seconds < 9


@pytest.mark.slow
def test_scsi_moons(run):
    rows, printed = run("scsi_moons")
    assert [x["method"] for x in rows] == ["stochinv", "the measurements", "the truth again"]
    assert all(np.isfinite(list(x["figures"].values())).all() for x in rows)
    assert "W2" in printed


UTILITIES = """
import ot, wandb
def smooth_manifold(*arguments, **settings): raise RuntimeError
show_corner = dump_module = sinkhorn_divergence = smooth_manifold
"""
SCRIPT = """
import wandb
from dawgz import job
from utils import *

class train:
    def callback(name):
        wandb.init(project=name)
        x = smooth_manifold(0, shape=(16,), m=1, n=5)
        x = 4 * (x - x.min(0)) / (x.max(0) - x.min(0)) - 2
        dump_module(x, name)
        for size in (1, 2):
            sinkhorn_divergence(x, x, show_corner(x) and x * size / 2)
"""


def test_diffem_code(load, tmp_path):
    """Of a script like theirs, the points of the last round in units of the curve that it was given."""
    theirs = load("leaderboard.diffem_code")
    with pytest.raises(SystemExit, match="github.com/danialht/DiffEM"):
        theirs.recover(tmp_path, None)
    folder = (tmp_path / theirs.SCRIPT).parent
    folder.mkdir(parents=True)
    (folder / "utils.py").write_text(UTILITIES)
    (tmp_path / theirs.SCRIPT).write_text(SCRIPT)
    points = np.random.default_rng(0).normal(3, 2, (16, 5))
    drawn, seconds = theirs.recover(tmp_path, lambda number: points[:number])
    assert np.allclose(drawn, points, atol=1e-5) and seconds >= 0


def test_distances_of_a_shifted_curve(load):
    """A law that is shifted by 1 in five entries is 5 away, beyond what sets of points differ by anyway."""
    manifold, closed = load("leaderboard.manifold"), load("signal_closed_forms")
    sizes = load("signal_case").Sizes(False, 0)
    points = closed.draw_curve(np.random.default_rng(1), 1024)
    few = "512 points"
    floor, found = (manifold.distances(x, sizes)[few] for x in (points, points + 1))
    assert 0 < floor < 0.2 and np.isclose(found, 5, atol=0.3)


@pytest.mark.slow
def test_manifold(run):
    rows, printed = run("manifold")
    assert [x["method"] for x in rows] == ["stochinv", "stochinv", "the truth again"]
    assert all(np.isfinite(list(x["figures"].values())).all() for x in rows)
    assert "squared W2" in printed
