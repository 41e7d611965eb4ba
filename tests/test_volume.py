"""Volume rendering: closed forms, numeric integration, finite differences, and renders by Mitsuba."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage

import stochinv as si

K = np.array([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]])
CAMERA = si.forward.Camera(K, si.forward.look_at((3, 0.4, 0.7), (0, 0, 0), (0, 0, 1)), (16, 16))


@eqx.filter_jit
def measure(forward, field, params):
    return forward(field, params)


@eqx.filter_jit
def render(forward, field, params):
    return forward.render(field, params)


def inverse_softplus(x):
    return np.log(np.expm1(x))


def logit(x):
    return np.log(x) - np.log1p(-x)


def uniform_field(density, colour, shape=(3, 4, 5), **box):
    values = np.broadcast_to(logit(np.asarray(colour)), (*shape, 3))
    raw = np.full(shape, inverse_softplus(density))
    return si.forward.VoxelField(jnp.asarray(raw, jnp.float32), jnp.asarray(values, jnp.float32), **box)


def random_field(shape=(6, 5, 7), **options):
    keys = jr.split(jr.key(3))
    return si.forward.VoxelField(1.5 * jr.normal(keys[0], shape), jr.normal(keys[1], (*shape, 3)), **options)


def chord(camera, lower, upper):
    """The length of each ray inside a box, by clipping in double precision."""
    rays = camera.rays()
    o, d = np.asarray(rays.origins, float), np.asarray(rays.directions, float)
    a, b = (lower - o) / d, (upper - o) / d
    return np.maximum(np.min(np.maximum(a, b), -1) - np.max(np.minimum(a, b), -1), 0)


@pytest.mark.parametrize("samples", [1, 7])
def test_a_uniform_medium(samples):
    """`1 − exp(−σ L)`, exactly for any number of samples; the depth is that of the truncated exponential law."""
    lower, upper = (-0.7, -0.5, -0.6), (0.6, 0.5, 0.4)
    field = uniform_field(1.3, (0.2, 0.5, 0.9), lower=lower, upper=upper)
    length = chord(CAMERA, np.array(lower), np.array(upper))
    assert 10 < np.sum(length > 0) < 250
    opacity = 1 - np.exp(-1.3 * length)
    seen = render(si.forward.VolumeRenderer(samples), field, CAMERA)
    np.testing.assert_allclose(seen.opacity, opacity, atol=2e-5)
    np.testing.assert_allclose(seen.colour, opacity[..., None] * [0.2, 0.5, 0.9], atol=2e-5)
    image = measure(si.forward.VolumeRenderer(samples, background=(1.0, 0.5, 0.0)), field, CAMERA)
    np.testing.assert_allclose(image, np.asarray(seen.colour) + (1 - opacity[..., None]) * [1, 0.5, 0], atol=2e-5)
    rgba = measure(si.forward.VolumeRenderer(samples, background=None), field, CAMERA)
    np.testing.assert_allclose(rgba, np.concatenate([seen.colour, seen.opacity[..., None]], -1))


def test_a_thin_slab_dims_what_is_behind_it():
    """Across a slab at an angle the path is `thickness / cos`; far behind it there is an opaque wall."""
    slab = uniform_field(4.0, (0.9, 0.1, 0.1), lower=(-0.05, -5.0, -5.0), upper=(0.05, 5.0, 5.0))
    rays = CAMERA.rays()
    cosine = -np.asarray(rays.directions)[..., 0]
    passed = np.exp(-4.0 * 0.1 / cosine)
    image = measure(si.forward.VolumeRenderer(4, background=(0.0, 1.0, 0.0)), slab, CAMERA)
    np.testing.assert_allclose(
        image, np.stack([0.9 * (1 - passed), 0.1 + 0.9 * passed, 0.1 * (1 - passed)], -1), atol=1e-4
    )


class Sphere(si.forward.AbstractField):
    """A dense ball with a hard edge, whose colour is a function of place."""

    radius: jax.Array
    lower: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    upper: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, points, directions):
        inside = jnp.linalg.norm(points, axis=-1) < self.radius
        return jnp.where(inside, 400.0, 0.0), 0.5 + 0.5 * points


def test_a_hard_edged_sphere():
    """Every ray through the ball shows the colour where it enters, and its distance; the others show nothing."""
    radius, samples = 0.6, 1500
    seen = render(si.forward.VolumeRenderer(samples), Sphere(jnp.asarray(radius)), CAMERA)
    rays = CAMERA.rays()
    o, d = np.asarray(rays.origins, float), np.asarray(rays.directions, float)
    middle = -np.sum(o * d, -1)
    closest = np.sqrt(np.sum(o**2, -1) - middle**2)
    hit, miss = closest < radius - 0.01, closest > radius
    np.testing.assert_allclose(seen.opacity[miss], 0, atol=1e-6)
    np.testing.assert_allclose(seen.opacity[hit], 1, atol=1e-3)
    distance = middle - np.sqrt(np.maximum(radius**2 - closest**2, 0))
    entered = o + distance[..., None] * d
    tolerance = 1 / 400 + 2 * np.sqrt(3) / samples  # the mean free path, and a step
    assert np.max(np.abs(np.asarray(seen.depth) - distance)[hit]) < 1.5 * tolerance
    assert np.max(np.abs(np.asarray(seen.colour) - (0.5 + 0.5 * entered))[hit]) < tolerance


def test_against_numeric_integration():
    """The integrals over a ray by scipy, with field values interpolated by scipy too, for many samples."""
    lower, upper = (-0.8, -0.9, -1.0), (0.7, 0.8, 0.9)
    field = random_field(lower=lower, upper=upper, density_scale=2.0)
    rays = CAMERA.rays()
    one = si.forward.Rays(rays.origins[7, 5], rays.directions[7, 5])
    o, d = np.asarray(one.origins, float), np.asarray(one.directions, float)
    grid = np.concatenate([field.density[..., None], field.colour], -1).astype(float)
    distances = np.linspace(0, 6, 6001)
    points = o + distances[:, None] * d
    unit = (points - lower) / (np.array(upper) - lower)
    inside = np.all((unit >= 0) & (unit <= 1), -1)
    coordinates = (unit * (np.array(grid.shape[:3]) - 1)).T
    raw = np.stack(
        [scipy.ndimage.map_coordinates(grid[..., i], coordinates, order=1) for i in range(grid.shape[-1])], -1
    )
    density = np.where(inside, 2 * np.logaddexp(raw[:, 0], 0), 0)
    colour = 1 / (1 + np.exp(-raw[:, 1:]))
    passed = np.exp(-scipy.integrate.cumulative_trapezoid(density, distances, initial=0))
    expected = scipy.integrate.trapezoid((passed * density)[:, None] * colour, distances, axis=0)
    expected = expected + passed[-1]
    np.testing.assert_allclose(measure(si.forward.VolumeRenderer(4000), field, one), expected, atol=2e-3)


@pytest.mark.thorough
def test_gradients_by_finite_differences():
    forward = si.forward.VolumeRenderer(12, background=None)
    field = random_field()
    weights = jr.normal(jr.key(5), (16, 16, 4))
    loss = jax.jit(lambda f: jnp.sum(weights * forward(f, CAMERA)))
    direction = jax.tree.map(lambda x: jr.normal(jr.key(6), x.shape), field)
    _, slope = jax.jit(lambda: jax.jvp(loss, (field,), (direction,)))()
    gradient = jax.jit(jax.grad(loss))(field)
    backwards = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    moved = lambda h: loss(jax.tree.map(lambda x, d: x + h * d, field, direction))
    np.testing.assert_allclose(slope, (moved(1e-2) - moved(-1e-2)) / 2e-2, rtol=1e-2)
    np.testing.assert_allclose(slope, backwards, rtol=1e-4)


@pytest.mark.slow
def test_checkpoint_changes_nothing():
    field = random_field()
    for function in (
        lambda r: r(field, CAMERA),
        lambda r: jax.grad(lambda f: jnp.sum(r(f, CAMERA) ** 2))(field).density,
    ):
        plain, other = (function(si.forward.VolumeRenderer(8, **o)) for o in ({}, {"checkpoint": True}))
        np.testing.assert_allclose(plain, other, atol=1e-4)


def test_subsets_of_rays_and_crops_are_parts_of_the_image():
    field, forward = random_field(), si.forward.VolumeRenderer(9)
    image = measure(forward, field, CAMERA)
    some = (jnp.asarray([7, 0]), jnp.asarray([3, 12]))
    rays = jax.tree.map(lambda x: x[some], CAMERA.rays())
    np.testing.assert_allclose(measure(forward, field, rays), image[some], atol=1e-5)
    part = measure(forward, field, CAMERA.crop((1, 0), (8, 8), stride=2))
    np.testing.assert_allclose(part, image[1::2, ::2], atol=2e-4)


@pytest.mark.slow
def test_stratified_samples_have_no_bias():
    """Over random offsets the mean optical depth is the integral, while that of the middles is off."""
    field = random_field(shape=(9, 9, 9), density_scale=0.3)
    rays = CAMERA.rays()
    one = si.forward.Rays(rays.origins[8, 8], rays.directions[8, 8])
    depth = lambda samples, offsets=None: (
        -jnp.log1p(
            -si.forward.VolumeRenderer(samples)
            .render(field, si.forward.Rays(one.origins, one.directions, offsets))
            .opacity
        )
    )
    truth = depth(5000)
    drawn = jax.jit(jax.vmap(lambda key: depth(3, jr.uniform(key, (3,)))))(jr.split(jr.key(0), 4000))
    error = jnp.std(drawn) / np.sqrt(len(drawn))
    assert abs(jnp.mean(drawn) - truth) < 4 * error
    assert abs(depth(3) - truth) > 4 * error


def test_light_is_followed_inside_of_the_box_and_ahead():
    field = uniform_field(1.0, (0.5, 0.5, 0.5))
    opacity = lambda place: (
        render(
            si.forward.VolumeRenderer(5), field, si.forward.Rays(jnp.asarray([place, 0, 0]), jnp.asarray([1.0, 0, 0]))
        ).opacity
    )
    for place, length in ((-3.0, 2), (0.0, 1), (3.0, 0)):
        np.testing.assert_allclose(opacity(place), 1 - np.exp(-length), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.forward.VolumeRenderer(0), "num_samples"),
        (lambda: si.forward.VolumeRenderer(background=(0.0, float("inf"), 0.0)), "background"),
        (lambda: si.forward.VolumeRenderer()(jnp.zeros(3), CAMERA), "field"),
        (lambda: si.forward.VolumeRenderer()(random_field(), jnp.eye(4)), "Camera"),
        (lambda: si.forward.VolumeRenderer(4)(random_field(), with_offsets(3)), "offsets"),
        (lambda: si.forward.VoxelField(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2, 3))), "at least 2"),
        (lambda: si.forward.VoxelField(jnp.zeros((2, 2, 2)), jnp.zeros((2, 2, 2, 5))), "3 values of"),
        (lambda: random_field(lower=(0.0, 0.0, 0.0), upper=(1.0, 0.0, 1.0)), "lower"),
        (lambda: random_field(density_scale=0.0), "density_scale"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def with_offsets(number):
    rays = CAMERA.rays()
    return si.forward.Rays(rays.origins, rays.directions, jnp.zeros((16, 16, number)))


@pytest.mark.thorough
def test_tri_planes_against_scipy():
    keys = jr.split(jr.key(4), 6)
    box = {"lower": (-1.0, -0.5, -2.0), "upper": (1.0, 1.5, 2.0)}
    shapes = ((3, 5, 5, 2), (2, 7), (7,), (7, 4), (4,))
    arrays = [jr.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    names = ("planes", "hidden", "hidden_bias", "out", "out_bias")
    field = si.forward.TriPlaneField(**dict(zip(names, arrays, strict=True)), **box, density_scale=3.0)
    points = jr.uniform(keys[5], (40, 3), minval=jnp.asarray(box["lower"]), maxval=jnp.asarray(box["upper"]))
    density, colour = measure(field, points, points)
    planes, hidden, hidden_bias, out, out_bias = (np.asarray(x, float) for x in arrays)
    unit = (np.asarray(points) - box["lower"]) / (np.array(box["upper"]) - box["lower"]) * 4
    features = sum(
        np.stack([scipy.ndimage.map_coordinates(plane[..., i], unit[:, axes].T, order=1) for i in range(2)], -1)
        for plane, axes in zip(planes, ([1, 2], [0, 2], [0, 1]), strict=True)
    )
    raw = np.maximum(features @ hidden + hidden_bias, 0) @ out + out_bias
    np.testing.assert_allclose(density, 3 * np.logaddexp(raw[:, 0], 0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(colour, 1 / (1 + np.exp(-raw[:, 1:])), atol=1e-4)
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(si.forward.VolumeRenderer(4)(f, CAMERA) ** 2)))(field)
    assert all(np.all(np.isfinite(x)) and np.any(x != 0) for x in jax.tree.leaves(gradient))


class Fog(si.forward.AbstractField):
    """Density by linear interpolation between the centres of cells, as Mitsuba's grids have it."""

    cells: jax.Array
    lower: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    upper: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, points, directions):
        sizes = jnp.asarray(self.cells.shape, points.dtype)
        place = ((points + 1) / 2 * sizes - 0.5) / (sizes - 1)
        density = si.forward._volume_voxels.interpolate(self.cells[..., None], place)[..., 0]
        return density, jnp.zeros((*density.shape, 3))


@pytest.mark.slow
def test_against_mitsuba():
    """What passes through an absorbing medium before a white sky, as Mitsuba's path tracer for volumes estimates it."""
    mi = pytest.importorskip("mitsuba")
    mi.set_variant("scalar_rgb")
    cells = np.random.default_rng(0).uniform(0, 1.5, (5, 6, 7)).astype(np.float32)
    to_box = mi.ScalarTransform4f().translate([-1, -1, -1]).scale([2, 2, 2])
    grid = mi.VolumeGrid(np.ascontiguousarray(cells.transpose(2, 1, 0))[..., None])
    medium = {
        "type": "heterogeneous",
        "albedo": {"type": "constvolume", "value": 0.0},
        "sigma_t": {"type": "gridvolume", "grid": grid, "filter_type": "trilinear", "to_world": to_box},
    }
    number = 1024
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "volpath", "max_depth": 8, "rr_depth": 100},
            "sky": {"type": "constant", "radiance": 1.0},
            "box": {"type": "cube", "bsdf": {"type": "null"}, "interior": medium},
            "sensor": {
                "type": "perspective",
                "fov": float(2 * np.rad2deg(np.arctan(8 / 20))),
                "to_world": mi.ScalarTransform4f(np.asarray(CAMERA.pose, float) @ np.diag([-1.0, -1, 1, 1])),
                "film": {"type": "hdrfilm", "width": 16, "height": 16, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": number},
            },
        }
    )
    reference = np.array(mi.render(scene))[..., 0]
    # Pixels are averages there: four rays through each.
    fine = si.forward.Camera(np.diag([2, 2, 1]) @ K, CAMERA.pose, (32, 32))
    opacity = np.asarray(render(si.forward.VolumeRenderer(200), Fog(jnp.asarray(cells)), fine).opacity)
    passed = 1 - opacity.reshape(16, 2, 16, 2).mean((1, 3))
    inside = (np.asarray(passed) < 0.9) & (np.asarray(passed) > 0.02)
    assert inside.sum() > 60
    error = np.sqrt(passed * (1 - passed) / number)
    assert np.all(np.abs(reference - passed)[inside] < 5 * error[inside] + 0.01)  # 0.01: four rays for a pixel
    assert abs(np.mean((reference - passed)[inside])) < 5 * error[inside].mean() / np.sqrt(inside.sum()) + 2e-3
