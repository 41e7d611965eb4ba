"""Generators: their layers against plain loops, their weights from files, and what a frozen one does in training."""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._archive import read_archive

LAYERS = (("project", 6, "identity"), ("same", 5, "leaky_relu"), ("up", 4, "relu"), ("up", 3, "tanh"))
SLOPE = {"identity": 1.0, "leaky_relu": 0.2, "relu": 0.0}


def data_file(name):
    folder = os.environ.get("STOCHINV_DATA")
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip(f"needs {name} in the folder that STOCHINV_DATA names")
    return Path(folder) / name


def mlp():
    return si.nn.MLPGenerator(5, (7, 6), image_shape=(4, 3, 2), key=jr.key(0))


def dcgan():
    return si.nn.DCGANGenerator(8, LAYERS, use_bias=True, key=jr.key(0))


def random_file(path, generator, rename=lambda name: name, seed=0):
    """A file for a generator as PyTorch would write it, and its tensors."""
    rng, state = np.random.default_rng(seed), {}
    for name, tensor in generator.tensors().items():
        shape = np.empty(tensor.where(generator).shape)
        if tensor.axes is not None:
            shape = shape.transpose(np.argsort(tensor.axes))
        scale = 1 if "running_var" in name or "weight" not in name else 1 / np.sqrt(max(shape[0].size, 1))
        value = scale * rng.normal(size=shape.shape)
        state[rename(name)] = np.asarray(np.abs(value) + 0.1 if "running_var" in name else value, np.float32)
    np.savez(path, **state)
    return state


def transposed_convolution(x, weight, stride, padding):
    """Every input pixel adds a multiple of the kernel to the output; channels first, kernel `(in, out, k, k)`."""
    _, height, width = x.shape
    _, channels, size, _ = weight.shape
    y = np.zeros((channels, stride * (height - 1) + size, stride * (width - 1) + size))
    for i, j in np.ndindex(height, width):
        rows, columns = slice(stride * i, stride * i + size), slice(stride * j, stride * j + size)
        y[:, rows, columns] += np.einsum("c,cohw->ohw", x[:, i, j], weight)
    return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]


def correlation(x, weight):
    """With a margin of one pixel; channels first, kernel `(out, in, 3, 3)`."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chwab,ocab->ohw", windows, weight)


def test_mlp_generator_is_a_perceptron(tmp_path):
    path = tmp_path / "weights.npz"
    state = random_file(path, mlp())
    latent = np.random.default_rng(1).normal(size=5).astype(np.float32)
    h = latent
    for i in range(2):
        h = np.maximum(state[f"{i}.weight"] @ h + state[f"{i}.bias"], 0)
    expected = np.tanh(state["2.weight"] @ h + state["2.bias"]).reshape(4, 3, 2)
    np.testing.assert_allclose(si.nn.load_weights(mlp(), path)(jnp.asarray(latent)), expected, atol=1e-5)


@pytest.mark.thorough
def test_dcgan_generator_layer_by_layer(tmp_path):
    """Against sums over input pixels, in the layout of files."""
    path = tmp_path / "weights.npz"
    state = random_file(path, dcgan(), rename=lambda name: "net." + name)
    generator = si.nn.load_weights(dcgan(), path)
    x = np.random.default_rng(1).normal(size=(8, 1, 1))
    got = jnp.asarray(x[:, 0, 0], jnp.float32)[None, None]
    for i, (kind, _, activation) in enumerate(LAYERS):
        weight = state[f"net.{i}.0.weight"].astype(np.float64)
        if kind == "same":
            x = correlation(x, weight)
        else:
            x = transposed_convolution(x, weight, *{"project": (1, 0), "up": (2, 1)}[kind])
        if i == len(LAYERS) - 1:
            x = np.tanh(x + state[f"net.{i}.0.bias"][:, None, None])
        else:
            take = lambda name, i=i: state[f"net.{i}.1.{name}"][:, None, None]
            x = (x - take("running_mean")) / np.sqrt(take("running_var") + 1e-5) * take("weight") + take("bias")
            x = np.where(x > 0, x, SLOPE[activation] * x)
        got = generator.layers[i](got)
        np.testing.assert_allclose(got, x.transpose(1, 2, 0), atol=1e-4)
    latent = jnp.asarray(np.random.default_rng(1).normal(size=8), jnp.float32)
    np.testing.assert_array_equal(generator(latent), got)
    assert got.shape == (16, 16, 3)


def test_names_are_matched_in_natural_order(tmp_path):
    """Layer 10 comes after layer 2, whatever the order in the file, and in both formats."""
    make = lambda: si.nn.MLPGenerator(3, (4,) * 11, image_shape=(2, 2, 1), key=jr.key(0))
    state = random_file(tmp_path / "sorted.npz", make(), rename=lambda name: "model." + name)
    shuffled = {name: state[name] for name in sorted(state, reverse=True)}
    np.savez(tmp_path / "shuffled.npz", **shuffled)
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    latent = jr.normal(jr.key(1), (3,))
    images = [si.nn.load_weights(make(), p)(latent) for p in sorted(tmp_path.iterdir())]
    assert len(images) == 3 and jnp.std(images[0]) > 0
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"1.0.weight": s["1.0.weight"][:, :, :2]},
            r"has shape \(5, 6, 2, 3\) for 1.0.weight.*5, 6, 3, 3",
        ),
        (lambda s: {n: x for n, x in s.items() if n != "2.1.running_var"}, r"no tensor for 2.1.running_var"),
        (lambda s: s | {"9.0.weight": s["1.0.weight"]}, r"has 9.0.weight, which this generator lacks"),
    ],
)
def test_mismatched_files_are_refused(tmp_path, change, message):
    state = random_file(tmp_path / "weights.npz", dcgan())
    np.savez(tmp_path / "changed.npz", **change(state))
    with pytest.raises(ValueError, match=message):
        si.nn.load_weights(dcgan(), tmp_path / "changed.npz")


def test_counters_in_files_are_no_weights(tmp_path):
    state = random_file(tmp_path / "weights.npz", dcgan())
    np.savez(tmp_path / "more.npz", **state, **{"0.1.num_batches_tracked": np.asarray(7)})
    si.nn.load_weights(dcgan(), tmp_path / "more.npz")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        si.nn.load_weights(mlp(), tmp_path / "absent.npz")
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="must end in .npz or .safetensors"):
        si.nn.load_weights(mlp(), tmp_path / "weights.pt")
    for name in ("weights.npz", "weights.safetensors"):
        if name.endswith("safetensors"):
            pytest.importorskip("safetensors")
        (tmp_path / name).write_bytes(b"no such format")
        with pytest.raises(ValueError, match="is damaged"):
            si.nn.load_weights(mlp(), tmp_path / name)
    with pytest.raises(ValueError, match="must be one of `stochinv.nn`"):
        si.nn.load_weights(jnp.tanh, tmp_path / "weights.npz")


def test_dcgan_layers_are_checked():
    for layers, message in [
        ((("up", 3, "tanh"),), "the first has to be"),
        ((("project", 3, "sigmoid"),), "choose from"),
        ((("project", 0, "tanh"),), "positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            si.nn.DCGANGenerator(8, layers, key=jr.key(0))


def test_generator_measures_its_image():
    generator = mlp()
    forward = si.Composed(si.forward.Generator(generator), si.forward.Window((4, 3, 2), (2, 2)))
    signal, params = jr.normal(jr.key(1), (5,)), (None, jnp.array([1, 1]))
    np.testing.assert_array_equal(forward(signal, params), generator(signal)[1:3, 1:3])
    known = forward.signal_structure(jax.eval_shape(forward, signal, params), params)
    assert known == jax.ShapeDtypeStruct((5,), jnp.float32)


def test_generator_is_differentiated_in_its_signal_alone():
    generator = mlp()
    forward, signal = si.forward.Generator(generator), jr.normal(jr.key(1), (5,))
    loss = lambda forward: jnp.sum(forward(signal, None) ** 2)
    gradient = eqx.filter_grad(loss)(forward)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(gradient))
    by_signal = jax.grad(lambda s: jnp.sum(forward(s, None) ** 2))(signal)
    np.testing.assert_allclose(by_signal, jax.grad(lambda s: jnp.sum(generator(s) ** 2))(signal), rtol=1e-5)
    assert jnp.all(by_signal != 0)


def test_signals_are_deviations_from_the_mean():
    generator, mean = mlp(), jr.normal(jr.key(2), (5,))
    signal = jr.normal(jr.key(1), (5,))
    forward = si.forward.Generator(generator, mean=mean)
    np.testing.assert_allclose(forward(signal, None), generator(mean + signal), rtol=1e-5)
    np.testing.assert_allclose(forward(jnp.zeros(5), None), generator(mean), rtol=1e-5)
    np.testing.assert_allclose(si.forward.Generator(generator)(signal, None), generator(signal), rtol=1e-5)


def test_generator_arguments_are_checked():
    with pytest.raises(ValueError, match="give `latent`"):
        si.forward.Generator(jnp.tanh)
    with pytest.raises(ValueError, match="`mean` must have the structure"):
        si.forward.Generator(mlp(), mean=jnp.zeros(4))


class Inverter(si.AbstractDenoiser):
    """A denoiser that holds the generator, as encoders may."""

    forward: si.forward.Generator
    network: si.nn.Linear

    def __call__(self, noisy, level, context, params, *, key=None):
        h = self.network(noisy.ravel())
        return h + 0 * jnp.sum(self.forward(h, None))


@pytest.mark.thorough
def test_weights_are_neither_trained_nor_saved(tmp_path):
    generator = mlp()
    forward = si.forward.Generator(generator)
    images = jax.vmap(generator)(jr.normal(jr.key(1), (16, 5)))
    denoiser = Inverter(forward, si.nn.Linear(24, 5, key=jr.key(2)))
    problem = si.StochasticInverseProblem(forward, denoiser, objective=si.SquaredError())
    fitted = problem.fit(si.Example(None, si.View(images)), key=jr.key(0), steps=2, batch_size=8).problem
    for trained in (fitted.forward, fitted.denoiser.forward):
        for before, after in zip(jax.tree.leaves(forward), jax.tree.leaves(trained), strict=True):
            np.testing.assert_array_equal(before, after)
    assert jnp.any(fitted.denoiser.network.weight != denoiser.network.weight)
    fitted.save(tmp_path / "problem.si")
    names = [name for name in read_archive(tmp_path / "problem.si")[1] if name.startswith("denoiser")]
    assert names == ["denoiser.network.weight", "denoiser.network.bias"]


@pytest.mark.slow
def test_default_denoiser_of_a_generator():
    """`forward` alone suffices: the latent code is known from the generator."""
    forward = si.forward.Generator(mlp())
    images = jax.vmap(mlp())(jr.normal(jr.key(1), (16, 5)))
    problem = si.StochasticInverseProblem(forward, objective=si.ProperScore(num_draws=2))
    fitted = problem.fit(si.Example(images[:, :2], si.View(images)), key=jr.key(0), steps=2, batch_size=8).problem
    sample = fitted.sample(images[0, :2], key=jr.key(3), sampler=si.Ancestral(2), num_samples=3)
    assert sample.signal.shape == (3, 5) and sample.observation.shape == (3, 4, 3, 2)
    np.testing.assert_allclose(sample.observation[0], mlp()(sample.signal[0]), atol=1e-5)


def test_pretrained_digits():
    """Real weights: bright strokes on a dark ground, in the middle of the image."""
    generator = si.nn.load_weights(si.nn.MLPGenerator(key=jr.key(0)), data_file("mnist_gan_mlp.npz"))
    images = (jax.vmap(generator)(jr.normal(jr.key(1), (200, 64)))[..., 0] + 1) / 2
    assert 0.05 < jnp.mean(images) < 0.25
    assert jnp.mean(images[:, 4:24, 4:24]) > 5 * jnp.mean(images[:, :3])
    assert jnp.mean((images > 0.1) & (images < 0.9)) < 0.2


def test_pretrained_faces():
    """Real weights: smooth images, nearly symmetric in the mean, with eyes darker than the forehead."""
    layers = (("project", 256, "identity"), ("same", 128, "leaky_relu"), ("up", 64, "leaky_relu"))
    layers = (*layers, ("up", 32, "leaky_relu"), ("up", 3, "tanh"))
    generator = si.nn.DCGANGenerator(100, layers, use_bias=True, key=jr.key(0))
    generator = si.nn.load_weights(generator, data_file("celeba_dcgan32.npz"))
    images = jax.vmap(generator)(jr.uniform(jr.key(1), (200, 100), minval=-1, maxval=1))
    assert images.shape == (200, 32, 32, 3)
    steps = jnp.std(jnp.diff(images, axis=1)) / jnp.std(images)
    assert steps < 0.5, "neighbouring pixels of photographs are alike"
    face = jnp.mean(images, (0, 3))
    assert jnp.corrcoef(face.ravel(), face[:, ::-1].ravel())[0, 1] > 0.9
    assert jnp.mean(face[8:20, 10:22]) > jnp.mean(face[8:20, :4])
