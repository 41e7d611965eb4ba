r"""How training is laid out over devices: batches, parameters, and all that is worked on record by record.

The engine is JAX's own: arrays are placed on a mesh, what programs do with them is partitioned by the compiler, and
collectives follow from that. Parameters that are laid out too are gathered where they are used, and their gradients
scattered (Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models").
"""

import contextlib
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._checks import shown
from .._chunks import DRAWS
from .._custom_types import PyTree

# Parameters of fewer bytes are on every device.
LEAST_BYTES = 4 * 2**20
# The axis of a mesh over which parameters are laid out.
PARAMETERS = "fsdp"


class Layout:
    """A mesh, and what is laid out over which of its axes.

    **Arguments:**

    - `mesh`: the mesh.
    - `batch`: how the leading axis of a batch is laid out.
    - `parameters`: the axis over which parameters are, or `None`.
    """

    def __init__(self, mesh: Mesh, batch: PartitionSpec, parameters: str | None) -> None:
        # The compiler lays out the rest.
        self.mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        self.batch = NamedSharding(self.mesh, batch)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._parameters = parameters

    def of(self, x: Any) -> NamedSharding:
        """How an array that moves in training is laid out: along its largest axis that can be divided."""
        size = 1 if self._parameters is None else self.mesh.shape[self._parameters]
        axes = [axis for axis, length in enumerate(jnp.shape(x)) if length % size == 0]
        if size == 1 or not axes or math.prod(jnp.shape(x)) * jnp.dtype(x.dtype).itemsize < LEAST_BYTES:
            return self.replicated
        axis = max(axes, key=lambda axis: jnp.shape(x)[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, self._parameters))

    def place(self, moving: PyTree) -> PyTree:
        """Arrays that move in training, on their devices."""
        return jax.tree.map(lambda x: jax.device_put(x, self.of(x)), moving)

    def replicate(self, tree: PyTree) -> PyTree:
        """Arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def keep(self, moving: PyTree) -> PyTree:
        """Those that a traced step moved, where they were."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.of(x)), moving)

    def spread(self, batch: PyTree) -> PyTree:
        """A traced batch over its devices."""
        return jax.lax.with_sharding_constraint(batch, self.batch)

    def gather(self, batch: PyTree) -> PyTree:
        """One batch of the parts that every process has of it."""
        if jax.process_count() == 1:
            return batch
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, np.asarray(x)), batch)


def as_layout(sharding: Any) -> Layout | None:
    """What a user gave as `sharding`.

    **Raises:**

    `ValueError` if it is none of what it may be.
    """
    if sharding is None:
        return None
    if isinstance(sharding, NamedSharding):
        return Layout(cast(Mesh, sharding.mesh), sharding.spec, None)
    if isinstance(sharding, str) and sharding in ("data", PARAMETERS):
        mesh = Mesh(np.asarray(jax.devices()), (sharding,))
        return Layout(mesh, PartitionSpec(sharding), sharding if sharding == PARAMETERS else None)
    if isinstance(sharding, Mesh):
        parameters = PARAMETERS if PARAMETERS in sharding.axis_names else None
        batch = tuple(name for name in sharding.axis_names if name != DRAWS)
        return Layout(sharding, PartitionSpec(batch), parameters)
    raise ValueError(
        f'`sharding` must be "data", "fsdp", a mesh such as `jax.make_mesh((2, 4), ("data", "fsdp"))`, or a '
        f"`NamedSharding` of batches, got {shown(sharding)}."
    )


def check_divides(layout: Layout | None, batch_size: int, accumulate: int):
    """Whether a batch can be dealt to the devices."""
    if layout is None:
        return
    number = layout.mesh.size // layout.batch.shard_shape((layout.mesh.size,))[0]
    if batch_size % (number * accumulate):
        parts = "" if accumulate == 1 else f" in {accumulate} parts"
        raise ValueError(
            f"`batch_size` is {batch_size}, which cannot be dealt to {number} devices{parts} (`sharding`); give a "
            f"multiple of {number * accumulate}."
        )


def on_mesh(layout: Layout | None) -> contextlib.AbstractContextManager:
    """Where programs are laid out, record by record, over the devices of a layout."""
    return contextlib.nullcontext() if layout is None else jax.set_mesh(layout.mesh)
