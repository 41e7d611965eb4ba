r"""Checkpoints of a training run, written and read by orbax."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints in a folder, the latest two of which are kept.

    **Arguments:**

    - `folder`: where they are.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(os.fspath(folder))
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The number of steps of the latest checkpoint, `None` if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict[str, Any]):
        """Writes the arrays of `state` and the JSON-like `record`, unless that step is there already."""
        if step == self.latest():
            return
        arrays = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
        record = {**record, "structure": _structure(state)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        )

    def restore(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """The latest checkpoint, in the structure of `state`.

        **Raises:**

        `ValueError` if it cannot be read, or is of another configuration.
        """
        step = self.latest()
        where = f"The checkpoint of step {step} in {self.folder}"
        try:
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            same = record["structure"] == _structure(state)
            if same:
                leaves, treedef = jax.tree.flatten(state)
                template = {
                    str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for i, x in enumerate(leaves)
                }
                arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template)))[
                    "state"
                ]
        except Exception as error:
            raise ValueError(
                f"{where} cannot be read ({type(error).__name__}): delete the folder "
                f"{os.path.join(self.folder, str(step))} to go on "
                "from the one before, or give another `checkpoint`."
            ) from error
        if not same:
            raise ValueError(
                f"{where} is of another configuration (denoiser, optimiser or EMA): resume with the same ones, or give "
                "another `checkpoint` or `resume=False`."
            )
        return jax.tree.unflatten(treedef, [arrays[str(i)] for i in range(len(leaves))]), record

    def clear(self):
        """Deletes all checkpoints."""
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def close(self):
        self._manager.close()


def _structure(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [[jax.tree_util.keystr(path), list(x.shape), jnp.dtype(x.dtype).name] for path, x in leaves]
