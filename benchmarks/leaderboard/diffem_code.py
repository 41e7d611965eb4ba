"""Training of DiffEM by its authors' own script for the manifold, in its tiny setting, on another curve.

The script is run as it is. What it would log to, submit to or draw with is replaced by stand-ins that do nothing, and
three functions of it are replaced: the one that draws points of a curve, by one that draws those of this leaderboard;
the one that writes the trained network to a file; and its measure of distance, by one that keeps the points.
"""

import importlib
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

SCRIPT = Path("experiments") / "manifold" / "train_diffem.py"
NOT_NEEDED = ("dawgz", "dm_pix", "matplotlib.pyplot", "ot", "pandas", "seaborn", "wandb")


def stand_in(name: str) -> types.ModuleType:
    module: Any = types.ModuleType(name)
    module.__getattr__ = lambda name: mock.MagicMock()
    return module


def recover(folder: Path, draw: Callable[[int], np.ndarray]) -> tuple[np.ndarray, float]:
    """Points of the law found by the last round of DiffEM from measurements of `draw(number)`, and its processor time.

    The script scales points to a range of 4; the answer is in units of `draw` again.
    """
    if not (folder / SCRIPT).is_file():
        raise SystemExit(f"`--code` needs a clone of github.com/danialht/DiffEM with {SCRIPT}, got {folder}.")
    points, found = np.zeros((0, 0)), []

    def curve(key, shape=(), m=1, n=3, **settings):
        nonlocal points
        points = draw(shape[0])
        return np.asarray(points, np.float32)

    replaced = {
        "smooth_manifold": curve,
        "sinkhorn_divergence": lambda first, second, drawn: found.append(drawn) or 0.0,
    }
    modules = {name: stand_in(name) for name in NOT_NEEDED} | {"utils": None}
    paths = [str(folder), str((folder / SCRIPT).parent), *sys.path]
    with mock.patch.dict(sys.modules, modules), mock.patch.object(sys, "path", paths):
        del sys.modules["utils"]
        try:
            utils = importlib.import_module("utils")
        except ImportError as error:
            needs = f"`--code` needs what DiffEM imports: pip install inox==0.5.0 einops click ({error})"
            raise SystemExit(needs) from error
        for name in ("show_corner", "dump_module"):
            setattr(utils, name, mock.MagicMock())
        for name, value in replaced.items():
            setattr(utils, name, value)
        train = runpy.run_path(str(folder / SCRIPT))["train"]
        start = time.process_time()
        train.callback("tiny")
        seconds = time.process_time() - start
    low, high = points.min(0), points.max(0)
    return low + (np.asarray(found[-1], float) + 2) / 4 * (high - low), seconds
