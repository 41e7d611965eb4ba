"""Intensities of Fourier transforms against NumPy, what they cannot tell apart, and problems with them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import refuse

SHAPE = (6, 5)


def complex_normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)


def intensities(field):
    """By NumPy, of a field whose zero frequency is in the corner."""
    return np.fft.fftshift(np.abs(np.fft.fft2(np.asarray(field, complex), norm="ortho")) ** 2)


IMAGE, MASK, PROBE = complex_normal(*SHAPE), complex_normal(*SHAPE, seed=1), complex_normal(3, 4, seed=2)
OBJECT, SHIFT = complex_normal(8, 9, seed=3), jnp.asarray([2, 4])
CASES = {
    "fourier": (si.forward.FourierIntensity(), IMAGE, None),
    "fourier_real": (si.forward.FourierIntensity(3), jnp.real(IMAGE), None),
    "coded": (si.forward.CodedDiffraction(), IMAGE, MASK),
    "ptychography": (si.forward.Ptychography(PROBE), OBJECT, SHIFT),
}


@pytest.mark.parametrize("oversampling", [1, 2, 3])
def test_fourier_intensity_against_numpy(oversampling):
    for image in (IMAGE, jnp.real(IMAGE)):
        measured = si.forward.FourierIntensity(oversampling)(image, None)
        padded = np.zeros([oversampling * size for size in SHAPE], complex)
        # Anywhere in the frame: where does not show.
        padded[-SHAPE[0] :, : SHAPE[1]] = image
        assert measured.dtype == jnp.float32
        np.testing.assert_allclose(measured, intensities(padded), atol=1e-5)
        np.testing.assert_allclose(jnp.sum(measured), np.sum(np.abs(image) ** 2), rtol=1e-5)


def test_masks_and_probes_against_numpy():
    masked = si.forward.CodedDiffraction()(IMAGE, MASK)
    np.testing.assert_allclose(masked, intensities(MASK * IMAGE), atol=1e-4)
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], SHAPE), jnp.float32)
    np.testing.assert_allclose(si.forward.CodedDiffraction()(IMAGE, signs), intensities(signs * IMAGE), atol=1e-4)
    seen = si.forward.Ptychography(PROBE)(OBJECT, SHIFT)
    np.testing.assert_allclose(seen, intensities(PROBE * OBJECT[2:5, 4:8]), atol=1e-4)
    moved_inside = si.forward.Ptychography(PROBE)(OBJECT, jnp.asarray([-9, 99]))
    np.testing.assert_allclose(moved_inside, intensities(PROBE * OBJECT[:3, 5:9]), atol=1e-4)


def test_the_zero_frequency_is_in_the_middle():
    measured = np.asarray(si.forward.FourierIntensity()(jnp.ones(SHAPE), None))
    assert np.unravel_index(measured.argmax(), measured.shape) == SHAPE


def with_border(size=6):
    """A complex image with an empty row and column on every side."""
    return jnp.pad(complex_normal(size - 2, size - 2), 1)


SYMMETRIES = {
    "phase": lambda x: x * np.complex64(np.exp(0.7j)),
    "moved": lambda x: jnp.roll(x, (1, -1), (0, 1)),
    "turned": lambda x: jnp.conj(x[::-1, ::-1]),
}
BROKEN = ("moved", "turned")


@pytest.mark.parametrize("name", SYMMETRIES)
@pytest.mark.parametrize("oversampling", [1, 2])
def test_what_fourier_intensities_cannot_tell_apart(name, oversampling):
    forward, image = si.forward.FourierIntensity(oversampling), with_border()
    other = SYMMETRIES[name](image)
    assert jnp.max(jnp.abs(other - image)) > 0.1
    np.testing.assert_allclose(forward(other, None), forward(image, None), atol=1e-5)


def test_without_a_frame_images_move_around_the_edges():
    other = jnp.roll(IMAGE, (2, 3), (0, 1))
    without, within = si.forward.FourierIntensity(1), si.forward.FourierIntensity(2)
    np.testing.assert_allclose(without(other, None), without(IMAGE, None), atol=1e-5)
    assert difference(within(other, None), within(IMAGE, None)) > 0.1


def difference(a, b):
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)


@pytest.mark.parametrize("name", SYMMETRIES)
@pytest.mark.parametrize("case", ["coded", "ptychography"])
def test_what_masks_and_probes_tell_apart(name, case):
    image = with_border()
    forward, params = {
        "coded": (si.forward.CodedDiffraction(), complex_normal(6, 6, seed=1)),
        "ptychography": (si.forward.Ptychography(PROBE), jnp.asarray([1, 1])),
    }[case]
    apart = difference(forward(SYMMETRIES[name](image), params), forward(image, params))
    assert apart > 0.1 if name in BROKEN else apart < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_that_is_symmetric_breaks_nothing(masked):
    mask = complex_normal(6, 6, seed=1)
    mask = mask + jnp.conj(mask[::-1, ::-1]) if masked else jnp.ones((6, 6))
    forward, image = si.forward.CodedDiffraction(), with_border()
    np.testing.assert_allclose(forward(SYMMETRIES["turned"](image), mask), forward(image, mask), atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_derivative(name):
    """Of weighted intensities, which are quadratic, so that central differences are exact."""
    forward, image, params = CASES[name]
    step = jnp.asarray(complex_normal(*image.shape, seed=5), image.dtype) if jnp.iscomplexobj(image) else 1 + image**2
    weights = jnp.asarray(np.random.default_rng(0).normal(size=forward(image, params).shape), jnp.float32)
    loss = lambda s: jnp.sum(weights * forward(s, params))
    expected = (loss(image + step) - loss(image - step)) / 2
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(image) * step).real, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(jax.jvp(loss, (image,), (step,))[1], expected, rtol=1e-3, atol=1e-3)
    # Intensities are smooth where magnitudes are not.
    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros_like(image)), 0)


@pytest.mark.parametrize("name", ["coded", "ptychography"])
def test_every_record_has_its_own_parameters(name):
    forward, image, _ = CASES[name]
    images = jnp.stack([image, 2 * image, image**2])
    params = complex_normal(3, *SHAPE) if name == "coded" else jnp.asarray([[0, 0], [1, 5], [4, 2]])
    measured = jax.jit(jax.vmap(forward))(images, params)
    for one, signal, phi in zip(measured, images, params, strict=True):
        np.testing.assert_allclose(one, forward(signal, phi), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coded", pytest.param("ptychography", marks=pytest.mark.slow)])
def test_a_problem(name):
    """A complex image from counts behind three masks, and from noisy intensities at three places."""
    shape, rng = (3, 3), np.random.default_rng(0)
    signal = jax.ShapeDtypeStruct(shape, jnp.complex64)
    images = complex_normal(32, *shape)
    if name == "coded":
        forward, noise = si.forward.CodedDiffraction(), si.PoissonNoise(background=1.0)
        params = complex_normal(32, 3, *shape, seed=1)
        clean = jax.vmap(jax.vmap(forward, (None, 0)))(images, params)
        observed = np.float32(rng.poisson(clean + 1.0))
    else:
        forward, noise = si.forward.Ptychography(PROBE[:2, :2]), 0.1
        params = jnp.asarray(rng.integers(0, 2, (32, 3, 2)))
        clean = jax.vmap(jax.vmap(forward, (None, 0)))(images, params)
        observed = np.float32(clean + 0.1 * rng.normal(size=clean.shape))
    data = si.View(observed, params)
    problem = si.StochasticInverseProblem(forward, noise=noise, signal=signal)
    fit = problem.fit(data, key=jr.key(0), steps=2, rounds=1, batch_size=16, progress=False)
    draws = fit.problem.posterior(jax.tree.map(lambda x: x[0], data)).sample(jr.key(1), 3)
    assert draws.shape == (3, *shape) and draws.dtype == jnp.complex64 and np.all(np.isfinite(draws))


BAD = {
    "oversampling": (lambda: si.forward.FourierIntensity(0), "`oversampling` must be an integer of at least 1, got 0"),
    "fraction": (lambda: si.forward.FourierIntensity(1.5), "`oversampling` must be an integer of at least 1, got 1.5"),
    "channels": (
        lambda: si.forward.FourierIntensity()(IMAGE[..., None], None),
        "the signal must be of shape `.height, width.`, got .6, 5, 1.",
    ),
    "no_mask": (lambda: si.forward.CodedDiffraction()(IMAGE, None), "`params` must be a mask.*6, 5.*got None"),
    "masks": (
        lambda: si.forward.CodedDiffraction()(IMAGE, jnp.ones((2, *SHAPE))),
        "`params` must be a mask.*6, 5.*got an array of float32 of shape .2, 6, 5.*several views",
    ),
    "probe": (lambda: si.forward.Ptychography(jnp.ones(3)), "`probe` must have the shape.*got .3,"),
    "large_probe": (
        lambda: si.forward.Ptychography(jnp.ones((7, 2)))(IMAGE, SHIFT),
        "`probe` of shape .7, 2. must not be larger.*6, 5",
    ),
    "no_place": (lambda: si.forward.Ptychography(PROBE)(OBJECT, None), "`params` must be the row and the column.*None"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name):
    refuse(*BAD[name], compiles=True)
