"""Whole 3D scenes sampled from one photograph, learned from photographs alone.

Training sees posed views of path-traced scenes, never a scene itself. Then one view of a held-out scene is shown, and
scenes are sampled: radiance fields that agree with the view and differ where it says nothing, each of which can be
rendered from anywhere without a network.

    python examples/inverse_graphics.py                     # scenes with a hidden side that is red or blue
    python examples/inverse_graphics.py random              # several solids that hide one another
    python examples/inverse_graphics.py gpu                 # these at 64 pixels, minutes on one GPU
    python examples/inverse_graphics.py full --photos FOLDER # RealEstate10K, or with --category CO3D, on 8 GPUs
    python examples/inverse_graphics.py --chair FOLDER      # fits one scene to many views, and does nothing else
    python examples/inverse_graphics.py --saved FILE.npz    # turns around scenes that a run has saved

The views are rendered by Mitsuba at the first run, which takes some minutes, and kept (see `scenes.py`). `main` below
is the whole story; `--help` lists sizes and files, `random --help` and so on those of the other presets.
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

import stochinv as si

sys.path.insert(0, str(Path(__file__).parent))
import scenes as posed_scenes
from inverse_graphics_scores import (
    angle,
    camera_at,
    evaluate,
    hidden_shares,
    nearest_scene,
    on_white,
    render,
    stack,
    take,
)
from photo_scenes import Photos, evenly

# Of all parts of views together, of each part by itself, and of each pixel by itself.
RULE = si.EnergyRule() + si.PerView(si.EnergyRule()) + si.Patches(si.EnergyRule(), 1)


@dataclass
class Config:
    """3D scenes sampled from one view: trains on posed views of other scenes, samples, scores, draws."""

    family: Literal["hidden", "random", "photos"] = "hidden"
    """The family of scenes: of `scenes.py`, or photographs."""
    photos: Path | None = None
    """The folder of photographs: clips of RealEstate10K, or all of CO3D."""
    category: str | None = None
    """The category of CO3D; without one the photographs are RealEstate10K."""
    size: int = 32
    """Height and width of the views, in pixels."""
    ray_samples: int = 32
    """Samples of a field on each ray."""
    steps: int = 1000
    """Training steps."""
    minutes: float = 15.0
    """Training ends after so many minutes at the latest."""
    sharding: Literal["none", "data", "fsdp"] = "none"
    """Over which devices training is laid out, as in `fit`."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Adam with a rate of 1e-3, or optax's Muon with one of 4e-3, in which all directions of a matrix learn alike."""
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
    components: int = 2
    """Fields that each draw chooses from."""
    latent: int = 8
    """Length of a code that varies each of them."""
    noise: float = 0.03
    """Standard deviation of what no field explains, in colours and opacities from 0 to 1."""
    train: int = 600
    """Training scenes; of photographs at most so many, which are kept in memory."""
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
    saved: Path | None = None
    """Scenes that a run has saved: write a turntable of them, and do nothing else."""
    camera_path: Path | None = None
    """An npz file with poses `c2w` and intrinsics `K` from which those are seen, instead of from around."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("inverse-graphics.png")
    """Where the picture goes; turntables of samples go beside it."""
    json: Path | None = None
    """Where the figures go, for scripts."""

    @property
    def room(self):
        """Whether cameras look ahead, and not at an object in their midst."""
        return self.family == "photos" and self.category is None

    @property
    def forward(self):
        """(field, camera) -> premultiplied colour and opacity."""
        return si.forward.VolumeRenderer(self.ray_samples, background=None)


PRESETS = {
    "cpu": Config(),
    "random": replace(Config(), family="random", steps=1800, optimizer="muon", draws=4, components=1, latent=16),
    "gpu": replace(
        Config(), family="random", size=64, ray_samples=64, steps=20_000, minutes=7.0, batch_size=16, draws=4,
        resolution=40, width=288, depth=6, components=1, latent=16, train=2000,
    ),
    "full": replace(
        Config(), family="photos", size=64, ray_samples=64, steps=100_000, minutes=24 * 60.0, batch_size=64, draws=4,
        resolution=48, width=384, depth=8, components=1, latent=16, train=2000, sharding="data",
    ),
}  # fmt: skip


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    preset, *options = argv if argv and argv[0] in PRESETS else ["cpu", *argv]
    config = tyro.cli(Config, args=options, default=PRESETS[preset])
    if config.saved is not None:
        return turn_saved(config)
    figures = fit_chair(config) if config.chair is not None else fit_family(config)
    print("\n" + "\n".join(f"{name:<32}{value:10.4f}" for name, value in figures.items()) + "\n")
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def fit_family(config):
    keys = jr.split(jr.key(config.seed), 4)
    known, held_out, red = load_scenes(config)
    fronts = range(2) if config.family == "hidden" and config.views == 1 else None

    # Posed images in, a trained problem out.
    data = si.data.SceneBatches(
        known,
        config.batch_size,
        context=(int(config.guidance == 1), config.views),
        patch=(config.size // 2,) * 2,
        stride=2,
        context_views=fronts,
        place="between" if config.room else "anywhere",
        seed=config.seed,
    )
    problem = make_problem(config, keys[0])
    fit = train(config, problem, data, keys[1])

    # One view in, whole scenes out.
    start = time.perf_counter()
    number = config.samples if config.family == "hidden" else 16
    fields = [sample(config, fit.problem, scene, number, jr.fold_in(keys[2], i)) for i, scene in enumerate(held_out)]
    jax.block_until_ready(fields)
    figures = {"train_seconds": fit.history.seconds, "sample_seconds": time.perf_counter() - start}
    figures |= evaluate(config.forward, fields, held_out, config.noise)
    if config.family == "hidden":
        figures |= hidden_shares(config.forward, fields, config.size, float(np.mean(red)))
    if config.regressor:
        guesses = regress(config, problem, data, held_out, keys[3])
        figures |= {f"{n}_regressor": value for n, value in evaluate(config.forward, guesses, held_out).items()}
        if config.family == "hidden":
            shares = hidden_shares(config.forward, guesses, config.size, 0.0)
            figures |= {f"{n}_regressor": shares[n] for n in ("hidden_red", "hidden_blue", "hidden_other")}
    if config.family == "photos":
        known = [evenly(scene, 8) for scene in known]
    figures |= {f"{name}_nearest": value for name, value in nearest_scene(known, held_out, fronts).items()}
    draw(config, fields, held_out)
    return figures


def make_problem(config, key):
    """The network that makes fields of views, and what it is trained by."""
    # Cameras that look ahead are at a distance of 2 from what they look at, and see what is far behind it.
    box = {"lower": (-2.0,) * 3, "upper": (2.0,) * 3} if config.room else {"support": "ball"}
    return si.StochasticInverseProblem(
        forward=config.forward,
        denoiser=si.nn.LiftingDenoiser(
            (config.size, config.size, 4),
            resolution=config.resolution,
            **box,
            width=config.width,
            depth=config.depth,
            num_components=config.components,
            latent_size=config.latent,
            key=key,
        ),
        noise=config.noise,
        objective=si.ProperScore(RULE, num_draws=config.draws, score_target=False, sample_time=si.mostly_noise),
    )


def train(config, problem, data, key):
    optimizer, warmup, steps = None, max(config.steps // 50, 1), max(config.steps, 2)  # Adam is the default of `fit`
    if config.optimizer == "muon":
        rate = lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 1e-5)
        optimizer = optax.contrib.muon(rate(4e-3), consistent_rms=0.2, adam_learning_rate=rate(1e-3))
    in_time = lambda progress: progress.history.seconds > 60 * config.minutes  # `True` ends training
    sharding = None if config.sharding == "none" else config.sharding
    return problem.fit(data, steps=config.steps, optimizer=optimizer, key=key, callbacks=[in_time], sharding=sharding)


def load_scenes(config):
    """Training scenes, held-out ones, and which of the training scenes are red behind."""
    if config.family == "photos":
        if config.photos is None:
            raise ValueError("--photos is not given; it has to be a folder of RealEstate10K or CO3D.")
        photos = Photos(config.photos, config.size, config.category)
        if len(photos) <= config.held_out:
            raise ValueError(f"--held-out is {config.held_out}, but --photos has {len(photos)} scenes; hold out fewer.")
        known = photos[: -config.held_out][: config.train]
        return known, [evenly(scene, 8) for scene in photos[-config.held_out :]], None
    number = config.train + config.held_out
    options = posed_scenes.Config(
        config.family, number, size=config.size, samples=config.path_samples, folder=config.folder
    )
    path = posed_scenes.cached(options)
    red = np.load(path)["red"][: config.train] if config.family == "hidden" else None
    everything = si.data.load_posed_npz(path)
    return everything[: config.train], everything[config.train :], red


def around(config, scene, number, elevation=0.2):
    """Cameras around a scene, the first where the given view is from; of photographs, those of the scene."""
    if config.family == "photos":
        index = np.linspace(0, len(scene.images) - 1, number).round().astype(int)
        return take(scene.cameras, index)
    start = np.arctan2(scene.poses[0, 1, 3], scene.poses[0, 0, 3])
    turns = np.linspace(0, 2 * np.pi, number, endpoint=False)
    return stack([camera_at(config.size, start + turn, elevation) for turn in turns])


def sample(config, problem, scene, number, key):
    """Fields given the first view of a scene."""
    sampler, room = si.Ancestral(config.sampler_steps), config.views - 1
    context = jax.tree.map(lambda x: jnp.asarray(x[:1]), scene.views())
    last = take(scene.cameras, -1) if config.family == "photos" else camera_at(config.size)
    if config.guidance != 1:
        problem = replace(problem, denoiser=si.GuidedDenoiser(problem.denoiser, config.guidance))
    if room or config.guidance != 1:
        repeated = jax.tree.map(lambda x: jnp.repeat(x, 1 + room, 0), context)
        context = si.View(repeated.observation, repeated.params, jnp.arange(1 + room) == 0)
    if config.autoregressive:
        sampler = si.Autoregressive(sampler)
        targets = [take(around(config, scene, 1 + room), i) for i in range(1, 1 + room)]
        last = stack([*targets, last])
    return problem.sample(context, last, key=key, sampler=sampler, num_samples=number, chunk_size=20).signal


def regress(config, problem, data, held_out, key):
    """One field per view by the same network and training time: squared error, and a target that is all noise."""
    objective = si.SquaredError(weighting=lambda level: 0 * level.alpha, sample_time=si.pure_noise)
    problem = eqx.tree_at(lambda p: p.objective, problem, objective)
    fit = train(config, problem, data, key)
    config = replace(config, sampler_steps=1, autoregressive=False)
    return [sample(config, fit.problem, scene, 1, key) for scene in held_out]


def draw(config, fields, held_out):
    """Writes the picture (the given view, eight scenes from four sides, the truth), turntables, and the scenes."""
    scene, shown = held_out[0], take(fields[0], slice(8))
    sides = around(config, scene, 4, 0.3)
    views = on_white(np.asarray(render(config.forward, shown, sides)))
    number = len(views)
    depth = render_depth(config.forward, shown, sides)
    figure = Figure(figsize=(0.9 * (number + 2), 0.9 * 6 + 0.4), layout="constrained")
    axes = figure.subplots(6, number + 2, squeeze=False)
    for row in range(4):
        for column in range(number):
            axes[row, column + 1].imshow(np.clip(views[column, row], 0, 1))
        axes[row, -1].imshow(views[:, row].std(0).mean(-1), cmap="magma", vmin=0, vmax=0.4)
        degrees = angle(scene.poses[0], sides.pose[row])
        axes[row, 0].set_ylabel(f"{degrees:.0f}° away", fontsize=7)
    for column in range(number):
        axes[4, column + 1].imshow(depth[column, 1], cmap="viridis", vmin=depth[:, 1].min(), vmax=depth[:, 1].max())
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
    axes[4, 0].set_ylabel("depth, row 2", fontsize=7)
    axes[5, 0].set_ylabel("other views\nof the truth", fontsize=7)
    figure.savefig(config.out, dpi=110)
    turntable(config, take(shown, slice(4)), around(config, scene, 36, 0.3), config.out.with_suffix(".gif"))
    arrays = {name: getattr(shown, name) for name in ("density", "colour", "lower", "upper", "density_scale")}
    np.savez_compressed(config.out.with_suffix(".npz"), **arrays)


def turntable(config, fields, cameras, path):
    """Writes fields side by side, seen from one camera after the other."""
    frames = on_white(np.asarray(render(config.forward, fields, cameras)))
    frames = np.concatenate(list(np.uint8(255 * np.clip(frames, 0, 1)).repeat(3, 2).repeat(3, 3)), axis=2)
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=80, loop=0)


def turn_saved(config):
    """Writes a turntable of saved scenes; no network is needed."""
    for name, path in (("--saved", config.saved), ("--camera-path", config.camera_path)):
        if path is not None and not path.exists():
            raise ValueError(f"{name}: there is no file {path}; give an npz file that is there.")
    with np.load(config.saved) as file:
        box = {name: tuple(file[name].tolist()) for name in ("lower", "upper")}
        make = lambda d, c: si.forward.VoxelField(d, c, **box, density_scale=file["density_scale"].item())
        fields = jax.vmap(make)(file["density"], file["colour"])
    if config.camera_path is None:
        turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        cameras = stack([camera_at(config.size, turn, 0.3) for turn in turns])
    else:
        with np.load(config.camera_path) as file:
            intrinsics = np.broadcast_to(file["K"], (len(file["c2w"]), 3, 3))
            cameras = si.forward.Camera(intrinsics, file["c2w"], (config.size, config.size))
    turntable(config, fields, cameras, config.out.with_suffix(".gif"))


def render_depth(forward, fields, cameras):
    depth = lambda field: jax.lax.map(lambda camera: forward.render(field, camera).depth, cameras)
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
    every = [take(scene.cameras, i).rays() for i in range(views)]
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
    errors = [
        np.mean((draw_view(take(test.cameras, i)) - truth[i]) ** 2) for i in range(0, len(truth), config.chair_every)
    ]
    return {
        "chair_psnr": float(np.mean(-10 * np.log10(errors))),
        "chair_steps": float(len(fit.history.loss)),
        "train_seconds": fit.history.seconds,
    }


if __name__ == "__main__":
    main()
