r"""Videos as training records: a frame, and the one after it.

From files to records there are four steps, each a function: `read_video` (or `read_clips` for many files) decodes,
`split_shots` cuts where a new shot begins, `split_clips` holds some out, and `random_crops` deals records. Frames are
bytes, `(frames, height, width, 3)`, until they are cropped.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .._lazy import optional
from .._view import View

Frames = UInt8[np.ndarray, "_ _ _ 3"]  # frames, height, width
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


def read_video(
    path: str | os.PathLike[str],
    *,
    height: int | None = None,
    max_frames: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Frames:
    """Decodes a video file.

    **Arguments:**

    - `path`: the file, in any format that ImageIO reads.
    - `height`: the height to resize frames to, in pixels, the width in proportion; `None` keeps both.
    - `max_frames`: how many frames to read, from the first on; `None` reads all.
    - `cache`: a folder for decoded frames. Those of an unchanged file are not decoded again, and mapped into memory
        instead of read, so that videos may be larger than it.

    **Returns:**

    Bytes of shape `(frames, height, width, 3)`. Grey frames get three equal channels; transparent ones are shown on
    black.

    **Raises:**

    `ValueError` if the file cannot be decoded or has no frames; `FileNotFoundError` if it does not exist;
    `ImportError` if ImageIO is missing.
    """
    path = Path(path)
    for name, value in (("height", height), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, or None, got {value}.")
    if not path.is_file():
        raise FileNotFoundError(f"`path` is {str(path)!r}, but there is no such file.")
    if cache is None:
        return np.stack(_decode(path, height, max_frames))
    status = path.stat()
    what = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{height}|{max_frames}"
    stored = Path(cache) / f"{path.stem}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.npy"
    if not stored.exists():
        frames = np.stack(_decode(path, height, max_frames))
        stored.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is complete, so that no other process reads half a file.
        partial = stored.with_name(f"{stored.stem}.{os.getpid()}.npy")
        np.save(partial, frames)
        partial.replace(stored)
    return np.load(stored, mmap_mode="r")


def read_clips(
    folder: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    height: int | None = None,
    max_frames: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> list[Frames]:
    """Decodes many videos, and cuts them into shots.

    **Arguments:**

    - `folder`: a folder, whose videos are found by their suffixes, or the files themselves.
    - `height`, `max_frames`, `cache`: as in [`stochinv.data.read_video`][].

    **Returns:**

    The shots of all videos, each bytes of shape `(frames, height, width, 3)`.

    **Raises:**

    As `read_video`; `ValueError` if there is no video.
    """
    if isinstance(folder, str | os.PathLike):
        files = sorted(x for x in Path(folder).rglob("*") if x.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"`folder` is {str(folder)!r}, but no file in it ends in {', '.join(SUFFIXES)}.")
    else:
        files = [Path(x) for x in folder]
        if not files:
            raise ValueError("`folder` is an empty list of files; give at least one.")
    videos = (read_video(x, height=height, max_frames=max_frames, cache=cache) for x in files)
    return [shot for video in videos for shot in split_shots(video)]


def split_shots(video: Frames, *, ratio: float = 2.0, floor: float = 0.02) -> list[Frames]:
    """Cuts a video where a new shot begins.

    There the mean absolute difference of neighbouring frames is more than `ratio` times that right before and right
    after it, which fast motion is not.

    **Arguments:**

    - `video`: bytes of shape `(frames, height, width, 3)`.
    - `ratio`: at least 1; a larger one finds fewer cuts.
    - `floor`: what a difference must exceed at least, as a share of the range of grey values, so that noise and
        repeated frames make no cuts.

    **Returns:**

    The shots, as parts of the video without copies.
    """
    if ratio < 1 or floor < 0:
        raise ValueError(f"`ratio` must be at least 1 and `floor` at least 0, got {ratio} and {floor}.")
    small = np.stack([_thumbnail(frame) for frame in video])
    change = np.abs(np.diff(small, axis=0)).mean((1, 2))
    around = np.maximum(np.append(0, change[:-1]), np.append(change[1:], 0))
    cuts = np.flatnonzero((change > ratio * around) & (change > floor)) + 1
    return np.split(video, cuts)


def split_clips(clips: Sequence[Frames], *, held_out: float = 0.2) -> tuple[list[Frames], list[Frames]]:
    """Parts clips for training from held-out ones, the end of every clip: neighbouring frames are almost the same.

    **Arguments:**

    - `clips`: the clips, such as the shots of a video.
    - `held_out`: the share that is held out, strictly between 0 and 1.

    **Returns:**

    The clips for training, and those held out. They share no frame.

    **Raises:**

    `ValueError` if either would have no clip of at least two frames.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must lie strictly between 0 and 1, got {held_out}.")
    ends = [len(clip) - round(held_out * len(clip)) for clip in clips]
    train = [clip[:end] for clip, end in zip(clips, ends, strict=True)]
    rest = [clip[end:] for clip, end in zip(clips, ends, strict=True)]
    for name, part in (("training", train), ("held-out", rest)):
        if not any(len(clip) > 1 for clip in part):
            raise ValueError(
                f"`clips`: of {len(clips)} clips with {[len(clip) for clip in clips]} frames, none with two frames is "
                f"left for the {name} part; give longer or more clips, or change `held_out`."
            )
    return [clip for clip in train if len(clip)], [clip for clip in rest if len(clip)]


def random_crops(
    clips: Sequence[Frames],
    number: int,
    *,
    size: tuple[int, int],
    margin: int = 0,
    gap: int = 1,
    num_frames: int | None = None,
    mirror: bool = False,
    seed: int = 0,
) -> View:
    """Crops of frames, drawn at random, with the same crop of later frames: records for a warp.

    **Arguments:**

    - `clips`: bytes, each of shape `(frames, height, width, 3)`. Clips are drawn in proportion to the moments in them;
        those too short for the gap are left out.
    - `number`: how many records, at least 1.
    - `size`: height and width of the measured crop, in pixels.
    - `margin`: by how many pixels the source reaches beyond it on each side.
    - `gap`: how many frames lie between one frame and the next of a record, plus 1.
    - `num_frames`: how many frames follow the source, along a leading axis; `None` for one without that axis.
    - `mirror`: whether half of the records are mirrored left to right.
    - `seed`: of the draws.

    **Returns:**

    A [`stochinv.View`][] with a leading record axis, in single precision with values in [0, 1]: the later crops as its
    `observation`, shape `(number, height, width, 3)`, and as its `params` the earlier ones with the margin.

    **Raises:**

    `ValueError` if no clip is long enough, or if the crop does not fit into every one that is.
    """
    height, width = size
    if min(number, height, width, gap, 1 if num_frames is None else num_frames) < 1 or margin < 0:
        raise ValueError(
            "`number`, `size`, `gap` and `num_frames` must be at least 1 and `margin` at least 0, got "
            f"{number}, {size}, {gap}, {num_frames} and {margin}."
        )
    later = gap * (1 if num_frames is None else num_frames)
    whole = (height + 2 * margin, width + 2 * margin)
    usable = _usable_clips(clips, later, whole)
    rng = np.random.default_rng(seed)
    moments = np.array([len(clip) - later for clip in usable])
    chosen = rng.choice(len(usable), number, p=moments / moments.sum())
    crops = np.stack([_random_crop(usable[i], later, gap, whole, mirror, rng) for i in chosen])
    after = crops[:, 1:, margin : margin + height, margin : margin + width]
    to_float = lambda x: x.astype(np.float32) / 255
    return View(to_float(after[:, 0] if num_frames is None else after), to_float(crops[:, 0]))


def _usable_clips(clips, later, whole):
    """The clips in which a frame is followed by `later` others; crops have to fit into all of them."""
    usable = [clip for clip in clips if len(clip) > later]
    if not usable:
        raise ValueError(
            f"`clips` have {[len(clip) for clip in clips]} frames, but a record spans {later + 1} of them by its `gap` "
            "and `num_frames`; give longer clips or a smaller gap."
        )
    for clip in usable:
        if clip.shape[1] < whole[0] or clip.shape[2] < whole[1]:
            raise ValueError(
                f"`clips` has frames of {clip.shape[1:3]} pixels, but crops with their margin are {whole}; give a "
                "smaller `size` or `margin`, or read the video with a larger `height`."
            )
    return usable


def _random_crop(clip, later, gap, whole, mirror, rng):
    """One place and one moment: the source and the frames after it, with the margin."""
    start = rng.integers(len(clip) - later)
    top, left = (rng.integers(clip.shape[1 + axis] - whole[axis] + 1) for axis in (0, 1))
    crop = clip[start : start + later + 1 : gap, top : top + whole[0], left : left + whole[1]]
    return crop[:, :, ::-1] if mirror and rng.random() < 0.5 else crop


def _decode(path, height, max_frames):
    need = ("Reading a video needs ImageIO", "data")
    iio, pillow = (optional(name, *need) for name in ("imageio.v3", "PIL.Image"))
    frames = []
    try:
        with warnings.catch_warnings():
            # FFmpeg is forked and executed at once: the threads that JAX warns of are not used in between.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            for frame in iio.imiter(path):
                frames.append(_to_rgb(np.asarray(frame)))
                if height is not None:
                    width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
                    resized = pillow.fromarray(frames[-1]).resize((width, height), pillow.Resampling.BILINEAR)
                    frames[-1] = np.asarray(resized)
                if len(frames) == max_frames:
                    break
    except Exception as error:
        raise ValueError(
            f"`path` is {str(path)!r}, which cannot be decoded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); give a video that FFmpeg reads, and for those "
            "`pip install 'stochinv[data]'`."
        ) from error
    if not frames:
        raise ValueError(f"`path` is {str(path)!r}, which has no frames; leave it out.")
    return frames


def _to_rgb(frame):
    """Bytes in three channels, from grey, grey with alpha, RGB or RGBA."""
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[-1] > 4):
        raise ValueError(f"a frame of {frame.dtype}{list(frame.shape)}; frames must be bytes with 1 to 4 channels")
    frame = frame[..., None] if frame.ndim == 2 else frame
    colours = 1 if frame.shape[-1] < 3 else 3
    shown = frame[..., :colours]
    if frame.shape[-1] > colours:
        shown = np.round(shown * (frame[..., -1:] / 255)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*frame.shape[:2], 3)))


def _thumbnail(frame):
    """Grey values in [0, 1] of blocks, at most some 32 rows and as many columns."""
    rows, columns = (max(n // 32, 1) for n in frame.shape[:2])
    height, width = frame.shape[0] // rows * rows, frame.shape[1] // columns * columns
    blocks = frame[:height, :width].reshape(height // rows, rows, width // columns, columns, 3)
    return blocks.mean((1, 3, 4)) / 255
