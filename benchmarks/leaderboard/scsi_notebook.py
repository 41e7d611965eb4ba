"""Training of self-consistent stochastic interpolants by their authors' own notebook, for so long of processor time.

The notebook's cells are run as they are, in their order, with one of their settings changed: how many outer iterations
there are, on which their learning rate depends, so that they fit into the time. Nothing is drawn and nothing logged.
"""

import copy
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

NOTEBOOK = "lifted_2dtoys.ipynb"
# Of the notebook's first experiment: laws, network, settings, training.
CELLS = ("data-cell", "model-cell", "hparams-cell", "train-cell")
OUTER = re.compile(r"^t_outer, t_inner = [\d_]+,", re.MULTILINE)


def read_cells(folder: Path) -> list[str]:
    path = folder / NOTEBOOK
    if not path.is_file():
        raise SystemExit(f"`--code` needs a clone of github.com/clarkmiyamoto/scsi with {NOTEBOOK}, got {folder}.")
    cells = {x.get("id"): "".join(x["source"]) for x in json.loads(path.read_text())["cells"]}
    sources = [cells[name] for name in CELLS]
    if not OUTER.search(sources[2]):
        raise SystemExit(f"{path} does not say how many outer iterations there are; take commit 3cee354.")
    return sources


def train(sources: list[str], iterations: int) -> tuple[dict[str, Any], float]:
    """What the notebook has trained after so many outer iterations, and the processor time of all cores."""
    import torch

    data, model, settings, training = sources
    names: dict[str, Any] = {"torch": torch, "nn": torch.nn, "copy": copy, "math": math, "device": torch.device("cpu")}
    for source in (data, model, OUTER.sub(f"t_outer, t_inner = {iterations},", settings)):
        exec(source, names)
    names |= {"print_every": 0, "sample_every": 0}
    start = time.process_time()
    exec(training, names)
    return names, time.process_time() - start


def recover(folder: Path, measured: np.ndarray, *, cpu_seconds: float, seed: int) -> tuple[np.ndarray, float, int]:
    """A signal for each measurement, as the notebook draws them; the time its training took, and the steps."""
    try:
        import torch
    except ImportError as error:
        raise SystemExit("`--code` needs PyTorch: pip install torch") from error
    torch.manual_seed(seed)
    sources, trial = read_cells(folder), 3
    train(sources, 1)
    _, seconds = train(sources, trial)
    names, seconds = train(sources, max(1, round(trial * cpu_seconds / seconds)))
    given = torch.as_tensor(measured, dtype=torch.float32)
    with torch.no_grad():
        drawn = names["flow"](names["model_em"].eval(), torch.randn_like(given), given)
    return drawn.numpy().astype(float), seconds, names["global_step"]
