"""Inverse graphics: the lifting denoiser, training on parts of views, and the example at tiny sizes."""

import gzip
import importlib
import json
import math
import runpy
import sys
from pathlib import Path

import equinox as eqx
import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv.nn._unrolled import unrolled

SIZE = (8, 8)
K = np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]])
PLACES = [(4, 0, 0.5), (0, 4, 1), (-3, 2, 0), (1, -4, 0.5)]
CAMERAS = si.forward.Camera(
    np.stack([K] * 4), np.stack([si.forward.look_at(p, (0, 0, 0), (0, 0, 1)) for p in PLACES]), SIZE
)
IMAGES = jr.uniform(jr.key(0), (4, *SIZE, 4))
FORWARD = si.forward.VolumeRenderer(8, background=None)


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def views(*index, mask=None):
    index = jnp.asarray(index)
    return si.View(IMAGES[index], take(CAMERAS, index), mask)


def make_denoiser(support="box", num_components=1, latent_size=3):
    """A small denoiser whose last layer, which starts at zero, is random."""
    denoiser = si.nn.LiftingDenoiser(
        (*SIZE, 4),
        resolution=6,
        width=16,
        depth=1,
        depths=3,
        channels=2,
        point_width=8,
        latent_size=latent_size,
        support=support,
        num_components=num_components,
        key=jr.key(1),
    )
    weight = jr.normal(jr.key(2), denoiser.out.weight.shape)
    importance = jr.normal(jr.key(3), denoiser.importance.weight.shape)
    where = lambda d: (d.out.weight, d.importance.weight)
    return eqx.tree_at(where, denoiser, (weight, importance))


def arguments_of(context, target=3):
    level = jax.tree.map(jnp.asarray, si.CosineSchedule().level(0.6))
    return IMAGES[target], level, context, take(CAMERAS, target)


@eqx.filter_jit
def denoise(denoiser, context, key, target=3):
    return denoiser(*arguments_of(context, target), key=key)


def difference(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_the_order_of_views_and_masked_ones_change_nothing():
    denoiser = make_denoiser()
    field = denoise(denoiser, views(0, 1), jr.key(0))
    assert field.density.shape == (6, 6, 6) and field.colour.shape == (6, 6, 6, 3)
    assert difference(field, denoise(denoiser, views(1, 0), jr.key(0))) < 1e-4
    assert difference(field, denoise(denoiser, views(0, 2, 1, mask=jnp.asarray([True, False, True])), jr.key(0))) < 1e-4
    none = denoise(denoiser, None, jr.key(0))
    masked = denoise(denoiser, views(0, 2, 1, mask=jnp.zeros(3, bool)), jr.key(0))
    assert difference(none, masked) < 1e-4
    assert difference(field, none) > 1e-2


@pytest.mark.slow
def test_context_views_are_encoded_once_for_all_noise_levels_and_draws(monkeypatch):
    denoiser, context = make_denoiser(), views(0, 2, 1, mask=jnp.asarray([True, False, True]))
    encoded = denoiser.encode(context)
    assert difference(denoise(denoiser, encoded, jr.key(0)), denoise(denoiser, context, jr.key(0))) < 1e-4
    signal = jax.eval_shape(lambda: denoise(denoiser, context, None))
    problem, sampler = si.StochasticInverseProblem(FORWARD, denoiser, signal=signal), si.Ancestral(3)
    options = {"key": jr.key(5), "num_samples": 4, "chunk_size": 4}
    # Lifting them together with the target would be done anew at each level, for each draw.
    with monkeypatch.context() as patch:
        patch.setattr(si.nn.LiftingDenoiser, "_with_context", None)
        drawn = problem.sample(context, take(CAMERAS, 3), sampler=sampler, **options).observation
    not_encoded = jax.jit(lambda: sampler.many(problem, context, take(CAMERAS, 3), **options).observation)()
    np.testing.assert_allclose(drawn, not_encoded, atol=1e-4)


@pytest.mark.thorough
def test_draws_differ_and_without_a_key_there_is_one_answer():
    denoiser = make_denoiser()
    first, second, fixed = (denoise(denoiser, views(0), key) for key in (jr.key(0), jr.key(1), None))
    assert min(difference(first, second), difference(first, fixed)) > 1e-3
    assert difference(fixed, denoise(denoiser, views(0), None)) == 0


@pytest.mark.thorough
def test_a_draw_is_one_of_the_components():
    denoiser = make_denoiser(num_components=3)
    weight = 3 * jr.normal(jr.key(4), denoiser.choice.weight.shape)
    denoiser = eqx.tree_at(lambda d: d.choice.weight, denoiser, weight)
    key = jr.key(0)
    propose = eqx.filter_jit(lambda key: denoiser.components(*arguments_of(views(0)), key=key))
    fields, logs = propose(None)
    np.testing.assert_allclose(jnp.sum(jnp.exp(logs)), 1, rtol=1e-5)
    assert fields.density.shape == (3, 6, 6, 6) and len(np.unique(logs)) == 3
    assert difference(denoise(denoiser, views(0), None), take(fields, jnp.argmax(logs))) < 1e-5
    drawn, (fields, _) = denoise(denoiser, views(0), key), propose(jr.split(key)[1])
    assert min(difference(drawn, take(fields, k)) for k in range(3)) < 1e-5


@pytest.mark.thorough
def test_without_a_code_a_draw_is_a_choice_and_nothing_else():
    denoiser = make_denoiser(num_components=2, latent_size=0)
    propose = eqx.filter_jit(lambda key: denoiser.components(*arguments_of(views(0)), key=key))
    fields, logs = propose(jr.key(0))
    np.testing.assert_allclose(jnp.exp(logs), 0.5, rtol=1e-5)
    assert difference(fields, propose(jr.key(1))[0]) == 0
    assert difference(take(fields, 0), take(fields, 1)) > 1e-3
    drawn = [denoise(denoiser, views(0), jr.key(i)) for i in range(8)]
    chosen = [min(range(2), key=lambda k: difference(field, take(fields, k))) for field in drawn]
    assert set(chosen) == {0, 1}
    assert max(difference(f, take(fields, k)) for f, k in zip(drawn, chosen, strict=True)) < 1e-5
    with pytest.raises(ValueError, match="latent_size"):
        make_denoiser(latent_size=-1)


@pytest.mark.thorough
def test_a_field_in_the_ball_is_empty_outside_and_the_same_inside():
    denoisers = [make_denoiser(support) for support in ("box", "ball")]
    box, ball = (denoise(denoiser, views(0), jr.key(0)) for denoiser in denoisers)
    radius = np.linalg.norm(denoisers[0]._grid_points(jnp.float32), axis=-1).reshape(box.density.shape)
    assert np.max(np.abs(box.density - ball.density)[radius < 1]) < 1e-4
    assert np.all(np.asarray(ball.density)[radius > 1.4] == -20)


@pytest.mark.thorough
def test_turning_the_world_turns_the_features():
    """Image features lie where the cameras see them: a quarter turn of the cameras turns what is lifted."""
    denoiser = make_denoiser()
    turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    turned = si.forward.Camera(CAMERAS.intrinsics, turn @ np.asarray(CAMERAS.pose), SIZE)
    points = denoiser._grid_points(jnp.float32)
    # The encoder sees directions in the world, and points their own place, which a turn changes: left out here.
    embed = denoiser.encoder.embed.weight.reshape(-1, 7, 16).at[:, 4:].set(0).reshape(-1, 16)
    no_world = eqx.tree_at(lambda d: d.encoder.embed.weight, denoiser, embed)
    at = eqx.filter_jit(lambda p, cameras: no_world._lift(p, IMAGES[0], take(cameras, 0), jnp.zeros(()))[0])
    moved = points @ jnp.asarray(turn[:3, :3].T, jnp.float32)
    drop = lambda said: np.delete(said, np.s_[-4:-1], axis=-1)
    np.testing.assert_allclose(drop(at(moved, turned)), drop(at(points, CAMERAS)), atol=1e-3)


def test_unrolled_is_the_function_under_maps_and_gradients():
    weight, x, shift = jr.normal(jr.key(0), (3, 3)), jr.normal(jr.key(1), (4, 5, 3)), jr.normal(jr.key(2), (2, 3))
    plain = lambda w, x, s: jnp.tanh(x @ w + s)

    def total(function):
        inner = jax.vmap(function, (None, None, 0))
        return lambda w, x, s: jnp.sum(jax.vmap(inner, (None, 0, None))(w, x, s) ** 2)

    expected, got = (jax.value_and_grad(total(f), (0, 1, 2))(weight, x, shift) for f in (plain, unrolled(plain)))
    assert difference(expected, got) < 1e-4


def parts_of_views():
    """Records whose novel measurements are 4×4 parts of the 8×8 views of context, target and another view."""
    scored = jnp.asarray([0, 3, 2])
    cameras = jax.vmap(lambda camera: camera.crop((1, 0), (4, 4), stride=2))(take(CAMERAS, scored))
    example = si.Example(views(0), take(views(0, 1, 2, 3), 3), si.View(IMAGES[scored, 1::2, ::2], cameras))
    return jax.tree.map(lambda x: jnp.stack([x, x]), example)


@pytest.mark.slow
def test_training_on_parts_of_views():
    """Novel measurements may be smaller than the target; a target without weight is not rendered, nor scored."""
    data = parts_of_views()
    objective = si.ProperScore(num_draws=2, score_target=False)
    problem = si.StochasticInverseProblem(FORWARD, make_denoiser(), objective=objective)
    fit = problem.fit(data, steps=2, batch_size=2, key=jr.key(0), progress=False)
    assert len(fit.history.loss) == 2
    wrong = eqx.tree_at(lambda d: d.novel.observation, data, jnp.zeros((2, 3, 5, 5, 4)))
    with pytest.raises(ValueError, match="the data's measurements are"):
        problem.fit(wrong, steps=2, batch_size=2, key=jr.key(0))
    with pytest.raises(ValueError, match="score_target=False"):
        problem.fit(si.Example(data.context, data.target), steps=2, batch_size=2, key=jr.key(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.nn.LiftingDenoiser((8, 8, 4), resolution=1, key=jr.key(0)), "resolution"),
        (lambda: denoise(make_denoiser(), jnp.zeros(3), None), "context"),
        (
            lambda: make_denoiser()(IMAGES[0, :4], si.CosineSchedule().level(0.5), None, take(CAMERAS, 0)),
            "must be of shape",
        ),
        (lambda: make_denoiser()(IMAGES[0], si.CosineSchedule().level(0.5), None, jnp.eye(4)), "Camera"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.slow
def test_a_renderer_alone_can_fit(tmp_path):
    """`StochasticInverseProblem(forward=...)` makes its denoiser; it is saved, loaded and sampled."""
    data = si.View(jnp.stack([IMAGES, IMAGES[::-1]]), jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), CAMERAS))
    problem = si.StochasticInverseProblem(FORWARD)
    roles = si.RandomViews(context=(1, 2), target=1, novel=1)
    trained = problem.fit(data, roles=roles, steps=2, batch_size=2, key=jr.key(0), progress=False).problem
    trained.save(tmp_path / "problem.si")
    loaded = si.load(tmp_path / "problem.si", FORWARD)
    context = views(0, 1, mask=jnp.asarray([True, False]))
    sample = lambda p: p.sample(context, take(CAMERAS, 2), key=jr.key(1), sampler=si.Ancestral(2))
    assert difference(sample(trained), sample(loaded)) == 0
    appended = trained.sample(
        context, take(CAMERAS, slice(2, 4)), key=jr.key(1), sampler=si.Autoregressive(si.Ancestral(1))
    )
    assert appended.observation.shape == (2, *SIZE, 4)


@pytest.fixture(scope="module")
def example():
    return importlib.import_module("inverse_graphics")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("preset", "options"), [("cpu", ""), ("random", "--views 2 --autoregressive --guidance 2 --no-regressor")]
)
def test_the_example_runs_at_tiny_sizes(example, preset, options, tmp_path):
    pytest.importorskip("mitsuba")
    sizes = "--train 6 --held-out 2 --steps 2 --batch-size 2 --samples 4 --resolution 12 --width 48 --depth 1"
    files = f"--folder {tmp_path} --out {tmp_path / 'picture.png'} --json {tmp_path / 'figures.json'}"
    options = f"{preset} --path-samples 2 {options} {sizes} {files}"
    figures = example.main(options.split())
    assert json.loads((tmp_path / "figures.json").read_text()).keys() == figures.keys()
    wanted = {"context_psnr", "energy_score", "psnr_mean", "psnr_best_of_16", "ssim", "gmsd"}
    wanted |= {"coverage_90", "diversity"}
    assert wanted <= figures.keys()
    assert all(math.isfinite(figures[name]) for name in wanted)
    if preset == "cpu":
        assert figures["hidden_red"] + figures["hidden_blue"] + figures["hidden_other"] == pytest.approx(1)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "picture.gif").read_bytes().startswith(b"GIF")


def write_clips(folder, number=3, frames=5):
    """Clips as RealEstate10K has them: cameras on an arc, and pixels of noise."""
    rng = np.random.default_rng(0)
    for clip in range(number):
        lines = ["https://example.org/clip"]
        (folder / f"clip{clip}").mkdir(parents=True)
        for i, turn in enumerate(np.linspace(0, 1, frames)):
            imageio.imwrite(folder / f"clip{clip}" / f"{i}.png", rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            pose = si.forward.look_at((4 * np.cos(turn), 4 * np.sin(turn), 0.5), (0, 0, 0), (0, 0, 1))
            lines.append(" ".join(map(str, [i, 0.9, 1.2, 0.5, 0.5, 0, 0, *np.linalg.inv(pose)[:3].ravel()])))
        (folder / f"clip{clip}.txt").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_photographs_and_saved_scenes_at_tiny_sizes(example, tmp_path):
    write_clips(tmp_path / "clips")
    sizes = (
        "--size 16 --held-out 1 --steps 2 --batch-size 2 --draws 2 --resolution 8 --ray-samples 8 --width 48 --depth 1"
    )
    figures = example.main(
        f"full --photos {tmp_path / 'clips'} {sizes} --no-regressor --out {tmp_path / 'picture.png'}".split()
    )
    assert math.isfinite(figures["energy_score"]) and math.isfinite(figures["energy_score_nearest"])
    saved = f"--saved {tmp_path / 'picture.npz'} --size 16 --ray-samples 8"
    example.main(f"{saved} --out {tmp_path / 'around.png'}".split())
    np.savez(tmp_path / "path.npz", c2w=np.asarray(CAMERAS.pose), K=sys.modules["scenes"].intrinsics(16))
    example.main(f"{saved} --camera-path {tmp_path / 'path.npz'} --out {tmp_path / 'along.png'}".split())
    for name, frames in (("picture", 5), ("around", 36), ("along", 4)):
        assert len(imageio.imread(tmp_path / f"{name}.gif", index=None)) == frames
    with pytest.raises(ValueError, match="--saved"):
        example.main(["--saved", str(tmp_path / "none.npz")])


def test_photographs_are_found_and_read(example, tmp_path):
    photos = sys.modules["photo_scenes"].Photos
    write_clips(tmp_path / "clips")
    scenes = photos(tmp_path / "clips", 8)
    assert len(scenes[1:]) == 2 and scenes[1:][0].name == "clip1" and scenes[1].images.shape == (5, 8, 8, 3)
    (tmp_path / "cup").mkdir()
    viewpoint = {"R": np.eye(3).tolist(), "T": [0, 0, 3], "focal_length": [2, 2], "principal_point": [0, 0]}
    for name, value in (("image", 90), ("mask", 255)):
        imageio.imwrite(tmp_path / "cup" / f"{name}.png", np.full((12, 16), value, np.uint8))
    parts = {"image": {"path": "cup/image.png", "size": [12, 16]}, "mask": {"path": "cup/mask.png"}}
    sequences = [{"sequence_name": name} for name in ("b", "a")]
    frames = [
        {**sequence, "frame_number": i, "viewpoint": viewpoint, **parts} for sequence in sequences for i in (0, 1)
    ]
    for name, rows in (("sequence", sequences), ("frame", frames)):
        with gzip.open(tmp_path / "cup" / f"{name}_annotations.jgz", "wt") as file:
            json.dump(rows, file)
    objects = photos(tmp_path, 8, "cup")
    assert objects.names == ["a", "b"] and objects[0].images.shape == (2, 8, 8, 4)
    np.testing.assert_allclose(objects[0].images[..., 3], 1, atol=1e-6)
    for folder, category, words in (
        ("none", None, "no folder"),
        ("cup", None, "--category"),
        (".", "pan", "--category"),
    ):
        with pytest.raises(ValueError, match=words):
            photos(tmp_path / folder, 8, category)


@pytest.mark.thorough
def test_the_hidden_side_does_not_show(example):
    """From the front both colours give the very same image, from behind another."""
    pytest.importorskip("mitsuba")
    scenes = sys.modules["scenes"]
    for seed in range(3):
        images = []
        for red in (False, True):
            rng = np.random.default_rng((1, seed))
            solids, _ = scenes.make_hidden_scene(rng, red)
            cameras = np.concatenate([scenes.make_cameras("hidden", 2, rng), scenes.camera_pose(np.pi, 0.0)[None]])
            images.append(scenes.render(solids, cameras, 16, 4, depth=2))
        assert np.array_equal(images[0][:2], images[1][:2]) and not np.array_equal(images[0][2], images[1][2])


def test_the_scenes_cameras_are_where_they_say(example):
    """A small ball is seen where its centre is projected to."""
    pytest.importorskip("mitsuba")
    scenes = sys.modules["scenes"]
    place = np.array([0.3, -0.4, 0.25])
    points, normals, faces = scenes.superellipsoid(np.full(3, 0.08), (1.0, 1.0), 12)
    pose = scenes.camera_pose(0.7, 0.4)
    solid = (points + place, normals, faces, np.full_like(points, 0.5))
    (image,) = scenes.render([solid], pose[None], 32, 16, depth=2)
    alpha = image[..., 3] / 255
    rows, columns = np.mgrid[:32, :32] + 0.5
    centre = [np.sum(alpha * columns) / alpha.sum(), np.sum(alpha * rows) / alpha.sum()]
    camera = si.forward.Camera(scenes.intrinsics(32), pose, (32, 32))
    np.testing.assert_allclose(camera.project(jnp.asarray(place, jnp.float32))[0], centre, atol=0.15)


def test_hues_are_told(example):
    def field(colour):
        raw = jnp.asarray(np.log(colour) - np.log1p(-np.asarray(colour)), jnp.float32)
        one = si.forward.VoxelField(density=jnp.full((3, 3, 3), 50.0), colour=jnp.broadcast_to(raw, (3, 3, 3, 3)))
        return jax.tree.map(lambda x: x[None], one)

    cases = {"hidden_red": (0.8, 0.2, 0.2), "hidden_blue": (0.2, 0.25, 0.8), "hidden_other": (0.6, 0.2, 0.6)}
    for name, colour in cases.items():
        assert example.hidden_shares(FORWARD, [field(colour)], 32, 0.5)[name] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_the_benchmark_runs_at_tiny_sizes(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "rendering.py"))["main"]
    sizes = "--size 8 --samples 4 --repeats 1 --width 16 --depth 1 --resolution 6"
    figures = main([*sizes.split(), "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert "pixelNeRF: denoising, 4 samples" in figures and "lifting: denoising, 4 samples" in figures
