"""Whole 3D scenes sampled from one photograph, learned from photographs alone.

Training sees posed views of path-traced scenes, never a scene itself. Then one view of a held-out scene is shown, and
scenes are sampled: radiance fields that agree with the view and differ where it says nothing, each of which can be
rendered from anywhere without a network.

    python examples/inverse_graphics.py                     # scenes with a hidden side that is red or blue
    python examples/inverse_graphics.py --family random     # several solids that hide one another
    python examples/inverse_graphics.py --chair FOLDER      # fits one scene to many views, and does nothing else

The views are rendered by Mitsuba at the first run, which takes some minutes, and kept (see `scenes.py`). `main` below
is the whole story; `--help` lists sizes and files.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import prewitt
from skimage.metrics import structural_similarity

import stochinv as si

sys.path.insert(0, str(Path(__file__).parent))
import scenes as posed_scenes

SIZE = 32  # of the views, in pixels
ANGLES = (0, 45, 90, 180)  # degrees from the given view, between which figures are told apart
FORWARD = si.forward.VolumeRenderer(32, background=None)  # (field, camera) -> premultiplied colour and opacity


@dataclass
class Config:
    """3D scenes sampled from one view: trains on posed views of other scenes, samples, scores, draws."""

    family: Literal["hidden", "random"] = "hidden"
    """The family of scenes, see `scenes.py`."""
    steps: int = 1900
    """Training steps."""
    minutes: float = 15.0
    """Training ends after so many minutes at the latest."""
    batch_size: int = 4
    """Scenes per step."""
    draws: int = 2
    """Draws per scene and step, for the energy score."""
    resolution: int = 24
    """Grid points of a field along each axis."""
    width: int = 144
    """Features of the transformer."""
    depth: int = 4
    """Blocks of the transformer."""
    components: int = 4
    """Fields that each draw chooses from."""
    latent: int = 0
    """Length of a code that varies each of them."""
    train: int = 600
    """Training scenes."""
    held_out: int = 20
    """Held-out scenes in the table."""
    samples: int = 200
    """Sampled scenes per held-out view of the hidden family."""
    sampler_steps: int = 1
    """Noise levels that a sample goes through."""
    guidance: float = 1.0
    """Draws heed the given view so many times as much; other than 1, training drops it at times."""
    views: int = 1
    """Context views in training: from one to so many."""
    autoregressive: bool = False
    """Whether `views - 1` views around the scene are drawn first, each given those before, and then the scene."""
    regressor: bool = True
    """Whether to train the same network as a regressor too, for comparison."""
    path_samples: int = 64
    """Light paths per pixel of the training views."""
    folder: Path = posed_scenes.Config.folder
    """Where rendered scenes are kept."""
    chair: Path | None = None
    """A folder with `chair_train.npz` and `chair_test.npz` (`rgba`, `c2w`, `K`): fit this one scene instead."""
    chair_seconds: float = 240.0
    """Seconds for that fit."""
    chair_every: int = 10
    """The number of test views from one that is scored to the next."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("inverse-graphics.png")
    """Where the picture goes; turntables of samples go beside it."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    figures = fit_chair(config) if config.chair is not None else fit_family(config)
    print("\n" + "\n".join(f"{name:<32}{value:10.4f}" for name, value in figures.items()) + "\n")
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def fit_family(config):
    keys = jr.split(jr.key(config.seed), 4)
    everything, red = load_scenes(config)
    known, held_out = everything[: config.train], everything[config.train :]
    fronts = range(2) if config.family == "hidden" and config.views == 1 else None

    # Posed images in, a trained problem out.
    data = si.data.SceneBatches(
        known,
        config.batch_size,
        context=(int(config.guidance == 1), config.views),
        patch=(SIZE // 2,) * 2,
        stride=2,
        context_views=fronts,
        seed=config.seed,
    )
    problem = si.StochasticInverseProblem(
        forward=FORWARD,
        denoiser=si.nn.LiftingDenoiser(
            (SIZE, SIZE, 4),
            resolution=config.resolution,
            support="ball",
            width=config.width,
            depth=config.depth,
            num_components=config.components,
            latent_size=config.latent,
            key=keys[0],
        ),
        objective=si.EnergyScore(
            num_samples=config.draws, target_weight=0.0, marginal_weight=1.0, local_weight=1.0, sample_time=mostly_noise
        ),
    )
    fit = problem.fit(data, steps=config.steps, key=keys[1], callbacks=[ends_after(config.minutes)])

    # One view in, whole scenes out.
    start = time.perf_counter()
    number = config.samples if config.family == "hidden" else 16
    fields = [sample(config, fit.problem, scene, number, jr.fold_in(keys[2], i)) for i, scene in enumerate(held_out)]
    jax.block_until_ready(fields)
    figures = {"train_seconds": fit.history.seconds, "sample_seconds": time.perf_counter() - start}
    figures |= evaluate(fields, held_out)
    if config.family == "hidden":
        figures |= hidden_shares(fields, float(np.mean(red[: config.train])))
    if config.regressor:
        guesses = regress(config, problem, data, held_out, keys[3])
        figures |= {f"{name}_regressor": value for name, value in evaluate(guesses, held_out).items()}
        if config.family == "hidden":
            shares = hidden_shares(guesses, 0.0)
            figures |= {f"{n}_regressor": shares[n] for n in ("hidden_red", "hidden_blue", "hidden_other")}
    figures |= {f"{name}_nearest": value for name, value in nearest_scene(known, held_out, fronts).items()}
    draw(config, fields, held_out)
    return figures


def mostly_noise(schedule, key):
    """Noise levels for training: half of them pure noise (`t = 1`), where every sample starts."""
    return jnp.minimum(2 * jr.uniform(key), 1)


def ends_after(minutes):
    """A callback that tells how training goes, and ends it in time."""

    def look(progress):
        print(f"step {progress.step:5d}   loss {progress.loss:.4f}   {progress.history.seconds:.0f} s", flush=True)
        return progress.history.seconds > 60 * minutes

    return look


def load_scenes(config):
    """Scenes of a family, and which of them are red behind."""
    number = config.train + config.held_out
    options = posed_scenes.Config(config.family, number, size=SIZE, samples=config.path_samples, folder=config.folder)
    path = posed_scenes.cached(options)
    red = np.load(path)["red"] if config.family == "hidden" else np.zeros(number, bool)
    return si.data.load_posed_npz(path), red


def camera(scene, index):
    return jax.tree.map(lambda x: x[index], scene.cameras)


def opposite(azimuth=np.pi, elevation=0.2):
    """A camera at an azimuth and an elevation, in radians."""
    pose = posed_scenes.camera_pose(azimuth, elevation)
    return si.forward.Camera(posed_scenes.intrinsics(SIZE), pose, (SIZE, SIZE))


def sample(config, problem, scene, number, key):
    """Fields given the first view of a scene."""
    sampler, room = si.Ancestral(config.sampler_steps), config.views - 1
    context, target = jax.tree.map(lambda x: jnp.asarray(x[:1]), scene.views()), opposite()
    if config.guidance != 1:
        problem = replace(problem, denoiser=si.GuidedDenoiser(problem.denoiser, config.guidance))
    if room or config.guidance != 1:
        repeated = jax.tree.map(lambda x: jnp.repeat(x, 1 + room, 0), context)
        context = si.View(repeated.observation, repeated.params, jnp.arange(1 + room) == 0)
    if config.autoregressive:
        sampler = si.Autoregressive(sampler)
        azimuth = np.arctan2(scene.poses[0, 1, 3], scene.poses[0, 0, 3])
        turns = 2 * np.pi * np.arange(1, 1 + room) / (1 + room)
        target = stack([*(opposite(azimuth + turn) for turn in turns), target])
    return problem.sample(context, target, key=key, sampler=sampler, num_samples=number, chunk_size=20).signal


def regress(config, problem, data, held_out, key):
    """One field per view by the same network and training time: squared error, and a target that is all noise."""
    objective = si.SquaredError(weighting=lambda level: 0 * level.alpha, sample_time=lambda schedule, key: jnp.ones(()))
    problem = eqx.tree_at(lambda p: p.objective, problem, objective)
    fit = problem.fit(data, steps=config.steps, key=key, callbacks=[ends_after(config.minutes)])
    config = replace(config, sampler_steps=1, autoregressive=False)
    return [sample(config, fit.problem, scene, 1, key) for scene in held_out]


@eqx.filter_jit
def render(fields, cameras):
    """Views of fields, shape (fields, cameras, height, width, 4). No network is run."""
    return jax.lax.map(lambda field: jax.lax.map(lambda camera: FORWARD(field, camera), cameras), fields)


def on_white(rgba):
    return rgba[..., :3] + 1 - rgba[..., 3:]


def evaluate(fields, held_out):
    """How the first 16 fields of each held-out scene compare with its other views, by the angle from the given one."""
    predictions = [
        on_white(np.asarray(render(take(f, slice(16)), s.cameras))) for f, s in zip(fields, held_out, strict=True)
    ]
    return compare(predictions, held_out)


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def compare(predictions, held_out):
    """Figures of predicted views, shape (draws, views, height, width, 3) per scene, against the true ones."""
    rows = []
    for predicted, scene in zip(predictions, held_out, strict=True):
        truth = on_white(np.asarray(scene.views().observation))
        errors = np.mean((predicted - truth) ** 2, axis=(2, 3, 4))
        scores = jax.jit(jax.vmap(si.diagnostics.energy_score, (1, 0)))(predicted, truth)
        grey = lambda x: jnp.round(255 * jnp.asarray(x))
        ranks = si.diagnostics.fractional_ranks(grey(predicted), grey(truth), key=jr.key(len(rows)))
        inside = np.abs(np.asarray(ranks) - 0.5) <= 0.45
        foreground = scene.images[..., 3] > 0.5
        for view in range(len(truth)):
            psnr = -10 * np.log10(np.maximum(errors[:, view], 1e-10))
            rows.append(
                {
                    "angle": angle(scene.poses[0], scene.poses[view]) if view else -1.0,
                    "energy_score": float(scores[view]),
                    "psnr_mean": psnr.mean(),
                    "psnr_best_of_16": psnr.max(),
                    "ssim": structural_similarity(predicted[0, view], truth[view], channel_axis=-1, data_range=1),
                    "gmsd": gradient_deviation(predicted[0, view].mean(-1), truth[view].mean(-1)),
                    "coverage_90": np.mean(inside[view][foreground[view]]),
                    "diversity": predicted[:, view].std(0).mean(),
                }
            )
    figures = {"context_psnr": mean_of(rows, "psnr_mean", -2, 0)}
    for name in ("energy_score", "psnr_mean", "psnr_best_of_16", "ssim", "gmsd", "coverage_90", "diversity"):
        figures[name] = mean_of(rows, name, 0, 181)
        if name in ("psnr_mean", "psnr_best_of_16", "diversity"):
            for low, high in zip(ANGLES, ANGLES[1:], strict=False):
                figures[f"{name}_{low}_to_{high}"] = mean_of(rows, name, low, high + 0.01)
    return figures


def gradient_deviation(predicted, truth):
    """A perceptual distance of grey images in [0, 1], 0 for equal ones: the spread of how alike their gradients are.

    Xue et al. 2014, "Gradient magnitude similarity deviation".
    """
    a, b = (np.hypot(prewitt(x, 0), prewitt(x, 1)) / 3 for x in (predicted, truth))
    return ((2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)).std()


def mean_of(rows, name, low, high):
    values = [row[name] for row in rows if low <= row["angle"] < high]
    return float(np.mean(values)) if values else float("nan")


def angle(first, second):
    """Degrees between the directions from the origin to two cameras."""
    a, b = first[:3, 3] / np.linalg.norm(first[:3, 3]), second[:3, 3] / np.linalg.norm(second[:3, 3])
    return float(np.rad2deg(np.arccos(np.clip(a @ b, -1, 1))))


def hidden_shares(fields, red_share):
    """The shares of red, blue and other far sides, by the hue of what a camera behind the scene sees in its middle."""
    behind = jax.tree.map(lambda x: x[None], opposite(np.pi, 0.0))
    red, blue = [], []
    for field in fields:
        middle = np.asarray(render(field, behind))[:, 0, 12:20, 12:20, :3].mean((1, 2))
        largest, smallest = middle.max(1), middle.min(1)
        r, g, b = middle.T
        saturated = largest - smallest > 0.25 * largest
        red.append(saturated & (r == largest) & (np.abs(g - b) < (largest - smallest) / 3))  # hue within 20° of red
        blue.append(saturated & (b == largest) & (np.abs(r - g) < (largest - smallest) / 3))
    by_view = np.array([np.mean(x) for x in red])
    return {
        "hidden_red": float(by_view.mean()),
        "hidden_blue": float(np.mean(blue)),
        "hidden_other": float(np.mean(~(np.array(red) | np.array(blue)))),
        "hidden_gap": float(np.abs(by_view - red_share).mean()),
        "hidden_red_of_training": red_share,
    }


def nearest_scene(known, held_out, fronts):
    """Figures of the views of the training scene with the most similar view: those from the most similar angles."""
    predictions = []
    images = np.stack([on_white(np.asarray(scene.views().observation)) for scene in known])
    candidates = np.arange(images.shape[1]) if fronts is None else np.asarray(fronts)
    for scene in held_out:
        truth = on_white(np.asarray(scene.views().observation))
        errors = np.mean((images[:, candidates] - truth[0]) ** 2, axis=(2, 3, 4))
        best, given = np.unravel_index(np.argmin(errors), errors.shape)
        relative = lambda poses, first: np.linalg.inv(poses[first]) @ poses
        own = relative(known[best].poses, candidates[given])[:, :3, 3]
        chosen = [np.argmin(np.sum((own - p[:3, 3]) ** 2, -1)) for p in relative(scene.poses, 0)]
        predictions.append(images[best, chosen][None])
    return compare(predictions, held_out)


def draw(config, fields, held_out):
    """Writes the picture: the given view, eight sampled scenes from four sides, the truth; and turntables."""
    scene, shown = held_out[0], take(fields[0], slice(8))
    start = np.arctan2(scene.poses[0, 1, 3], scene.poses[0, 0, 3])
    sides = stack([opposite(start + turn, 0.3) for turn in (0, np.pi / 2, np.pi, 3 * np.pi / 2)])
    views = on_white(np.asarray(render(shown, sides)))
    number = len(views)
    depth = render_depth(shown, sides)
    figure = Figure(figsize=(0.9 * (number + 2), 0.9 * 6 + 0.4), layout="constrained")
    axes = figure.subplots(6, number + 2, squeeze=False)
    for row in range(4):
        for column in range(number):
            axes[row, column + 1].imshow(np.clip(views[column, row], 0, 1))
        axes[row, -1].imshow(views[:, row].std(0).mean(-1), cmap="magma", vmin=0, vmax=0.4)
        axes[row, 0].set_ylabel(f"{90 * row}° away", fontsize=7)
    for column in range(number):
        axes[4, column + 1].imshow(depth[column, 1], cmap="viridis", vmin=2.6, vmax=4.6)
    truth = on_white(np.asarray(scene.views().observation))
    for column in range(min(number, len(truth) - 1)):
        axes[5, column + 1].imshow(truth[column + 1])
    axes[0, 0].imshow(truth[0])
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        if not ax.images:
            ax.set_frame_on(False)
    axes[0, 0].set_title("given", fontsize=8)
    axes[0, 1 + number // 2].set_title("sampled scenes", fontsize=8)
    axes[0, -1].set_title("std. dev.", fontsize=8)
    axes[4, 0].set_ylabel("depth, 90°", fontsize=7)
    axes[5, 0].set_ylabel("other views\nof the truth", fontsize=7)
    figure.savefig(config.out, dpi=110)
    orbit = stack([opposite(start + turn, 0.3) for turn in np.linspace(0, 2 * np.pi, 36, endpoint=False)])
    frames = on_white(np.asarray(render(take(shown, slice(4)), orbit)))
    frames = np.concatenate(list(np.uint8(255 * np.clip(frames, 0, 1)).repeat(3, 2).repeat(3, 3)), axis=2)
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(config.out.with_suffix(".gif"), save_all=True, append_images=others, duration=80, loop=0)
    np.savez_compressed(config.out.with_suffix(".npz"), density=shown.density, colour=shown.colour)


def stack(cameras):
    return jax.tree.map(lambda *x: jnp.stack(x), *cameras)


def render_depth(fields, cameras):
    depth = lambda field: jax.lax.map(lambda camera: FORWARD.render(field, camera).depth, cameras)
    return np.asarray(jax.jit(lambda fields: jax.lax.map(depth, fields))(fields))


class OneScene(eqx.Module):
    """A denoiser that returns one field, whatever is measured: the field is all that training changes."""

    field: si.forward.VoxelField

    def __call__(self, noisy, level, context, params, *, key=None):
        return self.field


def fit_chair(config):
    """Fits a grid of voxels to the views of one scene, through the same `fit`, by random rays."""
    (scene,), (test,) = (si.data.load_posed_npz(config.chair / f"chair_{part}.npz") for part in ("train", "test"))
    resolution, radius, rays = 96, 1.35, 2048
    shape, box = (resolution,) * 3, (radius,) * 3
    field = si.forward.VoxelField(
        density=jnp.full(shape, -5.0),
        colour=jnp.zeros((*shape, 3)),
        lower=tuple(-x for x in box),
        upper=box,
        density_scale=60.0,
    )
    forward = si.forward.VolumeRenderer(96, background=1.0)
    problem = si.StochasticInverseProblem(forward, OneScene(field), objective=si.SquaredError())
    views, height, width = scene.images.shape[:3]
    pixels = si.data.measurements(scene.images, 1.0)
    every = [camera(scene, i).rays() for i in range(views)]
    origins, directions = (
        np.stack([np.asarray(getattr(r, name)) for r in every]) for name in ("origins", "directions")
    )
    rng = np.random.default_rng(config.seed)

    def batches():
        while True:
            v, y, x = rng.integers(views, size=rays), rng.integers(height, size=rays), rng.integers(width, size=rays)
            jitter = rng.random((rays, 1), np.float32)
            some = si.forward.Rays(origins[v, y, x], directions[v, y, x], jitter)
            yield jax.tree.map(lambda a: a[None], si.Example(None, si.View(pixels[v, y, x], some)))

    start = time.perf_counter()
    stop = lambda progress: time.perf_counter() - start > config.chair_seconds
    rate = optax.exponential_decay(0.2, 300, 0.6, end_value=0.02)
    fit = problem.fit(
        batches(), steps=12_000, optimizer=optax.adam(rate), ema=si.ExponentialEMA(0.98), gradient_clip=None,
        standardise=False, callbacks=[stop], log_every=10, key=jr.key(config.seed),
    )  # fmt: skip
    draw_view = eqx.filter_jit(lambda camera: forward(fit.problem.denoiser.field, camera))
    truth = si.data.measurements(test.images, 1.0)
    errors = [np.mean((draw_view(camera(test, i)) - truth[i]) ** 2) for i in range(0, len(truth), config.chair_every)]
    return {
        "chair_psnr": float(np.mean(-10 * np.log10(errors))),
        "chair_steps": float(len(fit.history.loss)),
        "train_seconds": fit.history.seconds,
    }


if __name__ == "__main__":
    main()
