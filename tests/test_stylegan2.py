"""StyleGAN2 layer by layer, against plain sums in the layout of PyTorch's files."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv.nn._stylegan2 import EqualisedLinear, modulated_convolution, upsample_smooth
from test_generator import random_file, transposed_convolution

SIZE, LATENT = 16, 6


def generator(size=SIZE):
    return si.nn.StyleGAN2Generator(
        size, latent_size=LATENT, mapping_depth=2, channel_base=64, channel_max=5, key=jr.key(0)
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A generator with random weights from a file, and the tensors of that file."""
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    state = random_file(path, generator())
    return si.nn.load_weights(generator(), path), {n: x.astype(np.float64) for n, x in state.items()}


def random(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def as_input(x):
    """A channels-first image as the library takes it."""
    return jnp.asarray(np.moveaxis(x, 0, -1), jnp.float32)


def lrelu(x):
    return np.sqrt(2) * np.where(x > 0, x, 0.2 * x)


def linear(state, name, x, rate=1.0):
    weight = state[f"{name}.weight"]
    return weight @ x * rate / np.sqrt(weight.shape[1]) + rate * state[f"{name}.bias"]


def correlate(x, weight):
    """The sum over channels and taps, with zeros around the image; kernel `(out, in, k, k)`."""
    size = weight.shape[-1]
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("chwab,ocab->ohw", windows, weight)


def fir(x, before, after, gain):
    """The separable binomial filter, as a correlation with its outer product."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * gain
    padded = np.pad(x, ((0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2))
    return np.einsum("chwab,ab->chw", windows, taps)


def modulated(x, weight, style, *, up=False, demodulate=True):
    """Scales the weights, as the source has it, one output channel at a time."""
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / np.sqrt(np.sum(weight**2, (1, 2, 3), keepdims=True) + 1e-8)
    if not up:
        return correlate(x, weight)
    return fir(transposed_convolution(x, weight.transpose(1, 0, 2, 3), 2, 0), 1, 1, 4)


def upsample(x):
    channels, height, width = x.shape
    stuffed = np.zeros((channels, 2 * height, 2 * width))
    stuffed[:, ::2, ::2] = x
    return fir(stuffed, 2, 1, 4)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution(up, demodulate):
    x, weight, style = random(3, 5, 4), random(2, 3, 3, 3, seed=2), random(3, seed=3)
    got = modulated_convolution(
        as_input(x),
        jnp.asarray(weight.transpose(2, 3, 1, 0), jnp.float32),
        jnp.asarray(style, jnp.float32),
        up=up,
        demodulate=demodulate,
    )
    expected = modulated(x, weight, style, up=up, demodulate=demodulate)
    assert expected.shape == ((2, 10, 8) if up else (2, 5, 4))
    np.testing.assert_allclose(np.moveaxis(got, -1, 0), expected, atol=1e-4)


def test_demodulation_gives_unit_variance():
    """For independent inputs of unit variance, whatever the style; inner pixels, which see no margin."""
    x = jr.normal(jr.key(0), (64, 64, 8))
    weight, style = jr.normal(jr.key(1), (3, 3, 8, 4)), jnp.exp(jr.normal(jr.key(2), (8,)))
    variance = jnp.var(modulated_convolution(x, weight, style)[1:-1, 1:-1], (0, 1))
    # Some 62² values, correlated over 3×3 taps.
    assert jnp.all(jnp.abs(variance - 1) < 5 * np.sqrt(2 * 9 / 62**2))


def test_upsampling_keeps_constants_and_means():
    x = random(2, 4, 3)
    got = np.moveaxis(upsample_smooth(as_input(x)), -1, 0)
    np.testing.assert_allclose(got, upsample(x), atol=1e-5)
    np.testing.assert_allclose(upsample_smooth(jnp.ones((6, 6, 1)))[2:-2, 2:-2], 1, atol=1e-6)


def test_equalised_linear():
    layer = EqualisedLinear(4, 3, bias=1.0, rate=0.01, key=jr.key(0))
    x = random(4)
    expected = np.asarray(layer.weight, np.float64).T @ x * 0.01 / 2 + 1
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4)
    outputs = jax.vmap(EqualisedLinear(256, 64, rate=0.01, key=jr.key(1)))(jr.normal(jr.key(2), (50, 256)))
    assert abs(float(jnp.std(outputs)) - 1) < 0.1, "fresh layers keep the variance"


@pytest.mark.thorough
def test_mapping(loaded):
    gan, state = loaded
    z = random(LATENT)
    w = z / np.sqrt(np.mean(z**2) + 1e-8)
    for i in range(2):
        w = lrelu(linear(state, f"mapping.fc{i}", w, 0.01))
    np.testing.assert_allclose(gan.mapping(jnp.asarray(z, jnp.float32)), w, rtol=1e-3, atol=1e-6)


@pytest.mark.thorough
def test_synthesis_by_the_formulas(loaded):
    """Styles of their own for every layer, constant noise, and the images of all resolutions added up."""
    gan, state = loaded
    styles = random(gan.num_styles, LATENT)
    x, image, number = state["synthesis.b4.const"], None, 0
    for size in (4, 8, 16):
        for conv in ("conv1",) if size == 4 else ("conv0", "conv1"):
            name = f"synthesis.b{size}.{conv}"
            style = linear(state, f"{name}.affine", styles[number])
            x = modulated(x, state[f"{name}.weight"], style, up=conv == "conv0")
            x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
            x = lrelu(x + state[f"{name}.bias"][:, None, None])
            number += 1
        name = f"synthesis.b{size}.torgb"
        style = linear(state, f"{name}.affine", styles[number]) / np.sqrt(x.shape[0])
        own = modulated(x, state[f"{name}.weight"], style, demodulate=False) + state[f"{name}.bias"][:, None, None]
        image = own if image is None else upsample(image) + own
    got = gan.synthesis(jnp.asarray(styles, jnp.float32))
    assert got.shape == (SIZE, SIZE, 3) and number == gan.num_styles - 1
    np.testing.assert_allclose(np.moveaxis(got, -1, 0), image, rtol=1e-3, atol=1e-3 * np.abs(image).max())


@pytest.mark.thorough
def test_one_style_serves_all_layers_and_noise_is_fresh_with_a_key(loaded):
    gan, _ = loaded
    z = jr.normal(jr.key(1), (LATENT,))
    w = gan.mapping(z)
    np.testing.assert_allclose(gan(z), gan.synthesis(jnp.tile(w, (gan.num_styles, 1))), rtol=1e-5, atol=1e-5)
    assert jnp.all(gan(z) == gan(z)) and jnp.any(gan(z, key=jr.key(0)) != gan(z))
    assert jnp.any(gan(z, key=jr.key(0)) != gan(z, key=jr.key(1)))


@pytest.mark.slow
def test_mean_of_the_intermediate_space():
    gan = generator(8)
    draws = jax.vmap(gan.mapping)(jr.normal(jr.key(0), (4000, LATENT)))
    error = np.std(draws, 0) * np.sqrt(1 / 4000 + 1 / 2000)
    assert np.all(np.abs(gan.mean_latent(jr.key(1), 2000) - np.mean(draws, 0)) < 5 * error)


def test_parameter_count_of_the_large_network():
    """30.37 million at 1024 pixels, as its authors print."""
    gan = jax.eval_shape(lambda: si.nn.StyleGAN2Generator(1024, channel_base=32768, key=jr.key(0)))
    constants = ("noise_const", "w_avg")
    count = sum(t.where(gan).size for name, t in gan.tensors().items() if not name.endswith(constants))
    assert round(count / 1e6, 2) == 30.37


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"synthesis.b8.conv0.weight": np.zeros((5, 4, 3, 3))}, r"\(5, 4, 3, 3\) for synthesis.b8.conv0"),
        (lambda s: {n: x for n, x in s.items() if n != "mapping.fc1.bias"}, r"no tensor for mapping.fc1.bias"),
        (lambda s: s | {"mapping.embed.weight": np.zeros((6, 3))}, r"has mapping.embed.weight, which"),
    ],
)
def test_mismatched_files_are_refused(tmp_path, change, message):
    state = random_file(tmp_path / "weights.npz", generator())
    extra = {"synthesis.b8.resample_filter": np.zeros((4, 4))}
    np.savez(tmp_path / "fits.npz", **state, **extra)
    si.nn.load_weights(generator(), tmp_path / "fits.npz")
    np.savez(tmp_path / "changed.npz", **change(state))
    with pytest.raises(ValueError, match=message):
        si.nn.load_weights(generator(), tmp_path / "changed.npz")


@pytest.mark.parametrize("size", [4, 24])
def test_sizes_are_checked(size):
    with pytest.raises(ValueError, match="power of two"):
        generator(size)
