"""Flow through porous media, against SciPy's sparse solver in double precision, closed forms and finite differences."""

import functools
import importlib.util
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg

import stochinv as si
from refusals import without_annotations
from stochinv.forward import Darcy

PLACES = jnp.asarray([[0.2, 0.35], [0.5, 0.5], [0.91, 0.07]])


def smooth(rng, shape):
    """A field of standard deviation 1, ten cells of 64 wide."""
    field = scipy.ndimage.gaussian_filter(rng.normal(size=shape), np.asarray(shape) / 6)
    return field / field.std()


def two_kinds(rng, shape):
    return np.log(np.where(smooth(rng, shape) > 0, 12.0, 3.0))


def by_scipy(signal, source=1.0):
    """One face after the other, in double precision."""
    height, width = signal.shape
    permeability, number = np.exp(np.asarray(signal, np.float64)), signal.size
    matrix = scipy.sparse.lil_matrix((number, number))
    for row in range(height):
        for column in range(width):
            cell = row * width + column
            sides = ((1, 0, height / width), (-1, 0, height / width), (0, 1, width / height), (0, -1, width / height))
            for down, right, ratio in sides:
                i, j = row + down, column + right
                here = permeability[row, column]
                if 0 <= i < height and 0 <= j < width:
                    there = permeability[i, j]
                    flow = ratio * 2 * here * there / (here + there)
                    matrix[cell, i * width + j] = -flow
                else:
                    flow = 2 * ratio * here
                matrix[cell, cell] += flow
    inflow = np.broadcast_to(source, signal.shape).ravel() / number
    return scipy.sparse.linalg.spsolve(matrix.tocsc(), inflow).reshape(signal.shape)


def relative_error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.thorough
@pytest.mark.parametrize("field", [smooth, two_kinds])
@pytest.mark.parametrize("shape", [(16, 16), (9, 20), (20, 9), (1, 7), (7, 1), (1, 1), (64, 64)])
def test_equals_scipy(field, shape):
    """To the rounding of float32, that grows with the number of rows: 1e-5 of the largest pressure at 64."""
    rng = np.random.default_rng(0)
    signal = field(rng, shape).astype(np.float32) if shape != (1, 1) else np.full(shape, 0.5, np.float32)
    source = rng.normal(size=shape).astype(np.float32)
    for given in (1.0, source):
        got = eqx.filter_jit(Darcy(shape, given))(jnp.asarray(signal), None)
        assert got.shape == shape and got.dtype == jnp.float32
        assert relative_error(got, by_scipy(signal, given)) < 2e-5


def test_wild_permeabilities():
    """Each cell its own, over six orders of magnitude; no iteration is there to fail."""
    signal = 2.0 * np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    assert relative_error(Darcy((32, 32))(jnp.asarray(signal), None), by_scipy(signal)) < 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("level", [-100.0, 100.0])
def test_permeabilities_beyond_float32_give_nan(level):
    value, slope = jax.value_and_grad(lambda s: jnp.sum(Darcy((4, 5))(s, None)))(jnp.full((4, 5), level))
    assert jnp.isnan(value) and not jnp.any(jnp.isfinite(slope))


@pytest.mark.thorough
def test_constant_permeability_equals_the_series():
    """The pressure in the middle of the square is a known series; 64 cells err by about 1e-4 of it."""
    odd = np.arange(1, 400, 2)
    signs = np.where(odd % 4 == 1, 1, -1)
    terms = np.outer(signs / odd, signs / odd) / (odd[:, None] ** 2 + odd**2)
    expected = 16 / np.pi**4 * terms.sum() / 3
    got = Darcy((64, 64))(jnp.full((64, 64), jnp.log(3.0)), jnp.asarray([[0.5, 0.5]]))
    np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.thorough
def test_second_order(x64):
    """A pressure is made up, and its source found by derivatives. Half as wide cells: a quarter of the error.

    Rows and columns differ, in cells and in the fields.
    """
    log_permeability = lambda y, x: jnp.sin(3 * y) + 0.5 * jnp.cos(4 * x + y)
    pressure = lambda y, x: jnp.sin(jnp.pi * y) * jnp.sin(2 * jnp.pi * x) * jnp.exp(y)

    def flow(y, x, axis):
        return jnp.exp(log_permeability(y, x)) * jax.grad(pressure, axis)(y, x)

    source = lambda y, x: -jax.grad(flow, 0)(y, x, 0) - jax.grad(flow, 1)(y, x, 1)
    places = jr.uniform(jr.key(6), (500, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def errors(height):
        shape = (height, 3 * height // 2)
        y, x = jnp.meshgrid(*((jnp.arange(n) + 0.5) / n for n in shape), indexing="ij")
        on_cells = lambda f: jax.vmap(jax.vmap(f))(y, x)
        darcy, signal = Darcy(shape, on_cells(source)), on_cells(log_permeability)
        of_cells = darcy(signal, None) - on_cells(pressure)
        of_sensors = darcy(signal, places) - jax.vmap(pressure)(*places.T)
        return [jnp.sqrt(jnp.mean(x**2)) for x in (of_cells, of_sensors)]

    coarse, fine = (np.asarray(errors(height)) for height in (16, 32))
    assert np.all(np.abs(np.log2(coarse / fine) - 2) < 0.1) and np.all(fine < 3e-3)


def test_pressure_is_zero_on_the_boundary():
    signal = jnp.asarray(smooth(np.random.default_rng(2), (8, 6)), jnp.float32)
    edges = jnp.asarray([[0.0, 0.3], [1.0, 0.6], [0.4, 0.0], [0.01, 1.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(Darcy((8, 6))(signal, edges), 0, atol=1e-8)


def test_sensors_in_the_middles_of_cells():
    signal = jnp.asarray(smooth(np.random.default_rng(3), (4, 6)), jnp.float32)
    middles = [(np.arange(n) + 0.5) / n for n in (4, 6)]
    places = np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    field = Darcy((4, 6))(signal, None)
    np.testing.assert_allclose(Darcy((4, 6))(signal, jnp.asarray(places)).reshape(4, 6), field, rtol=1e-5)


def test_sensors_outside_give_nan_where_they_are_traced():
    places = jnp.asarray([[0.5, 0.5], [1.2, 0.5], [0.5, -0.1]])
    got = jax.jit(Darcy((4, 4)))(jnp.zeros((4, 4)), places)
    assert jnp.isfinite(got[0]) and jnp.all(jnp.isnan(got[1:]))


@pytest.mark.thorough
def test_derivatives_are_finite_differences(x64):
    """Of first and of second order in the field; of first order in the places of the sensors and in the source."""
    signal, places = jnp.asarray(smooth(np.random.default_rng(4), (6, 7))), jnp.asarray(PLACES, jnp.float64) + 0.013
    weights, direction = jr.normal(jr.key(0), (3,)), jr.normal(jr.key(1), (6, 7))
    source = 1 + 0.1 * direction

    @jax.jit
    def loss(signal, places, source):
        return jnp.sum(weights * jnp.sin(30 * Darcy((6, 7), source)(signal, places)))

    of_signal, of_places, of_source = jax.jit(jax.grad(loss, (0, 1, 2)))(signal, places, source)
    central = lambda f, step=1e-5: (f(step) - f(-step)) / (2 * step)
    along = lambda h: loss(signal + h * direction, places, source)
    np.testing.assert_allclose(jnp.vdot(of_signal, direction), central(along), rtol=1e-7)
    along = lambda h: loss(signal, places, source + h * direction)
    np.testing.assert_allclose(jnp.vdot(of_source, direction), central(along), rtol=1e-7)
    for i, j in np.ndindex(places.shape):
        along = lambda h, i=i, j=j: loss(signal, places.at[i, j].add(h), source)
        np.testing.assert_allclose(of_places[i, j], central(along), rtol=1e-6)
    slope = jax.jit(lambda s: jnp.vdot(jax.grad(loss)(s, places, source), direction))
    curvature = jnp.vdot(jax.jit(jax.grad(slope))(signal), direction)
    np.testing.assert_allclose(curvature, central(lambda h: slope(signal + h * direction)), rtol=1e-6)


@pytest.mark.thorough
def test_forward_and_reverse_derivatives_are_adjoint():
    """To the rounding of float32 in sums of a hundred entries."""
    signal, direction = jr.normal(jr.key(2), (2, 12, 10))
    darcy = jax.jit(lambda s: Darcy((12, 10))(s, PLACES))
    cotangent = jr.normal(jr.key(3), (3,))
    _, tangent = jax.jvp(darcy, (signal,), (direction,))
    (back,) = jax.vjp(darcy, signal)[1](cotangent)
    size = jnp.linalg.norm(tangent) * jnp.linalg.norm(cotangent)
    np.testing.assert_allclose(jnp.vdot(tangent, cotangent) / size, jnp.vdot(direction, back) / size, atol=1e-5)


def test_a_derivative_eliminates_once():
    """Factors of the pressure are those of its derivative: both have the same number of decompositions."""
    darcy, signal = Darcy((6, 6)), jnp.zeros((6, 6))
    loss = lambda s: jnp.sum(darcy(s, None) ** 2)
    for function in (loss, jax.grad(loss)):
        assert str(jax.make_jaxpr(function)(signal)).count("= cholesky ") == 1


@pytest.mark.thorough
def test_records_with_sensors_of_their_own():
    rng = np.random.default_rng(5)
    signals = jnp.asarray([two_kinds(rng, (8, 11)) for _ in range(3)], jnp.float32)
    places = jnp.asarray(rng.uniform(size=(3, 5, 2)), jnp.float32)
    darcy = Darcy((8, 11))
    got = jax.jit(jax.vmap(darcy))(signals, places)
    one_by_one = [jax.jit(darcy)(s, p) for s, p in zip(signals, places, strict=True)]
    np.testing.assert_allclose(got, jnp.stack(one_by_one), rtol=1e-5)
    np.testing.assert_allclose(si.MultiView(darcy)(signals[0], places)[1], darcy(signals[0], places[1]), rtol=1e-5)


@pytest.mark.slow
def test_fits_a_few_coefficients():
    """The composition of the documentation, with sensors at other places in each record."""
    wave = jnp.sin(2 * jnp.pi * (jnp.arange(8) + 0.5) / 8)
    basis = jnp.stack([jnp.outer(wave, wave), jnp.outer(jnp.ones(8), wave)])
    expand = lambda coefficients, _: jnp.tensordot(coefficients, basis, 1)
    forward = si.Composed(expand, Darcy((8, 8)))
    keys = jr.split(jr.key(4), 3)
    coefficients, places = jr.normal(keys[0], (48, 2)), jr.uniform(keys[1], (48, 1, 3, 2))
    pressures = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(coefficients, (None, places))
    problem = si.StochasticInverseProblem(forward, noise=0.005, signal=jax.ShapeDtypeStruct((2,), jnp.float32))
    fit = problem.fit(si.View(pressures, (None, places)), key=keys[2], steps=2, rounds=1, batch_size=16)
    context = si.View(pressures[0, 0], (None, places[0, 0]))
    assert jnp.all(jnp.isfinite(fit.problem.posterior(context).sample(jr.key(5), 4)))
    observation, at = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((3, 2), jnp.float32)
    assert Darcy((8, 8)).signal_structure(observation, at) == jax.ShapeDtypeStruct((8, 8), jnp.float32)


def test_benchmark_of_neural_operators():
    """Pressures of `neuraloperator==0.3.0`, on 32×32 of the nodes of a finer grid that the file does not have.

    The file tells two kinds of rock apart, but not their permeabilities: 0.376 and 0.0196 are a fit to it. Rock between
    the nodes is that of the nearest one, which leaves 3 %.
    """
    package = importlib.util.find_spec("neuralop")
    if package is None or package.origin is None:
        pytest.skip("needs the files of neuraloperator==0.3.0")
    path = Path(package.origin).parent / "datasets" / "data" / "darcy_test_32.pt"
    if not path.exists():
        pytest.skip("needs darcy_test_32.pt, which other versions of neuraloperator have not")
    with zipfile.ZipFile(path) as file:
        # The first axis, the records, varies fastest.
        read = lambda name, dtype: np.frombuffer(file.read(name), dtype).reshape(32, 32, 50).T[:16]
        rock, expected = read("archive/data/0", bool), read("archive/data/1", np.float32)
    nearest = np.minimum((np.arange(64) + 1) // 2, 31)
    signals = jnp.log(jnp.where(rock[:, nearest][:, :, nearest], 0.376, 0.0196))
    places = np.stack(np.meshgrid(*[np.arange(32) / 32] * 2, indexing="ij"), -1).reshape(-1, 2)
    got = jax.jit(jax.vmap(Darcy((64, 64)), (0, None)))(signals, jnp.asarray(places, jnp.float32))
    errors = lambda expected: np.linalg.norm(got - expected.reshape(16, -1), axis=1) / np.linalg.norm(got, axis=1)
    assert errors(expected).mean() < 0.03 and errors(expected).max() < 0.05
    assert errors(expected.swapaxes(1, 2)).min() > 0.2


ZEROS = jnp.zeros((8, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Darcy(8), r"Darcy: `shape` must be the \(height, width\) of the signal in cells, got 8"),
        (lambda: Darcy((8, 9, 1)), r"`shape` must be .* got \(8, 9, 1\)"),
        (lambda: Darcy((8, 0)), r"`shape` must be .* got \(8, 0\)"),
        (lambda: Darcy((8, 9.0)), r"`shape` must be .* got \(8, 9.0\)"),
        (lambda: Darcy((8, 9), jnp.inf), "Darcy: `source` must be a finite number or .* got inf; give what"),
        (lambda: Darcy((8, 9), ZEROS.T), r"`source` must be .* of shape \(8, 9\), got an .* of shape \(9, 8\); give"),
        (lambda: Darcy((8, 9), "rain"), "`source` is 'rain', but must be an array of numbers"),
        (lambda: Darcy((8, 9))(ZEROS.T, None), r"must be of shape \(8, 9\), got \(9, 8\); give its height"),
        (lambda: Darcy((8, 9))(ZEROS, jnp.ones(2)), r"`params` must be places of shape \(sensors, 2\), .* give `None`"),
        (lambda: Darcy((8, 9))(ZEROS, jnp.ones((2, 3))), r"`params` must be places .* of shape \(2, 3\)"),
        (lambda: Darcy((8, 9))(ZEROS, 4 * PLACES), r"places in \[0, 1\], got 0.28 to 3.64; divide rows by the height"),
        (lambda: Darcy((8, 9))(ZEROS, PLACES.at[0, 0].set(jnp.nan)), r"places in \[0, 1\], got nan to nan"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with without_annotations(), pytest.raises(ValueError, match=message):
        make()
