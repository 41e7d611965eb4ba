r"""Mixtures of Gaussians, and what measurements make of them.

A mixture `Σ_k w_k N(μ_k, C_k)` with `C_k = U_k diag(c_k) U_kᵀ` stays one given measurements of its draws `z`:

- given `x = z + √v ε`, components have the covariances `U_k diag(c_k v / (c_k + v)) U_kᵀ`;
- given `y = B z + ε` they have the means `μ_k + C_k Bᵀ S_k⁻¹ (y − B μ_k)` with `S_k = I + B C_k Bᵀ`.

The weights are multiplied by the density that each component gives to what was measured. No precision matrix is formed:
measurements without noise are no special case.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ._custom_types import FloatScalar, FloatScalarLike, Key

# The most components that signals are ever told by.
MOST_COMPONENTS = 32


@final
class Mixture(eqx.Module):
    """A mixture of Gaussians.

    **Arguments:**

    - `log_weights`: the logarithms of the weights.
    - `means`: the means.
    - `vectors`, `variances`: the eigenvectors, as columns, and the eigenvalues of the covariances.
    """

    log_weights: Float[Array, " components"]
    means: Float[Array, "components n"]
    vectors: Float[Array, "components n n"]
    variances: Float[Array, "components n"]

    def __repr__(self) -> str:
        components, size = self.means.shape
        return f"Mixture({components} components, {size} entries)"

    def noised(self, x: Float[Array, " n"], variance: FloatScalarLike) -> "Mixture":
        """The law of `z` given `x = z + √variance ε`."""
        total = self.variances + variance
        along = jnp.einsum("kji,kj->ki", self.vectors, x - self.means)
        log_weights = self.log_weights - 0.5 * jnp.sum(along**2 / total + jnp.log(total), 1)
        means = self.means + jnp.einsum("kji,ki->kj", self.vectors, self.variances / total * along)
        variances = self.variances * variance / total
        return Mixture(jax.nn.log_softmax(log_weights), means, self.vectors, variances)

    def measured(self, rows: Float[Array, "m n"], rest: Float[Array, " m"]) -> "Measurement":
        """What the measurement `rest = rows z + ε` says, with standard normal noise."""
        turned = jnp.einsum("mj,kji->kmi", rows, self.vectors) * self.variances[:, None]
        across = jnp.einsum("kmi,kji->kmj", turned, self.vectors)
        error = rest - self.means @ rows.T
        inner = jnp.eye(rest.size, dtype=rest.dtype) + across @ rows.T
        solved, log_det = solve(inner, jnp.concatenate([across, error[..., None]], -1))
        gains, error_solved = solved[..., :-1], solved[..., -1]
        log_joint = self.log_weights - 0.5 * (log_det + jnp.sum(error * error_solved, 1))
        # Not as a product of matrices, of which there would be one for each component of each draw.
        means = self.means + jnp.sum(across * error_solved[..., None], 1)
        return Measurement(log_joint, means, across, gains)

    def draw(self, rows: Float[Array, "m n"], rest: Float[Array, " m"], key: Key) -> Float[Array, " n"]:
        """A draw given the measurement `rest = rows z + ε`.

        A draw of the two together is corrected by its difference to what was measured (Matheron's rule).
        """
        choice_key, z_key, noise_key = jr.split(key, 3)
        said = self.measured(rows, rest)
        k = jr.categorical(choice_key, said.log_joint)
        z = jnp.sqrt(self.variances[k]) * jr.normal(z_key, self.means.shape[1:], self.means.dtype)
        z = self.means[k] + self.vectors[k] @ z
        return z + said.gains[k].T @ (rest - rows @ z - jr.normal(noise_key, rest.shape, rest.dtype))


@final
class Measurement(eqx.Module):
    """A mixture and what was measured of it.

    **Arguments:**

    - `log_joint`: the logarithms of the weights times the densities of what was measured, up to a constant.
    - `means`: the means given it.
    - `across`: `B C_k`.
    - `gains`: `S_k⁻¹ B C_k`.
    """

    log_joint: Float[Array, " components"]
    means: Float[Array, "components n"]
    across: Float[Array, "components m n"]
    gains: Float[Array, "components m n"]

    @property
    def log_evidence(self) -> FloatScalar:
        """The log-density of what was measured, up to a constant."""
        return jax.nn.logsumexp(self.log_joint)

    @property
    def weights(self) -> Float[Array, " components"]:
        """The weights given it."""
        return jax.nn.softmax(self.log_joint)

    @property
    def mean(self) -> Float[Array, " n"]:
        """The mean given it."""
        return self.weights @ self.means


def solve(
    matrix: Float[Array, "*batch m m"], right: Float[Array, "*batch m columns"]
) -> tuple[Float[Array, "*batch m columns"], Float[Array, "*batch"]]:
    """`M⁻¹ R` and `log det M` for many small positive definite matrices, by elimination.

    Nothing is called for each matrix: a hundred thousand of them take a few operations on arrays.
    """
    size = matrix.shape[-1]
    both, log_det = jnp.concatenate([matrix, right], -1), jnp.zeros(matrix.shape[:-2], matrix.dtype)
    for i in range(size):
        pivot = both[..., i, i]
        row = both[..., i, :] / pivot[..., None]
        both = (both - both[..., :, i, None] * row[..., None, :]).at[..., i, :].set(row)
        log_det += jnp.log(pivot)
    return both[..., size:], log_det
