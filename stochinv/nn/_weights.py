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
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._custom_types import Structure

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


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The named arrays of a `.npz` or `.safetensors` file.

    **Arguments:**

    - `path`: the file; its ending tells its format.

    **Returns:**

    A dictionary from names to arrays.

    **Raises:**

    `FileNotFoundError` if there is no such file; `ImportError` if it takes safetensors, which is not installed;
    `ValueError` if it is of another format or damaged.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"`path`: there is no file {path}.")
    ending = os.path.splitext(path)[1]
    if ending not in (".npz", ".safetensors"):
        raise ValueError(f"`path`: {path} must end in .npz or .safetensors, the formats that can be read; convert it.")
    try:
        if ending == ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file.files}
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError(
                "Files in the format safetensors need it installed: `pip install 'stochinv[weights]'`."
            ) from error
        return load_file(path)
    except ImportError:
        raise
    except Exception as error:
        if not isinstance(error, ValueError | OSError | EOFError | KeyError | zipfile.BadZipFile) and (
            type(error).__module__.partition(".")[0] not in ("safetensors", "safetensors_rust", "zlib")
        ):
            raise
        raise ValueError(f"`path`: {path} is damaged ({error}); use another copy.") from error


def load_weights(generator: _Generator, path: str | os.PathLike) -> _Generator:
    """A generator with the weights of a file.

    **Arguments:**

    - `generator`: an [`stochinv.nn.MLPGenerator`][], [`stochinv.nn.DCGANGenerator`][] or
        [`stochinv.nn.StyleGAN2Generator`][] of the right sizes, with any weights.
    - `path`: a `.npz` or `.safetensors` file with the state dictionary of the same generator in PyTorch.

    **Returns:**

    The generator with its arrays replaced, each in the dtype that it had.

    **Raises:**

    `ValueError` if a tensor is missing, of another shape, or left over, naming the first of them; otherwise as
    [`stochinv.nn.read_tensors`][].
    """
    if not isinstance(generator, AbstractGenerator):
        raise ValueError(f"`generator` must be one of `stochinv.nn`, got {type(generator).__name__}.")
    state = {name: x for name, x in read_tensors(path).items() if name.rpartition(".")[2] not in IGNORED}
    wanted = generator.tensors()
    names = _by_order(wanted, state) if generator.by_order else {name: name for name in wanted}
    remedy = "make the generator with the sizes of the file, or give its own file"
    values = []
    for name, tensor in wanted.items():
        have = jnp.shape(tensor.where(generator))
        axes = tuple(range(len(have))) if tensor.axes is None else tensor.axes
        expected = [0] * len(have)
        for i, axis in enumerate(axes):
            expected[axis] = have[i]
        stored = state.get(names.get(name, ""))
        if stored is None:
            raise ValueError(f"`path`: {path} has no tensor for {name}, of shape {tuple(expected)}; {remedy}.")
        if stored.shape != tuple(expected):
            raise ValueError(
                f"`path`: {path} has shape {stored.shape} for {names[name]}, where this generator has shape "
                f"{tuple(expected)}; {remedy}."
            )
        values.append(jnp.asarray(stored.transpose(axes), tensor.where(generator).dtype))
    left_over = [name for name in state if name not in names.values()]
    if left_over:
        raise ValueError(f"`path`: {path} has {left_over[0]}, which this generator lacks; {remedy}.")
    return eqx.tree_at(lambda g: [tensor.where(g) for tensor in wanted.values()], generator, values)


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
