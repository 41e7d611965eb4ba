r"""Configurations as JSON data, and back from a closed table.

A scalar is itself; everything else is an object with one of these sets of keys:

    {"float": "nan"}  {"complex": [re, im]}  {"list": [...]}  {"tuple": [...]}  {"dict": [[key, value], ...]}
    {"array": [...] or SHA-256, "dtype", "shape"}  {"struct": shape, "dtype"}  {"dtype": name}
    {"type": name, "fields": {field: value}}     a dataclass, a module or a named tuple
    {"function": name}  {"object": name}         a callable; anything else, of which nothing but the type is known

A name is a key of the caller's table `kinds` of classes and functions, or else `module.qualname`. The former are the
only ones that are ever looked up, and in that table alone; the latter are compared and shown. What a table holds is
called with any data that a file may hold, so it must be cheap and free of side effects, whatever its arguments.
"""

import dataclasses
import enum
import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._archive import DTYPES

_LEVELS = 50
_NODES = 100_000
_ENTRIES = 1024
_SHOWN = 5
_SCALAR_TYPES = {dtype.type for dtype in DTYPES.values()}


def describe(x: Any, kinds: Mapping[str, Callable] | None = None) -> Any:
    """All of a configuration as JSON data.

    **Arguments:**

    - `x`: any object. Arrays of more than 1024 entries are described by a checksum.
    - `kinds`: classes and functions by a short name without dots, which stays the same when code moves.

    **Returns:**

    The description, as in the head of this file.

    **Raises:**

    `ValueError` for what has more than 50 levels or 100 000 parts, or contains itself.
    """
    try:
        return walk(functools.partial(describe_part, names=names_of(kinds)), x)
    except ValueError as error:
        raise ValueError(f"{type(x).__name__} cannot be described ({error}); give a simpler one.") from error


def rebuild(node: Any, kinds: Mapping[str, Callable], name: str = "object") -> Any:
    """The object that [`stochinv._describe.describe`][] described.

    **Arguments:**

    - `node`: the description; any JSON data.
    - `kinds`: the classes and functions that may occur. Classes are called with their fields as keyword arguments.
    - `name`: what it is, for messages.

    **Raises:**

    `ValueError` for anything else, from the exception of a class that refuses its fields.
    """
    try:
        return walk(functools.partial(rebuild_part, kinds=kinds), node)
    except Exception as error:
        raise ValueError(
            f"`{name}` cannot be rebuilt from the file ({one_line(error)}); give it yourself, or use another copy."
        ) from error


def differences(saved: Any, here: Any, name: str) -> list[str]:
    """Where two descriptions differ, in words.

    **Arguments:**

    - `saved`: the description in a file; any JSON data.
    - `here`: one of [`stochinv._describe.describe`][].
    - `name`: what is described, the start of every path.

    **Returns:**

    At most 5 clauses, such as "`schedule.log_snr_max` is 12.5 in the file and 10.0 here".
    """
    found = []
    _compare(saved, here, name, found)
    return found


def walk(one, x):
    """`one(x, visit)`, where `visit(part)` is the same for a part of `x`, within bounds."""
    count = iter(range(_NODES))

    def at(level, x):
        if level > _LEVELS or next(count, None) is None:
            raise ValueError(f"it has more than {_LEVELS} levels or {_NODES} parts, or contains itself")
        return one(x, functools.partial(at, level + 1))

    return at(0, x)


def names_of(kinds):
    return {id(kind): name for name, kind in (kinds or {}).items()}


def name_of(kind, names) -> str:
    return names.get(id(kind)) or f"{kind.__module__}.{kind.__qualname__}"


def _fields(kind) -> list[tuple[str, bool]]:
    """The fields of a class, and whether they are arguments; none for other classes."""
    if dataclasses.is_dataclass(kind):
        return [(field.name, field.init) for field in dataclasses.fields(kind)]
    return [(field, True) for field in kind._fields] if _is_namedtuple(kind) else []


def _is_namedtuple(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def describe_part(x, visit, names):
    kind = type(x)
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, enum.Enum):
        return {"object": f"{name_of(kind, names)}.{x.name}"}
    if isinstance(x, str | int):
        return str(x) if isinstance(x, str) else int(x)
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else {"float": str(float(x))}
    if isinstance(x, complex):
        return {"complex": [visit(x.real), visit(x.imag)]}
    if isinstance(x, jax.ShapeDtypeStruct):
        return {"struct": list(x.shape), "dtype": x.dtype.name}
    if isinstance(x, np.dtype | type(jnp.float32)) or (isinstance(x, type) and x in _SCALAR_TYPES):
        return {"dtype": jnp.dtype(x).name}
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return _describe_array(x, visit)
    if isinstance(x, dict):
        return {"dict": [[visit(key), visit(value)] for key, value in x.items()]}
    if isinstance(x, list | tuple) and kind in (list, tuple):
        return {kind.__name__: [visit(part) for part in x]}
    if not isinstance(x, type) and (dataclasses.is_dataclass(x) or _is_namedtuple(kind)):
        # A field without a value is as good as its name.
        fields = {field: visit(getattr(x, field, field)) for field, _ in _fields(kind)}
        return {"type": name_of(kind, names), "fields": fields}
    if isinstance(x, functools.partial):
        return {
            "type": name_of(kind, names),
            "fields": {"func": visit(x.func), "args": visit(x.args), "keywords": visit(x.keywords)},
        }
    if callable(x) and hasattr(x, "__qualname__"):
        return {"function": name_of(x, names)}
    return {"object": name_of(kind, names)}


def _describe_array(x, visit):
    dtype = x.dtype.name
    x = np.asarray(jr.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
    if x.size > _ENTRIES or x.dtype.name not in DTYPES:
        values: Any = hashlib.sha256(x.astype(x.dtype.newbyteorder("<")).tobytes()).hexdigest()
    else:
        values = [visit(value) for value in (x if x.dtype.kind in "biuc" else x.astype(float)).ravel().tolist()]
    return {"array": values, "dtype": dtype, "shape": list(x.shape)}


def rebuild_part(node, visit, kinds):
    if node is None or type(node) in (bool, int, float, str):
        return node
    if type(node) is not dict:
        raise ValueError("a description is no JSON object")
    match sorted(node):
        case ["float"] if node["float"] in ("nan", "inf", "-inf"):
            return float(node["float"])
        case ["complex"]:
            real, imag = (visit(part) for part in node["complex"])
            return complex(of_type(real, float), of_type(imag, float))
        case ["dtype"]:
            return DTYPES[of_type(node["dtype"], str)]
        case ["dtype", "struct"]:
            return jax.ShapeDtypeStruct(shape_of(node["struct"]), DTYPES[of_type(node["dtype"], str)])
        case ["array", "dtype", "shape"]:
            return _rebuild_array(node, visit)
        case ["dict"]:
            pairs = [(visit(key), visit(value)) for key, value in of_type(node["dict"], list)]
            if len({of_type(key, str, int, float, bool, type(None)) for key, _ in pairs}) < len(pairs):
                raise ValueError("a dict has a key twice")
            return dict(pairs)
        case ["list"]:
            return [visit(part) for part in of_type(node["list"], list)]
        case ["tuple"]:
            return tuple(visit(part) for part in of_type(node["tuple"], list))
        case ["function"]:
            return _look_up(node["function"], kinds)
        case ["fields", "type"]:
            return _rebuild_instance(node, visit, kinds)
    raise ValueError(f"{_text(node)} is no data that can be rebuilt")


def _rebuild_instance(node, visit, kinds):
    kind = _look_up(node["type"], kinds)
    expected = _fields(kind) if isinstance(kind, type) else []
    given = of_type(node["fields"], dict)
    if not isinstance(kind, type) or set(given) != {field for field, _ in expected}:
        raise ValueError(f"{_label(node['type'])} has other fields here")
    return kind(**{field: visit(given[field]) for field, is_argument in expected if is_argument})


def _rebuild_array(node, visit):
    dtype = DTYPES[of_type(node["dtype"], str)]
    shape = shape_of(node["shape"])
    values = [visit(value) for value in of_type(node["array"], list)]
    accepted = {"b": [bool], "i": [int], "u": [int], "c": [complex]}.get(dtype.kind, [float])
    for value in values:
        of_type(value, *accepted)
    if len(values) > _ENTRIES or len(values) != math.prod(shape):
        raise ValueError("an array has another size than its shape")
    return jnp.asarray(np.asarray(values, dtype).reshape(shape))


def shape_of(sizes) -> tuple[int, ...]:
    if not all(0 <= of_type(size, int) < 2**62 for size in of_type(sizes, list)):
        raise ValueError("a shape is not valid")
    return tuple(sizes)


def of_type(x, *kinds):
    if type(x) not in kinds:
        raise ValueError(f"{_text(x)} is no {kinds[0].__name__}")
    return x


def _look_up(name, kinds):
    if type(name) is not str or name not in kinds:
        raise ValueError(f"{_label(name)} is not known here")
    return kinds[name]


def _compare(saved, here, path, found):
    """Appends to `found`; only descends where both are alike, so not deeper than `here`."""
    (head, parts), (head_here, parts_here) = _parts(saved), _parts(here)
    if head is None or head != head_here:
        if (type(saved) is bool) != (type(here) is bool) or saved != here:
            found.append(_difference(path, saved, here))
        return
    for key in parts_here | parts:
        if len(found) == _SHOWN:
            return
        if key in parts and key in parts_here:
            _compare(parts[key], parts_here[key], path + key, found)
        elif key in parts:
            found.append(f"`{path}{key}` is {_text(parts[key])} in the file and missing here")
        else:
            found.append(f"`{path}{key}` is missing in the file and {_text(parts_here[key])} here")


def _difference(path, saved, here) -> str:
    for full in (False, True):
        texts = [_text(node, full) for node in (saved, here)]
        if texts[0] != texts[1]:
            return f"`{path}` is {texts[0]} in the file and {texts[1]} here"
    return f"`{path}` has other values in the file than here: {texts[0]}"


def _parts(node) -> tuple[Any, dict[str, Any]]:
    """What has to agree before the parts of a description can be compared, and the parts; `None` if it has none."""
    match sorted(node) if type(node) is dict else None:
        case ["fields", "type"] if type(node["fields"]) is dict:
            return ("type", _text(node, True)), {f".{_label(key, True)}": part for key, part in node["fields"].items()}
        case ["dict"] if type(node["dict"]) is list and all(type(x) is list and len(x) == 2 for x in node["dict"]):
            parts = {f"[{_text(key)}]": part for key, part in node["dict"]}
            return ("dict", parts) if len(parts) == len(node["dict"]) else (None, {})
        case ["list" | "tuple" as kind] if type(node[kind]) is list:
            return kind, {f"[{i}]": part for i, part in enumerate(node[kind])}
        case ["array", "dtype", "shape"] if type(node["array"]) is list:
            entry = "" if node["shape"] == [] else ".flat[{}]"
            return ("array", _text(node)), {entry.format(i): part for i, part in enumerate(node["array"])}
    return None, {}


def _text(node, full: bool = False) -> str:
    """A description in a few words, for any JSON data."""
    if node is None or type(node) in (bool, float):
        return repr(node)
    if type(node) is int:
        return repr(node) if abs(node) < 10**30 else "a huge number"
    if type(node) is str:
        return repr(node) if len(node) <= 60 else f"{node[:60]!r}…"
    match sorted(node) if type(node) is dict else None:
        case ["float"] if type(node["float"]) is str:
            return node["float"][:4] if node["float"].isidentifier() else "a number"
        case ["fields", "type"]:
            return _label(node["type"], full)
        case ["function" | "object" | "dtype" as tag]:
            return _label(node[tag], full)
        case ["array", "dtype", "shape"] | ["dtype", "struct"]:
            shape = node.get("struct", node.get("shape"))
            sizes = shape if type(shape) is list and len(shape) <= 32 else ["?"]
            return f"{_label(node['dtype'])}[{', '.join(x if x == '?' else _text(x) for x in sizes)}]"
        case ["dict" | "list" | "tuple" as tag] if type(node[tag]) is list:
            return f"a {tag} of {len(node[tag])}"
    return "something else"


def _label(name, full: bool = False) -> str:
    """A name from a file if it is harmless, without its module unless it has to be told from another."""
    if type(name) is str and re.fullmatch(r"[\w.<>]{1,160}", name):
        return name if full else name.rpartition(".")[2]
    return "something else" if type(name) is not str else repr(name[:60])


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
