"""Point spread functions against closed forms, and convolution with them against SciPy."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from scipy import special

import stochinv as si
from stochinv._training.probe import is_affine
from stochinv.forward import Blur, Downsample, gaussian_psf, moffat_psf, pupil_psf

MODES = {"edge": "nearest", "reflect": "mirror", "constant": "constant", "wrap": "wrap"}


def radii(size):
    x = np.arange(size) - size // 2
    return np.hypot(x[:, None], x)


def airy(size, cutoff):
    """`(2 J₁(v) / v)²`, `v = κ r`, in double precision."""
    v = np.maximum(np.pi * cutoff / 2 * radii(size), 1e-9)
    pattern = (2 * special.j1(v) / v) ** 2
    return pattern / pattern.sum()


def defocused(size, cutoff, defocus):
    """The Fourier integral over the pupil in polar coordinates, by very many nodes in double precision."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    rho, weights = (nodes + 1) / 2, weights * (nodes + 1) / 2
    pupil = np.exp(2j * np.pi * defocus * np.sqrt(3) * (2 * rho**2 - 1)) * weights
    distinct, where = np.unique(radii(size), return_inverse=True)
    amplitude = special.j0(np.pi * cutoff / 2 * distinct[:, None] * rho) @ pupil
    pattern = np.abs(amplitude[where].reshape(size, size)) ** 2
    return pattern / pattern.sum()


def moffat(size, fwhm, beta):
    width = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    profile = (1 + (radii(size) / width) ** 2) ** -beta
    return profile / profile.sum()


def gaussian(size, std):
    profile = np.exp(-(radii(size) ** 2) / (2 * std**2))
    return profile / profile.sum()


# Each with its closed form and parameters.
FUNCTIONS = {
    "gaussian": (lambda p: gaussian_psf(p[0], 9), lambda p: gaussian(9, *p), [1.3]),
    "moffat": (lambda p: moffat_psf(p[0], p[1], 9), lambda p: moffat(9, *p), [2.4, 3.1]),
    "pupil": (lambda p: pupil_psf(p[0], 9, p[1]), lambda p: defocused(9, p[1], p[0]), [0.3, 0.8]),
}


@pytest.mark.parametrize("cutoff", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("size", [1, 15, 65, 129])
def test_in_focus_it_is_airys_pattern(size, cutoff):
    expected = airy(size, cutoff)
    # Cosines of phases up to `κ R = 142` are rounded to about 1e-5, and average out over the nodes.
    np.testing.assert_allclose(pupil_psf(0.0, size, cutoff), expected, atol=3e-6 * expected.max())


@pytest.mark.parametrize("defocus", [0.25, -1.0, 3.0])
@pytest.mark.parametrize(("size", "cutoff"), [(9, 0.5), (33, 1.0), (65, 0.4), (129, 1.0)])
def test_defocus_against_the_integral_over_the_pupil(size, cutoff, defocus):
    expected = defocused(size, cutoff, defocus)
    # The phase of 33 rad at 3 waves is rounded to 4e-6, and the light that is spread is a small part of a focused
    # point's: intensities are rounded by a share of the square root of both.
    np.testing.assert_allclose(pupil_psf(defocus, size, cutoff), expected, atol=3e-5 * expected.max())


def test_defocus_is_even_and_dims_the_centre():
    np.testing.assert_allclose(pupil_psf(0.4, 15), pupil_psf(-0.4, 15), atol=1e-7)
    centre = lambda defocus: float(jnp.max(pupil_psf(defocus, 101, 0.5)))
    # Maréchal: the intensity on the axis falls by `1 − (2π d)²` for a small RMS wavefront error of `d` waves.
    np.testing.assert_allclose(centre(0.02) / centre(0.0), 1 - (2 * np.pi * 0.02) ** 2, atol=5e-4)


def test_first_dark_ring():
    row = np.asarray(pupil_psf(0.0, 101, 0.1))[50, 50:]
    ring = np.flatnonzero((row[1:-1] < row[:-2]) & (row[1:-1] < row[2:]))[0] + 1
    assert ring == round(2.44 / 0.1)


@pytest.mark.parametrize("std", [0.8, 2.0, 3.5])
def test_moments_of_a_gaussian(std):
    kernel, x = np.asarray(gaussian_psf(std, 41), np.float64), np.arange(41) - 20
    for axis in (0, 1):
        marginal = kernel.sum(axis)
        # Sampling changes moments by about exp(−2 π² std²), 3e-6 for the narrowest.
        np.testing.assert_allclose(marginal @ x, 0, atol=1e-6)
        np.testing.assert_allclose(marginal @ x**2, std**2, rtol=2e-4)
        np.testing.assert_allclose(marginal @ x**4, 3 * std**4, rtol=2e-3)


@pytest.mark.parametrize(("fwhm", "beta"), [(3.0, 2.5), (7.0, 4.765), (4.0, 1.2)])
def test_profile_of_moffat(fwhm, beta):
    np.testing.assert_allclose(moffat_psf(fwhm, beta, 25), moffat(25, fwhm, beta), rtol=2e-5)
    line = np.asarray(moffat_psf(8.0, beta, 25))[12]
    np.testing.assert_allclose(line[12 + 4] / line[12], 0.5, rtol=1e-5)


def test_moffat_becomes_a_gaussian():
    std = 2.0
    kernel = moffat_psf(2 * np.sqrt(2 * np.log(2)) * std, 1e4, 15)
    # Profiles differ by `r⁴ / (8 beta std⁴)`, relative.
    np.testing.assert_allclose(kernel, gaussian_psf(std, 15), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sums_to_one_and_is_symmetric(name):
    function, _, values = FUNCTIONS[name]
    kernel = np.asarray(jax.jit(function)(jnp.asarray(values)))
    assert kernel.shape == (9, 9) and kernel.dtype == np.float32 and np.all(kernel >= 0)
    np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-6)
    for other in (kernel.T, kernel[::-1], kernel[:, ::-1]):
        np.testing.assert_allclose(kernel, other, atol=1e-8)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_against_finite_differences(name):
    """Of the closed form in double precision, by central differences, right to 1e-6."""
    function, closed_form, values = FUNCTIONS[name]
    point = jnp.asarray(values)
    jacobian = np.asarray(jax.jacrev(function)(point))
    np.testing.assert_allclose(jacobian, jax.jacfwd(function)(point), atol=2e-6)
    for i in range(len(values)):
        step = 1e-4 * np.eye(len(values))[i]
        slope = (closed_form(values + step) - closed_form(values - step)) / 2e-4
        # Derivatives by defocus are up to 4π√3 = 22 times as large as kernels, which are rounded by 1e-7.
        np.testing.assert_allclose(jacobian[..., i], slope, atol=1e-5)
        assert np.max(np.abs(slope)) > 1e-2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian_psf(1.0, 4), "gaussian_psf: `size` must be odd, .* got 4; add 1"),
        (lambda: gaussian_psf(1.0, 0), "gaussian_psf: `size` must be an integer of at least 1, got 0"),
        (lambda: gaussian_psf(0.0, 5), "gaussian_psf: `std` must be a number of pixels above 0, got 0.0"),
        (lambda: moffat_psf(-1.0, 3.0, 5), "moffat_psf: `fwhm` must be a number of pixels above 0, got -1.0"),
        (lambda: moffat_psf(2.0, 1.0, 5), "moffat_psf: `beta` must be a number above 1, got 1.0"),
        (lambda: moffat_psf(2.0, 3.0, 6), "moffat_psf: `size` must be odd"),
        (lambda: pupil_psf(3.5, 5), "pupil_psf: `defocus` must be between -3 and 3 waves, got 3.5"),
        (lambda: pupil_psf(0.0, 5, 1.5), "pupil_psf: `cutoff` must be above 0 and at most 1, got 1.5"),
        (lambda: pupil_psf(0.0, 2), "pupil_psf: `size` must be odd"),
    ],
)
def test_what_is_out_of_range_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (1, 7), (31, 21), (41, 45)])
def test_blur_at_any_size_of_kernel(shape, boundary):
    """The two largest kernels reach beyond the image and more than once around it."""
    rng = np.random.default_rng(0)
    kernel, image = rng.normal(size=shape).astype(np.float32), rng.normal(size=(16, 20, 2)).astype(np.float32)
    blurred = Blur(jnp.asarray(kernel), boundary)(jnp.asarray(image), None)
    expected = [
        scipy.ndimage.convolve(image[..., c].astype(np.float64), kernel, mode=MODES[boundary]) for c in range(2)
    ]
    # Sums of up to 1845 products, rounded by FFTs to some 1e-6 of the largest.
    np.testing.assert_allclose(blurred, np.stack(expected, -1), atol=2e-6 * shape[0] * shape[1] ** 0.5 + 1e-6)


def test_blur_against_scipys_fftconvolve():
    kernel = np.asarray(moffat_psf(4.0, 2.5, 33))
    image = np.random.default_rng(0).uniform(size=(40, 30)).astype(np.float32)
    expected = scipy.signal.fftconvolve(image, kernel, mode="same")
    np.testing.assert_allclose(Blur(jnp.asarray(kernel), "constant")(jnp.asarray(image), None), expected, atol=2e-6)


@pytest.mark.parametrize("forward", [Blur(jnp.arange(15.0).reshape(3, 5)), Downsample(2)])
def test_images_without_channels_and_complex_ones(forward):
    image = jr.normal(jr.key(0), (6, 8, 2))
    expected = forward(image, None)
    np.testing.assert_allclose(forward(image[..., 0], None), expected[..., 0], atol=1e-5)
    np.testing.assert_allclose(forward(image[..., None], None), expected[..., None], atol=1e-5)
    mixed = forward(jax.lax.complex(image[..., 0], image[..., 1]), None)
    np.testing.assert_allclose(mixed, expected[..., 0] + 1j * expected[..., 1], atol=1e-5)
    structure = jax.ShapeDtypeStruct(mixed.shape, mixed.dtype)
    assert forward.signal_structure(structure, None).shape == (6, 8)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "psf", [lambda s: gaussian_psf(jnp.exp(s["psf"]), 7), lambda s: pupil_psf(jnp.tanh(s["psf"]), 7)]
)
def test_a_point_spread_function_in_the_signal(psf):
    """An image and a parameter of its blur, in two lines of a user's: derivatives are those of small steps."""
    blur = Blur()
    forward = lambda s, _: blur(s["image"], psf(s))
    signal = {"image": jr.uniform(jr.key(0), (8, 8)), "psf": jnp.asarray(0.2)}
    direction = {"image": jr.normal(jr.key(1), (8, 8)), "psf": jnp.asarray(1.0)}
    moved = lambda t: forward(jax.tree.map(lambda x, d: x + t * d, signal, direction), None)
    _, slope = jax.jvp(moved, (jnp.zeros(()),), (jnp.ones(()),))
    np.testing.assert_allclose(slope, (moved(1e-3) - moved(-1e-3)) / 2e-3, atol=5e-3)
    gradient = jax.grad(lambda s: jnp.sum(forward(s, None) ** 2))(signal)
    assert abs(gradient["psf"]) > 1e-2 and np.all(np.isfinite(gradient["image"]))


def test_a_width_that_is_known_while_a_function_is_traced():
    """As in a fit whose measurements have a width each: images of one measurement are then affine in the signal."""
    width = jnp.asarray(2.0)
    traced = jax.jit(lambda image: Blur()(image, moffat_psf(width, 3.0, 5)))
    image = jr.uniform(jr.key(0), (8, 8))
    np.testing.assert_allclose(traced(image), Blur(moffat_psf(2.0, 3.0, 5))(image, None), atol=1e-6)
    forward = lambda signal, width: Blur()(signal, moffat_psf(width, 3.0, 5))
    assert is_affine(forward, jax.ShapeDtypeStruct((8, 8), jnp.float32), width, jr.key(0))
    below = -width
    with pytest.raises(ValueError, match="`fwhm` must be a number of pixels above 0, got .*-2"):
        jax.jit(lambda image: Blur()(image, moffat_psf(below, 3.0, 5)))(image)


@pytest.mark.thorough
def test_a_point_spread_function_is_inferred():
    """A fit in signal space of two steps draws both."""
    blur = Blur()
    forward = lambda s, _: blur(s["image"], gaussian_psf(jnp.exp(s["log_std"]), 5))
    keys = jr.split(jr.key(0), 3)
    signals = {"image": jr.normal(keys[0], (32, 4, 4)), "log_std": 0.3 * jr.normal(keys[1], (32,))}
    images = jax.vmap(functools.partial(forward, _=None))(signals)
    data = si.View(images[:, None] + 0.05 * jr.normal(keys[2], (32, 1, 4, 4)), None)
    structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), signals)
    problem = si.StochasticInverseProblem(forward, noise=0.05, signal=structure)
    fit = problem.fit(data, key=jr.key(1), steps=2, rounds=1, batch_size=8, progress=False)
    drawn = fit.problem.posterior(si.View(data.observation[0, 0], None)).sample(jr.key(2), 3)
    assert drawn["image"].shape == (3, 4, 4) and np.all(np.isfinite(drawn["log_std"]))
