r"""Laws as maps of standard normal numbers: `s = T(z)`, `z ~ N(0, I)`, one to one.

NumPyro's distributions tell such a map by their location and scale, by the transforms they are made of, or, of one
variable, by their quantiles: `T(z) = F⁻¹(Φ(z))`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._checks import shown
from ._custom_types import AnyCallable, PyTree, Signal, Structure
from ._lazy import is_distribution, numpyro

WANTED = (
    "a NumPyro distribution of the signal that is normal, uniform, has `cdf` and `icdf`, or is made of such by "
    "transforms, or a PyTree of these like the signal"
)


def check_law(name: str, law: PyTree) -> None:
    """Raises a `ValueError` if a law is no map of normal numbers.

    **Arguments:**

    - `name`: what it is, for the error.
    - `law`: a PyTree of NumPyro distributions.
    """
    parts = jax.tree.leaves(law, is_leaf=is_distribution)
    if not parts or not all(is_distribution(x) for x in parts):
        raise ValueError(f"{name} must be {WANTED}, got {shown(law)}.")
    for part in parts:
        try:
            like = jax.ShapeDtypeStruct(part.shape(), jnp.result_type(float))
            there, back_again = as_map(part)
            back = jax.eval_shape(lambda z, a=there, b=back_again: b(a(z)), like)
        except (NotImplementedError, ImportError) as error:  # how NumPyro says that it has no quantiles
            why = f": {error}" if str(error) else ""
            raise ValueError(f"{name} must be {WANTED}, got {shown(part)}{why}.") from error
        if back.shape != like.shape:
            raise ValueError(f"{name} must be {WANTED}, but {shown(part)} has fewer free numbers than entries.")


def normal_structure(law: PyTree) -> Structure:
    """The `jax.ShapeDtypeStruct`s of the normal numbers behind one signal, which are those of the signal too."""
    shape = lambda part: jax.ShapeDtypeStruct(part.shape(), jnp.result_type(float))
    return jax.tree.map(shape, law, is_leaf=is_distribution)


def from_normal(law: PyTree, z: PyTree) -> Signal:
    """The signal that normal numbers make."""
    return jax.tree.map(lambda part, z: as_map(part)[0](z), law, z, is_leaf=is_distribution)


def to_normal(law: PyTree, signal: Signal) -> PyTree:
    """The normal numbers behind a signal; not finite where the law excludes it."""
    return jax.tree.map(lambda part, x: as_map(part)[1](x), law, signal, is_leaf=is_distribution)


def as_map(law: Any) -> tuple[AnyCallable, AnyCallable]:
    """A NumPyro distribution as the map from normal numbers to its draws, and the map back."""
    d: Any = numpyro.distributions
    if isinstance(law, d.Independent | d.ExpandedDistribution):
        return as_map(law.base_dist)
    if isinstance(law, d.Normal):
        return (lambda z: law.loc + law.scale * z), (lambda x: (x - law.loc) / law.scale)
    if isinstance(law, d.MultivariateNormal):
        solve = lambda y: jax.scipy.linalg.solve_triangular(law.scale_tril, y[..., None], lower=True)
        return (
            lambda z: law.loc + jnp.squeeze(law.scale_tril @ z[..., None], -1),
            lambda x: jnp.squeeze(solve(x - law.loc), -1),
        )
    if isinstance(law, d.TransformedDistribution):
        to_base, from_base = as_map(law.base_dist)
        transform = d.transforms.ComposeTransform(law.transforms)
        return (lambda z: transform(to_base(z))), (lambda x: from_base(transform.inv(x)))
    return (lambda z: law.icdf(jax.scipy.special.ndtr(z))), (lambda x: jax.scipy.special.ndtri(law.cdf(x)))
