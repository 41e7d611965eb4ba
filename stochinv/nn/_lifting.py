r"""A denoiser that makes a voxel field out of posed images, by lifting their features into it.

1. Each view, of the context or the noisy target, is turned by a transformer into features on a *frustum*: on `depths`
   planes across the field's box, at every pixel.
2. The grid's points are projected into every view, and each collects the view's features there. A view whose image does
   not contain a point says so.
3. What the views say of a point is averaged, weighted by a softmax over the views: any number of them, in any order.
4. A perceptron at each point, modulated by the latent code and by the component that was chosen, makes density and
   colour of it.

All that depends on code and component is the last step, so that draws from the same views share the other three. What
context views say is computed once for all noise levels and draws. It is the image-conditioned field of Yu et al. 2021,
"pixelNeRF", evaluated once on a grid and not at every sample of every ray.
"""

from typing import Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Context, Key, Observation, Params
from .._denoiser.base import AbstractEncodingDenoiser, AbstractMixtureDenoiser
from .._schedule import NoiseLevel
from .._view import View, is_view, view_mask
from ..forward._camera import Camera
from ..forward._volume_voxels import VoxelField, interpolate
from ._conv import blocks_to_channels
from ._embedding import NoiseEmbedding
from ._film import FiLM
from ._linear import Linear
from ._misc import check_divides, check_positive
from ._transformer import PatchTransformer
from ._unrolled import unrolled

_SIZE = 128  # of the embedding and of the conditioning vector
_CLEAN_LOG_SNR = 30.0
_EMPTY = -4.0  # raw density of a fresh field
_OUTSIDE = -20.0  # and where there is never anything
_PERIODS = (2.0, 1.0, 0.5)  # of the depth's features, in depths of the box
_NUM_PLACE = 6 + 2 * len(_PERIODS)


class PointBlock(eqx.Module):
    """A hidden layer with a shortcut, whose features are scaled and shifted."""

    inward: Linear
    film: FiLM
    outward: Linear

    def __init__(self, width: int, condition_size: int, *, key: Key) -> None:
        keys = jr.split(key, 3)
        self.inward = Linear(width, width, key=keys[0])
        self.film = FiLM(condition_size, width, key=keys[1])
        self.outward = Linear(width, width, key=keys[2])

    def __call__(
        self, h: Float[Array, "points width"], condition: Float[Array, " size"]
    ) -> Float[Array, "points width"]:
        return h + self.outward(jax.nn.relu(self.film(self.inward(h), condition)))


@final
class LiftedViews(eqx.Module):
    """What views say of a field's points, and of the scene.

    **Arguments:**

    - `view`: the views.
    - `features`, `logits`: what each says of each point, and how much it counts there.
    - `summaries`: what each says of the scene.
    """

    view: View
    features: Float[Array, "views points width"]
    logits: Float[Array, "views points"]
    summaries: Float[Array, "views size"]


@final
class LiftingDenoiser(AbstractMixtureDenoiser, AbstractEncodingDenoiser):
    """Makes a [`stochinv.forward.VoxelField`][] of the noisy target and any number of context views.

    The parameters of the target and of the context's views are [`stochinv.forward.Camera`][]s; all images have one
    size. With a key it chooses a component by the probabilities that it gives to each, and draws the latent code
    `z ~ N(0, I)`; without one the most probable component is the answer, with `z = 0`.

    **Arguments:**

    - `image_shape`: `(height, width, channels)` of the views.
    - `resolution`: grid points of the field along each axis, at least 2.
    - `lower`, `upper`: the corners of the field's box, in the units of the scene.
    - `support`: where the field may be anything but empty: in the whole `"box"`, or in the `"ball"` inside of it, which
        takes half the time.
    - `density_scale`: of the field, in units of one over length.
    - `width`, `depth`: of the transformer.
    - `patch_size`: height and width in pixels of its patches; a multiple of `feature_stride`.
    - `feature_stride`: pixels from one feature of a view to the next, a divisor of its height and width.
    - `depths`: planes of a view's frustum, at least 2.
    - `channels`: features on each of them, at least 1.
    - `point_width`, `point_depth`: hidden features and hidden layers of the perceptron at each point.
    - `latent_size`: the length of `z`, at least 0. With 0 a draw is the choice of a component and nothing else, and all
        draws of the energy score share one evaluation. With several components its first weights are a tenth of the
        usual ones.
    - `num_components`: signals to choose from, at least 1; see [`stochinv.AbstractMixtureDenoiser.components`][]. The
        cost of decoding and rendering in training is multiplied by it, that of sampling is not.
    - `checkpoint`: as of [`stochinv.nn.PatchTransformer`][].
    - `key`: a PRNG key for the weights.

    ??? cite "Source"

        Tewari et al. 2023, "Diffusion with forward models", section 4.1; Yu et al. 2021, "pixelNeRF".
    """

    encoder: PatchTransformer
    embedding: NoiseEmbedding
    lift: Linear
    importance: Linear
    code: Linear | None
    summary: Linear
    choice: Linear
    offsets: Float[Array, "components size"]
    blocks: tuple[PointBlock, ...]
    out: Linear
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    resolution: int = eqx.field(static=True)
    lower: tuple[float, float, float] = eqx.field(static=True)
    upper: tuple[float, float, float] = eqx.field(static=True)
    support: Literal["box", "ball"] = eqx.field(static=True)
    density_scale: float = eqx.field(static=True)
    depths: int = eqx.field(static=True)
    feature_stride: int = eqx.field(static=True)
    latent_size: int = eqx.field(static=True)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        resolution: int = 24,
        lower: tuple[float, float, float] = (-1.0, -1.0, -1.0),
        upper: tuple[float, float, float] = (1.0, 1.0, 1.0),
        support: Literal["box", "ball"] = "box",
        density_scale: float = 20.0,
        width: int = 192,
        depth: int = 4,
        patch_size: int = 4,
        feature_stride: int = 2,
        depths: int = 16,
        channels: int = 8,
        point_width: int = 48,
        point_depth: int = 2,
        latent_size: int = 16,
        num_components: int = 1,
        checkpoint: bool = False,
        key: Key,
    ) -> None:
        check_positive(depths=depths, channels=channels, point_width=point_width, num_components=num_components)
        keys = jr.split(key, 10)
        sizes = (image_shape, depths * channels, patch_size, feature_stride)
        self.encoder = _frustum_encoder(*sizes, width=width, depth=depth, checkpoint=checkpoint, keys=keys[:2])
        self.embedding = NoiseEmbedding(_SIZE, key=keys[2])
        self.lift = Linear(channels + image_shape[2] + _NUM_PLACE, point_width, key=keys[3])
        self.importance = Linear(point_width, 1, zero_init=True, key=keys[4])
        self.code = None
        if latent_size > 0:
            code = Linear(latent_size, _SIZE, key=keys[5])
            # Weak beside the offsets, so that modes are told apart by the choice before the code can mix them.
            weak = code.weight if num_components == 1 else 0.1 * code.weight
            self.code = eqx.tree_at(lambda c: c.weight, code, weak)
        self.summary = Linear(depths * channels, _SIZE, key=keys[6])
        self.choice = Linear(depths * channels, num_components, zero_init=True, key=keys[8])
        self.offsets = jr.normal(keys[9], (num_components, _SIZE))
        *block_keys, out_key = jr.split(keys[7], point_depth + 1)
        self.blocks = tuple(PointBlock(point_width, _SIZE, key=k) for k in block_keys)
        out = Linear(point_width, 4, zero_init=True, key=out_key)
        self.out = eqx.tree_at(lambda o: o.bias, out, jnp.asarray([_EMPTY, 0.0, 0.0, 0.0]))
        self.image_shape = image_shape
        self.resolution = resolution
        self.lower, self.upper = lower, upper
        self.support = support
        self.density_scale = density_scale
        self.depths = depths
        self.feature_stride = feature_stride
        self.latent_size = latent_size

    def __check_init__(self) -> None:
        if self.latent_size < 0:
            raise ValueError(f"LiftingDenoiser: `latent_size` must be at least 0, got {self.latent_size}.")
        if self.resolution < 2 or self.depths < 2:
            raise ValueError(
                "LiftingDenoiser: `resolution` and `depths` must be at least 2, got "
                f"{self.resolution} and {self.depths}."
            )
        if self.support not in ("box", "ball"):
            raise ValueError(f'LiftingDenoiser: `support` must be "box" or "ball", got {self.support!r}.')

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> VoxelField:
        choice_key, code_key = (None, None) if key is None else jr.split(key)
        h, condition, log_shares = self._lifted(noisy, level, context, params, code_key)
        index = jnp.argmax(log_shares) if choice_key is None else jr.categorical(choice_key, log_shares)
        return self._field(h, condition + self.offsets[index])

    def components(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> tuple[VoxelField, Float[Array, " components"]]:
        h, condition, log_shares = self._lifted(noisy, level, context, params, key)
        return jax.vmap(lambda offset: self._field(h, condition + offset))(self.offsets), log_shares

    def encode(self, context: Context) -> LiftedViews:
        """What each view of a context says, whatever the target."""
        self._check_context(context)
        number = context.observation.shape[0]
        log_snr = jnp.full(number, _CLEAN_LOG_SNR, context.observation.dtype)
        return self._lift_views(View(context.observation, context.params, view_mask(context)), log_snr)

    def _with_context(self, target, log_snr, context):
        """All views in one stack, the target first, and their log-SNRs: a training step takes a seventh longer where
        they are lifted apart."""
        self._check_context(context)
        context = View(context.observation, context.params, view_mask(context))
        stack = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), target, context)
        return stack, jnp.pad(log_snr, (0, view_mask(context).size), constant_values=_CLEAN_LOG_SNR)

    def _lift_views(self, views, log_snr):
        points = self._grid_points(views.observation.dtype)
        said, summaries = jax.vmap(lambda *view: self._lift(points, *view))(views.observation, views.params, log_snr)
        features, logits = jax.vmap(unrolled(_hidden), (None, 0))((self.lift, self.importance), said)
        return LiftedViews(views, features, jnp.where(view_mask(views)[:, None], logits[..., 0], -jnp.inf), summaries)

    def _lifted(self, noisy, level, context, params, code_key):
        """What the views say of each point and of the scene, with the latent code, and the components' shares."""
        self._check_target(noisy, params)
        scaled = noisy / jnp.sqrt(level.alpha**2 + level.sigma**2)
        target = jax.tree.map(lambda x: jnp.asarray(x)[None], View(scaled, params, jnp.ones((), bool)))
        log_snr = jnp.asarray(level.log_snr, noisy.dtype)[None]
        if context is None or isinstance(context, LiftedViews):
            views = [self._lift_views(target, log_snr), *([] if context is None else [context])]
        else:
            views = [self._lift_views(*self._with_context(target, log_snr, context))]
        together = lambda get: jnp.concatenate([get(x).astype(get(views[0]).dtype) for x in views])
        # Written out, since a sum over a short leading axis takes as long as a tenth of a training step on CPU.
        shares = jax.nn.softmax(together(lambda x: x.logits), axis=0)[..., None]
        h = sum(share * said for share, said in zip(shares, [f for x in views for f in x.features], strict=True))
        mask = together(lambda x: view_mask(x.view))
        summary = (mask / jnp.sum(mask)).astype(noisy.dtype) @ together(lambda x: x.summaries)
        condition = self.summary(summary)
        if code_key is not None and self.code is not None:
            condition = condition + self.code(jr.normal(code_key, (self.latent_size,), noisy.dtype))
        return h, condition, jax.nn.log_softmax(self.choice(summary))

    def _field(self, h, condition):
        raw = unrolled(_decode)((self.blocks, self.out), h, jax.nn.silu(condition))
        inside = self._inside()
        if inside is not None:
            outside = jnp.asarray([_OUTSIDE, 0.0, 0.0, 0.0], raw.dtype)
            raw = jnp.broadcast_to(outside, (self.resolution**3, 4)).at[inside].set(raw, unique_indices=True)
        raw = raw.reshape(*(self.resolution,) * 3, 4)
        return VoxelField(
            density=raw[..., 0],
            colour=raw[..., 1:],
            lower=self.lower,
            upper=self.upper,
            density_scale=self.density_scale,
        )

    def _check_target(self, noisy, params):
        if not isinstance(params, Camera):
            raise ValueError(
                f"LiftingDenoiser: the target's `params` must be one `Camera`, got a {type(params).__name__}; make one "
                "by `stochinv.forward.Camera(intrinsics, pose, image_size)`."
            )
        if noisy.shape != self.image_shape:
            raise ValueError(
                f"LiftingDenoiser: images must be of shape {self.image_shape}, got {noisy.shape}; resize them, or make "
                "a denoiser for that shape."
            )

    def _check_context(self, context):
        if not (is_view(context) and isinstance(context.params, Camera)):
            raise ValueError(
                "LiftingDenoiser: the context must be a `View` with a views axis and `Camera`s as parameters, or None, "
                f"got {type(context).__name__}."
            )

    def _lift(self, points, image, camera, log_snr):
        """What one view says of the points, and of the scene as a whole."""
        height, columns, _ = self.image_shape
        inputs = jnp.concatenate([image, camera.rays().directions], -1)
        features = self.encoder(blocks_to_channels(inputs, self.feature_stride), self.embedding(log_snr))
        frustum = features.reshape(*features.shape[:2], self.depths, -1)
        pixels, depth = camera.project(points)
        middle = 0.5 * (jnp.asarray(self.lower) + jnp.asarray(self.upper)).astype(depth.dtype)
        extent = sum((b - a) ** 2 for a, b in zip(self.lower, self.upper, strict=True)) ** 0.5
        place = (depth - camera.project(middle)[1]) / extent + 0.5
        seen = jnp.stack([pixels[:, 1] / height, pixels[:, 0] / columns], -1)
        visible = jnp.all((seen > 0) & (seen < 1), -1) & (depth > 0)
        in_image, in_features = (_between_centres(seen, x.shape[:2]) for x in (image, features))
        angles = 2 * jnp.pi * place[:, None] / jnp.asarray(_PERIODS, depth.dtype)
        parts = [
            interpolate(frustum, jnp.concatenate([in_features, place[:, None]], -1)),
            interpolate(image, in_image),
            visible[:, None].astype(depth.dtype),
            place[:, None],
            jnp.sin(angles),
            jnp.cos(angles),
            points,
            jnp.broadcast_to(log_snr / 10, (len(points), 1)),
        ]
        return jnp.concatenate(parts, -1), jnp.mean(features, axis=(0, 1))

    def _grid_points(self, dtype):
        axes = [jnp.linspace(a, b, self.resolution, dtype=dtype) for a, b in zip(self.lower, self.upper, strict=True)]
        points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        inside = self._inside()
        return points if inside is None else points[inside]

    def _inside(self):
        """The indices of the grid's points in the ellipsoid inside of the box, and their neighbours."""
        if self.support == "box":
            return None
        axis = np.linspace(-1, 1, self.resolution)
        squares = np.square(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")))
        return np.flatnonzero(np.sqrt(squares.sum(0)) < 1 + 1 / self.resolution)


def _frustum_encoder(image_shape, out_channels, patch_size, feature_stride, *, width, depth, checkpoint, keys):
    """A transformer from a view, and the rays through its pixels, to features at every `feature_stride`-th of them."""
    height, columns, channels = image_shape
    check_positive(feature_stride=feature_stride)
    check_divides("feature_stride", feature_stride, "height", height)
    check_divides("feature_stride", feature_stride, "width", columns)
    check_divides("feature_stride", feature_stride, "patch_size", patch_size)
    patch_size = patch_size // feature_stride
    encoder = PatchTransformer(
        (channels + 3) * feature_stride**2,
        out_channels,
        image_size=(height // feature_stride, columns // feature_stride),
        patch_size=patch_size,
        embedding_size=_SIZE,
        width=width,
        depth=depth,
        heads=max(width // 48, 1),
        checkpoint=checkpoint,
        key=keys[0],
    )
    # Its output is lifted, not added to an answer, so it starts at random.
    return eqx.tree_at(lambda e: e.unembed, encoder, Linear(width, patch_size**2 * out_channels, key=keys[1]))


def _between_centres(fractions, sizes):
    """Fractions of an image's height and width as fractions of the way from its first pixel's centre to the last's."""
    sizes = jnp.asarray(sizes, fractions.dtype)
    return (fractions * sizes - 0.5) / (sizes - 1)


def _hidden(network, x):
    lift, importance = network
    h = jax.nn.relu(lift(x))
    return h, importance(h)


def _decode(network, h, condition):
    blocks, out = network
    for block in blocks:
        h = block(h, condition)
    return out(h)
