"""The examples of scanners: they run at tiny sizes, and their data are what they say."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si

TINY = "--size 8 --train 400 --steps 4 --rounds 2 --batch-size 8 --held-out 6 --draws 16"
FIGURES = ("energy_score", "coverage_90", "residual")


@pytest.fixture(scope="module")
def tomography():
    return importlib.import_module("tomography")


@pytest.fixture(scope="module")
def mri():
    return importlib.import_module("mri")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rival"), [("tomography", "back_projection"), ("mri", "sense")])
@pytest.mark.usefixtures("compiled_quickly")
def test_runs_at_tiny_sizes(name, rival, tmp_path, request):
    picture, figures_file = tmp_path / "picture.png", tmp_path / "figures.json"
    files = ["--out", str(picture), "--json", str(figures_file)]
    figures = request.getfixturevalue(name).main([*TINY.split(), *files])
    answers = {f"{figure}{answer}" for figure in FIGURES for answer in ("", "_gaussian", f"_{rival}")}
    assert set(figures) == answers | {"train_seconds", "sample_seconds"}
    assert json.loads(figures_file.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    # Draws of a Gaussian repeat what was given to within its noise, if records are enough to tell one.
    assert 0.7 < figures["residual_gaussian"] < 1.3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_slices_are_apart_from_those_held_out(monkeypatch):
    """A volume of heights, and one of places from the left, in voxels."""
    slices = importlib.import_module("brain_slices")
    left, _, up = np.mgrid[:99, :117, :95]
    volume = lambda values: type("Volume", (), {"get_fdata": lambda self: values.astype(float)})()
    monkeypatch.setattr(slices, "load_mni152_template", lambda resolution: volume(up))
    known, unseen = slices.brain_slices(300, 40, size=8)
    assert known.shape == (300, 8, 8) and unseen.shape == (40, 8, 8) and known.dtype == np.float32
    # At the middle, which no shift brings out of the volume; smoothing keeps a ramp.
    known, unseen = known[:, 4, 4], unseen[:, 4, 4]
    assert np.abs(known[:, None] - unseen).min() > slices.GAP - 1e-3
    assert unseen.min() == pytest.approx(48) and unseen.max() == pytest.approx(53)
    monkeypatch.setattr(slices, "load_mni152_template", lambda resolution: volume(left))
    ramps = np.diff(slices.brain_slices(300, 1, size=8)[0][:, 4, 2:6], axis=1)
    # 25 mm are 12.5 voxels; the mean cosine of angles of standard deviation 0.2 is exp(−0.02), ± 0.0016.
    assert ramps.mean() / 12.5 == pytest.approx(math.exp(-0.02), abs=0.006)


def test_weighted_projections_have_noise_of_one(tomography):
    size, length = 12, 0.3
    scanner = si.forward.ParallelBeam((size, size))
    slices = np.broadcast_to(np.float32(np.hypot(*np.mgrid[-6:6, -6:6]) < 5), (300, size, size))
    data = tomography.measure(length, scanner, slices, 2, 3e4, jr.key(0))
    assert data.observation.shape == (300, 2, size, 1) and data.params.angle.shape == (300, 2)
    project = jax.jit(jax.vmap(jax.vmap(scanner, (None, 0))))
    clean = length * project(jnp.asarray(slices)[..., None], data.params.angle)
    noise = data.observation - data.params.weights * clean
    # 7,200 values. A logarithm of some 1,500 counts or more is off by less than 0.03 of its standard deviation.
    assert abs(jnp.mean(noise)) < 4 / math.sqrt(7200) + 0.03
    assert jnp.std(noise) == pytest.approx(1, abs=4 / math.sqrt(2 * 7200))


def test_back_projection_of_many_views_is_the_slice(tomography):
    """Its grey values, whatever the length of a pixel."""
    size, length = 24, 0.3
    scanner = si.forward.ParallelBeam((size, size))
    disc = jnp.asarray(np.hypot(*np.mgrid[-12:12, -12:12]) < 8, jnp.float32)[..., None]
    angles = jnp.linspace(0, 180, 60, endpoint=False)
    weights = jnp.full((60, size, 1), 3.0)
    data = si.View(weights * length * jax.vmap(scanner, (None, 0))(disc, angles), tomography.Ray(angles, weights))
    back = tomography.back_projection(length, scanner, jax.tree.map(lambda x: x[None], data))[0]
    # Inside, away from the edge, where the filter rings.
    np.testing.assert_allclose(back[8:17, 8:17], 1, atol=0.05)


@pytest.fixture(scope="module")
def scans(mri):
    config = mri.Config(size=8, lines=3, noise=0.1)
    forward = si.forward.CartesianMRI((8, 8))
    images = mri.with_phase(jnp.ones((400, 8, 8)), jr.key(0))
    return config, forward, images, mri.scan(forward, images, 1, config, jr.key(1))


def test_phases_leave_magnitudes(scans):
    _, _, images, _ = scans
    np.testing.assert_allclose(jnp.abs(images), 1, atol=1e-6)
    # In the corner the phase is a sum of six normal coefficients of standard deviation 0.7.
    corner, down = images[:, 0, 0], images[:, 1, 0]
    assert abs(jnp.mean(corner)) < math.exp(-(0.7**2) * 6 / 2) + 3 / math.sqrt(400)
    assert jnp.max(jnp.abs(jnp.angle(down / corner))) < math.pi


def test_noise_of_scans(scans):
    config, forward, images, data = scans
    params = jax.tree.map(lambda x: x[:, 0], data.params)
    assert data.observation.shape == (400, 1, 2, 3, 8) and params.sensitivities.shape == (400, 2, 8, 8)
    noise = (data.observation[:, 0] - jax.vmap(forward)(images, params)) / config.noise
    for part in (noise.real, noise.imag):
        assert jnp.std(part) == pytest.approx(1, abs=4 / math.sqrt(2 * part.size))
    assert set(np.unique(params.samples)) == set(range(8))


def test_sense_is_ridge_regression(scans, mri):
    config, forward, _, data = scans
    few = jax.tree.map(lambda x: x[:3], data)
    found = mri.sense(forward, few, config.noise)
    basis = jnp.eye(64, dtype=jnp.complex64).reshape(64, 8, 8)
    measured = jax.vmap(jax.vmap(forward, (0, None)), (None, 0))(basis, jax.tree.map(lambda x: x[:, 0], few.params))
    for i, columns in enumerate(np.asarray(measured, complex).reshape(3, 64, -1)):
        normal = columns.conj() @ columns.T + 2 * config.noise**2 / 0.2 * np.eye(64)
        expected = np.linalg.solve(normal, columns.conj() @ np.ravel(few.observation[i, 0]))
        np.testing.assert_allclose(np.ravel(found[i]), expected, atol=2e-3)
