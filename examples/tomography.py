"""Slices of a brain from three projections, at a low dose.

Every training record is one slice, which photons cross along four random directions; no slice is ever given to
training. Then three projections of a held-out slice are given, and slices are sampled.

    python examples/tomography.py      # minutes on a CPU: a table of figures, and tomography.png

Slices are cut out of the template ICBM 152, which nilearn ships: real anatomy, whose grey values are taken for
attenuation. `main` below is the whole story; its first half is all that one's own scanner needs. `--help` lists sizes
and files.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si
from brain_slices import FIELD, brain_slices
from instrument_scores import gaussian_of_fit, print_scores, repeat, score, with_errors_of_others

ATTENUATION = 0.02  # of the brightest tissue, per millimetre: about that of water


@dataclass
class Config:
    """Slices of a brain from three projections: trains on projections, samples slices, scores them."""

    size: int = 24
    """Height and width of a slice in pixels, and the rays of a projection."""
    dose: float = 20_000.0
    """Photons sent along each ray."""
    views: int = 4
    """Projections of each training slice."""
    given: int = 3
    """Projections of each held-out slice, at most as many."""
    train: int = 1500
    """Training slices."""
    steps: int = 1200
    """Training steps."""
    rounds: int = 5
    """Rounds of expectation maximisation: in each, slices are drawn anew and learned from."""
    batch_size: int = 64
    """Slices per training step."""
    held_out: int = 40
    """Held-out slices in the table, at least 2."""
    draws: int = 32
    """Draws per held-out slice."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("tomography.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = jr.split(jr.key(config.seed), 5)
    known, truth = brain_slices(config.train, config.held_out, size=config.size, seed=config.seed)
    scanner = si.forward.ParallelBeam((config.size, config.size))
    length = ATTENUATION * FIELD / config.size  # a pixel's, in mean free paths of a photon
    scan = lambda slices, number, key: measure(length, scanner, slices, number, config.dose, key)
    data = scan(known, config.views, keys[0])  # all that training sees
    contexts = scan(truth, config.given, keys[1])
    truth = jnp.asarray(truth[..., None])

    # Projections in, a trained problem out.
    forward = lambda image, params: params.weights * length * scanner(image, params.angle)
    image = (config.size, config.size, 1)
    problem = si.StochasticInverseProblem(forward, noise=1.0, signal=image)
    options = {"steps": config.steps, "rounds": config.rounds, "batch_size": config.batch_size}
    fit = problem.fit(data, key=keys[2], **options)

    # Three projections in, slices out, shape (slices, draws, size, size, 1). For a single one it reads
    # `fit.problem.posterior(context).sample(key, 8)`.
    start = time.perf_counter()
    draws = fit.problem.sample_many(contexts, key=keys[3], num_samples=config.draws).signal
    jax.block_until_ready(draws)
    seconds = {"train_seconds": fit.history.seconds, "sample_seconds": time.perf_counter() - start}

    # How good they are, beside two simpler answers.
    back = back_projection(length, scanner, contexts)
    answers = {
        "": draws,
        "_gaussian": gaussian_of_fit(fit.problem, contexts, key=keys[4], num_samples=config.draws),
        "_back_projection": with_errors_of_others(back, truth),
    }
    figures = {}
    for name, slices in answers.items():
        found = score(slices, truth, repeat(forward, slices, contexts), contexts.observation, 1.0)
        figures |= {key + name: value for key, value in found.items()}
    figures |= seconds
    print(f"\n{config.held_out} held-out slices, given {config.given} projections of each")
    print_scores(figures, {"": "stochinv", "_gaussian": "Gaussian", "_back_projection": "back-projection"})
    draw(config, back, draws, truth)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


class Ray(NamedTuple):
    """The parameters of a projection."""

    angle: jax.Array  # in degrees
    weights: jax.Array  # one over the noise's standard deviation, for each ray


def measure(length, scanner, slices, number, dose, key):
    """Projections of slices at random angles, as a `View` with axes (slices, projections).

    What is measured are counts of photons. A logarithm makes line integrals of them, whose noise is nearly Gaussian,
    with the standard deviation 1/√count. Divided by it all noise is 1; the forward model is divided alike.
    """
    angle_key, count_key = jr.split(key)
    angles = jr.uniform(angle_key, (len(slices), number), maxval=180.0)
    project = lambda x: scanner(x[0], x[1])
    integrals = length * jax.jit(lambda *x: jax.lax.map(project, x))(jnp.asarray(slices)[..., None], angles)
    counts = jnp.maximum(jr.poisson(count_key, dose * jnp.exp(-integrals)), 1)
    weights = jnp.sqrt(counts)
    return si.View(weights * jnp.log(dose / counts), Ray(angles, weights))


def back_projection(length, scanner, contexts):
    """Slices by filtered back-projection, the field's usual estimate where there are many projections."""
    integrals = contexts.observation / contexts.params.weights
    return jax.jit(jax.vmap(scanner.filtered_back_projection))(integrals / length, contexts.params.angle)


def draw(config, back, draws, truth):
    """Writes the picture: in each row the back-projection, samples, mean, standard deviation, and the slice."""
    columns = {
        "back-\nprojection": back,
        "samples": draws,
        "mean": jnp.mean(draws, 1),
        "std. dev.": jnp.std(draws, 1),
        "the slice,\nnever seen": truth,
    }
    si.plot.images(columns, own_scale="std. dev.", limits=(0, 0.9), num_records=5).savefig(config.out, dpi=110)


if __name__ == "__main__":
    main()
