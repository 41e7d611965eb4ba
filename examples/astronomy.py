"""Galaxies as a telescope in space sees them, from exposures of one on the ground.

The sky is real: cut-outs around the sources of the Hubble Deep Field that scikit-image ships. The telescope on the
ground is simulated: its pixels are twice as coarse, air blurs each exposure by another seeing, it points a little
elsewhere each time, and photons are counted above a bright sky. Training sees one exposure of each source, and never
what Hubble saw. Then an exposure of a source in another part of the sky is given, and sharp pictures are sampled.

    python examples/astronomy.py     # trains for some minutes, prints a table, writes astronomy.png

Counts are brought to Gaussian noise of 1: both they and the forward model are divided by each pixel's standard
deviation, which the counts tell. So the forward model stays affine, and images of more than 256 pixels can be drawn.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from scipy import ndimage
from skimage import data, feature, restoration

import stochinv as si
from instrument_scores import coverage, energy_score, gaussian_of_fit, repeat, score, with_errors_of_others

SIZE, KERNEL = 20, 15  # Hubble's pixels in a row: of a cut-out, of a point spread function
COARSE = 2  # a pixel of the camera on the ground, in Hubble's
IMAGE = (SIZE, SIZE, 1)
WINGS = 3.0  # Moffat's beta
FAINTEST = 0.15  # a source's brightness, smoothed; white is 1
HELD_OUT_FROM = 760  # of the picture's 1,000 columns: sources right of it are held out; others end 19 before it
ITERATIONS = (2, 4, 8, 16, 32, 64)  # of Richardson and Lucy's; the best number is taken
BALANCES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of Wiener's filter; the best is taken
BLUR, PIXELS = si.forward.Blur(), si.forward.Downsample(COARSE)


@dataclass
class Config:
    """Galaxies from blurred counts: trains on exposures from the ground, samples what Hubble saw, scores it."""

    steps: int = 300
    """Training steps."""
    rounds: int = 4
    """Rounds of expectation maximisation: in each, galaxies are drawn anew and learned from."""
    batch_size: int = 48
    """Records per training step."""
    train: int = 1500
    """Records of training: sources of the field, turned at random."""
    galaxies: int = 60
    """Held-out sources in the table, of 240."""
    samples: int = 48
    """Samples per held-out source."""
    photons: float = 600.0
    """Electrons that a white pixel of the camera gives in an exposure."""
    sky: float = 60.0
    """Electrons of the sky in each pixel."""
    read_noise: float = 4.0
    """Standard deviation of the camera's own noise, in electrons."""
    seeing: tuple[float, float] = (1.5, 4.0)
    """Full width at half maximum of the point spread function, in Hubble's pixels: the least and the largest."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("astronomy.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def forward(galaxy, exposure):
    """What an exposure counts, without the sky, in standard deviations of each pixel."""
    return exposure["weights"] * camera(galaxy, exposure["seeing"], exposure["dither"])


def camera(galaxy, seeing, dither):
    """The brightness that pixels on the ground see, `(10, 10, 1)`, pointed `dither` of Hubble's pixels elsewhere."""
    psf = jnp.roll(si.forward.moffat_psf(seeing, WINGS, KERNEL), dither, (0, 1))
    return PIXELS(BLUR(galaxy, psf), None)


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = jr.split(jr.key(config.seed), 5)
    known, held_out = load_galaxies(config)
    records = expose(config, known, keys[0])  # all that training sees
    contexts = expose(config, held_out, keys[1])

    # Exposures in, a trained problem out; one exposure in, sharp pictures out.
    problem = si.StochasticInverseProblem(forward, noise=1.0, signal=IMAGE)
    options = {"steps": config.steps, "rounds": config.rounds, "batch_size": config.batch_size}
    fit = problem.fit(records, key=keys[2], **options)
    start = time.perf_counter()
    samples = fit.problem.sample_many(contexts, key=keys[3], num_samples=config.samples).signal
    jax.block_until_ready(samples)
    sample_seconds = time.perf_counter() - start

    gaussian = gaussian_of_fit(fit.problem, contexts, key=keys[4], num_samples=config.samples)
    classical = best_classical(config, contexts, held_out)
    figures = table(samples, gaussian, classical, contexts, held_out)
    figures |= {"train_seconds": fit.history.seconds, "sample_seconds": sample_seconds}
    print_table(config, figures)
    draw(config, contexts, samples, classical["richardson_lucy"], held_out)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def load_galaxies(config):
    """Cut-outs of the Hubble Deep Field, grey levels in [0, 1]: sources of its left part, turned, and of its right."""
    picture = data.hubble_deep_field().mean(-1) / 255
    smoothed = ndimage.gaussian_filter(picture, 1.5)
    places = feature.peak_local_max(smoothed, min_distance=3, threshold_abs=FAINTEST, exclude_border=SIZE)
    rng = np.random.default_rng(config.seed)
    places = rng.permutation(places)
    left, right = places[places[:, 1] < HELD_OUT_FROM - SIZE], places[places[:, 1] >= HELD_OUT_FROM]
    left = np.resize(left, (config.train, 2)) + rng.integers(-2, 3, (config.train, 2))
    turns, flips = rng.integers(0, 4, config.train), rng.integers(0, 2, config.train)
    known = [np.rot90(cut(picture, p), k)[:, :: 1 - 2 * f] for p, k, f in zip(left, turns, flips, strict=True)]
    held_out = [cut(picture, place) for place in right[: config.galaxies]]
    return np.float32(known)[..., None], np.float32(held_out)[..., None]


def cut(picture, place):
    row, column = place - SIZE // 2
    return picture[row : row + SIZE, column : column + SIZE]


def expose(config, galaxies, key):
    """An exposure of each galaxy, as a `View` with axes (galaxies, 1), in standard deviations of the noise."""
    seeing_key, dither_key, photon_key, read_key = jr.split(key, 4)
    seeing = jr.uniform(seeing_key, len(galaxies), minval=config.seeing[0], maxval=config.seeing[1])
    dither = jr.randint(dither_key, (len(galaxies), 2), 0, COARSE)
    clean = jax.vmap(camera)(jnp.asarray(galaxies), seeing, dither)
    arrived = jr.poisson(photon_key, config.photons * jnp.maximum(clean, 0) + config.sky)
    counts = arrived + config.read_noise * jr.normal(read_key, clean.shape)
    std = estimated_std(counts, config.read_noise)
    params = {"seeing": seeing, "dither": dither, "weights": config.photons / std}
    return jax.tree.map(lambda x: x[:, None], si.View((counts - config.sky) / std, params))


def estimated_std(counts, read_noise):
    """The standard deviation of each pixel of `(galaxies, height, width, 1)`: its variance is its mean and that of
    reading, and the pixels around it tell the mean too, as exposures are blurred."""
    mean = ndimage.gaussian_filter(np.asarray(counts), (0, 0.7, 0.7, 0), mode="nearest")
    return jnp.asarray(np.sqrt(np.maximum(mean, 0) + read_noise**2))


def best_classical(config, contexts, truth):
    """Point estimates by Richardson and Lucy, and by Wiener, each with the setting that is best for these galaxies."""
    seen, sky = contexts.observation[:, 0] / contexts.params["weights"][:, 0], config.sky / config.photons
    seeing, dither = contexts.params["seeing"][:, 0], contexts.params["dither"][:, 0]
    best = lambda estimates: min(map(np.asarray, estimates), key=lambda x: np.mean((x - truth) ** 2))
    lucy = lambda number: jax.vmap(lambda x, *by: richardson_lucy(lambda s: camera(s, *by), x, sky, number))
    return {
        "richardson_lucy": best(lucy(number)(seen, seeing, dither) for number in ITERATIONS),
        "wiener": best(wiener(np.asarray(seen), seeing, dither, balance) for balance in BALANCES),
    }


def richardson_lucy(see, seen, sky, iterations):
    """A picture of `SIZE` by `SIZE` pixels whose brightness is positive, the sky included, made likelier in each step
    for what was seen through a linear `see`."""
    ones = jnp.ones(IMAGE)
    transpose = lambda y: jax.vjp(see, ones)[1](y)[0]
    sensitivity, seen = transpose(jnp.ones_like(seen)), jnp.maximum(seen + sky, 0)
    step = lambda _, picture: picture * transpose(seen / see(picture)) / sensitivity
    return jax.lax.fori_loop(0, iterations, step, jnp.mean(seen) * ones) - sky


def wiener(seen, seeing, dither, balance):
    """Wiener's filter of exposures `(galaxies, 10, 10, 1)`, whose pixels are split."""
    estimates = []
    for picture, width, by in zip(seen[..., 0], seeing, dither, strict=True):
        psf = jnp.roll(si.forward.moffat_psf(width, WINGS, KERNEL), by, (0, 1))
        psf = ndimage.uniform_filter(np.asarray(psf), COARSE, mode="constant")
        fine = np.pad(np.kron(picture, np.ones((COARSE, COARSE))), KERNEL // 2, "reflect")
        estimates.append(restoration.wiener(fine, psf, balance, clip=False)[KERNEL // 2 :, KERNEL // 2 :])
    return np.float32(estimates)[:, :SIZE, :SIZE, None]


def table(samples, gaussian, classical, contexts, truth):
    """All figures but times."""
    figures = score(samples, truth, repeat(forward, samples, contexts), contexts.observation, 1.0)
    best = score(gaussian, truth, repeat(forward, gaussian, contexts), contexts.observation, 1.0)
    figures |= {f"{name}_gaussian": value for name, value in best.items()}
    rmse = lambda estimate: float(np.sqrt(np.mean((np.asarray(estimate) - truth) ** 2)))
    figures |= {"rmse": rmse(jnp.mean(samples, 1)), "rmse_gaussian": rmse(jnp.mean(gaussian, 1))}
    for name, estimate in classical.items():
        predicted = with_errors_of_others(estimate, truth)
        figures |= {
            f"energy_score_{name}": energy_score(predicted, truth),
            f"coverage_90_{name}": coverage(predicted, truth),
            f"rmse_{name}": rmse(estimate),
        }
    return figures


def print_table(config, figures):
    print(f"\n{config.galaxies} held-out sources, one exposure each; brightness from 0, black, to 1, white")
    print(f"{'':<34}{'energy score':>14}{'RMSE of mean':>14}{'90 % hold':>11}{'residual':>10}")
    rows = {
        "stochinv": "",
        "Gaussian": "_gaussian",
        "Richardson-Lucy, others' errors": "_richardson_lucy",
        "Wiener, others' errors": "_wiener",
    }
    for name, key in rows.items():
        line = f"{name:<34}{figures['energy_score' + key]:14.4f}{figures['rmse' + key]:14.4f}"
        residual = figures.get("residual" + key)
        line += f"{figures['coverage_90' + key]:11.3f}" + (f"{residual:10.3f}" if residual else "")
        print(line)
    print(f"seconds of training, of sampling {figures['train_seconds']:8.1f}{figures['sample_seconds']:8.1f}\n")


def draw(config, contexts, samples, lucy, truth):
    """Writes the picture: in each row the exposure, samples, mean and standard deviation, the rival and Hubble's."""
    exposures = contexts.observation[:, 0] / contexts.params["weights"][:, 0]
    brightest = np.argsort(-np.max(truth, (1, 2, 3)))[:: max(len(truth) // 12, 1)][:6]
    columns = {
        "given": exposures,
        "samples": samples[:, :5],
        "mean": jnp.mean(samples, 1),
        "std. dev.": jnp.std(samples, 1),
        "Richardson-\nLucy": lucy,
        "Hubble,\nnever seen": truth,
    }
    columns = {title: np.asarray(x)[brightest] for title, x in columns.items()}
    si.plot.images(columns, own_scale="std. dev.").savefig(config.out, dpi=120)


if __name__ == "__main__":
    main()
