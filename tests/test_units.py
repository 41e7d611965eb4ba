"""Measurements in units far from 1, such as the strain of a gravitational wave, train as those in units of 1 do."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from stochinv._data_info import measure_units


def losses(unit, forward_of, signal, data, roles, **options):
    """The losses of a short training with everything that is measured in multiples of `unit`."""
    scale = lambda x: jnp.asarray(x * np.float32(unit))
    problem = si.StochasticInverseProblem(
        forward_of(np.float32(unit)), noise=0.1 * unit, signal=jax.ShapeDtypeStruct(signal, jnp.float32), **options
    )
    data = si.View(scale(data.observation), data.params)
    fit = problem.fit(data, roles=roles, key=jr.key(0), steps=4, batch_size=8, progress=False)
    context = jax.tree.map(lambda x: x[0, :1], data)
    params = jax.tree.map(lambda x: x[0, 1], data.params)
    sample = fit.problem.sample(context, params, key=jr.key(1), num_samples=3, sampler=si.Ancestral(2))
    return np.asarray(fit.history.loss), np.asarray(sample.observation) / np.float32(unit)


def windows():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
    corners = rng.integers(0, 5, size=(16, 4, 2))
    cut = lambda i, c: i[c[0] : c[0] + 4, c[1] : c[1] + 4]
    return si.View(np.stack([[cut(i, c) for c in cs] for i, cs in zip(images, corners, strict=True)]), corners)


class Scaled(si.AbstractForwardModel):
    """A forward model whose measurements are in multiples of a unit."""

    forward: si.AbstractForwardModel
    unit: np.ndarray

    def __call__(self, signal, params):
        return self.unit * self.forward(signal, params)


CASES = {
    "vectors": (lambda u: lambda s, p: u * (p @ s), (3,), training.views, training.ROLES),
    "nonlinear": (lambda u: lambda s, p: u * jnp.tanh(p @ s), (3,), training.views, training.ROLES),
    "images": (lambda u: Scaled(si.forward.Window((8, 8, 1), (4, 4)), u), (8, 8, 1), windows, training.ROLES),
}


def losses_of(name, unit):
    forward_of, signal, make, roles = CASES[name]
    return losses(unit, forward_of, signal, make(), roles)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["vectors", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nonlinear", "images"))]
)
def test_units_do_not_matter(name):
    # Products with powers of two are exact; a product with 1 itself is compiled to other code.
    expected = losses_of(name, 2.0)
    assert np.all(expected[0] > 0)
    for power in (-70, 70):  # about 1e-21 and 1e+21
        for got, want in zip(losses_of(name, 2.0**power), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "nonlinear", "images"])
def test_units_that_round_the_data_hardly_matter(name):
    expected = losses_of(name, 2.0)
    for unit in (1.0, 1e-21, 1e21):
        for got, want in zip(losses_of(name, unit), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [-70, -20, 0, 20, 70, 100])
def test_units_are_scaled_exactly(power):
    rng = np.random.default_rng(0)
    x = (3 + rng.normal(size=1000)).astype(np.float32)
    one, other = (measure_units(jnp.asarray(x * np.float32(2.0**p)), standardise=True) for p in (0, power))
    np.testing.assert_allclose((one.mean, one.std), (x.mean(), x.std()), rtol=1e-6)
    np.testing.assert_array_equal((other.mean, other.std), np.float32(2.0**power) * np.stack([one.mean, one.std]))


def test_constant_measurements_are_refused():
    data = training.views()
    constant = si.View(jnp.full_like(data.observation, 0.5), data.params)
    with pytest.raises(ValueError, match="`data` is constant: every measurement is 0.5, .*check how it was read"):
        training.fit(training.problem(), constant, roles=training.ROLES)
