"""Which images of a generator fit a noisy patch: the law of its latent codes behind a partial image.

The signal is the latent code of a pretrained generator, and what is measured are images that it makes of it. Training
sees images and noisy patches of them, and no latent code. Then a patch is shown, and latent codes, hence whole images
of the generator, are sampled. The mean of images is no image of the generator, so that a squared error cannot get this
right; the energy score can. For digits the truth is known by brute force, and is compared with.

    python examples/gan_inversion.py                               # trains a generator of digits first, once
    python examples/gan_inversion.py --generator digits.npz        # pretrained: a perceptron, 64-256-256-784
    python examples/gan_inversion.py faces --generator faces.npz   # pretrained: a DCGAN of 32×32 faces
    python examples/gan_inversion.py stylegan2 --generator x.npz   # pretrained: StyleGAN2 at 256×256, on a GPU

`main` below is the whole story. `--help` lists sizes and files.
"""

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import stochinv as si

sys.path.append(str(Path(__file__).parent))
import digit_networks
from gan_inversion_scores import Judge, draw, print_table

FACES = (("project", 256, "identity"), ("same", 128, "leaky_relu"), ("up", 64, "leaky_relu"))
FACES = (*FACES, ("up", 32, "leaky_relu"), ("up", 3, "tanh"))


@dataclass
class Config:
    """The law of a generator's latent codes behind a noisy patch: trains, samples, and compares with brute force."""

    preset: tyro.conf.Positional[Literal["digits", "faces", "stylegan2"]] = "digits"
    """The generator, and sizes to go with it."""
    generator: Path | None = None
    """Pretrained weights, .npz or .safetensors. Without, digits train their own and StyleGAN2 takes random ones."""
    cache: Path = Path("gan_inversion_cache")
    """Where the trained generator and the digit classifier are kept."""
    generator_steps: int = 6000
    """Training steps of the generator of digits."""
    classifier_steps: int = 3000
    """Training steps of the digit classifier."""
    size: int | None = None
    """Height and width of StyleGAN2's images, 256 by default."""
    channels: int = 512
    """The largest number of channels of StyleGAN2."""
    patch: tuple[int, int, int, int] | None = None
    """Top, left, height and width of the patch in pixels. By default the middle of digits, the left half of others."""
    anywhere: bool = False
    """Patches of this size all over the image, in training and in the figures."""
    noise: float | None = None
    """Standard deviation of the patch's noise; images are in [−1, 1]. 1.5 for digits, 0.5 for others by default."""
    steps: int | None = None
    """Training steps: 200 for digits, 250 for faces, 20000 for StyleGAN2 by default."""
    batch_size: int | None = None
    """Images per training step: 256, 64 and 32 by default."""
    draws: int = 2
    """Draws per image and step, for the energy score."""
    width: int | None = None
    """Features of the networks: 384 for digits, 512 for others by default."""
    memory: int | None = None
    """Latent codes that the denoiser picks from before its network moves the pick; 32768 for digits."""
    learning_rate: float = 2e-3
    """The largest learning rate."""
    baselines: bool = True
    """Whether to train squared error and a regressor too."""
    contexts: int = 48
    """Patches in the figures: for digits ambiguous ones, whose classes have an entropy above 0.8 nats."""
    candidates: int = 96
    """Patches from which the ambiguous ones are chosen."""
    samples: int = 500
    """Samples per patch."""
    sampler_steps: tuple[int, ...] = (1, 4)
    """Noise levels that a sample goes through; figures are given for each."""
    shown_steps: int = 1
    """The one among them for the picture and for figures that are given once."""
    reference: int = 1_000_000
    """Latent codes that brute force tries."""
    images: int = 2000
    """Images for the Fréchet distance."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("gan-inversion.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = with_defaults(tyro.cli(Config, args=argv))
    keys = jr.split(jr.key(config.seed), 6)
    scene = make_scene(config, keys[0])

    # Measurements in, a trained problem out.
    fits = {
        "energy": train(config, scene, si.ProperScore(num_draws=config.draws, sample_time=si.mostly_noise), keys[1])
    }
    if config.baselines:
        # The paper's objective; and one image per patch, from a target that is pure noise.
        only_noise = si.SquaredError(sample_time=si.pure_noise)
        fits["squared"] = train(config, scene, si.SquaredError(), keys[1])
        fits["regressor"] = train(config, scene, only_noise, keys[1])

    # Patches in, latent codes out. For a single patch: `problem.posterior(context).sample(key, (8,))`.
    images, contexts = scene.records(keys[2], config.candidates)
    judge = Judge(config, scene, images, contexts, keys[3])
    figures = {
        "noise_level": config.noise,
        "contexts": len(judge.images),
        "train_seconds": {name: fit.history.seconds for name, fit in fits.items()},
    }
    figures |= judge.score_brute_force(keys[5])
    print_table(figures)
    for name, fit in fits.items():
        scored = judge.score(name, fit.problem, keys[4])
        print_table(scored)
        figures |= scored
    draw(config, scene, judge)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def with_defaults(config):
    index = ("digits", "faces", "stylegan2").index(config.preset)
    size = (28, 32, config.size or 256)[index]
    values = {
        "size": size,
        "patch": ((6, 6, 8, 8), (0, 0, size, size // 2), (0, 0, size, size // 2))[index],
        "noise": (1.5, 0.5, 0.5)[index],
        "steps": (200, 250, 20_000)[index],
        "batch_size": (256, 64, 32)[index],
        "width": (384, 512, 512)[index],
        "memory": 0 if config.anywhere else (32_768, 0, 0)[index],
    }
    if config.memory and config.anywhere:
        raise ValueError("`memory`: remembered patches are of one place; leave out `--memory` or `--anywhere`.")
    config = replace(config, **{k: v if getattr(config, k) is None else getattr(config, k) for k, v in values.items()})
    return replace(config, shown_steps=min(config.sampler_steps, key=lambda n: abs(n - config.shown_steps)))


@dataclass(frozen=True)
class Scene:
    """A generator, the prior of its latent codes, and how patches are measured."""

    generator: si.forward.Generator
    prior: Any
    image_shape: tuple[int, int, int]
    window: si.forward.Window
    corner: tuple[int, int] | None
    noise: float

    def corners(self, key, number):
        if self.corner is not None:
            return jnp.broadcast_to(jnp.array(self.corner), (number, 2))
        free = jnp.array(self.image_shape[:2]) - jnp.array(self.window.size)
        return jr.randint(key, (number, 2), 0, free + 1)

    def records(self, key, number):
        """Fresh images, and noisy patches of them with their corners."""
        image_key, patch_key = jr.split(key)
        images = self.render(jax.vmap(self.prior)(jr.split(image_key, number)))
        return images, self.patches(images, patch_key)

    def patches(self, images, key):
        corner_key, noise_key = jr.split(key)
        corners = self.corners(corner_key, len(images))
        patches = jax.vmap(self.window)(images, corners)
        return patches + self.noise * jr.normal(noise_key, patches.shape), corners

    def render(self, latents):
        """The images of latent codes with any leading axes."""
        axes = jax.tree.leaves(self.generator.latent)[0].ndim
        run = lambda z: self.generator(z, None)
        for _ in range(latents.ndim - axes):
            run = jax.vmap(run)
        return run(latents)


class Records:
    """Batches of fresh records without end: nothing is seen twice."""

    def __init__(self, scene, batch_size, key):
        def make(number):
            images, context = scene.records(jr.fold_in(key, number), batch_size)
            return si.Example(context, si.View(images))

        self.make = jax.jit(make)

    def __iter__(self):
        number = 0
        while True:
            yield self.make(number)
            number += 1


def make_scene(config, key):
    generator_key, mean_key = jr.split(key)
    prior, options = partial(jr.normal, shape=(64,)), {}
    if config.preset == "digits":
        generator = si.nn.MLPGenerator(key=generator_key)
        if config.generator is None:
            generator = digit_networks.train_generator(config.cache, steps=config.generator_steps, key=generator_key)
    elif config.preset == "faces":
        if config.generator is None:
            raise ValueError("`generator`: faces need pretrained weights, `--generator PATH`.")
        generator = si.nn.DCGANGenerator(100, FACES, use_bias=True, key=generator_key)
        prior = partial(jr.uniform, shape=(100,), minval=-1, maxval=1)
    else:
        generator = si.nn.StyleGAN2Generator(config.size, channel_max=config.channels, key=generator_key)
    if config.generator is not None:
        generator = si.nn.load_weights(generator, config.generator)
    if config.preset == "stylegan2":
        # Signals are deviations from the mean in the intermediate space.
        mean = generator.mapping.mean if config.generator else generator.mean_latent(mean_key, 1000)
        prior = lambda key, mapping=generator.mapping, mean=mean: mapping(jr.normal(key, mean.shape)) - mean
        options = {"latent": generator.latent, "mean": mean}
        generator = eqx.Partial(si.nn.StyleGAN2Generator.synthesis, generator)
    forward = si.forward.Generator(generator, **options)
    image_shape = jax.eval_shape(forward, forward.latent, None).shape
    top, left, *size = config.patch
    window = si.forward.Window(image_shape, tuple(size))
    return Scene(forward, prior, image_shape, window, None if config.anywhere else (top, left), config.noise)


class Reader(eqx.Module):
    """Reads the noisy image, the patch and its corner: by a perceptron for digits, by convolutions for the rest."""

    network: Any
    embedding: si.nn.NoiseEmbedding
    spread: float

    def __call__(self, noisy, level, context, params):
        patch, corner = context
        patch = patch / self.spread
        # The best linear guess of the image: where it is all noise, nothing is left to read.
        guess = noisy * level.alpha / (level.alpha**2 + level.sigma**2)
        embedding = self.embedding(level.log_snr)
        if isinstance(self.network, si.nn.MLP):
            where = 2 * corner / jnp.array(guess.shape[:2]) - 1
            return self.network(jnp.concatenate([guess.ravel(), patch.ravel(), where]), embedding)
        place = lambda x: jax.lax.dynamic_update_slice(jnp.zeros_like(guess[..., : x.shape[-1]]), x, (*corner, 0))
        return self.network(jnp.concatenate([guess, place(patch), place(jnp.ones_like(patch[..., :1]))], -1), embedding)


class PatchLikelihood(eqx.Module):
    """The log-likelihood of remembered images, given the noisy image and the patch, up to a constant.

    Of the noisy image it takes the principal components of images, which tell them apart.
    """

    mean: si.Frozen
    basis: si.Frozen
    codes: si.Frozen
    patches: si.Frozen
    noise: float

    def __init__(self, images, patches, noise, num_components=64):
        rows, patches = (x.reshape(len(x), -1) for x in (images, patches))
        mean = jnp.mean(rows, 0)
        _, basis = jnp.linalg.eigh(jnp.cov(rows[:4096].T))
        basis = basis[:, -num_components:]
        with_squares = lambda x: (x, jnp.sum(x**2, -1))
        self.mean, self.basis = si.Frozen(mean), si.Frozen(basis)
        self.codes, self.patches = si.Frozen(with_squares((rows - mean) @ basis)), si.Frozen(with_squares(patches))
        self.noise = noise

    def __call__(self, noisy, level, context, params):
        (codes, code_squares), (patches, patch_squares) = self.codes.value, self.patches.value
        code = (noisy.ravel() - level.alpha * self.mean.value) @ self.basis.value
        of_image = (codes @ (level.alpha * code) - 0.5 * level.alpha**2 * code_squares) / level.sigma**2
        return of_image + (patches @ context[0].ravel() - 0.5 * patch_squares) / self.noise**2


def make_denoiser(config, scene, *, key):
    """Reads the measurements once, and makes each draw by a smaller network.

    A draw starts from the prior, or from one of several remembered latent codes picked by its likelihood.
    """
    keys = jr.split(key, 7)
    latent, embedding_size, width = scene.generator.latent, 64, config.width
    height, columns, channels = scene.image_shape
    if config.preset == "digits":
        inputs = height * columns * channels + int(np.prod(scene.window.size)) * channels + 2
        network = si.nn.MLP(inputs, width, embedding_size=embedding_size, width=width, depth=2, key=keys[0])
    else:
        size = (height, columns)
        network = si.nn.ImageEncoder(
            2 * channels + 1, width, image_size=size, embedding_size=embedding_size, key=keys[0]
        )
    spread = (1 + scene.noise**2) ** 0.5
    reader = Reader(network, si.nn.NoiseEmbedding(embedding_size, key=keys[1]), spread)
    embedding = si.nn.NoiseEmbedding(embedding_size, key=keys[2])
    inputs = width + latent.size * (2 if config.memory else 1)
    drawing = si.nn.MLP(inputs, latent.size, embedding_size=embedding_size, width=3 * width // 4, depth=2, key=keys[3])
    if config.memory:
        candidates = jax.vmap(scene.prior)(jr.split(keys[4], config.memory))
        images = jax.lax.map(scene.render, candidates, batch_size=1024)
        patches = jax.vmap(scene.window)(images, scene.corners(key, config.memory))
        likelihood = PatchLikelihood(images, patches, scene.noise)
        return si.ResamplingDenoiser(candidates, likelihood, reader, drawing, embedding, latent_size=latent.size)
    return si.NetworkDenoiser(
        si.AmortisedGaussian(reader, width, latent.size, key=keys[5]),
        drawing,
        embedding,
        embedding_size=embedding_size,
        signal=latent,
        latent_size=latent.size,
        latent="input",
        scale=float(jnp.std(jax.vmap(scene.prior)(jr.split(keys[4], 1000)))),
        key=keys[6],
    )


def train(config, scene, objective, key):
    denoiser_key, data_key, fit_key = jr.split(key, 3)
    problem = si.StochasticInverseProblem(
        scene.generator, make_denoiser(config, scene, key=denoiser_key), objective=objective
    )
    # A squared error takes one draw per image, hence as many more images.
    batch_size = config.batch_size * (1 if objective.stochastic else config.draws)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.steps // 50 + 1, config.steps + 1, 1e-5)
    data = Records(scene, batch_size, data_key)
    return problem.fit(data, key=fit_key, steps=config.steps, optimizer=optax.adam(rate), standardise=False)


if __name__ == "__main__":
    main()
