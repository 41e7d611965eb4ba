"""Motion from one frame: the denoiser of displacement fields, the example, and a truth that is known."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import skimage.data
from skimage.transform import resize

import stochinv as si
from stochinv.forward import Warp

KEYS = {
    f"{name}{suffix}"
    for suffix in ("", "_copy", "_regressor", "_tvl1")
    for name in ("energy_score", "crps", "psnr_mean", "psnr_best_of_16")
} | {"coverage_90", "epe_to_tvl1", "diversity", "direction_error", "direction_spread", "train_seconds"}
PHOTO = skimage.data.astronaut().mean(-1).reshape(256, 2, 256, 2).mean((1, 3)).astype(np.float32) / 255
RIGHT, DISTANCE, SPREAD, SIZE, MARGIN = 0.3, 2.0, 0.3, 16, 4


@pytest.fixture(scope="module")
def motion():
    return importlib.import_module("motion")


def denoiser(**options):
    options = {"scale": 4, "margin": 4, "width": 8, "depth": 1, "key": jr.key(0), **options}
    return si.nn.FlowDenoiser(1, **options)


def frames(displacement):
    """A photograph's crop with its margin, and the crop moved."""
    source = jnp.asarray(PHOTO[20:60, 100:140, None])
    flow = jnp.broadcast_to(jnp.asarray(displacement), (8, 8, 2))
    return source, Warp(scale=4, margin=4)(flow, source)


@pytest.mark.thorough
def test_denoiser_is_a_draw_with_a_key_and_fixed_without():
    source, after = frames([0.0, 1.0])
    network, level = denoiser(), si.CosineSchedule().level(jnp.asarray(1.0))
    call = eqx.filter_jit(lambda key: network(after, level, None, source, key=key))
    assert call(None).shape == (8, 8, 2)
    np.testing.assert_array_equal(call(None), call(None))
    np.testing.assert_array_equal(call(jr.key(0)), call(jr.key(0)))
    assert jnp.max(jnp.abs(call(jr.key(0)) - call(jr.key(1)))) > 1e-3


@pytest.mark.parametrize(
    ("options", "words"), [({"width": 12}, "width"), ({"scale": 0}, "scale"), ({"spread": 0.0}, "spread")]
)
def test_what_is_wrong_is_said(options, words):
    with pytest.raises(ValueError, match=words):
        denoiser(**options)


@pytest.mark.thorough
def test_scores_of_known_predictions(motion):
    """Two fields, of which one is the truth: scores, PSNR, distances and directions by hand."""
    source, observed = frames([0.0, 2.0])
    flows = jnp.stack([jnp.zeros((8, 8, 2)).at[..., 1].set(2.0), jnp.zeros((8, 8, 2)).at[..., 0].set(2.0)])
    forward = Warp(scale=4, margin=4)
    reference = jnp.zeros((32, 32, 2)).at[..., 1].set(2.0)
    found = motion.scores(forward, flows, source, observed, reference, 0.5, 0.0, jr.key(0))
    difference = np.asarray(forward(flows[1], source) - observed)
    root = np.sqrt(np.mean(difference**2))
    # mean error: half of the difference; minus half the distance of the one pair: 0 in all, as one of two is right.
    np.testing.assert_allclose(found["energy_score"], 0, atol=1e-6)
    np.testing.assert_allclose(found["crps"], 0, atol=1e-6)
    np.testing.assert_allclose(found["psnr_mean"], (60 - 20 * np.log10(root)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["psnr_best_of_16"], 60, rtol=1e-5)
    np.testing.assert_allclose(found["epe_to_tvl1"], np.sqrt(8) / 2, rtol=1e-4)
    np.testing.assert_allclose(found["diversity"], np.sqrt(8), rtol=1e-4)
    np.testing.assert_allclose(found["direction_error"], 45, rtol=1e-4)
    np.testing.assert_allclose(found["direction_spread"], 90, rtol=1e-4)
    alone = motion.scores(forward, flows[1:], source, observed, reference, 0.5, 0.0, jr.key(0))
    np.testing.assert_allclose(alone["energy_score"], root / 0.5, rtol=1e-5)
    np.testing.assert_allclose(alone["crps"], np.mean(np.abs(difference)) / 0.5, rtol=1e-5)


def test_colours_tell_direction_and_speed(motion):
    """What moves right is red, what moves down is in the next quarter of the wheel; what stands still is white."""
    flow = np.array([[0.0, -2.0], [-2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(motion.colours(flow, 2.0), [[1, 0, 0], [0.5, 1, 0], [1, 1, 1]], atol=1e-6)


def test_settings_are_checked(motion):
    with pytest.raises(ValueError, match="samples"):
        motion.parse(["--samples", "4"])
    assert motion.parse(["gpu", "--steps", "7"]).crop == 256 and motion.parse(["gpu", "--steps", "7"]).steps == 7
    assert motion.parse([]).crop == 32


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_runs_at_tiny_sizes(motion, tmp_path):
    files = {name: tmp_path / name for name in ("picture.png", "motion.gif", "figures.json")}
    figures = motion.main(
        [
            *"--steps 2 --records 16 --batch-size 4 --draws 2 --width 8 --depth 1 --pairs 8 --samples 16".split(),
            *("--out", str(files["picture.png"]), "--gif", str(files["motion.gif"])),
            *("--json", str(files["figures.json"]), "--cache", str(tmp_path / "cache")),
        ]
    )
    assert set(figures) >= KEYS
    assert json.loads(files["figures.json"].read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    assert files["picture.png"].read_bytes().startswith(b"\x89PNG")
    assert files["motion.gif"].read_bytes().startswith(b"GIF89a")
    assert list((tmp_path / "cache").glob("*.npy"))


def translated(rng, number, columns):
    """Crops of the photograph, and the same moved right with probability 0.3, otherwise left, by 2 ± 0.3 pixels."""
    whole = SIZE + 2 * MARGIN
    to_right = np.where(rng.random(number) < RIGHT, 1, -1)
    moved = to_right * (DISTANCE + SPREAD * rng.normal(size=number))
    top, left = rng.integers(0, 256 - whole, number), rng.integers(columns[0] + 4, columns[1] - whole - 4, number)
    rows = top[:, None, None] + np.arange(whole)[:, None]
    across = left[:, None, None] + np.arange(whole)
    place = across - moved[:, None, None]
    first = np.floor(place).astype(int)
    share = (place - first).astype(np.float32)
    after = PHOTO[rows, first] * (1 - share) + PHOTO[rows, first + 1] * share
    return PHOTO[rows, across][..., None], after[:, MARGIN:-MARGIN, MARGIN:-MARGIN, None]


@pytest.mark.guarantee
def test_two_directions_are_found_with_their_weights():
    """From frames alone, on a held-out part of the photograph: the weights of the modes, their places and widths.

    The width is that of the core, from quartiles: a few draws in a hundred lie between the modes, as a network is
    continuous in its latent code.
    """
    steps, rng = 2000, np.random.default_rng(0)
    network_key, *_, fit_key = jr.split(jr.key(0), 4)

    def batches():
        for _ in range(steps):
            source, after = translated(rng, 128, (0, 180))
            yield si.Example(None, si.View(after, source))

    network = si.nn.FlowDenoiser(
        1,
        scale=8,
        margin=MARGIN,
        mean=float(PHOTO.mean()),
        std=float(PHOTO.std()),
        depth=1,
        latent_size=8,
        spread=2.0,
        key=network_key,
    )
    objective = si.ProperScore(sample_time=si.pure_noise)
    problem = si.StochasticInverseProblem(Warp(scale=8, margin=MARGIN), network, objective=objective)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, steps, 1e-5))
    fit = problem.fit(batches(), steps=steps, optimizer=optimizer, key=fit_key, progress=False)

    source, _ = translated(np.random.default_rng(1), 32, (180, 256))
    draw = lambda x: fit.problem.sample(None, x, key=jr.key(2), sampler=si.Ancestral(1), num_samples=512).signal
    across = np.asarray(jax.lax.map(draw, jnp.asarray(source))).mean((2, 3))[..., 1]
    right = across < 0  # displacements lead back to the source
    print("weight", right.mean(), "of single frames", right.mean(1).std(), "between", np.mean(np.abs(across) < 1))
    assert abs(right.mean() - RIGHT) < 0.05
    for mode, sign in ((across[right], -1), (across[~right], 1)):
        low, middle, high = np.quantile(mode, [0.25, 0.5, 0.75])
        print("median", middle, "width", 0.7413 * (high - low))
        assert abs(middle - sign * DISTANCE) < 0.1
        assert abs(0.7413 * (high - low) / SPREAD - 1) < 0.15


def stereo_pair(height):
    """The left and the right view of a scene by two cameras side by side, as two frames of a film."""
    folder = Path(skimage.data.__file__).parent
    views = [imageio.imread(folder / f"motorcycle_{side}.png")[..., :3] for side in ("left", "right")]
    size = height, round(height * views[0].shape[1] / views[0].shape[0])
    return np.stack([np.uint8(np.round(255 * resize(x, size, anti_aliasing=True))) for x in views])


@pytest.mark.slow
def test_a_direction_is_drawn_where_the_frame_tells_it(motion):
    """Two kinds of frames: of films, where things go anywhere, and the left one of a stereo pair, in whose right one
    everything is further left. Given a frame of either that training has not seen, draws say which it is."""
    config = replace(motion.Config(), crop=24, margin=8, steps=1000, noise=0.03)
    pair, films = stereo_pair(68), si.data.read_clips(motion.videos(config), height=68)
    known, held_out = si.data.split_clips(films, held_out=0.25)
    crops = lambda clips, number, gap, seed: si.data.random_crops(
        clips, number, size=(24, 24), margin=8, gap=gap, mirror=gap > 1, seed=seed
    )
    both = crops([pair[:, :, :-42]], 8000, 1, 0), crops(known, 8000, 2, 0)
    data = jax.tree.map(lambda a, b: np.concatenate([a, b]), *both)
    test = crops([pair[:, :, -42:]], 48, 1, 1), crops(held_out, 48, 2, 1)
    problem = motion.make_problem(config, data, key=jr.key(0))
    fit = motion.train(config, problem, data, key=jr.key(1))
    draw = lambda frames: motion.sample(fit.problem, jnp.asarray(frames), si.Ancestral(1), 32, jr.key(2)).signal
    flows = [np.asarray(draw(view.params)).mean((2, 3)) for view in test]
    # Displacements lead back to the left eye's view, which is to the right.
    away = [np.rad2deg(np.abs(np.arctan2(x[..., 0], x[..., 1]))).mean() for x in flows]
    far = [np.linalg.norm(x, axis=-1).mean() for x in flows]
    print("degrees from the right, stereo and films", away, "pixels", far)
    assert away[0] < 30
    assert 70 < away[1] < 110


@pytest.mark.guarantee
def test_wins_at_its_own_sizes(motion, tmp_path):
    figures = motion.main(["--out", str(tmp_path / "picture.png"), "--gif", str(tmp_path / "motion.gif")])
    for other in ("_copy", "_regressor"):
        assert figures["energy_score"] < figures["energy_score" + other]
        assert figures["crps"] < figures["crps" + other]
        assert figures["psnr_best_of_16"] > figures["psnr_best_of_16" + other]


def test_coverage_of_a_right_law_is_what_it_says(motion):
    """Of 32 draws, with and without ties; the standard error is 0.002."""
    values = jr.uniform(jr.key(0), (33, 20_000))
    for x in (values, jnp.round(6 * values) / 6):
        assert abs(motion.coverage(x[1:], x[0]) - 0.9) < 0.011
    assert motion.coverage(0.5 + 0.6 * (values[1:] - 0.5), values[0]) < 0.7
