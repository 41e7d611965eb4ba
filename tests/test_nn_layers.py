"""The layers of `stochinv.nn` against references, and the noise level's embedding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

from network_helpers import cast, compiled, fast_key, normal, refuses, with_noise
from stochinv import nn
from stochinv.nn._attention import SelfAttention
from stochinv.nn._conv import Conv, blocks_to_channels, channels_to_blocks, pad_to_multiple, upsample_nearest
from stochinv.nn._norm import GroupNorm

apply = compiled(lambda layer, x: layer(x))
vectors_of = compiled(lambda embed, log_snr: jax.vmap(embed)(log_snr))


def test_noise_embedding_tells_levels_apart():
    embed = nn.NoiseEmbedding(16, key=fast_key(0))
    log_snr = np.linspace(-15, 15, 61)
    vectors = vectors_of(embed, log_snr)
    assert vectors.shape == (61, 16)
    assert np.all(np.isfinite(vectors))
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    apart = distances[~np.eye(61, dtype=bool)]
    assert np.min(apart) > 0.02 * np.max(apart)


def test_noise_embedding_is_smooth():
    """A hundredth of a nat moves the embedding by little."""
    embed = nn.NoiseEmbedding(16, key=fast_key(0))
    log_snr = np.linspace(-15, 15, 61)
    vectors = vectors_of(embed, log_snr)
    step = np.linalg.norm(vectors_of(embed, log_snr + 0.01) - vectors, axis=-1)
    assert np.max(step) < 0.1 * np.mean(np.linalg.norm(vectors, axis=-1))


def test_noise_embedding_beyond_its_range():
    embed = nn.NoiseEmbedding(4, key=jr.key(0))
    for value in (jnp.inf, -jnp.inf, 1e6):
        assert np.all(np.isfinite(apply(embed, jnp.asarray(value))))
    assert np.all(np.isnan(apply(embed, jnp.asarray(jnp.nan))))


def test_noise_embedding_types():
    embed = nn.NoiseEmbedding(4, key=fast_key(0))
    expected = apply(embed, jnp.asarray(1.5))
    np.testing.assert_allclose(embed(1.5), expected, rtol=1e-6)
    low = apply(cast(embed, jnp.bfloat16), jnp.asarray(1.5))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.05)
    refuses(lambda: embed(jnp.zeros(3)), "`log_snr`", "jax.vmap")


def test_noise_embedding_has_no_frozen_arrays():
    """Whatever trains the arrays of a network must not train the frequencies."""
    embed = nn.NoiseEmbedding(4, key=fast_key(0))
    assert len(jtu.tree_leaves(eqx.filter(embed, eqx.is_array))) == 4


@pytest.mark.parametrize(
    "dims, kernel_size, stride",
    [(2, 1, 1), (2, 3, 1), (2, 3, 2), (2, 5, 2), (1, 3, 1), (1, 5, 2), (3, 3, 1), (3, 2, 2)],
)
def test_conv_against_equinox(dims, kernel_size, stride):
    conv = with_noise(Conv(2, 3, kernel_size, dims=dims, stride=stride, key=fast_key(0)))
    reference = eqx.nn.Conv(dims, 2, 3, kernel_size, stride=stride, padding="SAME", key=fast_key(1))
    weight, bias = jnp.moveaxis(conv.weight, (-1, -2), (0, 1)), conv.bias.reshape(-1, *(dims * (1,)))
    reference = eqx.tree_at(lambda layer: (layer.weight, layer.bias), reference, (weight, bias))
    x = normal(*(7, 6, 5)[:dims], 2, seed=2)
    expected = jnp.moveaxis(apply(reference, jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(apply(conv, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", [(8,), (4, 8), (2, 4, 6)])
def test_blocks_hold_neighbouring_pixels(space):
    """Each block by indexing, and the way back; pixels repeated are blocks of equal ones."""
    x = normal(*space, 3, seed=0)
    blocks = blocks_to_channels(x, 2)
    assert blocks.shape == (*(n // 2 for n in space), 2 ** len(space) * 3)
    for index in np.ndindex(blocks.shape[:-1]):
        np.testing.assert_array_equal(blocks[index], x[tuple(slice(2 * i, 2 * i + 2) for i in index)].ravel())
    np.testing.assert_array_equal(channels_to_blocks(blocks, 2), x)
    np.testing.assert_array_equal(upsample_nearest(x), channels_to_blocks(jnp.tile(x, 2 ** len(space)), 2))
    odd = x[tuple(slice(n - 1) for n in space)]
    np.testing.assert_array_equal(pad_to_multiple(odd, 2), np.pad(odd, [*((0, 1) for _ in space), (0, 0)], "edge"))


def test_conv_without_bias():
    conv = Conv(2, 3, use_bias=False, key=fast_key(0))
    assert conv.bias is None
    np.testing.assert_array_equal(conv(jnp.zeros((4, 5, 2))), np.zeros((4, 5, 3)))
    refuses(lambda: conv(jnp.zeros((4, 5, 3))), "`x` of `Conv`", "(4, 5, 3)")


@pytest.mark.parametrize("groups, space", [(1, (5, 4)), (2, (5, 4)), (6, (5, 4)), (2, (7,)), (2, (2, 3, 4))])
def test_group_norm_against_equinox(groups, space):
    norm = with_noise(GroupNorm(6, groups))
    reference = eqx.nn.GroupNorm(groups, 6, eps=1e-5)
    reference = eqx.tree_at(lambda layer: (layer.weight, layer.bias), reference, (norm.weight, norm.bias))
    x = 3 + 2 * normal(*space, 6, seed=0)
    expected = jnp.moveaxis(apply(reference, jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(apply(norm, x), expected, rtol=1e-5, atol=1e-5)


def test_group_norm_in_bfloat16_has_statistics_in_float32():
    norm = cast(GroupNorm(2, 1), jnp.bfloat16)
    x = (100 + normal(64, 64, 2, seed=0)).astype(jnp.bfloat16)
    y = apply(norm, x)
    assert y.dtype == jnp.bfloat16
    y = y.astype(np.float32)
    np.testing.assert_allclose(np.mean(y), 0, atol=5e-3)
    np.testing.assert_allclose(np.std(y), 1, atol=5e-3)


def test_self_attention_against_jax():
    attention = with_noise(SelfAttention(8, heads=2, key=fast_key(0)))
    x = normal(5, 8, seed=1)

    def reference(attention, x):
        query, key, value = jnp.split(attention.to_qkv(x), 3, axis=-1)
        heads = [z.reshape(5, 2, 4) for z in (query, key, value)]
        return attention.to_out(jax.nn.dot_product_attention(*heads).reshape(5, 8))

    expected = compiled(reference)(attention, x)
    np.testing.assert_allclose(apply(attention, x), expected, rtol=1e-5, atol=1e-5)


def test_initial_variance_is_kept():
    """Unit-variance inputs leave layers with unit variance, up to sampling error."""
    linear = nn.Linear(200, 300, key=fast_key(0))
    y = apply(linear, normal(50, 200, seed=1))
    # The relative standard error of the variance is about sqrt(2 / 15000) plus that of
    # the weights' own, sqrt(0.8 / 60000): together below 2 %.
    np.testing.assert_allclose(np.var(y), 1, atol=0.08)
    conv = Conv(32, 64, key=fast_key(2))
    y = apply(conv, normal(16, 16, 32, seed=3))[1:-1, 1:-1]
    np.testing.assert_allclose(np.var(y), 1, atol=0.08)


@pytest.mark.thorough
def test_blocks_computed_twice_have_the_same_gradient():
    """And a step that keeps what is inside of none of them plans less than half of the memory."""
    x, embedding = jr.normal(jr.key(1), (8, 16, 16, 2)), jr.normal(jr.key(2), (8, 8))
    found = []
    for checkpoint in (False, True):
        options = {"image_size": (16, 16), "embedding_size": 8, "width": 32, "depth": 6, "checkpoint": checkpoint}
        network = nn.PatchTransformer(2, 2, key=jr.key(0), **options)
        params, rest = eqx.partition(network, eqx.is_inexact_array)
        # Fresh blocks are the identity.
        params = jax.tree.map(lambda x: x + 0.1 * jr.normal(jr.key(x.size), x.shape), params)
        loss = lambda params, rest=rest: jnp.mean(jax.vmap(eqx.combine(params, rest))(x, embedding) ** 2)
        step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        found.append((step.memory_analysis().temp_size_in_bytes, jax.tree.leaves(step(params))))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(a))))
    assert found[1][0] < 0.5 * found[0][0]


@pytest.mark.slow
def test_a_unet_that_computes_blocks_twice_keeps_less():
    """Of what the gradient needs, for the same gradient; the compiler of CPUs merges what is computed twice again."""
    x, embedding = jr.normal(jr.key(1), (8, 16, 16, 2)), jr.normal(jr.key(2), (8, 8))
    kept, gradients = [], []
    for checkpoint in (False, True):
        network = nn.UNet(2, 2, embedding_size=8, channels=(8, 16), blocks=2, checkpoint=checkpoint, key=jr.key(0))
        params, rest = eqx.partition(network, eqx.is_inexact_array)
        params = jax.tree.map(lambda w: w + 0.1 * jr.normal(jr.key(w.size), w.shape), params)
        loss = lambda params, rest=rest: jnp.mean(jax.vmap(eqx.combine(params, rest))(x, embedding) ** 2)
        residuals = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        kept.append(sum(w.size for w in jax.tree.leaves(residuals)))
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(a))))
    assert kept[1] < 0.65 * kept[0]
