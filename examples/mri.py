"""Complex images of a brain from three lines of k-space, seen by two coils.

Every training record is two scans of a slice, each of three lines of twelve, at random. No image is ever given to
training, and of no slice all lines. Then one scan of a held-out slice is given, and images are sampled.

    python examples/mri.py      # minutes on a CPU: a table of figures, and mri.png

Magnitudes are slices of the template ICBM 152, which nilearn ships: real anatomy. Phases and coils are synthetic, and
differ from scan to scan. `main` below is the whole story. `--help` lists sizes and files.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si
from brain_slices import brain_slices
from instrument_scores import gaussian_of_fit, print_scores, repeat, score, with_errors_of_others


@dataclass
class Config:
    """Complex images of a brain from some lines of k-space: trains on scans, samples images, scores them."""

    size: int = 12
    """Height and width of an image in pixels."""
    coils: int = 2
    """Coils, at random places around the head."""
    lines: int = 3
    """Lines of k-space in a scan, of `size`; one is that of the middle."""
    scans: int = 2
    """Scans of each training slice; of held-out ones there is one."""
    noise: float = 0.05
    """Standard deviation of the real and of the imaginary part of the noise; tissue has magnitudes up to 1."""
    train: int = 1000
    """Training slices."""
    steps: int = 1200
    """Training steps."""
    rounds: int = 5
    """Rounds of expectation maximisation: in each, images are drawn anew and learned from."""
    batch_size: int = 64
    """Images per training step."""
    held_out: int = 30
    """Held-out scans in the table."""
    draws: int = 32
    """Draws per held-out scan."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("mri.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = jr.split(jr.key(config.seed), 6)
    known, unseen = brain_slices(config.train, config.held_out, size=config.size, seed=config.seed)
    forward = si.forward.CartesianMRI((config.size, config.size))
    data = scan(forward, with_phase(known, keys[0]), config.scans, config, keys[1])  # all that training sees
    truth = with_phase(unseen, keys[2])
    contexts = scan(forward, truth, 1, config, keys[3])

    # Scans in, a trained problem out.
    problem = si.StochasticInverseProblem(forward, noise=config.noise)
    options = {"steps": config.steps, "rounds": config.rounds, "batch_size": config.batch_size}
    fit = problem.fit(data, key=keys[4], **options)

    # One scan in, images out; here for many scans at once, shape (scans, draws, size, size). For a single one it reads
    # `fit.problem.posterior(context).sample(key, 8)`.
    start = time.perf_counter()
    draws = fit.problem.sample_many(contexts, key=keys[5], num_samples=config.draws).signal
    jax.block_until_ready(draws)
    seconds = {"train_seconds": fit.history.seconds, "sample_seconds": time.perf_counter() - start}

    # How good they are, beside two simpler answers.
    estimate = sense(forward, contexts, config.noise)
    answers = {
        "": draws,
        "_gaussian": gaussian_of_fit(fit.problem, contexts, key=keys[5], num_samples=config.draws),
        "_sense": with_errors_of_others(estimate, truth),
    }
    figures = {}
    for name, images in answers.items():
        found = score(images, truth, repeat(forward, images, contexts), contexts.observation, config.noise)
        figures |= {key + name: value for key, value in found.items()}
    figures |= seconds
    print(f"\n{config.held_out} held-out scans of {config.lines} lines of {config.size}")
    print_scores(figures, {"": "stochinv", "_gaussian": "Gaussian", "_sense": "SENSE"})
    draw(config, estimate, draws, truth)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def waves(size):
    """Places in the image between -1 and 1, downwards and to the right, each of shape `(size, size)`."""
    return jnp.meshgrid(*2 * [jnp.linspace(-1, 1, size)], indexing="ij")


def with_phase(magnitudes, key):
    """Complex images with smooth phases: polynomials of degree two, with random coefficients in radians."""
    down, right = waves(magnitudes.shape[-1])
    basis = jnp.stack([jnp.ones_like(down), down, right, down**2, right**2, down * right])
    phase = jnp.tensordot(jr.normal(key, (len(magnitudes), 6)) * 0.7, basis, 1)
    return magnitudes * jnp.exp(1j * phase)


def coil_maps(config, key):
    """Sensitivities `(coils, size, size)` of coils around the head, turned at random, each with a phase of its own."""
    turn, phase = jr.split(key)
    angles = 2 * jnp.pi * (jnp.arange(config.coils) + jr.uniform(turn, (config.coils,))) / config.coils
    down, right = waves(config.size)
    distance = (down - jnp.sin(angles)[:, None, None]) ** 2 + (right - jnp.cos(angles)[:, None, None]) ** 2
    slopes = jr.normal(phase, (3, config.coils, 1, 1))
    return jnp.exp(-distance / 2 + 1j * (jnp.pi * slopes[0] + 0.5 * slopes[1] * down + 0.5 * slopes[2] * right))


def scan(forward, images, number, config, key):
    """Noisy lines of k-space of each image, as a `View` with axes (images, scans)."""

    def one(image, key):
        lines, coils, noise = jr.split(key, 3)
        lines = si.forward.random_lines(config.size, config.lines, centre=1, power=1.0, key=lines)
        params = si.forward.MRIScan(lines, coil_maps(config, coils))
        clean = forward(image, params)
        parts = jr.normal(noise, (2, *clean.shape))
        return si.View(clean + config.noise * (parts[0] + 1j * parts[1]), params)

    every = jax.vmap(jax.vmap(one, (None, 0)))
    return jax.jit(every)(jnp.asarray(images), jr.split(key, (len(images), number)))


def sense(forward, contexts, noise, variance=0.2):
    """The image of each scan by SENSE with a ridge: the most likely one if pixels are independent and Gaussian.

    `variance` is theirs. By conjugate gradients, see Pruessmann et al. 2001, "Advances in sensitivity encoding with
    arbitrary k-space trajectories".
    """

    def one(view):
        observation, params = jax.tree.map(lambda x: x[0], (view.observation, view.params))
        back = lambda x: forward.adjoint(x, params)
        normal = lambda image: back(forward(image, params)) + 2 * noise**2 / variance * image
        return jax.scipy.sparse.linalg.cg(normal, back(observation), maxiter=100)[0]

    return jax.jit(jax.vmap(one))(contexts)


def draw(config, estimate, draws, truth):
    """Writes the picture: in each row the estimate, samples, mean, standard deviation, and the image."""
    spread = jnp.sqrt(jnp.mean(jnp.abs(draws - jnp.mean(draws, 1, keepdims=True)) ** 2, 1))
    columns = {
        "SENSE": estimate,
        "samples": draws,
        "mean": jnp.mean(draws, 1),
        "std. dev.": spread,
        "the image": truth,
    }
    columns = {title: jnp.asarray(x)[..., None] for title, x in columns.items()}
    figure = si.plot.images(columns, own_scale="std. dev.", limits=(0, 0.9), num_records=3, num_draws=6)
    figure.savefig(config.out, dpi=110)


if __name__ == "__main__":
    main()
