"""The figures and the picture of `gan_inversion.py`: what samples of a generator's images are worth, given a patch."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import digit_networks
import stochinv as si

ENTROPY, ESS = 0.8, 300  # of ambiguous patches, at least


class Judge:
    """Knows the patches to be explained, and for digits the truth about them."""

    def __init__(self, config, scene, images, contexts, key):
        self.config, self.scene = config, scene
        self.shown = {}
        self.classifier = self.truth = self.rare = None
        self.images, self.contexts = take((images, contexts), slice(config.contexts))
        if config.preset != "digits":
            return
        classifier_key, truth_key, real_key = jr.split(key, 3)
        self.classifier = digit_networks.train_classifier(
            config.cache, steps=config.classifier_steps, key=classifier_key
        )
        digits = jnp.asarray(digit_networks.load_digits()[1][0][: len(images)])
        real = scene.measure(digits, real_key)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), contexts, real)
        posterior = self.brute_force(both, truth_key)
        p = np.asarray(posterior.mean)
        entropy = -np.sum(p * np.log(np.maximum(p, 1e-12)), -1)
        ambiguous = np.flatnonzero((entropy > ENTROPY) & (np.asarray(posterior.ess) > ESS))
        if len(ambiguous) == 0:
            print("No patch is ambiguous: figures are of arbitrary ones. Try more `--candidates`.")
            ambiguous = np.arange(len(p))
        fresh, real = (ambiguous[m][: config.contexts] for m in (ambiguous < len(images), ambiguous >= len(images)))
        self.images, self.contexts, self.truth = take((images, contexts, posterior_of(posterior)), fresh)
        self.real = take((both, p), real)

    def brute_force(self, contexts, key):
        """The posterior of latent codes and of classes, by reweighting draws of the prior."""
        scene, forward = self.scene, self.scene.forward
        if scene.corner is not None:  # known to be the same for all, it is cut out once
            fixed = jnp.array(scene.corner)
            forward = lambda z, _: scene.window(scene.generator(z, None), fixed)
            contexts = si.View(contexts.observation)
        return si.diagnostics.reweighted_posterior(
            scene.draw,
            forward,
            scene.noise,
            contexts,
            summary=lambda z: jax.nn.one_hot(self.classify(scene.render(z)), 10),
            key=key,
            num_samples=self.config.reference,
            num_draws=min(self.config.samples, 400),
            chunk_size=4000,
        )

    def classify(self, image):
        return jnp.argmax(self.classifier(image), -1)

    def sample(self, problem, contexts, sampler, num_samples, key):
        """Latent codes of shape `(contexts, samples, ...)`, and the seconds that one took."""
        number = len(contexts.observation)
        if self.config.moves is None:  # in measurement space
            contexts = contexts.observation, contexts.params[1]
        arguments = problem, contexts, sampler, num_samples, key
        program = _sample.lower(*arguments).compile()
        start = time.perf_counter()
        latents = jax.block_until_ready(program(*arguments))
        return latents, (time.perf_counter() - start) / (number * num_samples)

    def classes(self, latents):
        """The share of each class among samples, for every context."""
        classify = lambda z: jax.nn.one_hot(self.classify(self.scene.render(z)), 10)
        share = lambda z: jnp.mean(jax.lax.map(classify, z, batch_size=1000), 0)
        return np.asarray(jax.jit(lambda z: jax.lax.map(share, z))(latents))

    def score(self, name, problem, samplers, key):
        """The figures of draws by samplers, given by their number of steps."""
        config = self.config
        suffix = f"_{name}" if name else ""
        shown = config.shown_steps if config.shown_steps in samplers else next(iter(samplers))
        found = {f"seconds_per_sample{suffix}": {}, f"class_tv{suffix}": {}}
        for n, sampler in samplers.items():
            latents, seconds = self.sample(problem, self.contexts, sampler, config.samples, key)
            found[f"seconds_per_sample{suffix}"][n] = seconds
            if self.truth is not None:
                found[f"class_tv{suffix}"][n] = total_variation(self.classes(latents), self.truth["classes"])
            if n == shown:
                self.shown[name] = latents
                found |= self.score_images(suffix, latents)
        if self.truth is None:
            del found[f"class_tv{suffix}"]
            return found
        found |= self.score_many(suffix, problem, samplers[shown], key)
        if name:
            return found
        contexts, classes = self.real
        latents, _ = self.sample(problem, contexts, samplers[shown], config.samples, key)
        found["class_tv_real"] = total_variation(self.classes(latents), classes)
        return found

    def score_many(self, suffix, problem, sampler, key):
        """The samples for patches of many images, one for each, are samples of the generator."""
        scene = self.scene
        image_key, other_key, sample_key = jr.split(key, 3)
        _, contexts = scene.records(image_key, self.config.images)
        latents, _ = self.sample(problem, contexts, sampler, 1, sample_key)
        others = jax.vmap(scene.draw)(jr.split(other_key, self.config.images))
        features = lambda z: np.asarray(jax.vmap(self.classifier.features)(scene.render(z)), np.float64)
        return {
            f"frechet{suffix}": frechet_distance(features(latents[:, 0]), features(others)),
            f"rare_class_share{suffix}": float(self.classes(latents[None, :, 0])[0, self.rare]),
        }

    def score_images(self, suffix, latents):
        """How samples keep to the patch, how they differ, and how far from the truth they are."""
        scene = self.scene

        def one(inputs):
            latents, context = inputs
            images = scene.render(latents)
            cut = jax.vmap(jax.vmap(scene.window, (None, 0)), (0, None))(images, context.params[1])
            return jnp.mean((cut - context.observation) ** 2), mean_distance(images[:200])

        errors, distances = jax.jit(lambda x: jax.lax.map(one, x))((latents, self.contexts))
        everything = mean_distance(scene.render(jax.vmap(scene.draw)(jr.split(jr.key(0), 200))))
        found = {
            f"patch_rmse{suffix}": float(jnp.sqrt(jnp.mean(errors))),
            f"diversity{suffix}": float(jnp.mean(distances) / everything),
        }
        if self.truth is not None:
            pairs = zip(latents[:, :200], self.truth["samples"][:, :200], strict=True)
            distance = lambda a, b: si.diagnostics.energy_distance(scene.render(a), scene.render(b))
            found[f"energy_distance{suffix}"] = float(np.mean([distance(a, b) for a, b in pairs]))
        return found

    def score_brute_force(self, key):
        """What brute force itself scores: its samples, as many as of the others, and the prior."""
        if self.truth is None:
            return {}
        classes = self.truth["classes"]
        rng = np.random.default_rng(np.asarray(jr.key_data(key)))
        drawn = np.stack([rng.multinomial(self.config.samples, p / p.sum()) for p in classes.astype(np.float64)])
        floor = total_variation(drawn / self.config.samples, classes)
        prior = jax.vmap(self.scene.draw)(jr.split(key, 200_000))
        shares = self.classes(prior[None])[0]
        self.rare = int(np.argmin(np.where(shares > 0.001, shares, 1)))
        images = self.score_images("_truth", self.truth["samples"])
        images.pop("energy_distance_truth")
        return images | {
            "class_tv_floor": {n: floor for n in self.config.sampler_steps},
            "class_tv_prior": total_variation(shares, classes),
            "rare_class_share_truth": float(shares[self.rare]),
            "ess": [float(np.min(self.truth["ess"])), float(np.median(self.truth["ess"]))],
        }


def posterior_of(posterior):
    return {"classes": np.asarray(posterior.mean), "samples": posterior.samples, "ess": np.asarray(posterior.ess)}


@eqx.filter_jit
def _sample(problem, contexts, sampler, num_samples, key):
    return problem.sample_many(contexts, key=key, num_samples=num_samples, sampler=sampler).signal


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def total_variation(p, q):
    return float(np.mean(0.5 * np.sum(np.abs(p - q), -1)))


def mean_distance(images):
    """The mean distance of two images, the root mean square over their pixels."""
    rows = images.reshape(len(images), -1)
    squares = jnp.mean(rows**2, -1)
    distances = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * rows @ rows.T / rows.shape[1], 0))
    return jnp.sum(distances) / (len(rows) * (len(rows) - 1))


def frechet_distance(x, y):
    """`‖m_x − m_y‖² + tr(C_x + C_y − 2 (C_x C_y)^½)` of two sets of features (Heusel et al. 2017)."""
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + sum(map(np.trace, covariances)) - 2 * np.sum(roots))


def print_table(figures):
    print()
    for name, value in figures.items():
        if isinstance(value, dict):
            value = "   ".join(f"{k}: {v:.3g}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(f"{v:.3g}" for v in value)
        print(f"{name.replace('_', ' '):<34}{value if isinstance(value, str) else f'{value:.4g}'}")


def draw(config, scene, judge):
    """Writes the picture: in each row the patch, its image, eight samples, mean, spread, and for digits the classes."""
    latents = judge.shown[""][:6]
    images = scene.render(latents)
    given = np.full((len(latents), *scene.image_shape), np.nan)
    patches, (_, corners) = judge.contexts.observation, judge.contexts.params
    for canvas, *several in zip(given, np.asarray(patches), np.asarray(corners), strict=False):
        for patch, (top, left) in zip(*several, strict=True):
            canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    columns = {
        "given": given,
        "its image": judge.images[: len(latents)],
        "samples": images,
        "mean": jnp.mean(images, 1),
        "std. dev.": jnp.std(images, 1),
    }
    figure = si.plot.images(columns, own_scale="std. dev.", limits=(-1, 1))
    if judge.truth is not None:
        draw_classes(figure, judge, latents)
    figure.savefig(config.out, dpi=100)


def draw_classes(figure, judge, latents):
    """Adds how probable each digit is, right of each row."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + 1.2, height)
    pictures = np.reshape(figure.axes[:-1], (len(latents), -1))  # the last axes are the colour bar
    for row, picture in enumerate(pictures[:, -1]):
        ax = picture.inset_axes((1.1, 0, 2.1, 1))
        ax.bar(np.arange(10) - 0.2, judge.truth["classes"][row], 0.4, color="0.5", label="brute force")
        ax.bar(np.arange(10) + 0.2, judge.classes(latents[row : row + 1])[0], 0.4, color="C1", label="samples")
        ax.set(xticks=range(10), yticks=[], xlim=(-0.6, 9.6))
        ax.tick_params(labelsize=6, length=0, pad=1)
        if row == 0:
            ax.set_title("digit", fontsize=8)
            ax.legend(fontsize=5, frameon=False)
