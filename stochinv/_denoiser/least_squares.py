"""Least squares of a few unknowns by Gauss-Newton steps, without derivatives, compiled once for a batch of problems."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import AnyCallable

NUM_STEPS = 12
# Training solves one problem for each pair. A second of a processor's core is some 10¹⁰ operations.
MOST_OPERATIONS = 1e10


def is_dear(misfit: AnyCallable, start: Float[Array, " n"]) -> bool:
    """Whether `levenberg_marquardt` takes too long to be called for every record: by the compiler's count of
    operations, in which a loop whose end depends on its values counts once."""
    counted = jax.jit(misfit).lower(start).cost_analysis()
    operations = 0.0 if counted is None else counted.get("flops", 0.0)
    return (NUM_STEPS + 1) * (2 * start.size + 1) * operations > MOST_OPERATIONS


def levenberg_marquardt(
    misfit: AnyCallable, start: Float[Array, " n"], *, num_steps: int = NUM_STEPS, step: float = 0.01
) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, "m n"]]:
    """The least squares of a misfit and of a standard normal's: `‖r(z)‖² + ‖z‖²`, by damped Gauss-Newton steps.

    Derivatives are central differences: a forward model need not be differentiable, and is compiled once.

    **Returns:**

    The best point, and the misfit and its Jacobian there.
    """
    identity = jnp.eye(start.size, dtype=start.dtype)

    def evaluate(z):
        around = jnp.concatenate([z[None], z + step * identity, z - step * identity])
        values = jax.vmap(misfit)(around)
        ahead, behind = values[1 : start.size + 1], values[start.size + 1 :]
        return values[0], (ahead - behind).T / (2 * step)

    def advance(carry, _):
        best, trial, damping = carry
        rest, matrix = evaluate(trial)
        cost = jnp.sum(rest**2) + jnp.sum(trial**2)
        better = cost < best[0]
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), (cost, trial, rest, matrix), best)
        damping = jnp.where(better, damping / 5, damping * 4)
        _, z, rest, matrix = best
        normal = matrix.T @ matrix + identity
        normal = normal + damping * jnp.diag(jnp.diag(normal))
        return (best, z - jnp.linalg.solve(normal, matrix.T @ rest + z), damping), None

    shapes = jax.eval_shape(evaluate, start)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    first = (jnp.asarray(jnp.inf, start.dtype), start, *nothing)
    (best, _, _), _ = jax.lax.scan(advance, (first, start, jnp.asarray(0.1, start.dtype)), None, length=num_steps)
    return best[1:]
