"""K-space on and off its grid against NumPy, the choice of lines against their laws, and problems with both."""

import itertools
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import refuse
from stochinv._noise import add_noise

Scan = si.forward.MRIScan
SHAPES = [(6, 8), (7, 5), (1, 4)]


def complex_normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)


def birdcage(coils, shape):
    """Smooth sensitivities of coils on a circle around the image, as of a wire each: `1 / z` in the complex plane."""
    rows, columns = (np.linspace(-1, 1, size) for size in shape)
    angles = 2 * np.pi * np.arange(coils) / coils
    places = 1.5 * np.exp(1j * angles)
    return np.complex64(1 / (places[:, None, None] - (columns[None, None] + 1j * rows[None, :, None])))


def transform(image, positions):
    """The sum of the definition, in double precision."""
    height, width = image.shape[-2:]
    rows, columns = np.arange(height) - height // 2, np.arange(width) - width // 2
    waves = np.exp(-1j * positions[:, :1].astype(float) * rows), np.exp(-1j * positions[:, 1:].astype(float) * columns)
    return np.einsum("sh,sw,...hw->...s", *waves, image) / np.sqrt(height * width)


def grid(shape):
    """The positions of all of k-space's grid, row by row."""
    height, width = shape
    frequencies = np.stack(np.mgrid[:height, :width], -1) - [height // 2, width // 2]
    return (2 * np.pi * frequencies / shape).reshape(-1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coils", [None, 3])
def test_lines_against_numpy(shape, coils):
    image, lines = complex_normal(*shape), np.arange(shape[0])[::2]
    maps = None if coils is None else birdcage(coils, shape)
    seen = image[None] if maps is None else maps * image
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(seen, (1, 2)), norm="ortho"), (1, 2))
    np.testing.assert_allclose(transform(seen, grid(shape)), expected.reshape(len(seen), -1), atol=1e-6)
    of_all = si.forward.CartesianMRI(shape, None if maps is None else jnp.asarray(maps))
    for forward, scan in ((of_all, Scan(lines)), (si.forward.CartesianMRI(shape), Scan(lines, maps))):
        measured = forward(image, scan)
        assert measured.dtype == jnp.complex64
        # Sums of 64 numbers of size 1 in single precision.
        np.testing.assert_allclose(measured, expected[:, lines], atol=2e-6)


def test_single_samples_are_those_of_their_lines():
    forward, image = si.forward.CartesianMRI((6, 8), jnp.asarray(birdcage(2, (6, 8)))), complex_normal(6, 8)
    full = forward(image, Scan(jnp.arange(6)))
    assert full.shape == (2, 6, 8)
    samples = np.array([[0, 7], [5, 0], [3, 4], [3, 4]])
    np.testing.assert_array_equal(forward(image, Scan(samples)), full[:, samples[:, 0], samples[:, 1]])


def test_the_centre_of_k_space_is_the_mean():
    measured = si.forward.CartesianMRI((6, 8))(jnp.ones((6, 8)), Scan(np.arange(6)))
    expected = np.zeros((1, 6, 8))
    expected[0, 3, 4] = np.sqrt(48)
    np.testing.assert_allclose(measured, expected, atol=1e-6)


def test_all_lines_are_a_unitary_transform():
    forward, scan, image = si.forward.CartesianMRI((6, 8)), Scan(np.arange(6)), complex_normal(6, 8)
    np.testing.assert_allclose(forward.adjoint(forward(image, scan), scan), image, atol=1e-6)


def test_lines_outside_of_the_grid_are_nan():
    measured = si.forward.CartesianMRI((6, 8))(complex_normal(6, 8), Scan(np.array([-1, 0, 5, 6])))
    np.testing.assert_array_equal(np.isnan(measured[0, :, 0]), [True, False, False, True])


def off_grid(shape, coils=None):
    pytest.importorskip("nufftax")
    return si.forward.NonCartesianMRI(shape, None if coils is None else jnp.asarray(birdcage(coils, shape)))


def positions(number, seed=0):
    return np.float32(np.random.default_rng(seed).uniform(-np.pi, np.pi, (number, 2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_off_the_grid_against_the_sum(shape):
    image, samples = complex_normal(*shape), positions(40)
    measured = off_grid(shape, 3)(image, Scan(samples))
    expected = transform(birdcage(3, shape) * image, samples)
    assert measured.shape == (3, 40) and measured.dtype == jnp.complex64
    np.testing.assert_allclose(measured, expected, atol=2e-6 * np.abs(expected).max())
    moved = off_grid(shape, 3)(image, Scan(samples + np.float32(2 * np.pi)))
    # Positions up to 10 are known to 5e-7, at the edge of 8 pixels to 2e-6.
    np.testing.assert_allclose(moved, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 8), (32, 24)])
def test_on_the_grid_both_are_the_same(shape, real):
    """Also where samples are on the points of the transform's own grid, next to which rounding decides."""
    image = complex_normal(*shape).real if real else complex_normal(*shape)
    lines = si.forward.CartesianMRI(shape)(image, Scan(np.arange(shape[0])))
    forward, scan = off_grid(shape), Scan(np.float32(grid(shape)))
    for measure in (forward, jax.jit(forward)):
        samples = measure(image, scan)
        np.testing.assert_allclose(samples, lines.reshape(1, -1), atol=2e-7 * sum(shape) * np.abs(lines).max())


def test_against_another_library():
    jax_finufft = pytest.importorskip("jax_finufft")
    image, samples = complex_normal(16, 12), positions(100)
    expected = jax_finufft.nufft2(image, samples[:, 0], samples[:, 1], iflag=-1, eps=1e-6) / np.sqrt(16 * 12)
    measured = off_grid((16, 12))(image, Scan(samples))[0]
    np.testing.assert_allclose(measured, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.thorough
def test_adjoint_off_the_grid():
    """`⟨A s, o⟩ = ⟨s, Aᴴ o⟩`."""
    forward, scan, image = off_grid((7, 6), 3), Scan(positions(20)), complex_normal(7, 6)
    other = complex_normal(3, 20, seed=1)
    left, right = np.vdot(other, forward(image, scan)), np.vdot(forward.adjoint(other, scan), image)
    np.testing.assert_allclose(left, right, rtol=1e-4)
    assert forward.signal_structure(jax.eval_shape(forward, image, scan), scan) == jax.ShapeDtypeStruct(
        (7, 6), jnp.complex64
    )


@pytest.mark.thorough
@pytest.mark.parametrize("cartesian", [False, True])
def test_derivative(cartesian):
    """Of a quadratic function, of which central differences are exact."""
    shape = (6, 8)
    forward = si.forward.CartesianMRI(shape, jnp.asarray(birdcage(2, shape))) if cartesian else off_grid(shape, 2)
    scan = Scan(jnp.asarray([0, 3])) if cartesian else Scan(positions(20))
    image, step = complex_normal(*shape), complex_normal(*shape, seed=1)
    loss = lambda s: jnp.sum(jnp.abs(forward(s, scan) - 1) ** 2)
    expected = (loss(image + step) - loss(image - step)) / 2
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(image) * step).real, expected, rtol=1e-4)
    tangent = jax.jvp(lambda s: forward(s, scan), (image,), (step,))[1]
    np.testing.assert_allclose(tangent, forward(step, scan), atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("cartesian", [False, True])
def test_every_record_has_its_own_scan(cartesian):
    """And draws of one record share theirs, as an adjoint of draws does."""
    shape, images = (6, 8), complex_normal(3, 2, 6, 8)
    forward = si.forward.CartesianMRI(shape) if cartesian else off_grid(shape)
    samples = np.array([[0, 3], [1, 4], [5, 2]]) if cartesian else positions(30).reshape(3, 10, 2)
    maps = birdcage(6, shape).reshape(3, 2, *shape)
    draws = jax.vmap(forward, (0, None))
    measured = jax.jit(jax.vmap(draws))(images, Scan(samples, maps))
    back = jax.jit(jax.vmap(jax.vmap(forward.adjoint, (0, None))))(measured, Scan(samples, maps))
    for record, draw in itertools.product(range(3), range(2)):
        scan = Scan(samples[record], maps[record])
        one = forward(images[record, draw], scan)
        np.testing.assert_allclose(measured[record, draw], one, atol=1e-5)
        np.testing.assert_allclose(back[record, draw], forward.adjoint(one, scan), atol=1e-5)
    shared = Scan(samples[0], maps[0])
    both = jax.vmap(jax.vmap(forward, (0, None)), (0, None))(images, shared)
    np.testing.assert_allclose(both[2, 1], forward(images[2, 1], shared), atol=1e-5)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nufftax", None)
    monkeypatch.setitem(sys.modules, "nufftax.core", None)
    with pytest.raises(ImportError, match=r"NonCartesianMRI needs nufftax: `pip install 'stochinv\[mri\]'`\."):
        si.forward.NonCartesianMRI((6, 8))


def drawn(function, number, *args, **options):
    """Which of the lines each of many draws has, as rows of truth values."""
    lines = jax.jit(jax.vmap(lambda key: function(*args, **options, key=key)))(jr.split(jr.key(0), number))
    assert np.all(np.diff(lines) > 0)
    return (np.asarray(lines)[..., None] == np.arange(args[0])).any(1)


def inclusion(weights, number):
    """How likely each item is among a number of draws without replacement, by adding up all orders."""
    probability = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), number):
        left, likely = weights.sum(), 1.0
        for item in order:
            likely *= weights[item] / left
            left -= weights[item]
        probability[list(order)] += likely
    return probability


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_law_of_random_lines(power):
    got = drawn(si.forward.random_lines, 20000, 7, 4, centre=1, power=power).mean(0)
    weights = (1 - np.abs(np.arange(7) - 3) / 4) ** power
    expected = np.insert(inclusion(np.delete(weights, 3), 3), 3, 1.0)
    # Four standard errors of a share.
    np.testing.assert_allclose(got, expected, atol=4 * 0.5 / np.sqrt(20000))


def test_law_of_equispaced_lines():
    """Distances differ by one at most where there is no block, and all lines are as likely."""
    chosen = drawn(si.forward.equispaced_lines, 20000, 11, 4)
    gaps = np.diff([np.flatnonzero(row) for row in chosen[:100]])
    assert set(gaps.ravel()) == {2, 3}
    np.testing.assert_allclose(chosen.mean(0), 4 / 11, atol=4 * 0.5 / np.sqrt(20000))
    with_block = drawn(si.forward.equispaced_lines, 20000, 11, 6, centre=3)
    assert np.all(with_block.sum(1) == 6)
    expected = np.where(np.abs(np.arange(11) - 5) <= 1, 1, 3 / 8)
    np.testing.assert_allclose(with_block.mean(0), expected, atol=4 * 0.5 / np.sqrt(20000))


@pytest.mark.parametrize("function", [si.forward.random_lines, si.forward.equispaced_lines])
@pytest.mark.parametrize(("height", "centre"), [(6, 6), (6, 2), (1, 0), (1, 1), (7, 3)])
def test_all_lines(function, height, centre):
    np.testing.assert_array_equal(function(height, height, centre=centre, key=jr.key(0)), np.arange(height))


@pytest.mark.parametrize("function", [si.forward.random_lines, si.forward.equispaced_lines])
@pytest.mark.parametrize(("height", "block"), [(8, [2, 3, 4, 5]), (9, [2, 3, 4, 5])])
def test_the_block_is_at_the_centre(function, height, block):
    np.testing.assert_array_equal(function(height, 4, centre=4, key=jr.key(0)), block)


def test_noise_of_a_measurement():
    """The noise has its standard deviation in each part, in k-space as in the image that is made of all of it."""
    forward, scan, image = si.forward.CartesianMRI((64, 64)), Scan(np.arange(64)), complex_normal(64, 64)
    clean = forward(image, scan)
    noisy = add_noise(si.GaussianNoise(0.2), clean, key=jr.key(0), stacked=False)
    for error in (noisy - clean, forward.adjoint(noisy, scan) - image):
        spread = [np.std(error.real), np.std(error.imag)]
        # Four standard errors of a standard deviation of 4,096 numbers.
        np.testing.assert_allclose(spread, 0.2, atol=4 * 0.2 / np.sqrt(2 * 64**2))
        np.testing.assert_allclose(np.mean(np.abs(error) ** 2), 2 * 0.2**2, rtol=4 / 64)


SHAPE = (4, 4)


def records(samples, number=32):
    """Two views of each record, with samples and coils of their own."""
    forward = si.forward.CartesianMRI(SHAPE) if samples.ndim == 3 else off_grid(SHAPE)
    maps = np.broadcast_to(birdcage(2, SHAPE), (number, 2, 2, *SHAPE))
    scans = Scan(samples[:number], maps)
    images = complex_normal(number, *SHAPE)
    clean = jax.vmap(jax.vmap(forward, (None, 0)))(images, scans)
    return forward, si.View(np.asarray(clean) + 0.1 * complex_normal(*clean.shape, seed=1), scans)


@pytest.mark.thorough
def test_a_problem_on_the_grid(tmp_path):
    keys = jr.split(jr.key(0), (32, 2))
    lines = jax.vmap(jax.vmap(lambda key: si.forward.random_lines(4, 2, key=key)))(keys)
    forward, data = records(lines)
    assert data.observation.shape == (32, 2, 2, 2, 4)
    fit = si.StochasticInverseProblem(forward, noise=0.1).fit(
        data, key=jr.key(0), steps=2, rounds=1, batch_size=16, progress=False
    )
    view = jax.tree.map(lambda x: x[0], data)
    draws = fit.problem.posterior(view).sample(jr.key(1), 3)
    assert draws.shape == (3, *SHAPE) and draws.dtype == jnp.complex64 and np.all(np.isfinite(draws))
    fit.problem.save(tmp_path / "problem")
    loaded = si.load(tmp_path / "problem", forward)
    np.testing.assert_array_equal(loaded.posterior(view).sample(jr.key(1), 3), draws)


@pytest.mark.slow
def test_a_problem_off_the_grid():
    forward, data = records(positions(64 * 6).reshape(32, 2, 6, 2))
    problem = si.StochasticInverseProblem(forward, noise=0.1)
    fit = problem.fit(data, key=jr.key(0), steps=2, rounds=1, batch_size=16, progress=False)
    assert fit.problem.signal == jax.ShapeDtypeStruct(SHAPE, jnp.complex64)
    assert np.all(np.isfinite(fit.history.loss))


LINES, IMAGE, COILS = jnp.arange(2), jnp.zeros((4, 5)), jnp.zeros((2, 4, 5))
cartesian = lambda scan, *coils, image=IMAGE: si.forward.CartesianMRI((4, 5), *coils)(image, scan)
BAD = {
    "channels": (lambda: si.forward.CartesianMRI((4, 5, 1)), "`shape` must be .height, width., got .4, 5, 1.*channel"),
    "size": (lambda: si.forward.CartesianMRI((4, 0)), "`shape` must be an integer of at least 1, got 0"),
    "coils": (lambda: si.forward.CartesianMRI((4, 5), IMAGE), "`sensitivities` must have the shape.*got .4, 5.*axis"),
    "coils_of_scan": (lambda: cartesian(Scan(LINES, IMAGE)), "`sensitivities` must have the shape.*got .4, 5.*axis"),
    "coils_twice": (lambda: cartesian(Scan(LINES, COILS), COILS), "`sensitivities`.*again in `params`.*give either"),
    "no_scan": (lambda: cartesian(LINES), "`params` must be an `MRIScan`.*got an array of int32 of shape .2,"),
    "no_integers": (lambda: cartesian(Scan(jnp.ones(2))), "`samples` must be integers.*got float32; convert"),
    "triples": (lambda: cartesian(Scan(jnp.zeros((2, 3), int))), "`samples` must have the shape .*got .2, 3.; reshape"),
    "image": (lambda: cartesian(Scan(LINES), image=IMAGE[..., None]), "signal must be of shape .4, 5.*give its"),
    "too_many": (lambda: si.forward.random_lines(4, 5, key=jr.key(0)), "`number` must be between.* 0 and 4, got 5"),
    "block": (
        lambda: si.forward.equispaced_lines(8, 2, centre=3, key=jr.key(0)),
        "`number` must be between `centre` and `height`, 3 and 8, got 2",
    ),
    "no_lines": (lambda: si.forward.random_lines(4, 0, key=jr.key(0)), "`number` must be an integer of at least 1"),
    "power": (
        lambda: si.forward.random_lines(4, 2, power=-1.0, key=jr.key(0)),
        "`power` must be a finite number of at least 0, got -1.0",
    ),
    "key": (lambda: si.forward.equispaced_lines(4, 2, key=3), "`key` must be one PRNG key.*got 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name):
    refuse(*BAD[name], compiles=True)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (jnp.zeros(4), "`samples` must have the shape .samples, 2., got .4,"),
        (jnp.zeros((4, 2), int), "`samples` must be floating-point numbers.*got int32; convert"),
    ],
)
def test_what_is_wrong_is_said_off_the_grid(samples, message):
    forward = off_grid((4, 5))
    refuse(lambda: forward(IMAGE, Scan(samples)), message, compiles=True)
