"""Which images of a generator fit a noisy patch: the law of its latent codes behind a partial image.

The signal is the latent code of a pretrained generator, and what is measured are noisy patches of the image that it
makes of it. The prior of codes is known, and so is the likelihood: codes are drawn from the one and measured, a network
learns the posterior from these, and its draws are then moved by the likelihood until they have forgotten its errors.
The mean of images is no image of the generator, so that no single answer can be right. For digits the truth is known
by brute force, and is compared with.

    python examples/gan_inversion.py                               # trains a generator of digits first, once
    python examples/gan_inversion.py --generator digits.npz        # pretrained: a perceptron, 64-256-256-784
    python examples/gan_inversion.py faces --generator faces.npz   # pretrained: a DCGAN of 32×32 faces
    python examples/gan_inversion.py stylegan2 --generator x.npz   # pretrained: StyleGAN2 at 256×256, on a GPU

`main` below is the whole story. `--help` lists sizes and files.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
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
    patches: int = 1
    """How many patches of this size are given; more than one are anywhere in the image."""
    anywhere: bool = False
    """A single patch anywhere in the image, in training and in the figures."""
    noise: float | None = None
    """Standard deviation of the patch's noise; images are in [−1, 1]. 1.5 for digits, 0.5 for others by default."""
    steps: int | None = None
    """Training steps: 500 for digits and faces, 20000 for StyleGAN2 by default."""
    batch_size: int = 32
    """Images per training step of StyleGAN2."""
    width: int = 512
    """Features of the networks for StyleGAN2."""
    moves: int | None = None
    """Moves by which the likelihood corrects a draw: 300 for digits, 1000 for faces; for StyleGAN2 there are none."""
    contexts: int | None = None
    """Patches in the figures: 48 ambiguous ones of digits (entropy of the class above 0.8 nats), 8 of others."""
    candidates: int = 96
    """Patches from which the ambiguous ones are chosen."""
    samples: int | None = None
    """Samples per patch: 500 for digits, 32 for others by default."""
    sampler_steps: tuple[int, ...] = (1, 4, 16)
    """Noise levels that a draw of the network goes through; figures are given for each."""
    shown_steps: int = 4
    """The one among them for the picture and for figures that are given once."""
    reference: int = 1_000_000
    """Latent codes that brute force tries."""
    images: int = 4000
    """Images for the Fréchet distance and the share of the rarest class."""
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

    # A prior and a forward model in, a trained problem out.
    fit = train_codes_of_any_size(config, scene, keys[1]) if config.moves is None else train(config, scene, keys[1])

    # Patches in, latent codes out. For a single patch: `posterior(view, sampler=...).sample(key, 8)`.
    samplers = make_samplers(config, scene)
    images, contexts = scene.records(keys[2], config.candidates)
    judge = Judge(config, scene, images, contexts, keys[3])
    figures = {
        "noise_level": config.noise,
        "contexts": len(judge.images),
        "train_seconds": fit.history.seconds,
    }
    figures |= judge.score_brute_force(keys[5])
    print_table(figures)
    for name, by_steps in samplers.items():
        scored = judge.score(name, fit.problem, by_steps, keys[4])
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
        "steps": (500, 500, 20_000)[index],
        "moves": (300, 1000, None)[index],
        "contexts": (48, 8, 8)[index],
        "samples": (500, 32, 32)[index],
    }
    config = replace(config, **{k: v if getattr(config, k) is None else getattr(config, k) for k, v in values.items()})
    if config.preset == "stylegan2":
        config = replace(config, moves=None)
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
    patches: int = 1

    @property
    def forward(self):
        """From a latent code to a patch."""
        return si.Composed(self.generator, self.window)

    def corners(self, key, number):
        shape = number, self.patches, 2
        if self.corner is not None:
            return jnp.broadcast_to(jnp.array(self.corner), shape)
        free = jnp.array(self.image_shape[:2]) - jnp.array(self.window.size)
        return jr.randint(key, shape, 0, free + 1)

    def records(self, key, number):
        """Fresh images, and noisy patches of them with their corners."""
        image_key, patch_key = jr.split(key)
        images = self.render(jax.vmap(self.draw)(jr.split(image_key, number)))
        return images, self.measure(images, patch_key)

    def draw(self, key):
        return self.prior.sample(key) if isinstance(self.prior, dist.Distribution) else self.prior(key)

    def measure(self, images, key):
        """Noisy patches of each of many images."""
        corner_key, noise_key = jr.split(key)
        corners = self.corners(corner_key, len(images))
        patches = jax.vmap(jax.vmap(self.window, (None, 0)))(images, corners)
        return si.View(patches + self.noise * jr.normal(noise_key, patches.shape), (None, corners))

    def render(self, latents):
        """The images of latent codes with any leading axes."""
        axes = jax.tree.leaves(self.generator.latent)[0].ndim
        run = lambda z: self.generator(z, None)
        for _ in range(latents.ndim - axes):
            run = jax.vmap(run)
        return run(latents)


def make_scene(config, key):
    generator_key, mean_key = jr.split(key)
    normal = lambda size: dist.Normal(jnp.zeros(size), 1.0).to_event(1)
    prior, options = normal(64), {}
    if config.preset == "digits":
        generator = si.nn.MLPGenerator(key=generator_key)
        if config.generator is None:
            generator = digit_networks.train_generator(config.cache, steps=config.generator_steps, key=generator_key)
    elif config.preset == "faces":
        if config.generator is None:
            raise ValueError("`generator`: faces need pretrained weights, `--generator PATH`.")
        generator = si.nn.DCGANGenerator(100, FACES, use_bias=True, key=generator_key)
    else:
        generator = si.nn.StyleGAN2Generator(config.size, channel_max=config.channels, key=generator_key)
    if config.generator is not None:
        generator = si.nn.load_weights(generator, config.generator)
    if config.preset == "faces":
        # Made of uniform numbers, and these of normal ones, which have no bounds.
        prior, options = normal(100), {"latent": generator.latent}
        generator = eqx.Partial(lambda g, z: g(2 * jax.scipy.special.ndtr(z) - 1), generator)
    if config.preset == "stylegan2":
        # Signals are deviations from the mean in the intermediate space.
        mean = generator.mapping.mean if config.generator else generator.mean_latent(mean_key, 1000)
        prior = lambda key, mapping=generator.mapping, mean=mean: mapping(jr.normal(key, mean.shape)) - mean
        options = {"latent": generator.latent, "mean": mean}
        generator = eqx.Partial(si.nn.StyleGAN2Generator.synthesis, generator)
    generator = si.forward.Generator(generator, **options)
    image_shape = jax.eval_shape(generator, generator.latent, None).shape
    top, left, *size = config.patch
    window = si.forward.Window(image_shape, tuple(size))
    corner = None if config.anywhere or config.patches > 1 else (top, left)
    return Scene(generator, prior, image_shape, window, corner, config.noise, config.patches)


def train(config, scene, key):
    """Learns the posterior of codes from codes of the prior and what is measured of them."""
    corner_key, fit_key = jr.split(key)
    problem = si.StochasticInverseProblem(scene.forward, noise=config.noise, signal=scene.generator.latent)
    simulated = si.data.Simulated(scene.prior, (None, scene.corners(corner_key, 1000)))
    return problem.fit(simulated, steps=config.steps, key=fit_key)


def make_samplers(config, scene):
    """By name and number of steps: corrected by the likelihood, by the network alone, and one answer per patch."""
    if config.moves is None:
        return {"": {n: si.Ancestral(n) for n in config.sampler_steps}}
    network = {n: si.ExponentialAdams(n) for n in config.sampler_steps}
    chain = lambda sampler: si.CrankNicolson(scene.prior, sampler, num_moves=config.moves)
    corrected = {n: chain(sampler) for n, sampler in network.items()}
    return {"": corrected, "network": network, "regressor": {1: si.ExponentialAdams(1)}}


class Reader(eqx.Module):
    """Reads the noisy image, a patch and its corner by convolutions."""

    network: si.nn.ImageEncoder
    embedding: si.nn.NoiseEmbedding
    spread: float

    def __call__(self, noisy, level, context, params):
        # The best linear guess of the image: where it is all noise, nothing is left to read.
        guess = noisy * level.alpha / (level.alpha**2 + level.sigma**2)
        shown = [guess]
        patches, corners = context
        for patch, corner in zip(patches / self.spread, corners, strict=True):
            place = lambda x, corner=corner: jax.lax.dynamic_update_slice(
                jnp.zeros_like(guess[..., : x.shape[-1]]), x, (*corner, 0)
            )
            shown += [place(patch), place(jnp.ones_like(patch[..., :1]))]
        return self.network(jnp.concatenate(shown, -1), self.embedding(level.log_snr))


def as_arrays(context):
    """Patches and their corners: in measurement space a view as a context would be one of whole images."""
    return context.observation, context.params[1]


def train_codes_of_any_size(config, scene, key):
    """Codes of more entries than signal space takes: images are what is noised, and draws are scored, not corrected."""
    denoiser_key, data_key, fit_key = jr.split(key, 3)
    problem = si.StochasticInverseProblem(
        scene.generator,
        make_denoiser(config, scene, key=denoiser_key),
        objective=si.ProperScore(num_draws=2, sample_time=si.mostly_noise),
    )

    @jax.jit
    def make(number):
        images, context = scene.records(jr.fold_in(data_key, number), config.batch_size)
        return si.Example(as_arrays(context), si.View(images))

    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, config.steps // 50 + 1, config.steps + 1, 1e-5)
    batches = map(make, range(config.steps))
    return problem.fit(batches, key=fit_key, steps=config.steps, optimizer=optax.adam(rate), standardise=False)


def make_denoiser(config, scene, *, key):
    """Reads the measurements once, starts each draw from the prior, and makes it by a smaller network."""
    keys = jr.split(key, 6)
    latent, embedding_size, width = scene.generator.latent, 64, config.width
    height, columns, channels = scene.image_shape
    network = si.nn.ImageEncoder(
        channels + config.patches * (channels + 1),
        width,
        image_size=(height, columns),
        embedding_size=embedding_size,
        key=keys[0],
    )
    spread = (1 + scene.noise**2) ** 0.5
    reader = Reader(network, si.nn.NoiseEmbedding(embedding_size, key=keys[1]), spread)
    drawing = si.nn.MLP(
        width + latent.size, latent.size, embedding_size=embedding_size, width=3 * width // 4, depth=2, key=keys[2]
    )
    return si.NetworkDenoiser(
        si.AmortisedGaussian(reader, width, latent.size, key=keys[3]),
        drawing,
        si.nn.NoiseEmbedding(embedding_size, key=keys[4]),
        embedding_size=embedding_size,
        signal=latent,
        latent_size=latent.size,
        latent="input",
        scale=float(jnp.std(jax.vmap(scene.prior)(jr.split(keys[5], 1000)))),
        key=keys[5],
    )


if __name__ == "__main__":
    main()
