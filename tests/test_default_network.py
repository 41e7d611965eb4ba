import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._denoiser.back_projection import count_channels, forward_gain

IMAGE = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
WINDOW = si.forward.Window((8, 8, 1), (3, 4))
CORNERS = jnp.asarray([[0, 0], [2, 3], [4, 4]])
LEVEL = si.NoiseLevel(jnp.asarray(0.8), jnp.asarray(0.6))


def picture(seed=0, shape=(8, 8, 1)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def windows(image, corners=CORNERS, mask=None, forward=WINDOW):
    return si.View(jax.vmap(lambda corner: forward(image, corner))(corners), corners, mask)


def covered(corners):
    inside = np.zeros((8, 8, 1))
    for row, column in corners:
        inside[row : row + 3, column : column + 4] = 1
    return inside


def encode(context, forward=WINDOW, image=None, gain=1.0, corner=(5, 1)):
    image = picture() if image is None else image
    corner = jnp.asarray(corner)
    return si.BackProjection(forward, IMAGE, gain=gain)(0.8 * forward(image, corner), LEVEL, context, corner)


def test_back_projection_of_a_window_is_its_pixels_and_coverage():
    image = picture()
    features = encode(windows(image)).network_input
    assert features.shape == (8, 8, 4) and count_channels(IMAGE, windows(image)) == 4
    seen, target_seen = covered(np.asarray(CORNERS)), covered([(5, 1)])
    np.testing.assert_allclose(features[..., :1], 0.8 * image * target_seen, atol=1e-5)
    np.testing.assert_allclose(features[..., 1:2], target_seen, atol=1e-6)
    np.testing.assert_allclose(features[..., 2:3], image * seen, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features[..., 3:], seen, atol=1e-6)


def test_the_first_estimate_weighs_target_and_context():
    image = picture()
    features = encode(windows(image))
    seen = covered(np.asarray(CORNERS))[..., 0] == 1
    neither = ~seen & (covered([(5, 1)])[..., 0] == 0)
    target_alone = ~seen & (covered([(5, 1)])[..., 0] == 1)
    np.testing.assert_array_equal(features.estimate[neither], 0)
    np.testing.assert_array_equal(features.uncertainty[neither], 1)
    # The posterior mean and standard deviation of a pixel of unit variance with signal-to-noise ratio `snr`.
    snr = (0.8 / 0.6) ** 2
    np.testing.assert_allclose(features.estimate[target_alone], snr / (1 + snr) * image[target_alone], rtol=1e-4)
    np.testing.assert_allclose(features.uncertainty[target_alone], 1 / np.sqrt(1 + snr), rtol=1e-4)
    assert np.all(np.asarray(features.uncertainty)[seen] < 0.25)


def flat_encoder(key=3):
    return si.Flatten(eqx.nn.MLP(14, 6, 6, 1, key=jr.key(key)))


def flat(context, corner=(5, 1)):
    corner = jnp.asarray(corner)
    return flat_encoder()(0.8 * WINDOW(picture(), corner), LEVEL, context, corner)


@pytest.mark.parametrize("encoder", [encode, flat])
def test_masked_views_are_ignored(encoder):
    mask = jnp.asarray([True, False, True])
    context = windows(picture(), mask=mask)
    spoiled = si.View(context.observation.at[1].set(1e3), context.params.at[1].set(1), mask)
    expected = encoder(context)
    jax.tree.map(np.testing.assert_array_equal, encoder(spoiled), expected)
    two = encoder(windows(picture(), CORNERS[jnp.asarray([0, 2])]))
    if encoder is encode:
        np.testing.assert_allclose(two.network_input, expected.network_input, rtol=1e-5, atol=1e-6)
    else:
        # All but the share of views that count, which the last entry holds.
        np.testing.assert_allclose(two.network_input[:-1], expected.network_input[:-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(expected.network_input[-1], 2 / 3, rtol=1e-6)
    all_of_them = encoder(windows(picture()))
    assert np.abs(all_of_them.network_input - expected.network_input).max() > 1e-3
    nothing = encoder(windows(picture(), mask=jnp.zeros(3, bool)))
    assert np.all(np.isfinite(nothing.network_input))


@pytest.mark.parametrize("encoder", [encode, flat])
def test_the_order_of_views_does_not_matter(encoder):
    mask = jnp.asarray([True, True, False])
    context = windows(picture(), mask=mask)
    shuffled = jax.tree.map(lambda x: x[jnp.asarray([2, 0, 1])], context)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), encoder(context), encoder(shuffled)
    )


def test_gain():
    five = si.ForwardFunction(lambda s, p: 5 * WINDOW(s, p))
    structure = jax.ShapeDtypeStruct((2,), jnp.int32)
    gain = forward_gain(five, IMAGE, structure)
    np.testing.assert_allclose(gain, 5, rtol=1e-6)
    # Standardised measurements are the same with any gain, and so must be what is made of them.
    corner = jnp.asarray([5, 1])
    noisy, context = 0.8 * WINDOW(picture(), corner), windows(picture())
    scaled = si.BackProjection(five, IMAGE, gain=gain)(noisy, LEVEL, context, corner)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), scaled, encode(context))


def test_offsets_of_the_forward_model_leave_the_back_projection_alone():
    shifted = si.ForwardFunction(lambda s, p: WINDOW(s, p) + 3.0)
    np.testing.assert_allclose(forward_gain(shifted, IMAGE, jax.ShapeDtypeStruct((2,), jnp.int32)), 1, rtol=1e-6)
    # Linear part alone: the same measurements give the same image.
    context = windows(picture())
    corner = jnp.asarray([5, 1])
    noisy = 0.8 * WINDOW(picture(), corner)
    one, other = (si.BackProjection(f, IMAGE)(noisy, LEVEL, context, corner) for f in (WINDOW, shifted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


def test_contexts_that_are_not_views():
    context = {"label": jnp.asarray([2.0, -1.0]), "number": jnp.asarray(7)}
    features = encode(context).network_input
    assert features.shape == (8, 8, 5) and count_channels(IMAGE, context) == 5
    np.testing.assert_array_equal(features[3, 4, 2:], [2.0, -1.0, 7.0])
    assert encode(None).network_input.shape == (8, 8, 2) and count_channels(IMAGE, None) == 2
    flat_features = si.Flatten()(jnp.ones(2), LEVEL, context, None).network_input
    np.testing.assert_allclose(flat_features, [1, 1, 2, -1, 7], rtol=1e-6)
    with pytest.raises(ValueError, match="Flatten: the context is a `View`, so `view_network` is needed"):
        si.Flatten()(jnp.ones(2), LEVEL, windows(picture()), None)


def info_of(context, observation, params, affine):
    structure = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return si.DataInfo(
        structure(observation),
        structure(params),
        structure(context),
        si.Units(jnp.asarray(0.5), jnp.asarray(2.0)),
        affine,
    )


def randomised(module):
    """A fresh network returns zeros; one that was trained does not."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(arrays)
    # NumPy's numbers need no compilation per shape.
    rng = np.random.default_rng(9)
    leaves = [x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return eqx.combine(jax.tree.unflatten(treedef, leaves), rest)


@pytest.mark.parametrize("kind", [pytest.param("image", marks=pytest.mark.slow), "vector"])
def test_default_denoiser(kind):
    if kind == "image":
        corner = CORNERS[1]
        forward, signal, context, params = WINDOW, IMAGE, windows(picture()), corner
        noisy = WINDOW(picture(), corner)
    else:
        forward = si.ForwardFunction(lambda s, p: p @ s["a"] + s["b"])
        signal = {"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}
        params, noisy = jnp.ones((2, 3)), jnp.ones(2)
        context = si.View(jnp.ones((2, 2)), jnp.ones((2, 2, 3)))
    info = info_of(context, noisy, params, affine=True)
    fresh = si.nn.default_denoiser(forward, signal, info, width=8, latent_size=4, key=jr.key(0))
    assert isinstance(fresh.encoder, si.BackProjection if kind == "image" else si.Flatten)
    call = eqx.filter_jit(lambda d, key: d(noisy, LEVEL, context, params, key=key))
    answer = call(fresh, None)
    structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), answer)
    assert structure == signal
    trained = randomised(fresh)
    same = [call(trained, None) for _ in range(2)] + [call(trained, jr.key(1)) for _ in range(2)]
    first = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in same]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[2], first[3])
    assert np.abs(first[0] - first[2]).max() > 1e-4
    other = np.concatenate([np.ravel(x) for x in jax.tree.leaves(call(trained, jr.key(2)))])
    assert np.abs(other - first[2]).max() > 1e-4


@pytest.mark.slow
def test_default_denoiser_is_in_the_units_of_the_signal():
    info = info_of(windows(picture()), WINDOW(picture(), CORNERS[0]), CORNERS[0], affine=True)
    denoiser = si.nn.default_denoiser(WINDOW, IMAGE, info, width=8, key=jr.key(0))
    np.testing.assert_allclose((denoiser.shift, denoiser.scale), (0.5, 2.0), rtol=1e-6)
    # A fresh network answers with the first estimate: the mean where nothing is known.
    image = picture()
    standardised = lambda o: (o - 0.5) / 2.0
    seen = si.View(standardised(windows(image).observation), CORNERS)
    answer = denoiser(0.8 * standardised(WINDOW(image, CORNERS[0])), LEVEL, seen, CORNERS[0])
    unseen = covered(np.asarray(CORNERS)) == 0
    np.testing.assert_allclose(np.asarray(answer)[unseen], 0.5, rtol=1e-5)
    # Where the context shows a pixel, it comes near it.
    error = np.asarray(answer - image)[~unseen]
    assert np.sqrt(np.mean(error**2)) < 0.15


@pytest.mark.slow
def test_a_default_image_network_is_trained_by_fit():
    corners = jnp.asarray(np.random.default_rng(0).integers(0, 4, size=(8, 3, 2)))
    data = jax.vmap(lambda image, c: windows(image, c))(jnp.stack([picture(seed) for seed in range(8)]), corners)
    problem = si.StochasticInverseProblem(WINDOW)
    options = {"steps": 2, "batch_size": 4, "roles": si.RandomViews((0, 1), 1, 1), "progress": False}
    seen = problem.fit(data, key=jr.key(0), **options)
    assert isinstance(seen.problem.denoiser.encoder, si.BackProjection)
    assert seen.problem.signal == IMAGE
    assert np.all(np.isfinite(seen.history.loss))


@pytest.mark.thorough
def test_a_signal_without_a_slope_at_zero_is_left():
    """Intensities are squares: at a signal of zeros their derivative is zero, where no network would learn."""
    forward = lambda signal, mask: (mask @ signal) ** 2
    masks = jr.normal(jr.key(0), (16, 3, 4, 2))
    data = si.View(jnp.einsum("nvij,nj->nvi", masks, jr.normal(jr.key(1), (16, 2))) ** 2, masks)
    signal = jax.ShapeDtypeStruct((2,), jnp.float32)
    for objective in (si.SquaredError(), si.ProperScore(num_draws=2)):
        problem = si.StochasticInverseProblem(forward, objective=objective, signal=signal)
        fit = problem.fit(
            data, roles=si.RandomViews(1, 1, 1), key=jr.key(2), steps=1, batch_size=8, ema=None, progress=False
        )
        context = si.View(data.observation[0, :1], masks[0, :1])
        sample = fit.problem.sample(context, masks[0, 1], key=jr.key(3), sampler=si.Ancestral(1))
        slope = jax.grad(lambda s: jnp.sum(forward(s, masks[0, 2])))(sample.signal)
        assert jnp.max(jnp.abs(slope)) > 0.1


@pytest.mark.thorough
def test_default_denoiser_of_a_volume_renderer():
    """It makes voxels like those that the forward model takes for its signal; without a camera there is none."""
    forward = si.forward.VolumeRenderer(4)
    camera = si.forward.Camera(8 * np.eye(3) + [[0, 0, 4], [0, 0, 4], [0, 0, -7]], np.eye(4), (8, 8))
    observation = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32)
    params = jax.eval_shape(lambda: camera)
    signal = forward.signal_structure(observation, params)
    info = si.DataInfo(observation, params, None, si.Units(jnp.zeros(()), jnp.ones(())))
    denoiser = si.nn.default_denoiser(forward, signal, info, width=48, key=jr.key(0))
    answer = eqx.filter_eval_shape(denoiser, observation, LEVEL, None, params, key=None)
    assert jax.tree.map(lambda x: x.shape, answer) == jax.tree.map(lambda x: x.shape, signal)
    with pytest.raises(ValueError, match="give a `denoiser`"):
        si.nn.default_denoiser(forward, IMAGE, info, key=jr.key(0))


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_signals_of_vectors_have_the_size_that_measurements_tell(size):
    rng = np.random.default_rng(0)
    params = rng.normal(size=(200, 2, 2, 3))
    clean = np.einsum("nvij,nj->nvi", params, size * rng.normal(size=(200, 3)))
    problem = si.StochasticInverseProblem(
        lambda s, p: p @ s, signal=jax.ShapeDtypeStruct((3,), jnp.float32), space=si.MeasurementSpace()
    )
    data = si.View(np.float32(clean), np.float32(params))
    denoiser = si.init(problem, data, key=jr.key(0), roles=si.RandomViews(1, 1)).problem.denoiser
    # One measurement of one random signal tells it to a factor of 2 or so.
    assert 0.2 < denoiser.scale / size < 5
