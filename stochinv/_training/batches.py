r"""Where a training step's records come from: arrays in memory, or any iterable of batches."""

import base64
import functools
import warnings
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from .._checks import check_arrays
from .._custom_types import Key
from .._data_info import describe
from .._view import Example, View, structure

_END = object()


class ArrayBatches:
    """Batches of arrays in memory, shuffled anew in every epoch; an incomplete last batch is left out.

    The batch of a step depends on the seed and the step alone.
    """

    def __init__(self, records: Any, batch_size: int, seed: tuple[int, ...]) -> None:
        self._given = records
        self.batch_size = batch_size
        self.num_records = jax.tree.leaves(records)[0].shape[0]
        self._seed = seed
        self._epoch = None
        self._order = np.arange(self.num_records)

    @functools.cached_property
    def records(self) -> Any:
        """All records, as JAX arrays."""
        return jax.tree.map(jnp.asarray, self._given)

    def batch(self, step: int) -> np.ndarray:
        """The indices of the records of step `step = 0, 1, …`."""
        epoch, position = divmod(step, self.num_records // self.batch_size)
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self._seed, epoch]).permutation(self.num_records).astype(np.int32)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def seen(self) -> Any:
        """The records from which units and structures are taken: all of them, as they were given."""
        return self._given

    def described(self) -> dict[str, Any]:
        """What has to be the same for a run to go on: structures, numbers, and a checksum of the values."""
        return {
            "record": describe(jax.tree.map(lambda x: x[0], self.records)),
            "records": self.num_records,
            "batch_size": self.batch_size,
            "checksum": checksum(self.records),
        }

    def state(self) -> None:
        """Nothing: the step says all."""

    def restore(self, state: None, step: int):
        """Nothing is to be done."""


class IterableBatches:
    """Batches from an iterable. One that can be iterated again starts anew when it is exhausted.

    An iterator with `get_state` and `set_state`, as grain's have, resumes where it was; any other by skipping.
    """

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable
        self._iterator: Any = iter(iterable)
        self._passes = 0
        self._pushed_back: list[Any] = []
        self._initial_state = self._get_state()

    records = None

    @property
    def batch_size(self) -> int:
        """The number of records in a batch, each process yielding a part of it."""
        return jax.tree.leaves(self._seen)[0].shape[0]

    def seen(self) -> Any:
        """The records from which units and structures are taken: the first batch, as it is, which is not used up; where
        there are several processes, that of all of them."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise ValueError("`data` is an iterable without a single batch; give at least one.") from None
        self._pushed_back.append(batch)
        self._first = self._seen = batch
        if jax.process_count() > 1:
            check_arrays("data", batch)
            self._seen = process_allgather(batch, tiled=True)
        return self._seen

    def described(self) -> dict[str, Any]:
        """What has to be the same for a run to go on: the structure of batches, and a checksum of the first."""
        return {"record": describe(jax.tree.map(lambda x: x[0], self._first)), "checksum": checksum(self._seen)}

    def batch(self, step: int) -> Any:
        """The next batch, or `None` when there are no more.

        **Raises:**

        `ValueError` if it is not of the shapes of the first.
        """
        batch = self._next()
        if batch is _END:
            return None
        check_arrays("data", batch)
        if structure(batch) != structure(self._first):
            raise ValueError(
                f"`data` gave {describe(batch)} for step {step + 1}, but {describe(self._first)} before; give batches "
                "of equal structure, and drop an incomplete last one."
            )
        return batch

    def _next(self):
        if self._pushed_back:
            return self._pushed_back.pop()
        try:
            return next(self._iterator)
        except StopIteration:
            if self._iterator is self._iterable:
                return _END
            self._iterator = iter(self._iterable)
            self._passes += 1
            return next(self._iterator, _END)

    def _get_state(self):
        return self._iterator.get_state() if hasattr(self._iterator, "get_state") else None

    def state(self) -> Any:
        """Where the iterator is, as JSON; `None` where it cannot say."""
        state = self._initial_state if self._pushed_back else self._get_state()
        if isinstance(state, bytes):
            return {"passes": self._passes, "base64": base64.b64encode(state).decode()}
        return None if state is None else {"passes": self._passes, "state": state}

    def restore(self, state: Any, step: int):
        """Goes to where the iterator was after `step` steps."""
        if state is None:
            for index in range(step):
                if self.batch(index) is None:
                    raise ValueError(
                        f"`data` ended after {index} batches, but {step} were used before; give the same iterable."
                    )
            return
        self._pushed_back.clear()
        if state["passes"]:
            self._iterator = iter(self._iterable)
        self._passes = state["passes"]
        self._iterator.set_state(base64.b64decode(state["base64"]) if "base64" in state else state["state"])


def as_batches(data: Any, batch_size: int, seed: tuple[int, ...]) -> ArrayBatches | IterableBatches:
    """The batches of the data of a `fit`: of arrays in memory, or those that an iterable yields."""
    return ArrayBatches(data, batch_size, seed) if isinstance(data, Example | View) else IterableBatches(data)


def seed_of(key: Key) -> tuple[int, ...]:
    """The words of a key, as a seed for NumPy."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return tuple(int(x) for x in np.ravel(jr.key_data(key) if typed else key))


def checksum(tree: Any) -> int:
    """A checksum of all values of a PyTree of arrays."""
    total = 0
    for x in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(jax.device_get(x)).view(np.uint8).data, total)
    return total


def warn_exhausted(step: int, steps: int):
    warnings.warn(f"`data` ended after {step} of {steps} steps; training stops here.", stacklevel=4)
