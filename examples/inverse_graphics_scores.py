"""The figures of `inverse_graphics.py`: how sampled scenes compare with what other cameras saw of the true ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.ndimage import prewitt
from skimage.metrics import structural_similarity

import scenes as posed_scenes
import stochinv as si

ANGLES = (0, 45, 90, 180)  # degrees from the given view, between which figures are told apart


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def stack(cameras):
    return jax.tree.map(lambda *x: jnp.stack(x), *cameras)


def camera_at(size, azimuth=np.pi, elevation=0.2):
    """A camera of so many pixels a side at an azimuth and an elevation, in radians."""
    pose = posed_scenes.camera_pose(azimuth, elevation)
    return si.forward.Camera(posed_scenes.intrinsics(size), pose, (size, size))


@eqx.filter_jit
def render(forward, fields, cameras):
    """Views of fields, shape (fields, cameras, height, width, 4). No network is run."""
    return jax.lax.map(lambda field: jax.lax.map(lambda camera: forward(field, camera), cameras), fields)


def on_white(rgba):
    return rgba[..., :3] + 1 - rgba[..., 3:]


def evaluate(forward, fields, held_out, noise=0.0):
    """How the first 16 fields of each held-out scene compare with its other views, by the angle from the given one.

    Scores and intervals are of measurements, which have noise, if there is any.
    """
    clean, noisy, residuals = [], [], []
    for number, (draws, scene) in enumerate(zip(fields, held_out, strict=True)):
        views = np.asarray(render(forward, take(draws, slice(16)), scene.cameras))
        clean.append(on_white(views))
        noisy.append(on_white(views + noise * np.asarray(jr.normal(jr.key(number), views.shape))))
        residuals.append(np.square(views[:, 0] - scene.views().observation[0]).mean())
    figures = compare(clean, held_out, noisy)
    return figures | ({"context_residual": float(np.sqrt(np.mean(residuals)) / noise)} if noise else {})


def compare(predictions, held_out, noisy=None):
    """Figures of predicted views, shape (draws, views, height, width, 3) per scene, against the true ones."""
    rows = []
    for predicted, measured, scene in zip(predictions, noisy or predictions, held_out, strict=True):
        rgba = np.asarray(scene.views().observation)
        truth, foreground = on_white(rgba), rgba[..., 3] > 0.5
        errors = np.mean((predicted - truth) ** 2, axis=(2, 3, 4))
        scores = jax.jit(jax.vmap(si.diagnostics.energy_score, (1, 0)))(measured, truth)
        grey = lambda x: jnp.round(255 * jnp.asarray(x))
        ranks = si.diagnostics.fractional_ranks(grey(measured), grey(truth), key=jr.key(len(rows)))
        inside = np.abs(np.asarray(ranks) - 0.5) <= 0.45
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
        if name in ("energy_score", "psnr_mean", "psnr_best_of_16", "diversity"):
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


def hidden_shares(forward, fields, size, red_share):
    """The shares of red, blue and other far sides, by the hue of what a camera behind the scene sees in its middle."""
    behind, part = stack([camera_at(size, np.pi, 0.0)]), slice(3 * size // 8, 5 * size // 8)
    red, blue = [], []
    for field in fields:
        middle = np.asarray(render(forward, field, behind))[:, 0, part, part, :3].mean((1, 2))
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
