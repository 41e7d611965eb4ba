"""The networks of `stochinv.nn`: the same laws for all."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from network_helpers import cast, compiled, fast_key, normal, refuses
from stochinv import nn
from stochinv.nn._conv import Conv
from stochinv.nn._norm import GroupNorm

EMBEDDING_SIZE = 6


@dataclass(frozen=True)
class Case:
    """How to build a network, and the shapes of its input and output."""

    make: type[eqx.Module]
    settings: dict
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]

    def network(self, seed=0):
        return self.make(
            self.x_shape[-1],
            self.y_shape[-1],
            embedding_size=EMBEDDING_SIZE,
            key=fast_key(seed),
            **self.settings,
        )


def unet(size, in_channels=2, out_channels=3, **settings):
    defaults = dict(channels=(4, 8), groups=2, heads=2)
    return Case(
        nn.UNet,
        defaults | settings,
        (*size, in_channels),
        (*size, out_channels),
    )


def transformer(size, in_channels=2, out_channels=3, **settings):
    defaults = dict(patch_size=4, width=12, depth=1, heads=2)
    return Case(
        nn.PatchTransformer,
        dict(image_size=size) | defaults | settings,
        (*size, in_channels),
        (*size, out_channels),
    )


def mlp(in_size, out_size, **settings):
    return Case(nn.MLP, dict(width=8, depth=2) | settings, (in_size,), (out_size,))


# The first of each family passes all laws, the others those of shape.
CASES = {
    "unet": unet((9, 7), channels=(4, 4)),
    "transformer": transformer((9, 7)),
    "mlp": mlp(3, 5),
}
SHAPE_CASES = CASES | {
    "unet-28x28": unet((28, 28), 1, 1, channels=(2, 4, 8)),
    "unet-27x31": unet((27, 31), channels=(2, 4, 4)),
    "unet-1x1": unet((1, 1)),
    "unet-one-level": unet((5, 7), channels=(4,)),
    "unet-sequence": unet((13,), dims=1, channels=(4, 4)),
    "unet-volume": unet((3, 5, 4), dims=3, patch=2),
    "unet-no-attention": unet((8, 8), attention=False, blocks=2),
    "transformer-28x28": transformer((28, 28), 1, 1, depth=2),
    "transformer-27x31": transformer((27, 31)),
    "transformer-1x1": transformer((1, 1)),
    "transformer-pixels": transformer((3, 5), patch_size=1),
    "transformer-narrow": transformer((8, 8), width=3, heads=1),
    "mlp-scalar": mlp(1, 1, depth=1),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def inputs(case, seed=1, batch=()):
    x = normal(*batch, *case.x_shape, seed=seed)
    return x, normal(*batch, EMBEDDING_SIZE, seed=seed + 100)


def perturbed(case, seed=2):
    """A network with random numbers for all parameters, those that start at zero too.

    It never draws the fresh parameters, whose many shapes are slow to compile.
    """
    rng = np.random.default_rng(seed)
    empty = eqx.filter_eval_shape(case.network)
    return jtu.tree_map(lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), x.dtype), empty)


call = compiled(lambda network, x, embedding: network(x, embedding))
call_batch = compiled(lambda network, x, e: jax.vmap(network)(x, e))
energy_gradients = compiled(lambda network, *args: jax.grad(lambda args: jnp.sum(jnp.square(network(*args))))(args))


@compiled
@eqx.filter_value_and_grad
def loss(network, x, embedding, target):
    return jnp.mean(jnp.square(jax.vmap(network)(x, embedding) - target))


# Laws of all networks


@pytest.mark.thorough
@pytest.mark.parametrize("shape_case", SHAPE_CASES.values(), ids=SHAPE_CASES.keys())
def test_shape_and_finite(shape_case):
    network = perturbed(shape_case)
    y = call(network, *inputs(shape_case))
    assert y.shape == shape_case.y_shape
    assert y.dtype == jnp.float32
    assert np.all(np.isfinite(y))
    assert np.any(np.asarray(y) != 0)


@pytest.mark.thorough
def test_fresh_network_returns_zeros(case):
    y = call(case.network(), *inputs(case))
    np.testing.assert_array_equal(y, np.zeros(case.y_shape))


def test_same_key_same_network(case):
    leaves = [jtu.tree_leaves(case.network(seed)) for seed in (0, 0, 1)]
    first, again, other = (np.concatenate([np.ravel(x) for x in ls]) for ls in leaves)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.thorough
def test_every_parameter_gets_a_gradient(case):
    network = perturbed(case)
    _, gradient = loss(network, *inputs(case, batch=(2,)), jnp.ones(case.y_shape))
    gradients, _ = jtu.tree_flatten_with_path(gradient)
    parameters = jtu.tree_leaves(eqx.filter(network, eqx.is_inexact_array))
    assert len(gradients) == len(parameters)
    for path, g in gradients:
        assert np.all(np.isfinite(g)), jtu.keystr(path)
        assert np.all(np.asarray(g) != 0), jtu.keystr(path)


@pytest.mark.thorough
def test_fresh_network_starts_to_learn(case):
    network = case.network()
    x, embedding = inputs(case, batch=(2,))
    target = jnp.ones(case.y_shape)
    first, _ = loss(network, x, embedding, target)
    for _ in range(10):
        value, g = loss(network, x, embedding, target)
        # Steps of the gradient's sign, which do not depend on its scale.
        network = jtu.tree_map(lambda p, g: np.asarray(p) - 0.02 * np.sign(g), network, g)
    assert value < 0.8 * first


def test_embedding_conditions(case):
    """The embedding changes how the output depends on `x`, not just an offset."""
    network = perturbed(case)
    x, embedding = inputs(case)
    other_x, other_embedding = inputs(case, seed=4)
    y = call(network, x, embedding)
    moved = call(network, x, other_embedding)
    effect = call(network, other_x, embedding) - y
    other_effect = call(network, other_x, other_embedding) - moved
    scale = np.max(np.abs(y))
    assert np.max(np.abs(moved - y)) > 1e-2 * scale
    assert np.max(np.abs(effect)) > 1e-2 * scale
    assert np.max(np.abs(effect - other_effect)) > 1e-2 * scale


@pytest.mark.thorough
def test_every_input_matters(case):
    """Every pixel, those beside the inner padding too, and all of the embedding."""
    for gradient in energy_gradients(perturbed(case), *inputs(case)):
        assert np.all(gradient != 0)


@pytest.mark.thorough
def test_vmap_equals_loop(case):
    network = perturbed(case)
    x, embedding = inputs(case, batch=(3,))
    batched = call_batch(network, x, embedding)
    looped = np.stack([call(network, *one) for one in zip(x, embedding, strict=True)])
    np.testing.assert_allclose(batched, looped, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_vmap_over_networks(case):
    """An ensemble: parameters with a leading axis."""
    networks = [perturbed(case, seed) for seed in (0, 1)]
    stacked = jtu.tree_map(lambda *x: jnp.asarray(np.stack(x)), *networks)
    x, embedding = inputs(case)
    batched = compiled(eqx.filter_vmap(lambda network: network(x, embedding)))(stacked)
    looped = np.stack([call(network, x, embedding) for network in networks])
    np.testing.assert_allclose(batched, looped, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_bfloat16(case):
    network = perturbed(case)
    x, embedding = inputs(case)
    y = call(network, x, embedding)
    low = call(cast(network, jnp.bfloat16), x, embedding)
    assert low.dtype == jnp.bfloat16
    # 8 bits of mantissa, through some ten layers.
    error = np.linalg.norm(low.astype(np.float32) - y) / np.linalg.norm(y)
    assert error < 0.1


@pytest.mark.thorough
def test_float64(case):
    low = call(perturbed(case), *inputs(case))
    with jax.enable_x64(True):
        high = call(perturbed(case), *inputs(case))
    assert high.dtype == np.float64
    error = np.linalg.norm(low - high) / np.linalg.norm(high)
    # Not zero either: double precision is used.
    assert 0 < error < 1e-4


def test_parameters_decide_the_type(case):
    network = perturbed(case)
    low = jnp.bfloat16
    x, embedding = inputs(case)
    for arguments in [(x.astype(low), embedding), (x, embedding.astype(low))]:
        y = eqx.filter_eval_shape(network, *arguments)
        assert y.dtype == jnp.float32
    assert eqx.filter_eval_shape(cast(network, low), x, embedding).dtype == low


@pytest.mark.slow
def test_forward_mode_agrees_with_reverse_mode(case):
    network = perturbed(case)
    x, embedding = inputs(case)
    tangent = normal(*x.shape, seed=5)
    cotangent = normal(*case.y_shape, seed=6)

    @eqx.filter_jit
    def both(network):
        f = lambda x: network(x, embedding)
        _, pushed = jax.jvp(f, (x,), (tangent,))
        _, pull = jax.vjp(f, x)
        return jnp.vdot(pushed, cotangent), jnp.vdot(tangent, pull(cotangent)[0])

    pushed, pulled = both(network)
    np.testing.assert_allclose(pushed, pulled, rtol=1e-3, atol=1e-3)


# Errors


def test_wrong_input_is_refused(case):
    network = case.network()
    x, embedding = inputs(case)
    name = type(network).__name__
    refuses(lambda: network(x[None], embedding), "`x`", name, "jax.vmap")
    wide = jnp.concatenate([x, x], axis=-1)
    refuses(lambda: network(wide, embedding), "`x`", str(wide.shape), "last axis")
    refuses(lambda: network(x, embedding[:-1]), "`embedding`", "(5,)", "(6,)")


def test_wrong_channels_are_refused_in_words():
    network = CASES["unet"].network()
    with pytest.raises(ValueError, match=r"`x` of `UNet` has shape \(9, 7, 4\), but"):
        network(jnp.zeros((9, 7, 4)), jnp.zeros(EMBEDDING_SIZE))


def test_wrong_image_size_is_refused():
    network = CASES["transformer"].network()
    with pytest.raises(ValueError, match=r"\(9, 7, 2\) was expected"):
        network(jnp.zeros((9, 6, 2)), jnp.zeros(EMBEDDING_SIZE))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: unet((8, 8), channels=()).network(), "`channels` is empty"),
        (lambda: unet((8, 8), groups=3).network(), "`groups`=3 does not divide"),
        (lambda: unet((8, 8), heads=3).network(), r"`heads`=3 does not divide"),
        (lambda: unet((8, 8), dims=4).network(), "`dims` is 4; pass 1 for sequences"),
        (lambda: unet((8, 8), blocks=0).network(), "`blocks` is 0"),
        (lambda: unet((8, 8), channels=(4, 0)).network(), r"`channels\[1\]` is 0"),
        (
            lambda: transformer((8, 8), heads=5).network(),
            r"`heads`=5 does not divide `width`=12: choose `heads` from "
            r"\[1, 2, 3, 4, 6, 12\]",
        ),
        (lambda: transformer((8, 8), patch_size=0).network(), "`patch_size` is 0"),
        (lambda: transformer((0, 8)).network(), r"`image_size\[0\]` is 0"),
        (lambda: mlp(3, 5, width=-1).network(), "`width` is -1"),
        (lambda: mlp(3, 5, depth=0).network(), "`depth` is 0"),
        (lambda: nn.NoiseEmbedding(0, key=fast_key(0)), "`size` is 0"),
        (lambda: GroupNorm(6, 4), r"choose `groups` from \[1, 2, 3, 6\]"),
        (lambda: Conv(1, 1, 0, key=fast_key(0)), "`kernel_size` is 0"),
    ],
)
def test_wrong_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_image_size_that_is_no_pair_is_refused():
    refuses(lambda: transformer((8, 8), image_size=(8, 8, 1)).network(), "image_size")


@pytest.mark.thorough
def test_the_way_up_of_a_unet_has_an_embedding_of_its_own():
    """The same one changes nothing, another changes the output; several share the convolutions on the way down."""
    network = perturbed(unet((8, 8)))
    image, embedding = normal(8, 8, 2), normal(EMBEDDING_SIZE)
    plain = compiled(network)(image, embedding)
    up = compiled(lambda e: network(image, embedding, e))
    np.testing.assert_allclose(up(embedding), plain, rtol=1e-5, atol=1e-6)
    assert jnp.max(jnp.abs(up(embedding + 1) - plain)) > 1e-3

    def batches():
        jaxpr = jax.make_jaxpr(jax.vmap(network, (None, None, 0)))(image, embedding, jnp.stack([embedding] * 3))
        convolutions = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
        return [e.outvars[0].aval.shape[0] for e in convolutions]

    assert set(batches()) == {1, 3}
