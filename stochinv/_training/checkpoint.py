r"""Checkpoints of a training run, written and read by orbax.

A checkpoint holds the arrays that a step changes, and a JSON record: where the run is, and what has to be the same for
it to go on. Both carry checksums, so that a damaged file is never taken for a good one.
"""

import json
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._custom_types import PyTree, summary
from .._data_info import same_values
from .._describe import describe, differences
from .._lazy import orbax_checkpoint as ocp
from .state import State

# Of a folder's contents only what has this prefix and a number is ever read, replaced or deleted.
PREFIX = "stochinv"


class Checkpoints:
    """The checkpoints in a folder, the latest two of which are kept.

    **Arguments:**

    - `folder`: where they are.
    - `configuration`: JSON-like settings of the run.
    - `state`: the start of the run, whose problem and averages are part of its configuration.
    """

    def __init__(self, folder: str | os.PathLike[str], configuration: dict[str, Any], state: State) -> None:
        self.folder = os.path.abspath(os.fspath(folder))
        self._configuration = {name: describe(x) for name, x in (configuration | _parts(state)).items()}
        info = state.problem.data_info
        seen = None if info is None else info.witness
        self._witness = None if seen is None else np.asarray(seen.values, np.float64).tolist()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, step_prefix=PREFIX)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The number of steps of the latest checkpoint, `None` if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, moving: PyTree, record: dict[str, Any]):
        """Writes arrays and a JSON-like record, unless that step is there already."""
        if step == self.latest():
            return
        leaves = jax.tree.leaves(moving)
        kept = {"configuration": self._configuration, "witness": self._witness, "arrays": _signatures(leaves)}
        text = json.dumps(record | kept)
        sealed = {"content": text, "checksum": zlib.crc32(text.encode())}
        arrays = {str(i): x for i, x in enumerate(leaves)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(sealed))
        )

    def restore(self, moving: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest checkpoint, in the structure of `moving`.

        **Raises:**

        `ValueError` if it cannot be read, or is of a run with another configuration.
        """
        step = self.latest()
        try:
            record = self._record(step)
        except Exception as error:
            raise self._unreadable(step, error) from error
        saved = record["configuration"]
        found = [x for name, here in self._configuration.items() for x in differences(saved.get(name), here, name)][:5]
        if not found and not same_values(record["witness"], self._witness):
            found = ["`forward` measures a fixed signal otherwise than that of the file"]
        leaves, treedef = jax.tree.flatten(moving)
        kinds = [[s[0], s[1]] for s in record["arrays"]]
        if not found and kinds != [[s[0], s[1]] for s in _signatures(leaves, values=False)]:
            found = ["`optimizer`, `ema` or `denoiser` keep other arrays"]
        if found:
            raise ValueError(
                f"The checkpoint of step {step} in {self.folder} is of another run: {'; '.join(found)}; resume "
                "with the same, or give another `checkpoint` or `resume=False`."
            )
        template = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for i, x in enumerate(leaves)}
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
            arrays = self._manager.restore(step, args=args)["state"]
            arrays = [arrays[str(i)] for i in range(len(leaves))]
            if _signatures(arrays) != record["arrays"]:
                raise ValueError("its checksums are wrong")
        except Exception as error:
            raise self._unreadable(step, error) from error
        return jax.tree.unflatten(treedef, arrays), record

    def _record(self, step):
        sealed = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if zlib.crc32(sealed["content"].encode()) != sealed["checksum"]:
            raise ValueError("its checksum is wrong")
        return json.loads(sealed["content"])

    def _unreadable(self, step, error):
        return ValueError(
            f"The checkpoint of step {step} in {self.folder} cannot be read ({summary(error)}): delete the folder "
            f"{os.path.join(self.folder, f'{PREFIX}_{step}')} to go on from the one before, or give another "
            "`checkpoint`."
        )

    def clear(self):
        """Deletes all checkpoints, and nothing else."""
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def close(self):
        self._manager.close()


def _parts(state):
    """The configuration of a run, beyond the arrays that steps change."""
    problem = state.problem
    return {
        "schedule": problem.schedule,
        "objective": problem.objective,
        "noise": problem.noise,
        # By what it measures where that was kept, and not by names that a new version of the code may change.
        "forward": None if problem.data_info and problem.data_info.witness else problem.forward,
        "signal": problem.signal,
        "ema": state.ema,
        "roles": state.roles,
    }


def _signatures(leaves, *, values: bool = True):
    """Shape, dtype and checksum of each array."""
    checksum = lambda x: zlib.crc32(np.ascontiguousarray(jax.device_get(x)).view(np.uint8).data) if values else 0
    return [[list(x.shape), jnp.dtype(x.dtype).name, checksum(x)] for x in leaves]
