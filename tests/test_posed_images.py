"""Posed images: one small scene written in every format, from each format's description, reads back as itself."""

import gzip
import json
import math
import struct

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import stochinv as si

SIZE = (6, 8)
FOCAL = 9.0
K = np.array([[FOCAL, 0, 4], [0, FOCAL, 3], [0, 0, 1]], np.float32)
PLACES = [(4, 0, 0.5), (0, 4, 1), (-3, 1, 0), (1, -4, 0.5)]
POSES = np.stack([si.forward.look_at(place, (0, 0, 0), (0, 0, 1)) for place in PLACES])
OPENGL = np.diag([1, -1, -1, 1])


def make_pixels(channels=3):
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE, channels), dtype=np.uint8)


def write_images(folder, pixels, names):
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(pixels, names, strict=True):
        imageio.imwrite(folder / name, image)


def check(scene, pixels, poses=POSES, k=K):
    np.testing.assert_allclose(scene.images, pixels / 255, atol=1e-6)
    np.testing.assert_allclose(scene.intrinsics, np.broadcast_to(k, (len(pixels), 3, 3)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scene.poses, poses, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_nerf_synthetic(tmp_path, channels):
    pixels = make_pixels(channels)
    write_images(tmp_path / "train", pixels, [f"r_{i}.png" for i in range(4)])
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": (POSES[i] @ OPENGL).tolist()} for i in range(4)]
    record = {"camera_angle_x": 2 * math.atan(SIZE[1] / 2 / FOCAL), "frames": frames}
    (tmp_path / "transforms_train.json").write_text(json.dumps(record))
    check(si.data.load_nerf_synthetic(tmp_path), pixels)
    del record["camera_angle_x"]
    (tmp_path / "transforms.json").write_text(json.dumps(record | {"fl_x": FOCAL, "cx": 4.5}))
    k = K.copy()
    k[0, 2] = 4.5
    check(si.data.load_nerf_synthetic(tmp_path, None), pixels, k=k)


def test_llff(tmp_path):
    pixels = make_pixels()
    write_images(tmp_path / "images", pixels, [f"{i}.png" for i in range(4)])
    right, down, forward, place = np.moveaxis(POSES[:, :3], -1, 0)
    size = np.broadcast_to([2.0 * SIZE[0], 2.0 * SIZE[1], 2 * FOCAL], (4, 3))  # reconstructed at twice the size
    matrices = np.stack([down, right, -forward, place, size], -1).reshape(4, 15)
    bounds = np.array([[1.5, 5], [1.2, 6], [1.3, 5], [1.4, 5]])
    np.save(tmp_path / "poses_bounds.npy", np.concatenate([matrices, bounds], 1))
    scene = si.data.load_llff(tmp_path)
    check(scene, pixels)
    assert (scene.near, scene.far) == (1.2, 6.0)


def world_to_camera():
    return [(Rotation.from_matrix(p[:3, :3].T).as_quat(), -p[:3, :3].T @ p[:3, 3]) for p in POSES]


POINTS = np.random.default_rng(1).uniform(-1, 1, (30, 3))


def write_colmap_text(folder):
    (folder / "cameras.txt").write_text(f"# model\n1 PINHOLE 16 12 {2 * FOCAL} {2 * FOCAL} 8 6\n")
    lines = ["# two lines per image"]
    for i, ((x, y, z, w), t) in enumerate(world_to_camera()):
        lines += [f"{i + 1} {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} 1 view {i}.png", "" if i % 2 else "1.0 2.0 -1"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text(
        "".join(f"{i} {p[0]} {p[1]} {p[2]} 0 0 0 0.1 1 2\n" for i, p in enumerate(POINTS))
    )


def write_colmap_binary(folder):
    (folder / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, 16, 12, 2 * FOCAL, 2 * FOCAL, 8, 6))
    data = struct.pack("<Q", 4)
    for i, ((x, y, z, w), t) in enumerate(world_to_camera()):
        data += struct.pack("<i7di", i + 1, w, x, y, z, *t, 1) + f"view {i}.png".encode() + b"\0"
        data += struct.pack("<Q", i) + i * struct.pack("<ddq", 1.0, 2.0, -1)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(POINTS))
    for i, p in enumerate(POINTS):
        data += struct.pack("<Q3d3BdQ", i, *p, 1, 2, 3, 0.1, i % 3) + (i % 3) * struct.pack("<ii", 1, 2)
    (folder / "points3D.bin").write_bytes(data)


@pytest.mark.parametrize("write", [write_colmap_text, write_colmap_binary])
def test_colmap(tmp_path, write):
    pixels = make_pixels()
    write_images(tmp_path / "images", pixels, [f"view {i}.png" for i in range(4)])
    write(tmp_path)
    scene = si.data.load_colmap(tmp_path, tmp_path / "images")
    check(scene, pixels)
    distances = np.linalg.norm(POINTS[None] - POSES[:, None, :3, 3], axis=-1)
    assert 0.8 * distances.min() < scene.near < distances.min() * 1.05
    assert 0.95 * distances.max() < scene.far < 1.2 * distances.max()


def test_colmap_refuses_distortion(tmp_path):
    write_images(tmp_path / "images", make_pixels(), [f"view {i}.png" for i in range(4)])
    write_colmap_text(tmp_path)
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_RADIAL 8 6 9 4 3 0.1\n")
    with pytest.raises(ValueError, match="undistort"):
        si.data.load_colmap(tmp_path, tmp_path / "images")


def test_realestate10k(tmp_path):
    pixels = make_pixels()
    write_images(tmp_path / "frames", pixels, [f"{1000 * i}.png" for i in range(4)])
    lines = ["https://example.org/clip"]
    for i, pose in enumerate(POSES):
        numbers = [FOCAL / SIZE[1], FOCAL / SIZE[0], 0.5, 0.5, 0, 0, *np.linalg.inv(pose)[:3].ravel()]
        lines.append(" ".join([str(1000 * i), *map(str, numbers)]))
    (tmp_path / "clip.txt").write_text("\n".join(lines))
    check(si.data.load_realestate10k(tmp_path / "clip.txt", tmp_path / "frames"), pixels)
    check(si.data.load_realestate10k(tmp_path / "clip.txt", tmp_path / "frames", 2), pixels[::2], POSES[::2])


@pytest.mark.parametrize("convention", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_co3d(tmp_path, convention):
    """Cameras are checked by where they see a point, as PyTorch3D's documentation defines it."""
    pixels, masks = make_pixels(), make_pixels(1)
    write_images(tmp_path / "cup/one/images", pixels, [f"{i}.png" for i in range(4)])
    write_images(tmp_path / "cup/one/masks", masks[..., 0], [f"{i}.png" for i in range(4)])
    half = np.array([SIZE[1], SIZE[0]]) / 2
    unit = np.full(2, half.min()) if convention == "ndc_isotropic" else half
    flip = np.diag([-1, -1, 1])
    frames = []
    for i, pose in enumerate(POSES):
        rotation, translation = pose[:3, :3] @ flip, flip @ -pose[:3, :3].T @ pose[:3, 3]
        viewpoint = {
            "R": rotation.tolist(),
            "T": translation.tolist(),
            "focal_length": (FOCAL / unit).tolist(),
            "principal_point": [0.1, -0.2],
            "intrinsics_format": convention,
        }
        point = np.array([0.3, -0.2, 0.4])
        seen = point @ rotation + translation
        ndc = FOCAL / unit * seen[:2] / seen[2] + [0.1, -0.2]
        frames.append(
            {
                "sequence_name": "one",
                "frame_number": i,
                "image": {"path": f"cup/one/images/{i}.png", "size": list(SIZE)},
                "mask": {"path": f"cup/one/masks/{i}.png"},
                "viewpoint": viewpoint,
                "expected": (half - ndc * unit).tolist(),
            }
        )
    with gzip.open(tmp_path / "cup" / "frame_annotations.jgz", "wt") as file:
        json.dump(frames, file)
    scene = si.data.load_co3d(tmp_path, "cup", "one")
    np.testing.assert_allclose(scene.images, np.concatenate([pixels, masks], -1) / 255, atol=1e-6)
    np.testing.assert_allclose(scene.poses, POSES, atol=1e-5)
    for i, frame in enumerate(frames):
        camera = jax.tree.map(lambda x, i=i: x[i], scene.cameras)
        np.testing.assert_allclose(camera.project(jnp.asarray(point, jnp.float32))[0], frame["expected"], atol=1e-3)
    with pytest.raises(ValueError, match="no sequence"):
        si.data.load_co3d(tmp_path, "cup", "two")


@pytest.mark.parametrize("scenes", [None, 2])
def test_npz(tmp_path, scenes):
    pixels = make_pixels(4)
    arrays = {"rgba": pixels, "c2w": POSES[:, :3], "near": 1.0, "far": 5.0}
    if scenes:
        arrays |= {"rgba": np.stack([pixels] * scenes), "c2w": np.stack([POSES] * scenes)}
    np.savez(tmp_path / "posed.npz", **arrays, K=K)
    read = si.data.load_posed_npz(tmp_path / "posed.npz")
    assert len(read) == (scenes or 1)
    check(read[-1], pixels)
    assert (read[0].near, read[0].far) == (1, 5)
    np.savez(tmp_path / "posed.npz", **arrays)
    with pytest.raises(ValueError, match="no array K"):
        si.data.load_posed_npz(tmp_path / "posed.npz")


def posed(channels=4, **changes):
    images = make_pixels(channels).astype(np.float32) / 255
    arguments = {"images": images, "intrinsics": np.stack([K] * 4), "poses": POSES.astype(np.float32)}
    return si.data.PosedImages(**(arguments | changes))


def test_measurements():
    scene = posed()
    alpha, colour = scene.images[..., 3:], scene.images[..., :3]
    np.testing.assert_allclose(
        scene.views((1.0, 0.5, 0.0)).observation, alpha * colour + (1 - alpha) * [1, 0.5, 0], atol=1e-6
    )
    np.testing.assert_allclose(scene.views().observation, np.concatenate([alpha * colour, alpha], -1))
    np.testing.assert_array_equal(posed(3).views().observation[..., 3], 1)


def test_resizing_keeps_averages_and_what_is_seen():
    smooth = np.ones((4, 6, 8, 4), np.float32) * np.linspace(0.2, 0.8, 8, dtype=np.float32)[:, None]
    half = posed(images=smooth).resize((3, 4))
    assert half.images.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(half.images[:, 1, 1:3].mean(), smooth.mean(), atol=0.01)
    np.testing.assert_allclose(half.intrinsics[0], K * [[0.5], [0.5], [1]])


def test_normalisation():
    poses = POSES.astype(np.float32).copy()
    poses[:, :3, 3] = 3 * poses[:, :3, 3] + np.array([10, 20, 30], np.float32)
    scene = posed(poses=poses, near=6.0, far=15.0).normalise()
    np.testing.assert_allclose(si.data._posed.base.focus_point(scene.poses), 0, atol=1e-4)
    distances = np.linalg.norm(scene.poses[:, :3, 3], axis=1)
    np.testing.assert_allclose(scene.far, distances.mean() + 1, rtol=1e-4)


def test_batches_deal_disjoint_views_and_parts_that_their_cameras_see():
    images = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None] / 4, (4, *SIZE, 3)).copy()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    images[..., 0], images[..., 1] = rows / 10, columns / 10
    batches = si.data.SceneBatches([posed(images=images)], 5, novel=2, patch=(3, 3), stride=2, context_views=(0, 1))
    example = batches.batch(np.random.default_rng(0))
    assert example.novel.observation.shape == (5, 4, 3, 3, 4)
    which = lambda observation: np.round(4 * np.asarray(observation)[..., 0, 0, 2]).astype(int)
    for record in range(5):
        context, target, novel = (
            which(v.observation[record]) for v in (example.context, example.target, example.novel)
        )
        assert context[0] in (0, 1) and novel[0] == context[0] and novel[1] == target
        assert len({int(context[0]), int(target), *novel[2:].tolist()}) == 4
    camera = jax.tree.map(lambda x: x[2, 3], example.novel.params)
    whole = jax.tree.map(lambda x: x[which(example.novel.observation[2, 3])], posed().cameras)
    place = camera.rays()
    pixels, _ = whole.project(place.origins + place.directions)
    seen = np.round(10 * np.asarray(example.novel.observation[2, 3][..., 1::-1])) + 0.5
    np.testing.assert_allclose(pixels, seen, atol=1e-3)


def test_batches_between_and_of_several_numbers_of_views():
    images = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None] / 4, (4, *SIZE, 3))
    scene = posed(images=images)
    between = si.data.SceneBatches([scene], 20, place="between").batch(np.random.default_rng(0))
    first, last, middle = (
        np.asarray(v.observation).reshape(20, -1)[:, 0] for v in (between.context, between.target, between.novel)
    )
    assert np.all((np.minimum(first, last) < middle) & (middle < np.maximum(first, last)))
    several = si.data.SceneBatches([scene], 30, context=(0, 2), novel=1).batch(np.random.default_rng(0))
    assert set(np.sum(several.context.mask, -1).tolist()) == {0, 1, 2}


def with_size(tmp_path):
    write_images(tmp_path, make_pixels()[:1], ["a.png"])
    imageio.imwrite(tmp_path / "b.png", np.zeros((5, 5, 3), np.uint8))
    return si.data._posed.images.read_images([tmp_path / "a.png", tmp_path / "b.png"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: posed(poses=(POSES @ OPENGL).astype(np.float32)), "look away.*OpenCV"),
        (lambda _: posed(poses=np.linalg.inv(POSES).astype(np.float32) * np.float32(1.1)), "scene: Camera"),
        (lambda _: posed(intrinsics=np.zeros((4, 3, 3), np.float32)), "focal lengths"),
        (lambda _: posed(intrinsics=np.stack([K] * 3)), "4 images need"),
        (lambda _: posed(images=np.zeros((0, 2, 2, 3), np.float32)), "no images"),
        (lambda _: posed(images=np.zeros((4, 2, 2, 2), np.float32)), "3 or 4"),
        (lambda _: si.data.SceneBatches([], 1), "empty"),
        (lambda _: si.data.SceneBatches([posed()], 1, context=3), "5 views are needed"),
        (lambda _: si.data.SceneBatches([posed()], 1, patch=(4, 4), stride=2), "does not fit"),
        (lambda path: si.data.load_nerf_synthetic(path), "there is no"),
        (lambda path: si.data.load_llff(path), "there is no"),
        (lambda path: si.data.load_colmap(path, path), "there is no"),
        (lambda path: si.data._posed.images.read_images([path / "a.png"]), "missing"),
        (lambda path: si.data._posed.images.read_images([]), "no images"),
        (with_size, "different sizes"),
    ],
)
def test_what_is_wrong_is_said(make, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(tmp_path)


def test_one_view_is_enough_for_a_scene_but_not_for_training():
    scene = posed(images=np.zeros((1, *SIZE, 3), np.float32), intrinsics=K[None], poses=POSES[:1].astype(np.float32))
    assert scene.views(1.0).observation.shape == (1, *SIZE, 3)
    with pytest.raises(ValueError, match="3 views are needed.*scene has 1"):
        si.data.SceneBatches([scene], 1)
