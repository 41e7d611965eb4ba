"""Tomography, against scikit-image, closed forms and finite differences; and counts of photons, against SciPy."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
import skimage.data
import skimage.transform

import stochinv as si
from refusals import without_annotations
from stochinv.forward import BeerLambert, FanBeam, ParallelBeam

PHOTO = skimage.data.camera() / 255.0
# Along rows and columns, along diagonals, in between, and beyond a full turn.
ANGLES = np.asarray([0.0, 17.3, 45.0, 90.0, 133.7, 180.0, 201.0, 270.0, 315.0, 359.0, 400.0])


def photo(height, width, radius):
    """A photograph, 0 farther than `radius` from the centre."""
    rows, columns = np.ogrid[:height, :width]
    inside = (rows - height // 2) ** 2 + (columns - width // 2) ** 2 <= radius**2
    return skimage.transform.resize(PHOTO, (height, width)) * inside


def assert_close(got, expected, tolerance):
    """Within a part of the largest entry."""
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("size", [4, 15, 16, 33, 64, 128])
def test_equals_scikit_image(size):
    """To float32's precision of places, some 1e-5 pixels; two pixels off the circle, at which its rays end."""
    image = photo(size, size, size // 2 - 2)
    expected = skimage.transform.radon(image, ANGLES).T
    assert_close(ParallelBeam((size, size))(jnp.asarray(image, jnp.float32), ANGLES), expected, 2e-5)


@pytest.mark.parametrize("shape", [(32, 32), (33, 33), (20, 31), (31, 20), (7, 24)])
def test_whole_images_equal_scikit_image(shape):
    """Whole but for single pixels in the corners of squares, where its rays end early."""
    num_bins = math.ceil(2**0.5 * max(shape))
    image = photo(*shape, num_bins // 2 - 2)
    expected = skimage.transform.radon(image, ANGLES, circle=False).T
    assert_close(ParallelBeam(shape, num_bins)(jnp.asarray(image, jnp.float32), ANGLES), expected, 2e-5)


@pytest.mark.parametrize("size", [8, 9])
def test_corners_are_not_cut_off(size):
    """Half a turn mirrors the bins, and no mass is lost, wherever it lies."""
    image = jr.normal(jr.key(0), (size, size))
    beam = ParallelBeam((size, size), 2 * size + 1)
    there, back = beam(image, jnp.asarray([30.0, 210.0]))
    np.testing.assert_allclose(there, back[::-1], atol=1e-5)
    np.testing.assert_allclose(jnp.sum(beam(image, 0.0)), jnp.sum(image), rtol=1e-5)


def rays_of(beam, degrees):
    """A point and the direction of each ray, in rows and columns from the centre, from the places of its ends."""
    angle = np.deg2rad(degrees)
    along, across = np.asarray([np.cos(angle), np.sin(angle)]), np.asarray([-np.sin(angle), np.cos(angle)])
    bins = np.arange(beam.num_bins) - beam.num_bins // 2
    if isinstance(beam, ParallelBeam):
        return bins[:, None] * across, np.broadcast_to(along, (len(bins), 2))
    source = -beam.source_distance * along
    ends = beam.detector_distance * along + bins[:, None] * beam.bin_width * across
    directions = ends - source
    return np.broadcast_to(source, ends.shape), directions / np.linalg.norm(directions, axis=1, keepdims=True)


def blob(size, degrees, of_beam):
    """The projections of a Gaussian blob, and their closed form, both in units of its largest."""
    width, place = size / 12, np.asarray([0.03, -0.06]) * size
    rows, columns = np.mgrid[:size, :size] - size // 2
    image = np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / (2 * width**2))
    beam = of_beam(size)
    points, directions = rays_of(beam, degrees)
    offset = place - points
    distance = offset[:, 0] * directions[:, 1] - offset[:, 1] * directions[:, 0]
    unit = (2 * np.pi) ** 0.5 * width
    return beam(jnp.asarray(image, jnp.float32), degrees) / unit, np.exp(-(distance**2) / (2 * width**2))


@pytest.mark.parametrize("degrees", [0.0, 28.0, 135.0, 250.0])
@pytest.mark.parametrize(
    "of_beam",
    [
        lambda size: ParallelBeam((size, size)),
        lambda size: FanBeam((size, size), size, 1.5 * size, 1.0 * size, 1.7),
        lambda size: FanBeam((size, size), size + 1, 0.9 * size, 0.0, 1.0),
    ],
    ids=["parallel", "fan", "fan_through_the_centre"],
)
def test_a_blob_is_its_closed_form(of_beam, degrees):
    """To the error of interpolation, of second order: at four times the resolution about a sixteenth.

    At right angles to pixels nothing is interpolated, and float32's rounding is left.
    """
    errors = []
    for size in (32, 128):
        got, expected = blob(size, degrees, of_beam)
        errors.append(np.abs(got - expected).max())
    assert errors[0] < 0.03 and errors[1] < max(errors[0] / 8, 1e-5)


@pytest.mark.parametrize(("distance", "bin_width"), [(0.0, 1.0), (1e7, 2.0)])
def test_a_fan_from_far_away_is_parallel(distance, bin_width):
    """The rays of the middle tilt by 2e-6; beyond float32's precision of places that is nothing."""
    image = jr.normal(jr.key(1), (20, 24, 2))
    fan = FanBeam((20, 24), 25, 1e7, distance, bin_width)
    assert_close(fan(image, ANGLES), ParallelBeam((20, 24), 25)(image, ANGLES), 1e-4)


BEAMS = {"parallel": ParallelBeam((24, 17), 29), "fan": FanBeam((24, 17), 30, 40.0, 30.0, 1.5)}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("name", BEAMS)
def test_adjoint(name, channels, dtype):
    """`⟨A s, o⟩ = ⟨s, Aᵀ o⟩`, to the rounding of float32 in sums of a thousand entries."""
    beam = BEAMS[name]
    signal = jr.normal(jr.key(2), (*beam.shape, *channels), dtype)
    observation = jr.normal(jr.key(3), (len(ANGLES), beam.num_bins, *channels), dtype)
    measured, back = beam(signal, ANGLES), beam.adjoint(observation, ANGLES)
    assert measured.shape == observation.shape and measured.dtype == observation.dtype == back.dtype
    assert back.shape == signal.shape
    dot = lambda x, y: np.vdot(np.asarray(x, np.complex128), np.asarray(y, np.complex128))
    size = np.linalg.norm(measured) * np.linalg.norm(observation)
    np.testing.assert_allclose(dot(measured, observation) / size, dot(signal, back) / size, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", BEAMS)
def test_derivatives_are_finite_differences(name, x64):
    """In the image, in which it is linear, and in the angles, away from those at which a place crosses a pixel."""
    beam = BEAMS[name]
    signal, angles = jr.normal(jr.key(4), (*beam.shape, 2)), jnp.asarray([3.1, 77.7, 140.2])
    weights = jr.normal(jr.key(5), (3, beam.num_bins, 2))
    loss = lambda signal, angles: jnp.sum(weights * beam(signal, angles) ** 2)
    of_signal, of_angles = jax.grad(loss, (0, 1))(signal, angles)
    direction = jr.normal(jr.key(6), signal.shape)
    central = lambda f, step: (f(step) - f(-step)) / (2 * step)
    np.testing.assert_allclose(
        jnp.vdot(of_signal, direction), central(lambda h: loss(signal + h * direction, angles), 1e-3), rtol=1e-8
    )
    for i, one in enumerate(np.eye(3)):
        difference = central(lambda h, one=one: loss(signal, angles + h * one), 1e-7)
        np.testing.assert_allclose(of_angles[i], difference, rtol=1e-4)


def test_images_with_angles_of_their_own():
    images = np.stack([photo(16, 16, 6), photo(16, 16, 4), photo(16, 16, 5) ** 2])
    angles = np.random.default_rng(0).uniform(0, 180, (3, 4)).astype(np.float32)
    got = jax.jit(jax.vmap(ParallelBeam((16, 16))))(jnp.asarray(images, jnp.float32), angles)
    expected = [skimage.transform.radon(image, a).T for image, a in zip(images, angles, strict=True)]
    assert_close(got, np.asarray(expected), 2e-5)
    one_by_one = si.MultiView(ParallelBeam((16, 16)))(jnp.asarray(images[0], jnp.float32), jnp.asarray(angles[0]))
    np.testing.assert_allclose(one_by_one, got[0], atol=1e-5)


def test_memory_is_that_of_one_angle():
    """Of 512×512 pixels, whose places at all 360 angles would take 500 MB as one array; gradients keep ten of them."""
    beam = ParallelBeam((512, 512))
    image = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    angles = jax.ShapeDtypeStruct((360,), jnp.float32)
    loss = lambda image, angles: jnp.sum(beam(image, angles) ** 2)
    for function in (beam, jax.grad(loss, (0, 1))):
        used = jax.jit(function).lower(image, angles).compile().memory_analysis().temp_size_in_bytes
        assert used < 100e6


@pytest.mark.parametrize("size", [15, 16, 33])
def test_filtered_back_projection_equals_scikit_image(size):
    """For any sinogram, of whatever image."""
    angles = np.linspace(0, 180, 23, endpoint=False)
    sinogram = np.random.default_rng(1).normal(size=(23, size))
    beam = ParallelBeam((size, size))
    got = jax.jit(beam.filtered_back_projection)(jnp.asarray(sinogram, jnp.float32), angles)
    assert_close(got, skimage.transform.iradon(sinogram.T, angles), 1e-5)


@pytest.mark.parametrize("size", [32, 33])
def test_filtered_back_projection_of_whole_images(size):
    """Where its interpolation does not reach beyond the last bin."""
    num_bins = math.ceil(2**0.5 * size)
    angles = np.linspace(0, 360, 23, endpoint=False)
    sinogram = np.random.default_rng(2).normal(size=(23, num_bins))
    got = ParallelBeam((size, size), num_bins).filtered_back_projection(jnp.asarray(sinogram, jnp.float32), angles)
    expected = skimage.transform.iradon(sinogram.T, angles, output_size=size, circle=False)
    inside = np.hypot(*(np.mgrid[:size, :size] - size // 2)) < num_bins // 2 - 1
    assert_close(got * inside, expected * inside, 1e-5)


def test_filtered_back_projection_of_channels_and_of_one_angle():
    beam = ParallelBeam((20, 30), 35)
    sinogram = jr.normal(jr.key(7), (4, 35, 2), jnp.complex64)
    got = beam.filtered_back_projection(sinogram, jnp.arange(0.0, 180.0, 45.0))
    assert got.shape == (20, 30, 2) and got.dtype == jnp.complex64
    parts = [beam.filtered_back_projection(sinogram[:, :, 1].imag[i], 45.0 * i) for i in range(4)]
    np.testing.assert_allclose(got[..., 1].imag, sum(parts) / 4, atol=1e-5)


def test_filtered_back_projection_is_near_the_image():
    image = jnp.asarray(skimage.transform.resize(skimage.data.shepp_logan_phantom(), (64, 64)), jnp.float32)
    angles = jnp.linspace(0, 180, 100, endpoint=False)
    beam = ParallelBeam((64, 64))
    error = beam.filtered_back_projection(beam(image, angles), angles) - image
    assert jnp.sqrt(jnp.mean(error**2)) < 0.25 * jnp.std(image)


def test_low_dose():
    """The log-likelihood of counts is SciPy's, for one number of photons and for one in each bin."""
    image, angles = photo(12, 12, 5) / 4, jnp.asarray([10.0, 100.0])
    for photons in (40.0, jnp.linspace(20.0, 60.0, 12)):
        forward = si.Composed(ParallelBeam((12, 12)), BeerLambert(photons))
        problem = si.StochasticInverseProblem(
            forward, noise=si.PoissonNoise(), signal=jax.ShapeDtypeStruct((12, 12), jnp.float32)
        )
        expected = np.asarray(photons) * np.exp(-skimage.transform.radon(image, np.asarray(angles)).T)
        clean = problem.forward(jnp.asarray(image, jnp.float32), (angles, None))
        np.testing.assert_allclose(clean, expected, rtol=1e-4)
        counts = problem.noise.sample(jr.key(8), clean)
        log_prob = problem.noise.log_prob(counts, clean)
        np.testing.assert_allclose(log_prob, scipy.stats.poisson.logpmf(counts, expected).sum(), rtol=1e-4)
        known = forward.signal_structure(jax.eval_shape(lambda x: x, counts), (angles, None))
        assert known == jax.ShapeDtypeStruct((12, 12), jnp.float32)


IMAGE = jnp.ones((8, 9))
fan = lambda **changes: FanBeam(
    **dict(shape=(8, 9), num_bins=5, source_distance=20.0, detector_distance=10.0, bin_width=1.0) | changes
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelBeam(8), r"ParallelBeam: `shape` must be the \(height, width\) .* in pixels, got 8"),
        (lambda: ParallelBeam((8, 9, 1)), r"`shape` must be .* got \(8, 9, 1\)"),
        (lambda: ParallelBeam((8, 0)), r"`shape` must be .* got \(8, 0\)"),
        (lambda: ParallelBeam((8, 9), 0), "ParallelBeam: `num_bins` must be an integer of at least 1, got 0"),
        (lambda: ParallelBeam((8, 9))(IMAGE.T, 0.0), r"must be of shape \(8, 9\) or .* got \(9, 8\); give its"),
        (lambda: ParallelBeam((8, 9))(IMAGE, None), "`params` must be an angle in degrees or .* got None; use"),
        (lambda: ParallelBeam((8, 9))(IMAGE, jnp.ones((2, 3))), r"`params` must be .* of shape \(2, 3\); use"),
        (
            lambda: ParallelBeam((8, 9)).filtered_back_projection(jnp.ones((3, 8)), jnp.ones(3)),
            r"must be of shape \(3, 9\), with .*, got \(3, 8\); give `num_bins`",
        ),
        (lambda: fan(shape=(8, 9.0)), r"FanBeam: `shape` must be .* got \(8, 9.0\)"),
        (lambda: fan(num_bins=2.5), "FanBeam: `num_bins` must be an integer .* got 2.5"),
        (lambda: fan(source_distance=6.0), "`source_distance` must be .* half the image's diagonal, 6.02.*, got 6.0"),
        (lambda: fan(detector_distance=-1.0), "`detector_distance` must be .* at least 0, got -1.0"),
        (lambda: fan(bin_width=0.0), "`bin_width` must be a positive number of pixels, got 0.0"),
        (lambda: BeerLambert(0.0), "`photons` must be positive and finite, got 0.0; give the expected"),
        (lambda: BeerLambert(jnp.asarray([1.0, jnp.nan])), r"`photons` must be positive .* float32 of shape \(2,\)"),
        (lambda: BeerLambert("many"), "`photons` is 'many', but must be an array of numbers"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        make()
