"""Warping, against SciPy and scikit-image, closed forms and finite differences; and the smoothness of flows."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.transform

import helpers
import stochinv as si
from stochinv.forward import FlowSmoothness, Warp

SOURCE = jnp.asarray(skimage.data.astronaut()[96:112, 200:220], jnp.float32) / 255  # 16×20, in colours
FLOW = 6 * jr.normal(jr.key(0), (16, 20, 2))
WARPS = helpers.warps()


def places(flow):
    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]]
    return np.stack([rows + np.asarray(flow[..., 0]), columns + np.asarray(flow[..., 1])])


def test_equals_scipy():
    """Displacements of several pixels, so that many places lie outside."""
    source = np.moveaxis(np.asarray(SOURCE), -1, 0)
    expected = [scipy.ndimage.map_coordinates(c, places(FLOW), order=1, mode="nearest") for c in source]
    np.testing.assert_allclose(Warp()(FLOW, SOURCE), np.stack(expected, -1), atol=2e-5)


def test_equals_scikit_image():
    got = Warp()(FLOW, SOURCE)
    for channel in range(3):
        expected = skimage.transform.warp(np.asarray(SOURCE[..., channel]), places(FLOW), order=1, mode="edge")
        np.testing.assert_allclose(got[..., channel], expected, atol=2e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_smallest_images(shape):
    source, flow = jr.normal(jr.key(1), (*shape, 1)), 3 * jr.normal(jr.key(2), (*shape, 2))
    got = Warp()(flow, source)[..., 0]
    expected = scipy.ndimage.map_coordinates(np.asarray(source[..., 0]), places(flow), order=1, mode="nearest")
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", WARPS)
def test_gradients_are_those_of_finite_differences(name, x64):
    forward, signal, params = WARPS[name]
    signal = jnp.asarray(np.random.default_rng(2).normal(size=signal.shape))
    params = jnp.asarray(np.asarray(params), jnp.float64)
    weights = jr.normal(jr.key(0), forward(signal, params).shape, jnp.float64)
    measure = lambda signal, params: jnp.sum(weights * forward(signal, params))
    gradients = jax.jit(jax.grad(measure, (0, 1)))(signal, params)
    towards = [jr.normal(jr.key(i), x.shape, jnp.float64) for i, x in enumerate(gradients)]
    value = jax.jit(lambda step: measure(signal + step[0] * towards[0], params + step[1] * towards[1]))
    for i, step in enumerate(1e-7 * np.eye(2)):
        difference = (value(step) - value(-step)) / 2e-7
        np.testing.assert_allclose(jnp.sum(gradients[i] * towards[i]), difference, rtol=1e-5)


def test_values_do_not_depend_on_whether_derivatives_are_taken(x64):
    keys = jr.split(jr.key(0), 2)
    source, flow = jr.uniform(keys[0], (9, 11, 3)), 4 * jr.normal(keys[1], (9, 11, 2))
    warp = si.forward.Warp()
    value, _ = jax.jvp(lambda u: warp(u, source), (flow,), (jnp.ones_like(flow),))
    np.testing.assert_allclose(warp(flow, source), value, atol=1e-12)


def test_margin_is_the_larger_source():
    """A frame within a larger source is the part of that source's own warp."""
    flow = FLOW.at[:3].set(0).at[-3:].set(0).at[:, :3].set(0).at[:, -3:].set(0)
    got = Warp(margin=3)(flow[3:-3, 3:-3], SOURCE)
    np.testing.assert_allclose(got, Warp()(flow, SOURCE)[3:-3, 3:-3], atol=1e-6)


def test_coarse_flows_are_interpolated():
    coarse = jr.normal(jr.key(3), (4, 5, 2))
    fine = Warp(scale=4).displacement(coarse, SOURCE)
    rows, columns = ((np.arange(n) + 0.5) / 4 - 0.5 for n in (16, 20))
    at = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    expected = [scipy.ndimage.map_coordinates(np.asarray(coarse[..., i]), at, order=1, mode="nearest") for i in (0, 1)]
    np.testing.assert_allclose(fine, np.stack(expected, -1), atol=1e-5)
    np.testing.assert_allclose(Warp(scale=4)(coarse, SOURCE), Warp()(fine, SOURCE), atol=1e-6)
    assert Warp(scale=4).displacement(jnp.ones((4, 4, 2)), SOURCE[:, :13]).shape == (16, 13, 2)


def test_frames_of_a_translation_move_on():
    """Frame `j` of a constant displacement is the warp by `j` times it."""
    step = jnp.asarray([0.5, -1.25])
    field = jnp.broadcast_to(step, (16, 20, 2))
    frames = Warp(num_frames=3)(field, SOURCE)
    for j in range(3):
        np.testing.assert_allclose(frames[j], Warp()((j + 1) * field, SOURCE), atol=1e-5)


def test_frames_of_a_rotation_turn_on():
    """A field that rotates by 5° leads to 10° and 15°, up to interpolation of a linear field: exactly."""
    angle = np.deg2rad(5)
    centre = np.array([7.5, 9.5])
    turn = lambda angle: np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid = np.stack(np.mgrid[:16, :20], -1)
    field = lambda times: jnp.asarray((grid - centre) @ (turn(times * angle).T - np.eye(2)), jnp.float32)
    displacement = Warp(num_frames=3).displacement(field(1), SOURCE)
    inner = np.s_[4:-4, 4:-4]  # where no place leaves the frame
    for j in range(3):
        np.testing.assert_allclose(displacement[j][inner], field(j + 1)[inner], atol=1e-4)


def test_frames_go_back_from_frame_to_frame():
    """A field of whole pixels, followed by hand from the second frame to the first and on to the source."""
    field = np.random.default_rng(3).integers(-1, 2, size=(16, 20, 2))
    field[[0, 1, -2, -1]], field[:, [0, 1, -2, -1]] = 0, 0
    frames = Warp(num_frames=2)(jnp.asarray(field, jnp.float32), SOURCE)
    back = lambda image: np.array(
        [[image[i + field[i, j, 0], j + field[i, j, 1]] for j in range(20)] for i in range(16)]
    )
    first = back(np.asarray(SOURCE))
    np.testing.assert_allclose(frames[0], first, atol=1e-6)
    np.testing.assert_allclose(frames[1], back(first), atol=1e-6)


def test_far_away_is_no_trouble():
    """A flow of a thousand pixels, or an infinite one, gives finite frames and gradients."""
    warp = Warp()
    for size in (1e3, 1e30):
        flow = jnp.where(FLOW > 0, size, -size)
        value, gradient = jax.value_and_grad(lambda u: jnp.sum(warp(u, SOURCE) ** 2))(flow)
        assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", WARPS)
def test_signal_structure(name):
    forward, signal, params = WARPS[name]
    observation = forward(signal, params)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert forward.signal_structure(shape(observation), shape(params)) == shape(signal)


def test_bytes_are_fine_as_a_source():
    source = jnp.asarray(skimage.data.astronaut()[:16, :20])
    got = Warp()(FLOW, source)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, Warp()(FLOW, source.astype(jnp.float32)))


@pytest.mark.thorough
def test_smoothness():
    flat = jnp.ones((16, 20, 1))
    assert FlowSmoothness(1.0)(jnp.broadcast_to(jnp.asarray([3.0, -2.0]), (16, 20, 2)), SOURCE) == 0
    # A jump of 2 pixels between two columns of flow: 16 of the 15·20 + 16·19 neighbours.
    step = jnp.zeros((16, 20, 2)).at[:, 10:, 0].set(2.0)
    jump = np.sqrt(4 + 0.01) - 0.1
    np.testing.assert_allclose(FlowSmoothness(0.5)(step, flat), 0.5 * 16 * jump / 604, rtol=1e-5)
    # The same at an edge of the source costs e^{-10 · 0.3} of it.
    edge = flat.at[:, 10:].set(1.3)
    np.testing.assert_allclose(FlowSmoothness(0.5)(step, edge), 0.5 * 16 * jump / 604 * np.exp(-3), rtol=1e-4)
    padded = jnp.pad(edge, ((2, 2), (2, 2), (0, 0)))
    np.testing.assert_allclose(FlowSmoothness(0.5, margin=2)(step, padded), FlowSmoothness(0.5)(step, edge), rtol=1e-5)
    assert jnp.all(jnp.isfinite(jax.grad(lambda u: FlowSmoothness(1.0)(u, SOURCE))(jnp.zeros((4, 5, 2)))))


@pytest.mark.thorough
def test_smoothness_is_an_option_of_the_objectives():
    """It enters the loss with its weight, for one record."""
    source, flow = SOURCE[..., :1], jr.normal(jr.key(4), (16, 20, 2))
    denoiser = lambda noisy, level, context, params, *, key=None: flow
    example = si.Example(None, si.View(source, source))
    for objective in (si.SquaredError, si.ProperScore):
        losses = [
            si.StochasticInverseProblem(Warp(), denoiser, objective=objective(regulariser=regulariser)).loss(
                example, key=jr.key(0)
            )[0]
            for regulariser in (FlowSmoothness(0.3), None)
        ]
        np.testing.assert_allclose(losses[0] - losses[1], FlowSmoothness(0.3)(flow, source), rtol=1e-4)


def test_sample_is_measured_by_the_forward_model():
    """A sample's warped frame is `forward(signal, params)`, to the rounding of two programs."""
    key, source = jr.key(5), SOURCE
    denoiser = lambda noisy, level, context, params, *, key=None: 2 * jr.normal(key, (4, 5, 2))
    problem = si.StochasticInverseProblem(
        Warp(scale=4), denoiser, objective=si.ProperScore(), signal=jax.ShapeDtypeStruct((4, 5, 2), jnp.float32)
    )
    sample = problem.sample(None, source, key=key, sampler=si.Ancestral(2), num_samples=3)
    expected = jax.jit(jax.vmap(lambda u: problem.forward(u, source)))(sample.signal)
    np.testing.assert_allclose(sample.observation, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Warp(scale=0), "scale"),
        (lambda: Warp(margin=-1), "margin"),
        (lambda: Warp(num_frames=0), "num_frames"),
        (lambda: Warp(margin=8)(FLOW, SOURCE), "leaves no frame"),
        (lambda: Warp(scale=2)(FLOW, SOURCE), r"\(8, 10, 2\)"),
        (lambda: FlowSmoothness(-1.0), "weight"),
        (lambda: FlowSmoothness(1.0, epsilon=0.0), "epsilon"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()
