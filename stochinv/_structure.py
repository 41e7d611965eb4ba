r"""Structures: PyTrees of shapes and dtypes, as JSON data and back without looking a type up by its name.

Besides the descriptions of [`stochinv._describe`][] there is one for a node whose type is not in the caller's table,
`{"node": name, "children": [[key, value], ...]}`. It comes back as an [`stochinv._structure.Opaque`][] node. What names
the leaves of both is their path.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ._archive import DTYPES
from ._custom_types import AnyCallable, Structure
from ._describe import describe_part, name_of, names_of, of_type, one_line, rebuild_part, shape_of, walk

_KEY = 200
_PATH = 1000


@final
class Opaque(eqx.Module):
    """Stands for a node of a structure whose type is not known here.

    **Arguments:**

    - `name`: the type's name, for messages.
    - `keys`: the children's keys, in the notation of `jax.tree_util.keystr`.
    - `children`: structures, one for each key.
    """

    name: str = eqx.field(static=True)
    keys: tuple[str, ...] = eqx.field(static=True)
    children: tuple[Any, ...]

    def __repr__(self) -> str:
        parts = (f"{key.lstrip('.')}={child!r}" for key, child in zip(self.keys, self.children, strict=True))
        return f"{self.name.rpartition('.')[2]}({', '.join(parts)})"


def is_opaque(tree: Any) -> bool:
    """Whether a PyTree has a node of a type that is known by its name alone."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Opaque))
    return any(isinstance(x, Opaque) for x in found)


def encode_structure(tree: Any, kinds: Mapping[str, Callable]) -> Any:
    """A PyTree of arrays, or of their `jax.ShapeDtypeStruct`s, as JSON data without values.

    **Arguments:**

    - `tree`: any PyTree.
    - `kinds`: the classes of nodes that can be rebuilt, besides dicts, lists, tuples and `None`.

    **Raises:**

    `ValueError` for a leaf that is no array, and as in [`stochinv._describe.describe`][].
    """
    named_leaves(tree)
    return walk(functools.partial(_encode, names=names_of(kinds)), jax.tree.map(_struct, tree))


def decode_structure(node: Any, kinds: Mapping[str, Callable], name: str = "structure") -> Any:
    """The structure that [`stochinv._structure.encode_structure`][] described.

    **Arguments:**

    - `node`: the description; any JSON data.
    - `kinds`: as there. Classes are called with traced arrays, which take no memory and have no values to be checked.
    - `name`: what it is, for messages.

    **Returns:**

    A PyTree of `jax.ShapeDtypeStruct`s; nodes of other types are [`stochinv._structure.Opaque`][].

    **Raises:**

    `ValueError` if the description is damaged.
    """
    try:
        tree = jax.eval_shape(lambda: walk(functools.partial(_decode, kinds=kinds), node))
        tree = jax.tree.map(_struct, tree)
        named_leaves(tree)
    except Exception as error:
        raise ValueError(f"`{name}` cannot be rebuilt from the file ({one_line(error)}); use another copy.") from error
    return tree


def named_leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a PyTree's leaves by their path, in the order of `jax.tree.leaves`.

    Paths are those of `jax.tree_util.keystr`, and the same for an [`stochinv._structure.Opaque`][] node as for the node
    it stands for.
    """
    leaves = {}

    def visit_children(item, visit):
        path, x = item
        children = _children(x)
        for key, child in children or []:
            visit((path + key, child))
        if children is None:
            if path in leaves or len(path) > _PATH:
                raise ValueError(f"Two leaves have the path {path!r:.80}, or it is too long; rename one.")
            leaves[path] = _struct(x)

    walk(visit_children, ("", tree))
    return leaves


def count_entries(tree: Any) -> int:
    """How many numbers the arrays or the structures of a PyTree hold together."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def zeros_of(structure: Structure) -> tuple[Float[Array, " n"], AnyCallable]:
    """Zeros in some structure as a vector, and the way back."""
    return ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure))


def same_structure(a: Any, b: Any) -> bool:
    """Whether two PyTrees have the same leaves: paths, shapes and dtypes, whatever the types of their nodes."""
    a, b = ({path: _spell(x) for path, x in named_leaves(tree).items()} for tree in (a, b))
    return a == b


def _encode(x, visit, names):
    known = x is None or type(x) in (dict, list, tuple) or id(type(x)) in names
    children = None if known else _children(x)
    if children is None:
        return describe_part(x, visit, names)
    name = x.name if isinstance(x, Opaque) else name_of(type(x), names)
    return {"node": name, "children": [[key, visit(child)] for key, child in children]}


def _children(x) -> list[tuple[str, Any]] | None:
    """The children of a node of a PyTree with their keys, `None` for a leaf."""
    if isinstance(x, Opaque):
        return list(zip(x.keys, x.children, strict=True))
    whole = iter([False])
    pairs, _ = jtu.tree_flatten_with_path(x, is_leaf=lambda _: next(whole, True))
    return None if [path for path, _ in pairs] == [()] else [(jtu.keystr(path), child) for path, child in pairs]


def _struct(x) -> jax.ShapeDtypeStruct:
    if isinstance(x, bool | int | float | complex):
        return jax.ShapeDtypeStruct((), jnp.result_type(x))
    if not (hasattr(x, "shape") and hasattr(x, "dtype") and x.dtype.name in DTYPES):
        raise ValueError(
            f"A structure has a leaf of type {type(x).__name__}, which is no array of numbers; leave it out."
        )
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _spell(leaf) -> str:
    return "missing" if leaf is None else f"{leaf.dtype.name}{list(leaf.shape)}"


def _decode(node, visit, kinds):
    match sorted(node) if type(node) is dict else None:
        case ["dtype", "struct"]:
            return _placeholder(node)
        case ["children", "node"]:
            pairs = [(of_type(key, str), visit(child)) for key, child in of_type(node["children"], list)]
            keys = tuple(key for key, _ in pairs)
            if len(set(keys)) < len(keys) or any(len(key) > _KEY for key in keys):
                raise ValueError("a node has a key twice, or a long one")
            return Opaque(of_type(node["node"], str)[:_KEY], keys, tuple(child for _, child in pairs))
    return rebuild_part(node, visit, kinds)


def _placeholder(node):
    """A traced array of the described shape and dtype."""
    dtype = DTYPES[of_type(node["dtype"], str)]
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"it has {dtype.name}, but JAX computes in single precision; enable `jax_enable_x64`")
    shape = shape_of(node["struct"])
    if math.prod(shape) >= 2**62:
        raise ValueError("a shape is not valid")
    return jnp.zeros(shape, dtype)
