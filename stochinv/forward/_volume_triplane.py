r"""A radiance field by features on three planes and a small decoder.

The features of a point are the sum of those at its projections onto the planes (y, z), (x, z) and (x, y), interpolated
linearly; a perceptron with one hidden layer makes density and colour of them. Planes and perceptron are the signal: a
field is rendered by itself.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._volume_base import AbstractField, check_box
from ._volume_voxels import interpolate

_AXES = ((1, 2), (0, 2), (0, 1))


@final
class TriPlaneField(AbstractField):
    """A radiance field by features on three planes, and the perceptron that decodes them.

    `density = scale · softplus(·)` and `colour = sigmoid(·)` of the four outputs of `hidden` and `out`.

    **Arguments:**

    - `planes`: features, any real numbers, shape `(3, size, size, features)` with `size` at least 2: on the planes
        (y, z), (x, z) and (x, y) through the box from corner to corner.
    - `hidden`, `hidden_bias`: weights of the hidden layer, shapes `(features, width)` and `(width,)`.
    - `out`, `out_bias`: weights of the outputs, density and three colours, shapes `(width, 4)` and `(4,)`.
    - `lower`, `upper`: the corners of the box, in the units of the scene.
    - `density_scale`: in units of one over length.

    ??? cite "Source"

        Chan et al. 2022, "Efficient geometry-aware 3D generative adversarial networks", section 4.1.
    """

    planes: Float[Array, "3 size size features"]
    hidden: Float[Array, "features width"]
    hidden_bias: Float[Array, " width"]
    out: Float[Array, "width 4"]
    out_bias: Float[Array, "4"]
    lower: tuple[float, float, float] = eqx.field(static=True, default=(-1.0, -1.0, -1.0))
    upper: tuple[float, float, float] = eqx.field(static=True, default=(1.0, 1.0, 1.0))
    density_scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_box("TriPlaneField", self.lower, self.upper)
        if self.planes.shape[1] < 2:
            raise ValueError(f"TriPlaneField: `planes` must have a size of at least 2, got {self.planes.shape[1]}.")
        if not self.density_scale > 0:
            raise ValueError(f"TriPlaneField: `density_scale` must be positive, got {self.density_scale}.")

    def __call__(
        self, points: Float[Array, "*shape 3"], directions: Float[Array, "*shape 3"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape 3"]]:
        lower, upper = jnp.asarray(self.lower, points.dtype), jnp.asarray(self.upper, points.dtype)
        place = (points - lower) / (upper - lower)
        features = interpolate(self.planes[0], place[..., jnp.asarray(_AXES[0])])
        for plane, axes in zip(self.planes[1:], _AXES[1:], strict=True):
            features = features + interpolate(plane, place[..., jnp.asarray(axes)])
        raw = jax.nn.relu(features @ self.hidden + self.hidden_bias) @ self.out + self.out_bias
        return self.density_scale * jax.nn.softplus(raw[..., 0]), jax.nn.sigmoid(raw[..., 1:])
