r"""What the measurements say about the signal at all.

Near a signal `s`, measurements with parameters `φ_1 … φ_M` see the directions `v` with `vᵀ G v > 0`,

`G = Σ_i J_iᵀ J_i / τ²`, `J_i = ∂f(s, φ_i)/∂s`,

the Fisher information of Gaussian noise (for `τ = 0` the factor is left out). In the null space of `G` only the prior,
which the data as a whole teach, speaks.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._complex import as_parts
from .._coordinates import Coordinates, RealForward
from .._custom_types import AnyCallable, FloatScalar, Params, PyTree, Signal
from .._forward.base import AbstractForwardModel, as_forward_model
from .._noise import AbstractNoise, as_noise
from .._problem import StochasticInverseProblem
from .._view import structure
from ._common import as_rows, check_probability, largest, leading_size, new_axes

MOST_ENTRIES = 4096


@final
class SpreadSplit(eqx.Module):
    """The spread of posterior draws, in directions that measurements see and in those that none does.

    **Arguments:**

    - `seen`, `unseen`: the standard deviations per entry of the draws' parts in either subspace, like the signal and in
        its units. The parts may be correlated, so the variances need not add up entry by entry; their sums do.
    - `unseen_share`: the share of the total variance that no measurement constrains, in `[0, 1]`.
    """

    seen: PyTree
    unseen: PyTree
    unseen_share: FloatScalar


@final
class Identifiability(eqx.Module):
    """Directions of signal space by how strongly measurements see them.

    **Arguments:**

    - `singular_values`: the roots of the eigenvalues of `G`, falling, shape `(n,)`, in inverse units of the signal
        where the noise is known.
    - `directions`: the eigenvectors as columns, in the order of the singular values, shape `(n, n)`.
    - `rank`: how many directions are seen.
    - `tolerance`: singular values below `tolerance` times the largest count as zero.
    - `signal`: one of the signals, for its structure.
    """

    singular_values: Float[Array, " n"]
    directions: Float[Array, "n n"]
    rank: int
    tolerance: float
    signal: PyTree

    @property
    def seen(self) -> Float[Array, "n rank"]:
        """An orthonormal basis of the directions that measurements see, as columns."""
        return self.directions[:, : self.rank]

    @property
    def unseen(self) -> Float[Array, "n nullity"]:
        """An orthonormal basis of the directions that no measurement sees, as columns."""
        return self.directions[:, self.rank :]

    def unravel(self, vector: Float[Array, " n"]) -> Signal:
        """A vector in the structure of the signal."""
        return ravel_pytree(self.signal)[1](vector)

    @property
    def unseen_share(self) -> PyTree:
        """For each entry of the signal, the share of its unit direction that no measurement sees, in `[0, 1]`."""
        return self.unravel(jnp.sum(self.unseen**2, 1))

    def split(self, draws: Signal) -> SpreadSplit:
        """Splits the spread of posterior draws.

        **Arguments:**

        - `draws`: signals, leaves with a leading axis of at least two.

        **Returns:**

        A [`stochinv.diagnostics.SpreadSplit`][].
        """
        rows = as_rows("draws", draws)
        if rows.shape[0] < 2 or rows.shape[1] != self.directions.shape[0]:
            raise ValueError(
                f"`draws` must be at least 2 signals of {self.directions.shape[0]} entries, got {rows.shape[0]} of "
                f"{rows.shape[1]}; give some of the posterior's."
            )
        rows = rows - jnp.mean(rows, 0)
        scale = largest(rows)
        coordinates = rows / scale @ self.directions
        variance = lambda basis, part: jnp.sum((part @ basis.T) ** 2, 0) / (rows.shape[0] - 1)
        seen = variance(self.seen, coordinates[:, : self.rank])
        unseen = variance(self.unseen, coordinates[:, self.rank :])
        share = jnp.sum(unseen) / (jnp.sum(seen) + jnp.sum(unseen))
        return SpreadSplit(self.unravel(scale * jnp.sqrt(seen)), self.unravel(scale * jnp.sqrt(unseen)), share)

    def plot(self, ax: Any = None, *, draws: Signal | None = None) -> Any:
        """Draws, for a signal that is one image, a map of what is unconstrained; otherwise the spectrum.

        **Arguments:**

        - `ax`: Matplotlib axes; new ones by default.
        - `draws`: posterior draws, to map the standard deviation in unseen directions instead of `unseen_share`; for
            an image `(height, width)` or `(height, width, channels)`, where it is averaged over channels.

        **Returns:**

        The axes.
        """
        share = self.unseen_share if draws is None else self.split(draws).unseen
        leaves = [np.asarray(x) for x in jax.tree.leaves(share)]
        if len(leaves) != 1 or leaves[0].ndim not in (2, 3):
            return self.plot_spectrum(ax)
        image = leaves[0]
        if image.ndim == 3:
            image = image.mean(-1) if draws is None else np.sqrt((image.astype(np.float64) ** 2).mean(-1))
        ax = new_axes(ax)
        if draws is None:
            shown, label = ax.imshow(image, vmin=0, vmax=1, cmap="magma"), "unseen share of the entry"
        else:
            shown, label = ax.imshow(image, vmin=0, cmap="magma"), "unconstrained standard deviation"
        ax.figure.colorbar(shown, ax=ax, label=label)
        ax.set(xticks=[], yticks=[], title=f"{self.rank} of {len(self.singular_values)} directions seen")
        return ax

    def plot_spectrum(self, ax: Any = None) -> Any:
        """Draws the singular values of the stacked Jacobian, and the tolerance.

        **Arguments:**

        - `ax`: Matplotlib axes; new ones by default.

        **Returns:**

        The axes.
        """
        ax = new_axes(ax)
        singular = np.asarray(self.singular_values, np.float64)
        floor = max(singular[0], np.finfo(float).tiny) * self.tolerance
        index = np.arange(1, len(singular) + 1)
        # Rounding errors stand at a tenth of the tolerance, so that the axis ends there.
        shown = np.maximum(singular, floor / 10)
        ax.semilogy(index[: self.rank], shown[: self.rank], "o", ms=4, label="seen")
        ax.semilogy(index[self.rank :], shown[self.rank :], "x", ms=5, color="C3", label="unseen")
        ax.axhline(floor, color="0.4", lw=0.8, ls=":", label="tolerance")
        ax.set(xlabel="direction", ylabel="singular value", title=f"{self.rank} of {len(singular)} directions seen")
        ax.legend(frameon=False)
        return ax


def identifiability(
    forward: StochasticInverseProblem | AbstractForwardModel | AnyCallable,
    signals: Signal,
    params: Params,
    *,
    noise: AbstractNoise | AnyCallable | PyTree = None,
    tolerance: float | None = None,
) -> Identifiability:
    r"""Which directions of signal space measurements see, near given signals.

    The Gram matrix of the Jacobians is summed over `params` and averaged over `signals`, one Jacobian at a time. A
    direction is unseen where it is so at every signal.

    **Arguments:**

    - `forward`: a problem, a forward model, or any callable `(signal, params) -> observation`.
    - `signals`: where to linearise, e.g. posterior draws: leaves with a leading axis. One is enough for a linear `f`.
        At most 4,096 entries each. Complex signals and measurements become their real and imaginary parts, on a last
        axis.
    - `params`: the parameters of all measurements, leaves with a leading axis; `None` for a forward model without.
    - `noise`: the noise of measurements, as in [`stochinv.StochasticInverseProblem`][], of which the standard deviation
        `τ` counts. By default the problem's, 0 for a forward model. 0 leaves the measurement unweighted.
    - `tolerance`: singular values of the stacked Jacobian below `tolerance ∈ (0, 1)` times the largest count as zero.
        By default `√(n · machine epsilon)`: the Gram matrix has their squares, so that smaller ones are lost.

    **Returns:**

    An [`stochinv.diagnostics.Identifiability`][].

    **Raises:**

    `ValueError` if a signal has more than 4,096 entries.

    ??? cite "Source"

        Kaipio & Somersalo 2005, "Statistical and computational inverse problems", chapter 2, for null spaces;
        Rothenberg 1971, "Identification in parametric models", theorem 1: locally identifiable if and only if `G`
        is regular.
    """
    model, noise = _as_model_and_noise(forward, noise)
    signals, params = jax.tree.map(jnp.asarray, (signals, params))
    coordinates = Coordinates(structure(jax.tree.map(lambda x: x[0], signals)))
    model, signals = RealForward(model, coordinates), as_parts(signals)
    rows = as_rows("signals", signals)
    size = rows.shape[1]
    if size > MOST_ENTRIES:
        raise ValueError(
            f"`signals` have {size} entries, but the Gram matrix is kept whole, for at most {MOST_ENTRIES}; give a "
            "forward model of a coarser or partial signal, e.g. of coefficients of a basis."
        )
    if tolerance is None:
        tolerance = float(np.sqrt(size * jnp.finfo(rows.dtype).eps))
    check_probability("tolerance", tolerance)
    num_params = leading_size("params", params) if jax.tree.leaves(params) else 0
    example = jax.tree.map(lambda x: x[0], signals)
    singular, directions = _spectrum(model, signals, params, noise, num_params)
    rank = int(jnp.sum(singular > tolerance * singular[0]))
    return Identifiability(singular, directions, rank, tolerance, example)


def _as_model_and_noise(forward, noise):
    if isinstance(forward, StochasticInverseProblem):
        forward, noise = forward.forward, forward.noise if noise is None else noise
    return as_forward_model(forward), as_noise(0.0 if noise is None else noise)


@eqx.filter_jit
def _spectrum(model, signals, params, noise, num_params):
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], signals))
    points = jax.vmap(lambda s: ravel_pytree(s)[0])(signals)
    number, size = points.shape

    def flat(vector, params):
        observation = model(unravel(vector), params)
        scale = jax.lax.stop_gradient(noise.std(observation))
        if scale is None:
            raise ValueError(f"`noise` is {noise}, whose standard deviation is not known; give that as `noise`.")
        weigh = lambda x, n: x / jnp.where(n > 0, n, 1).astype(x.dtype)
        return ravel_pytree(jax.tree.map(weigh, observation, scale))[0]

    def jacobian(index):
        at = jax.tree.map(lambda x: x[index % num_params], params) if num_params else params
        vector = points[index // num_params if num_params else index]
        outputs = jax.eval_shape(flat, vector, at).size
        try:
            return (jax.jacrev if outputs < size else jax.jacfwd)(flat)(vector, at)
        except TypeError:  # a solver with a derivative of its own has reverse mode alone
            return jax.jacrev(flat)(vector, at)

    def add(carry, index):
        """The Gram matrix in units of the square of the largest entry so far, which is kept beside it."""
        matrix, unit = carry
        new = jacobian(index)
        larger = jnp.maximum(unit, jnp.max(jnp.abs(new), initial=0))
        safe = jnp.where(larger > 0, larger, 1)
        new = new / safe
        return ((unit / safe) ** 2 * matrix + jnp.matmul(new.T, new, precision="highest"), larger), None

    start = jnp.zeros((size, size), points.dtype), jnp.zeros((), points.dtype)
    (matrix, unit), _ = jax.lax.scan(add, start, jnp.arange(number * max(num_params, 1)))
    eigenvalues, directions = jnp.linalg.eigh(matrix / number)
    return unit * jnp.sqrt(jnp.maximum(eigenvalues[::-1], 0)), directions[:, ::-1]
