r"""Emission-absorption volume rendering.

Along a ray `x(t) = o + t d` the light that reaches the camera is

`C = ∫ T(t) σ(x(t)) c(x(t), d) dt + T(∞) B`,  `T(t) = exp(−∫₀ᵗ σ(x(u)) du)`,

with the density `σ`, the colour `c` and the background `B`. The interval inside of the field's box is cut into equal
parts, in each of which field values are constant (Max 1995, "Optical models for direct volume rendering"): exact
for a uniform medium with any number of samples.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_instance, check_number
from .._custom_types import Params, Signal, Structure
from .._forward.base import AbstractForwardModel
from ._camera import Camera, Rays
from ._volume_base import AbstractField
from ._volume_voxels import VoxelField

_DENSITY_SCALE = 20.0  # of fields made by default, in the box from −1 to 1


class Rendering(eqx.Module):
    """What is seen along rays.

    **Arguments:**

    - `colour`: premultiplied by the opacity, without background, shape `(*shape, channels)`.
    - `opacity`: between 0 and 1, shape `(*shape)`.
    - `depth`: the mean distance from the camera at which light is emitted, in the units of the scene; where nothing is,
        the distance at which the box is left. Shape `(*shape)`.
    """

    colour: Float[Array, "*shape channels"]
    opacity: Float[Array, "*shape"]
    depth: Float[Array, "*shape"]


@final
class VolumeRenderer(AbstractForwardModel):
    """Images of a field, by emission and absorption along the rays of a pinhole camera.

    The signal is an [`stochinv.forward.AbstractField`][]: it holds all that is rendered, networks included. The
    parameters are a [`stochinv.forward.Camera`][], or [`stochinv.forward.Rays`][] for any subset of pixels.

    **Arguments:**

    - `num_samples`: samples along a ray, at least 1.
    - `background`: the colour behind the field, one value for all channels or one for each. With `None` a measurement
        has the opacity as its last channel, after colours premultiplied by it.
    - `checkpoint`: whether to compute field values anew for the gradient, instead of keeping those of all samples.

    ??? cite "Source"

        Max 1995, "Optical models for direct volume rendering"; Mildenhall et al. 2020, "NeRF", section 4.
    """

    num_samples: int = eqx.field(static=True, default=32)
    background: float | tuple[float, ...] | None = eqx.field(static=True, default=1.0)
    checkpoint: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"VolumeRenderer: `num_samples` must be at least 1, got {self.num_samples}; 32 is usual.")
        for value in jax.tree.leaves(self.background):
            check_number("VolumeRenderer: `background`", value, "a colour, in numbers, or None", arrays=False)

    def __call__(self, signal: Signal, params: Params) -> Float[Array, "*shape channels"]:
        """Measures the light along rays.

        **Arguments:**

        - `signal`: the field.
        - `params`: the camera or the rays.

        **Returns:**

        Shape `(height, width, channels)` for a camera, `(*shape, channels)` for rays. Colours lie between 0 and 1.

        **Raises:**

        `ValueError` if signal or parameters are of other types.
        """
        seen = self.render(signal, params)
        if self.background is None:
            return jnp.concatenate([seen.colour, seen.opacity[..., None]], -1)
        return seen.colour + (1 - seen.opacity[..., None]) * jnp.asarray(self.background, seen.colour.dtype)

    def render(self, field: Signal, params: Params) -> Rendering:
        """Colour, opacity and depth of a field, without background.

        **Arguments:**

        - `field`: the [`stochinv.forward.AbstractField`][].
        - `params`: the camera or the rays.

        **Returns:**

        A [`stochinv.forward.Rendering`][].

        **Raises:**

        `ValueError` if the field or `params` are of other types.
        """
        check_instance("VolumeRenderer: the signal", field, AbstractField, "a field such as `VoxelField(...)`")
        cameras = "a camera, `Camera(intrinsics, pose, image_size)`, or `Rays`"
        check_instance("VolumeRenderer: `params`", params, Camera | Rays, cameras)
        rays = params.rays()
        offsets = 0.5 * jnp.ones((*rays.directions.shape[:-1], 1)) if rays.offsets is None else rays.offsets
        if offsets.shape[-1] not in (1, self.num_samples):
            raise ValueError(
                f"VolumeRenderer: `offsets` need 1 or {self.num_samples} entries per ray, got {offsets.shape[-1]}; "
                "draw as many as there are samples."
            )
        march = jax.checkpoint(self._march) if self.checkpoint else self._march
        seen = march(field, *(x.reshape(-1, x.shape[-1]) for x in (rays.origins, rays.directions, offsets)))
        return jax.tree.map(lambda x: x.reshape(rays.directions.shape[:-1] + x.shape[1:]), seen)

    def _march(self, field, origins, directions, offsets):
        start, end = self._interval(field, origins, directions)
        step = (end - start) / self.num_samples
        places = (jnp.arange(self.num_samples) + offsets).astype(origins.dtype)
        distances = start[:, None] + step[:, None] * places
        along = jnp.broadcast_to(directions[:, None], (*distances.shape, 3))
        density, colour = field(origins[:, None] + distances[..., None] * along, along)
        absorbed = density * step[:, None]
        passed = jnp.exp(-(jnp.cumsum(absorbed, -1) - absorbed))
        weights = passed * -jnp.expm1(-absorbed)
        opacity = -jnp.expm1(-jnp.sum(absorbed, -1))
        depth = jnp.sum(weights * distances, -1) + (1 - opacity) * end
        return Rendering(jnp.sum(weights[..., None] * colour, -2), opacity, depth)

    def _interval(self, field, origins, directions):
        """The distances at which rays enter and leave; equal for those that miss the box."""
        dtype = origins.dtype
        away = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
        to_lower = (jnp.asarray(field.lower, dtype) - origins) / away
        to_upper = (jnp.asarray(field.upper, dtype) - origins) / away
        enter = jnp.max(jnp.minimum(to_lower, to_upper), -1)
        leave = jnp.min(jnp.maximum(to_lower, to_upper), -1)
        start = jnp.maximum(enter, 0.0)
        return start, jnp.maximum(leave, start)

    def signal_structure(self, observation: Structure, params: Params) -> Structure | None:
        """Voxels three quarters as many along each axis as an image has pixels; `None` where `params` is no camera."""
        if not isinstance(params, Camera):
            return None
        size = max(3 * max(params.image_size) // 4, 8)
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jax.tree.leaves(observation)[0].dtype)
        field = lambda density, colour: VoxelField(density=density, colour=colour, density_scale=_DENSITY_SCALE)
        return jax.eval_shape(field, array(size, size, size), array(size, size, size, 3))
