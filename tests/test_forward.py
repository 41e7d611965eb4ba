"""Forward models: the adjoint of every linear one, and references by other libraries."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
import scipy.ndimage
from jax.flatten_util import ravel_pytree

import helpers
import stochinv as si

LINEAR = helpers.linear_forward_models()
IMAGE = LINEAR["downsample"].signal


def structure(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.thorough
@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(name):
    """`⟨A s, o⟩ = ⟨s, Aᴴ o⟩`, and `Aᴴ` is the conjugate transpose of the dense Jacobian."""
    forward, signal, params = LINEAR[name]
    flat, unravel = ravel_pytree(signal)
    measure = lambda s: ravel_pytree(forward(unravel(s), params))[0]
    matrix = np.asarray(jax.jacfwd(measure, holomorphic=jnp.iscomplexobj(flat))(flat))
    other = jr.normal(jr.key(0), flat.shape, flat.dtype)
    np.testing.assert_allclose(measure(flat), matrix @ flat, atol=1e-4)
    np.testing.assert_allclose(measure(2 * flat - other), 2 * measure(flat) - measure(other), atol=1e-4)
    observation = forward(signal, params)
    cotangent = jax.tree.map(lambda x: jr.normal(jr.key(1), x.shape, x.dtype), observation)
    if isinstance(forward, si.AbstractLinearForwardModel):
        adjoint = forward.adjoint(cotangent, params)
    else:
        (adjoint,) = jax.linear_transpose(lambda s: forward(s, params), signal)(cotangent)
    assert jax.tree.structure(adjoint) == jax.tree.structure(signal)
    flat_cotangent, flat_adjoint = ravel_pytree(cotangent)[0], ravel_pytree(adjoint)[0]
    np.testing.assert_allclose(flat_adjoint, matrix.conj().T @ flat_cotangent, atol=1e-4)
    left, right = jnp.vdot(flat_cotangent, measure(flat)), jnp.vdot(flat_adjoint, flat)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "signal"),
    [
        (lambda s: jnp.fft.rfft(s), jnp.zeros(6)),
        (lambda s: jnp.imag((2 + 1j) * s), jnp.zeros(6, jnp.complex64)),
    ],
)
def test_adjoint_between_real_and_complex(function, signal):
    """`Re⟨A s, o⟩ = Re⟨s, Aᴴ o⟩`, where only one side is complex."""
    forward = helpers.LinearFunction(function, structure(signal))
    signal = jr.normal(jr.key(0), signal.shape, signal.dtype)
    measured = forward(signal, None)
    other = jr.normal(jr.key(1), measured.shape, measured.dtype)
    adjoint = forward.adjoint(other, None)
    assert adjoint.dtype == signal.dtype
    np.testing.assert_allclose(jnp.vdot(other, measured).real, jnp.vdot(adjoint, signal).real, rtol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_signal_structure(name):
    forward, signal, params = LINEAR[name]
    known = forward.signal_structure(structure(forward(signal, params)), params)
    assert known == structure(signal)


@pytest.mark.parametrize(
    ("boundary", "mode"), [("edge", "nearest"), ("reflect", "mirror"), ("constant", "constant"), ("wrap", "wrap")]
)
def test_blur_is_a_convolution(boundary, mode):
    kernel = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    blurred = si.forward.Blur(jnp.asarray(kernel), boundary)(IMAGE, None)
    expected = [scipy.ndimage.convolve(np.asarray(IMAGE[..., c]), kernel, mode=mode) for c in range(IMAGE.shape[-1])]
    np.testing.assert_allclose(blurred, np.stack(expected, -1), atol=1e-4)


def test_downsample_is_the_mean_of_blocks():
    got = np.asarray(si.forward.Downsample(2)(IMAGE, None))
    for row, column in np.ndindex(3, 4):
        block = np.asarray(IMAGE)[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(got[row, column], block.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(("corner", "moved"), [((1, 2), (1, 2)), ((5, 7), (3, 4)), ((0, 100), (0, 4))])
def test_window_stays_inside(corner, moved):
    window = si.forward.Window((6, 8, 2), (3, 4))(IMAGE, jnp.asarray(corner))
    np.testing.assert_array_equal(window, IMAGE[moved[0] : moved[0] + 3, moved[1] : moved[1] + 4])


def test_mask_and_channel_mix_against_numpy():
    mask, matrix = LINEAR["mask"].params, LINEAR["channel_mix"].forward.matrix
    np.testing.assert_array_equal(si.forward.Mask()(IMAGE, mask), np.asarray(IMAGE) * np.asarray(mask))
    expected = np.einsum("hwc,mc->hwm", IMAGE, matrix)
    np.testing.assert_allclose(si.forward.ChannelMix(matrix)(IMAGE, None), expected, atol=1e-5)


def test_linear_operator():
    diagonal = lx.DiagonalLinearOperator(jnp.asarray([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(si.forward.Linear(diagonal)(jnp.ones(3), None), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(si.forward.Linear()(jnp.ones(3), diagonal), [1.0, 2.0, 3.0])


def test_composed_applies_one_after_the_other():
    forward, signal, params = LINEAR["composed"]
    for stage, stage_params in zip(forward.stages, params, strict=True):
        signal = stage(signal, stage_params)
    np.testing.assert_array_equal(forward(LINEAR["composed"].signal, params), signal)
    function = si.Composed(lambda s, p: s**2, lambda s, p: s + p)
    np.testing.assert_array_equal(function(jnp.asarray([2.0]), (None, jnp.asarray([1.0]))), [5.0])
    assert function.signal_structure(structure(signal), (None, None)) is None


def test_multi_view_stacks_the_views():
    forward, signal, params = LINEAR["multi_view"]
    expected = jnp.stack([forward.forward(signal, corner) for corner in params])
    np.testing.assert_array_equal(forward(signal, params), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("name", helpers.forward_models())
def test_jit_vmap_and_gradients(name):
    forward, signal, params = helpers.forward_models()[name]
    expected = forward(signal, params)
    np.testing.assert_allclose(jax.jit(lambda s: forward(s, params))(signal), expected, atol=1e-5)
    batch = jax.vmap(lambda s: forward(s, params))(jnp.stack([signal, 2 * signal]))
    np.testing.assert_allclose(batch[0], expected, atol=1e-5)
    gradient = jax.grad(lambda s: jnp.sum(jnp.abs(forward(s, params)) ** 2))(signal)
    assert np.all(np.isfinite(gradient)) and gradient.shape == signal.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.forward.Blur(jnp.ones((2, 3))), "odd"),
        (lambda: si.forward.Blur()(IMAGE, None), "kernel"),
        (lambda: si.forward.Downsample(0), "factor"),
        (lambda: si.forward.Downsample(4)(IMAGE, None), "must divide"),
        (lambda: si.forward.Window((6, 8, 2), (7, 4)), "size"),
        (lambda: si.forward.Window((6, 8, 2), (3, 4))(IMAGE[:5], jnp.zeros(2, int)), "signal"),
        (lambda: si.forward.Linear(jnp.ones(3)), "matrix"),
        (lambda: si.forward.Linear()(jnp.ones(3), None), "params"),
        (lambda: si.forward.ChannelMix()(IMAGE, None), "matrix"),
        (lambda: si.Composed(), "at least one"),
        (lambda: si.Composed(si.forward.Downsample(2))(IMAGE, None), "tuple"),
        (lambda: si.MultiView(si.MultiView(helpers.measure)), "already"),
        (lambda: si.MultiView(si.forward.Downsample(2))(IMAGE, None), "views axis"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()
