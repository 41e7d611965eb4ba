"""The leaderboard on Lévy processes: its references against other ones, its figures, and that it runs."""

import importlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

LEADERBOARD = Path(__file__).parent.parent / "benchmarks" / "leaderboard"


@pytest.fixture
def part(monkeypatch):
    """A module of the leaderboard, by its name."""
    monkeypatch.syspath_prepend(LEADERBOARD)
    return importlib.import_module


# Three jumps of which two sums are seen: the second jump and the third are told from one another by their law alone.
OPERATOR = np.array([[1.0, 0.0, 0.0], [0.3, 0.0, 1.0]])
MEASURED, NOISE = np.array([0.4, 1.6]), 0.5


def functions(signals):
    """Bounded functions of signals and of their jumps `(..., 3)`, whose means heavy tails do not blur."""
    jumps = np.diff(signals, axis=-1, prepend=0)
    parts = [np.tanh(signals), np.tanh(jumps), np.abs(jumps) < 0.1, np.abs(jumps) > 1]
    return np.concatenate([*parts, np.tanh(jumps[..., 1:2] * jumps[..., 2:])], -1)


@pytest.mark.parametrize("name", ["gauss", "laplace", "bernoulli_laplace", "student", "student_3"])
def test_gibbs_sampling(part, name):
    """Against draws of the prior that are weighted by the likelihood."""
    law = part("levy_problem").LAWS[name]
    rng = np.random.default_rng(0)
    chains = np.tile(MEASURED, (500, 1))
    drawn = part("levy_references").posterior_draws(rng, law, OPERATOR, chains, NOISE, 100, burn=50, thin=2)
    found = functions(drawn).mean(1)
    prior = np.cumsum(law.sample(rng, (400_000, 3)), -1)
    weights = np.exp(-0.5 * np.sum((prior @ OPERATOR.T - MEASURED) ** 2, -1) / NOISE**2)
    weights /= weights.sum()
    values = functions(prior)
    expected = weights @ values
    # Chains are independent, so that they tell their standard errors, as weighted draws do.
    errors = np.sqrt(found.var(0) / len(found) + weights**2 @ (values - expected) ** 2)
    # Five of them in each of 13 means, and rounding.
    assert np.all(np.abs(found.mean(0) - expected) < 5 * errors + 1e-9)
    # The errors are small beside what the figures are of.
    assert errors.max() < 0.005


def test_gaussian_posterior(part):
    """Against the closed form."""
    law = part("levy_problem").LAWS["gauss"]
    operator = part("levy_problem").OPERATORS["imputation"](64)
    rng = np.random.default_rng(0)
    measured = np.tile(rng.normal(size=len(operator)), (16, 1))
    drawn = part("levy_references").posterior_draws(rng, law, operator, measured, 0.3, 500).reshape(-1, 64)
    sums = np.tril(np.ones((64, 64)))
    prior = law.scale**2 * sums @ sums.T
    gain = prior @ operator.T @ np.linalg.inv(operator @ prior @ operator.T + 0.09 * np.eye(len(operator)))
    covariance = prior - gain @ operator @ prior
    error = (drawn.mean(0) - gain @ measured[0]) / np.sqrt(np.diag(covariance) / len(drawn))
    assert np.abs(error).max() < 5
    # Of 8,000 draws a variance has the relative standard error `(2 / 8000)^½ = 0.016`.
    assert np.allclose(drawn.var(0) / np.diag(covariance), 1, atol=5 * 0.016)
    # The best quadratic estimate is the posterior mean.
    estimate = part("levy_figures").quadratic(operator)(measured, 0.09 / law.scale**2)
    assert np.allclose(estimate, gain @ measured[0], atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_coverage(part, share):
    """Regions of exact draws have nine true signals in ten; those of draws that are too narrow have fewer."""
    levy, figures = part("levy_problem"), part("levy_figures")
    law = levy.Law("laplace", share=share)
    operator = np.array([[1.0, 0.5, 0, 0], [0, 0, 0, 1.0]])
    problem = levy.make_problem(law, operator, {"training": 2000, "test": 1000})
    signals, measured = problem.signals["test"], problem.measured["test"]
    rng = np.random.default_rng(0)
    draws = part("levy_references").posterior_draws(rng, law, operator, measured, problem.noise, 100, burn=100, thin=4)
    covered = lambda x: figures.coverage(problem, measured, x, signals)
    # The region reaches the 90th of 100 draws, so that it has a fresh one with a probability of 90 / 101; four standard
    # errors.
    shares = [value for name, value in covered(draws).items() if name != "coverage's error"]
    assert len(shares) == (1 if share == 1 else 2)
    band = 4 * (0.09 / 1000) ** 0.5
    assert np.all(np.abs(np.array(shares) - 90 / 101) < band)
    narrow = draws.mean(1, keepdims=True) + 0.5 * (draws - draws.mean(1, keepdims=True))
    assert covered(narrow)["coverage"] < 90 / 101 - band
    # Twice the squared error is a gap of 3 dB.
    best = draws.mean(1)
    twice = signals + 2**0.5 * (best - signals)
    assert np.allclose(figures.gaps(twice, best, signals), 10 * np.log10(2))


def test_blurred_law(part):
    """Against a sum over a grid."""
    law = part("levy_problem").Law("laplace", 0.7, share=0.3)
    grid = np.linspace(-12, 12, 24_001)
    laplace = np.exp(-np.abs(grid) / 0.7) / 1.4
    for x in (-3.0, 0.0, 0.1, 0.9):
        normal = lambda y: np.exp(-0.5 * (y / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
        density = 0.7 * normal(x) + 0.3 * np.sum(laplace * normal(x - grid)) * (grid[1] - grid[0])
        assert np.isclose(law.blurred_log_prob(np.array(x), 0.2), np.log(density), atol=1e-5)


def test_operators(part):
    operators = {name: make(64) for name, make in part("levy_problem").OPERATORS.items()}
    assert {name: len(x) for name, x in operators.items()} == {
        "identity": 64,
        "convolution": 64,
        "imputation": 33,
        "fourier": 36,
    }
    for name in ("identity", "imputation", "fourier"):
        assert np.allclose(operators[name] @ operators[name].T, np.eye(len(operators[name])))
    signal = np.random.default_rng(0).normal(size=64)
    kernel = operators["convolution"][:, 0]
    blurred = np.fft.irfft(np.fft.rfft(kernel) * np.fft.rfft(signal), 64)
    assert np.allclose(operators["convolution"] @ signal, blurred)
    assert np.isclose(kernel.sum(), 1) and (kernel > 0).sum() == 13 and kernel.argmax() == 0


def test_total_variation(part):
    """Against a minimiser of smooth functions, jumps being differences of two that are not negative."""
    rng = np.random.default_rng(0)
    operator, measured = rng.normal(size=(5, 6)), rng.normal(size=(2, 5))
    found = part("levy_figures").total_variation(operator, 5000)(measured, 0.3)
    matrix = operator @ np.tril(np.ones((6, 6)))
    for estimate, y in zip(found, measured, strict=True):
        loss = lambda both, y=y: 0.5 * np.sum((matrix @ (both[:6] - both[6:]) - y) ** 2) + 0.3 * both.sum()
        jumps = np.diff(estimate, prepend=0)
        best = minimize(loss, np.ones(12), bounds=[(0, None)] * 12, options={"ftol": 1e-14, "gtol": 1e-9}).fun
        assert loss(np.concatenate([np.maximum(jumps, 0), np.maximum(-jumps, 0)])) < best + 1e-5


def test_orders(part):
    """In their own order the forward model is the operator; in another, all jumps are in it."""
    levy = part("levy")
    operator = part("levy_problem").OPERATORS["imputation"](64)
    jumps = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)
    view = levy.records(np.zeros((5, 33)), 64, told=True, reordered=True)
    assert len({tuple(order) for order in view.params[:, 0]}) == 5
    order = np.round(64 * view.params[0, 0]).astype(int)
    assert sorted(order) == list(range(64)) and list(order) != sorted(order)
    reordered = np.cumsum(jumps[order, 0])
    told, untold = levy.forward_of(operator, True), levy.forward_of(operator, False)
    assert np.allclose(told(jumps, view.params[0, 0]), operator @ reordered, atol=1e-4)
    still = levy.records(np.zeros((1, 33)), 64, told=True, reordered=False)
    assert np.allclose(told(jumps, still.params[0, 0]), operator @ np.cumsum(jumps), atol=1e-4)
    assert np.allclose(untold(jumps, None), operator @ np.cumsum(jumps), atol=1e-4)


@pytest.mark.slow
def test_levy(part, tmp_path, capsys):
    part("rows")
    main = runpy.run_path(str(LEADERBOARD / "levy.py"))["main"]
    path = tmp_path / "rows.json"
    cells = ["identity/laplace", "imputation/bernoulli_laplace"]
    main(["--quick", "--json", str(path), "--cells", cells[0]])
    main(["--quick", "--json", str(path), "--cells", cells[1]])
    rows = json.loads(path.read_text())
    assert [x["problem"] for x in rows[::4]] == [f"Lévy {x}" for x in cells]
    assert {x["method"] for x in rows} == {"Gibbs sampling", "stochinv", "L2", "L1"}
    given = {x["problem"]: x["given"] for x in rows if x["method"] == "stochinv"}
    assert list(given.values()) == ["measurements", "measurements, exchangeable jumps"]
    assert all(np.isfinite(value) for x in rows for value in x["figures"].values())
    assert "gap dB" in capsys.readouterr().out
