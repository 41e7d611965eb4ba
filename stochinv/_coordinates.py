r"""Real numbers without bounds in the place of a user's signals, which may be complex, bounded, or shares of a whole.

All that works on signals sees these coordinates `z`: real and imaginary parts of what is complex, and what NumPyro's
bijection `T` of a constraint makes of the rest, `s = T(z)`. Densities change by the volume, `p(s) = p(z) / |dT/dz|`.
"""

import sys
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._checks import shown
from ._complex import as_parts, from_parts
from ._custom_types import FloatScalar, Observation, Params, PyTree, Signal, Structure
from ._data_info import describe
from ._forward.base import AbstractForwardModel
from ._lazy import numpyro

REMEDY = "write NumPyro constraints such as `constraints.positive`, `None` for no bounds"


@final
class Coordinates(eqx.Module):
    """The real numbers without bounds that stand for signals which are complex or have a `support`.

    A problem has its own, `problem.coordinates`.

    **Arguments:**

    - `like`: the `jax.ShapeDtypeStruct`s of the signal.
    - `support`: the constraints that its leaves satisfy, a prefix of its PyTree; `None` for none.

    **Raises:**

    `ValueError` if `support` does not fit to the signal.
    """

    like: Structure
    support: PyTree = None

    def __check_init__(self) -> None:
        for bound, x in zip(self._bounds(), jax.tree.leaves(self.like), strict=True):
            if bound is None:
                continue
            if jnp.issubdtype(x.dtype, jnp.complexfloating):
                raise ValueError(f"`support` has {shown(bound)} for a complex part of the signal; write `None` for it.")
            if len(x.shape) < bound.event_dim:
                raise ValueError(
                    f"`support` has {shown(bound)}, which bounds vectors, for a part of the signal with the shape "
                    f"{x.shape}; give that part an axis, or change its constraint."
                )

    def _bounds(self) -> list[Any]:
        """The constraint of each leaf of the signal, `None` for no bounds."""
        if self.support is None:
            return [None] * len(jax.tree.leaves(self.like))
        bounds, prefix = jax.tree.flatten(self.support, is_leaf=is_bound)
        try:
            parts = prefix.flatten_up_to(self.like)
        except ValueError as error:
            raise ValueError(
                f"`support` is not structured as the signal {describe(self.like)} ({error}); give each part of it one."
            ) from error
        return [bound for bound, part in zip(bounds, parts, strict=True) for _ in jax.tree.leaves(part)]

    def _map(self, bounded, free, *trees):
        """Leaf by leaf: `bounded(bijection, *leaves)` where there are bounds, `free(like, *leaves)` elsewhere."""
        likes, treedef = jax.tree.flatten(self.like)
        found = [
            free(like, *leaves) if bound is None else bounded(numpyro.distributions.biject_to(bound), *leaves)
            for bound, like, *leaves in zip(self._bounds(), likes, *map(jax.tree.leaves, trees), strict=True)
        ]
        return treedef.unflatten(found)

    def from_signal(self, signal: Signal) -> PyTree:
        """The coordinates of a signal, or of many with any leading axes."""
        return self._map(lambda bijection, x: bijection.inv(x), lambda like, x: as_parts(x), signal)

    def to_signal(self, coordinates: PyTree) -> Signal:
        """The signal that has these coordinates, or many with any leading axes."""
        return self._map(lambda bijection, x: bijection(x), lambda like, x: from_parts(x, like), coordinates)

    def structure(self) -> Structure:
        """The `jax.ShapeDtypeStruct`s of the coordinates of one signal."""
        return jax.eval_shape(self.from_signal, self.like)

    def log_volume(self, coordinates: PyTree) -> FloatScalar:
        """`log |dT/dz|` of one signal, by which `log p(z)` is larger than `log p(s)`."""
        bounded = lambda bijection, z: jnp.sum(bijection.log_abs_det_jacobian(z, bijection(z)))
        return sum(jax.tree.leaves(self._map(bounded, lambda like, z: 0.0, coordinates)), jnp.zeros(()))

    def check(self, name: str, signals: Signal) -> None:
        """Raises a `ValueError` if signals that a user gave are not inside their bounds.

        **Arguments:**

        - `name`: what they are, for the error.
        - `signals`: signals with any leading axes.
        """
        for bound, x in zip(self._bounds(), jax.tree.leaves(signals), strict=True):
            if bound is None:
                continue
            inside = np.all(np.asarray(bound(jnp.asarray(x))))
            if not inside or not np.all(np.isfinite(np.asarray(numpyro.distributions.biject_to(bound).inv(x)))):
                raise ValueError(
                    f"`{name}` has signals that are not inside of the `support` {shown(bound)}, or on its edge; leave "
                    "their records out, or change `support`."
                )


@final
class RealForward(AbstractForwardModel):
    """A forward model of coordinates, whose measurements are real too.

    **Arguments:**

    - `forward`: the forward model.
    - `coordinates`: those of its signal; `None` for signals that are real and without bounds.
    """

    forward: AbstractForwardModel
    coordinates: Coordinates | None = None

    def __call__(self, signal: Signal, params: Params) -> Observation:
        signal = signal if self.coordinates is None else self.coordinates.to_signal(signal)
        return as_parts(self.forward(signal, params))


def coordinates_of(signal: Structure | None, support: PyTree = None) -> Coordinates:
    """The coordinates of signals.

    **Raises:**

    `ValueError` if their structure is not known.
    """
    if signal is None:
        raise ValueError("The problem does not know its signal yet; give `signal=`, or fit it first.")
    return Coordinates(signal, support)


def is_bound(x: Any) -> bool:
    """Whether this is a leaf of a `support`."""
    known = "numpyro" in sys.modules and isinstance(x, numpyro.distributions.constraints.Constraint)
    return x is None or known


def as_support(support: Any) -> Any:
    """The constraints that a user gave.

    **Raises:**

    `ValueError` if one of them is no constraint, or none of real numbers.
    """
    bounds = jax.tree.leaves(support, is_leaf=is_bound)
    if any(not is_bound(bound) for bound in bounds):
        raise ValueError(f"`support` must be a PyTree of constraints, got {shown(support)}; {REMEDY}.")
    for bound in bounds:
        if bound is not None and not has_bijection(bound):
            raise ValueError(f"`support` has {shown(bound)}, which no bijection leads to; {REMEDY}.")
    return support


def has_bijection(bound: Any) -> bool:
    """Whether NumPyro has a bijection between the real numbers and what satisfies a constraint."""
    if bound.is_discrete:
        return False
    try:
        numpyro.distributions.biject_to(bound)
    except NotImplementedError:  # how NumPyro says that it has none
        return False
    return True


def refuse_support(support: Any):
    """Raises a `ValueError` if there is a support, for measurement space."""
    if support is not None:
        raise ValueError(
            "`support` is for signal space, but the problem is in measurement space; leave it out, and map real "
            "numbers to signals in `forward`."
        )


def told_support(support: Any) -> list[str]:
    """What a file says of constraints."""
    return [repr(bound)[:200] for bound in jax.tree.leaves(support, is_leaf=is_bound)]
