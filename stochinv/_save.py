r"""Saved problems: a zip archive with one named array per leaf, and a JSON header."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import sys
import zipfile
import zlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from ._data_info import DataInfo
from ._frozen import owned_arrays

_FORMAT = 1
_HEADER = "header.json"


def save(problem: Any, path: str | os.PathLike):
    """Writes the arrays that training determined, see [`stochinv.StochasticInverseProblem.save`][]."""
    if problem.denoiser is None:
        raise ValueError("The problem is not trained (`denoiser=None`): there is nothing to save.")
    arrays = _named(eqx.filter(problem.denoiser, owned_arrays(problem.denoiser)), "denoiser")
    info = problem.data_info
    if info is not None:
        arrays |= _named(info.mean, "mean") | _named(info.std, "std")
    header = {
        "format": _FORMAT,
        "stochinv": importlib.metadata.version("stochinv"),
        "dtypes": {name: jnp.dtype(x.dtype).name for name, x in arrays.items()},
        "signal": encode(problem.signal),
        "data_info": None if info is None else encode((info.observation, info.params, info.context, info.affine)),
    }
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    # Not by `tempfile`, whose files only their owner may read.
    temporary = os.path.join(folder, f".saving-{os.getpid()}-{os.path.basename(path)}")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(_HEADER, json.dumps(header))
            for name, x in arrays.items():
                with archive.open(name + ".npy", "w", force_zip64=True) as member:
                    # Number formats that NumPy lacks, such as bfloat16, are stored as their bytes.
                    np.lib.format.write_array(member, np.asarray(x, order="C").view(_storable(x.dtype)))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def load(problem: Any, path: str | os.PathLike) -> Any:
    """Reads a saved problem, see [`stochinv.StochasticInverseProblem.load`][]."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"`path`: there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_HEADER))
            arrays = {}
            for name, dtype in header["dtypes"].items():
                with archive.open(name + ".npy") as member:
                    arrays[name] = jnp.asarray(np.lib.format.read_array(member).view(jnp.dtype(dtype)))
    except (ValueError, KeyError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`path`: {path} is not a saved problem, or is damaged ({error}); use another copy."
        ) from error
    if header["format"] != _FORMAT:
        raise ValueError(f"`path`: {path} has format {header['format']}, but this version reads format {_FORMAT}.")
    signal = decode(header["signal"])
    info = None
    if header["data_info"] is not None:
        observation, params, context, affine = decode(header["data_info"])
        mean, std = (_fill(observation, name, arrays, path) for name in ("mean", "std"))
        info = DataInfo(observation, params, context, mean, std, affine)
    denoiser = problem.denoiser
    if denoiser is None:
        if info is None:
            raise ValueError(f"`path`: {path} does not say what its denoiser was made for; give `denoiser=`.")
        from ._fit import make_denoiser

        # The arrays are overwritten; making them costs less than a second way to make a denoiser.
        denoiser = make_denoiser(problem.forward, signal, info, problem.noise, key=jr.key(0))
    owned, rest = eqx.partition(denoiser, owned_arrays(denoiser))
    denoiser = eqx.combine(_fill(owned, "denoiser", arrays, path), rest)
    return dataclasses.replace(
        problem, denoiser=denoiser, signal=problem.signal if signal is None else signal, data_info=info
    )


def _storable(dtype):
    return dtype if np.dtype(dtype).kind in "biufc" else np.dtype(f"u{np.dtype(dtype).itemsize}")


def _named(tree, prefix):
    leaves, _ = jtu.tree_flatten_with_path(tree)
    return {prefix + jtu.keystr(path): x for path, x in leaves}


def _fill(tree, prefix, arrays, path):
    """`tree` with each leaf replaced by the stored array of its name."""

    def replace(key_path, leaf):
        name = prefix + jtu.keystr(key_path)
        shape = () if prefix in ("mean", "std") else leaf.shape
        if name not in arrays or arrays[name].shape != shape:
            got = f"shape {arrays[name].shape}" if name in arrays else "nothing"
            raise ValueError(
                f"`path`: {path} has {got} for {name}, where this problem has shape {shape}; "
                "load it into a problem with the same forward model and denoiser."
            )
        return arrays[name]

    return jtu.tree_map_with_path(replace, tree)


def encode(tree: Any) -> Any:
    """A structure (containers, modules and `jax.ShapeDtypeStruct`s) as JSON."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, jax.ShapeDtypeStruct):
        return {"shape": list(tree.shape), "dtype": jnp.dtype(tree.dtype).name}
    if isinstance(tree, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [encode(x) for x in tree]}
    kind = type(tree)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(tree, tuple):
        return {"namedtuple": name, "items": [encode(x) for x in tree]}
    if isinstance(tree, eqx.Module):
        return {"module": name, "fields": {f.name: encode(getattr(tree, f.name)) for f in dataclasses.fields(tree)}}
    raise ValueError(
        f"A context or params of type {name} cannot be saved; build it from dicts, lists, tuples and Equinox modules."
    )


def decode(data: Any) -> Any:
    """The structure that `encode` described."""
    if not isinstance(data, dict):
        return data
    if "shape" in data:
        return jax.ShapeDtypeStruct(tuple(data["shape"]), jnp.dtype(data["dtype"]))
    if "dict" in data:
        return {decode(k): decode(v) for k, v in data["dict"]}
    if "list" in data:
        return [decode(x) for x in data["list"]]
    if "tuple" in data:
        return tuple(decode(x) for x in data["tuple"])
    module, _, name = (data.get("namedtuple") or data["module"]).partition(":")
    if module not in sys.modules:
        raise ValueError(f"The saved problem uses {module}.{name}; import {module} before loading it.")
    kind: Any = functools.reduce(getattr, name.split("."), sys.modules[module])
    if "namedtuple" in data:
        return kind(*(decode(x) for x in data["items"]))
    if not (isinstance(kind, type) and issubclass(kind, eqx.Module)):
        raise ValueError(f"The saved problem uses {module}.{name}, which is not an Equinox module.")
    instance = object.__new__(kind)
    for field, value in data["fields"].items():
        object.__setattr__(instance, field, decode(value))
    return instance
