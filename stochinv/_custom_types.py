"""Aliases for the array and PyTree types that appear in the library's signatures."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import diffrax as dfx
import jax
from jaxtyping import Array, ArrayLike as ArrayLike, Bool, Float, Key as _TypedKey, PRNGKeyArray, UInt32

if TYPE_CHECKING:
    # To a static checker that of jaxtyping is no type at all.
    PyTree: TypeAlias = Any
    Structure: TypeAlias = Any
    Solver: TypeAlias = dfx.AbstractSolver[Any]
    StepSizeController: TypeAlias = dfx.AbstractStepSizeController[Any, Any]
    BrownianPath: TypeAlias = dfx.AbstractBrownianPath[Any]
else:
    from jaxtyping import PyTree as PyTree

    Structure: TypeAlias = PyTree[jax.ShapeDtypeStruct]
    Solver: TypeAlias = dfx.AbstractSolver
    StepSizeController: TypeAlias = dfx.AbstractStepSizeController
    BrownianPath: TypeAlias = dfx.AbstractBrownianPath

Key: TypeAlias = PRNGKeyArray
Keys: TypeAlias = _TypedKey[Array, " draws"] | UInt32[Array, "draws words"]
FloatScalar: TypeAlias = Float[Array, ""]
FloatScalarLike: TypeAlias = float | int | Float[Array, ""]
BoolScalarLike: TypeAlias = bool | Bool[Array, ""]
Signal: TypeAlias = PyTree
Observation: TypeAlias = PyTree
Params: TypeAlias = PyTree
Context: TypeAlias = PyTree
AnyCallable: TypeAlias = Callable[..., Any]


def summary(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
