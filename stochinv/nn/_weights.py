r"""Weights of pretrained generators, from files of PyTorch's state dictionaries.

A file holds named arrays: NumPy's `.npz` or `.safetensors`. From a model in PyTorch it is written by

    numpy.savez(path, **{name: x.numpy() for name, x in model.state_dict().items()})
    safetensors.torch.save_file(model.state_dict(), path)

and read without PyTorch.
"""

import abc
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._custom_types import Structure
from .._lazy import optional

REMEDY = "make the generator with the sizes of the file, or give its own file"
# What files hold beside weights.
IGNORED = ("num_batches_tracked", "resample_filter")


class Tensor(NamedTuple):
    """Where a tensor of a file belongs.

    **Arguments:**

    - `where`: the leaf of the generator.
    - `axes`: the order in which the file's axes are taken; `None` leaves them.
    """

    where: Callable[[Any], Array]
    axes: tuple[int, ...] | None = None


class AbstractGenerator(eqx.Module):
    """A generator whose weights [`stochinv.nn.load_weights`][] can read from a file.

    `by_order` tells how: `True` for a sequence of layers, matched in the natural order of their names, whatever these
    are; `False` for matching by name.
    """

    by_order: eqx.AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def latent(self) -> Structure:
        """The `jax.ShapeDtypeStruct`s of a latent code."""

    @abc.abstractmethod
    def __call__(self, latent: Any) -> Array:
        """Generates an image, channels-last, from a latent code."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file, by name."""


_Generator = TypeVar("_Generator")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The named arrays of a `.npz` or `.safetensors` file, whose ending tells its format."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"`path`: there is no file {path}.")
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(os.path.splitext(path)[1])
    if read is None:
        raise ValueError(f"`path`: {path} must end in .npz or .safetensors, the formats that can be read; convert it.")
    return read(path)


def _read_npz(path):
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`path`: {path} is damaged ({error}); use another copy.") from error


def _read_safetensors(path):
    need = ("Files in the format safetensors need it installed", "weights")
    safetensors = optional("safetensors", *need)
    try:
        return optional("safetensors.numpy", *need).load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"`path`: {path} is damaged ({error}); use another copy.") from error


def load_weights(generator: _Generator, path: str | os.PathLike[str]) -> _Generator:
    """A generator with the weights of a file.

    **Arguments:**

    - `generator`: an [`stochinv.nn.MLPGenerator`][], [`stochinv.nn.DCGANGenerator`][] or
        [`stochinv.nn.StyleGAN2Generator`][] of the right sizes, with any weights.
    - `path`: a `.npz` or `.safetensors` file with the state dictionary of the same generator in PyTorch.

    **Returns:**

    The generator with its arrays replaced, each in the dtype that it had.

    **Raises:**

    `ValueError` if a tensor is missing, of another shape, or left over, naming the first of them, or if the file is of
    another format or damaged; `FileNotFoundError` if there is none; `ImportError` if it takes safetensors, which is not
    installed.
    """
    if not isinstance(generator, AbstractGenerator):
        raise ValueError(
            f"`generator` must be one of `stochinv.nn`, got {type(generator).__name__}; use `equinox.tree_at`."
        )
    state = {name: x for name, x in read_tensors(path).items() if name.rpartition(".")[2] not in IGNORED}
    wanted = generator.tensors()
    names = _by_order(wanted, state) if generator.by_order else {name: name for name in wanted}
    values = [_fitted(path, state, names.get(name), name, generator, tensor) for name, tensor in wanted.items()]
    left_over = [name for name in state if name not in names.values()]
    if left_over:
        raise ValueError(f"`path`: {path} has {left_over[0]}, which this generator lacks; {REMEDY}.")
    return eqx.tree_at(lambda g: [tensor.where(g) for tensor in wanted.values()], generator, values)


def _fitted(path, state, stored_name, name, generator, tensor):
    """A tensor of the file in the axes, the shape and the dtype of the generator's own."""
    own = tensor.where(generator)
    axes = tuple(range(own.ndim)) if tensor.axes is None else tensor.axes
    expected = tuple(own.shape[axes.index(axis)] for axis in range(own.ndim))
    if stored_name not in state:
        raise ValueError(f"`path`: {path} has no tensor for {name}, of shape {expected}; {REMEDY}.")
    stored = state[stored_name]
    if stored.shape != expected:
        raise ValueError(
            f"`path`: {path} has shape {stored.shape} for {stored_name}, where this generator has shape {expected}; "
            f"{REMEDY}."
        )
    return jnp.asarray(stored.transpose(axes), own.dtype)


def _by_order(wanted, state):
    """From each wanted name to that of the file, pairing modules in their natural order."""

    def modules(names, key):
        found: dict[str, dict[str, str]] = {}
        for name in sorted(names, key=key):
            module, _, kind = name.rpartition(".")
            found.setdefault(module, {})[kind] = name
        return list(found.values())

    natural = lambda name: [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in re.split(r"(\d+)", name)]
    paired = {}
    # A missing module shows as a wrong shape or a missing tensor further down, a surplus one is left over.
    for ours, theirs in zip(modules(wanted, natural), modules(state, natural), strict=False):
        paired |= {name: theirs[kind] for kind, name in ours.items() if kind in theirs}
    return paired
