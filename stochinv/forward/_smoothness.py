r"""A robust, edge-aware penalty on how displacement fields vary."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._custom_types import FloatScalar


@final
class FlowSmoothness(eqx.Module):
    """Penalises differences of neighbouring displacements, less so across edges of the source frame.

    It is `weight` times the mean over neighbours of `e^(−sharpness |Δx|) (√(|Δu|² + ε²) − ε)`: robust, since it grows
    linearly with the jump of the displacement `Δu`, and edge-aware by the jump `Δx` of the source's grey values. It is
    a regulariser for the objectives of [`stochinv.forward.Warp`][]: `ProperScore(regulariser=FlowSmoothness(0.01))`.
    What measurements tell of a displacement field ends where the source has no texture; there it chooses. A small
    weight leaves what they do tell almost as it is.

    **Arguments:**

    - `weight`: at least 0, in units of the loss per pixel of displacement.
    - `sharpness`: at least 0, per unit of the source's grey values; 0 takes all neighbours alike.
    - `epsilon`: positive, in pixels: jumps below it count quadratically.
    - `margin`: that of the warp, in pixels, at least 0.

    ??? cite "Source"

        Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms for computed imaging"; the
        weights at edges as in Godard et al. 2017, "Unsupervised monocular depth estimation with left-right
        consistency", section 3.
    """

    weight: float
    sharpness: float = 10.0
    epsilon: float = 0.1
    margin: int = 0

    def __check_init__(self) -> None:
        if self.weight < 0 or self.sharpness < 0 or self.margin < 0 or not self.epsilon > 0:
            raise ValueError(
                "FlowSmoothness: `weight`, `sharpness` and `margin` must be at least 0 and `epsilon` positive, got "
                f"{self.weight}, {self.sharpness}, {self.margin} and {self.epsilon}."
            )

    def __call__(
        self, signal: Float[Array, "rows columns 2"], params: Shaped[Array, "height width channels"]
    ) -> FloatScalar:
        """The penalty.

        **Arguments:**

        - `signal`: the displacement field, in pixels.
        - `params`: the source frame.

        **Returns:**

        A scalar, at least 0.
        """
        rows, columns, _ = signal.shape
        height, width, _ = params.shape
        inner = params[self.margin : height - self.margin, self.margin : width - self.margin]
        source = jnp.asarray(inner, signal.dtype)
        source = jax.image.resize(source, (rows, columns, source.shape[-1]), "linear")
        total, number = jnp.zeros((), signal.dtype), 0
        for axis in (0, 1):
            edge = jnp.mean(jnp.abs(jnp.diff(source, axis=axis)), -1)
            square = jnp.sum(jnp.diff(signal, axis=axis) ** 2, -1)
            jump = jnp.sqrt(square + self.epsilon**2) - self.epsilon
            total = total + jnp.sum(jnp.exp(-self.sharpness * edge) * jump)
            number += jump.size
        return self.weight * total / max(number, 1)
