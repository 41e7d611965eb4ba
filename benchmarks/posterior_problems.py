"""Problems whose posterior is known, for `posterior_accuracy.py`.

Simulators and references are NumPy, SciPy and NUTS; nothing of the library makes a measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import stochinv as si


@dataclass(frozen=True)
class Case:
    """A problem to train, and posteriors to compare with.

    `contexts` are pairs of a context and the target's params. `reference(index, rng, n)` draws `n` samples of the
    posterior for one of them. `sampler`, of a number of steps, is that of the squared error. No entry of a
    signal is larger than `bound`.
    """

    problem: si.StochasticInverseProblem
    data: Any
    roles: si.RandomViews | None
    contexts: list[tuple[Any, Any]]
    reference: Callable[..., np.ndarray]
    distance: str = "sliced W1"
    rows: Callable[[Any], np.ndarray] = lambda signal: np.asarray(signal).reshape(len(signal), -1)
    figures: Callable[[np.ndarray, np.ndarray], dict[str, float]] = lambda samples, reference: {}
    training_steps: int = 6000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    validation: Any = None
    sampler: Callable[[int], si.AbstractSampler] = si.Ancestral
    bound: float = np.inf


def stack_views(observation, params):
    return si.View(np.asarray(observation, np.float32), np.asarray(params, np.float32))


def directions(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def moments(samples, reference):
    """Errors of mean and standard deviations, in the reference's standard deviations; the ratio of total variances."""
    std = reference.std(0)
    return {
        "mean_error": float(np.max(np.abs(samples.mean(0) - reference.mean(0)) / std)),
        "std_error": float(np.max(np.abs(samples.std(0) / std - 1))),
        "variance_ratio": float(samples.var(0).sum() / reference.var(0).sum()),
    }


SECOND_MODE = 0.4


def draw_angles(rng, n):
    return rng.normal(size=n) * 0.2 + np.pi * (rng.random(n) < SECOND_MODE)


def on_circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def measure_angle(signal, params):
    return jnp.stack([jnp.cos(signal), jnp.sin(signal)])


def angle_figures(rows, reference):
    """The weight of the second mode, and the standard deviations of both over 0.2."""
    angle = np.arctan2(rows[:, 1], rows[:, 0])
    second = np.abs(angle) > np.pi / 2
    around = np.where(second, np.mod(angle, 2 * np.pi) - np.pi, angle)
    return {
        "second_mode": float(second.mean()),
        "first_std": float(around[~second].std() / 0.2) if (~second).any() else float("nan"),
        "second_std": float(around[second].std() / 0.2) if second.any() else float("nan"),
    }


def within_a_turn(signal, params):
    """Zero between -2π and 2π: whole turns, which no measurement sees, do not pile up in training."""
    return 0.1 * jnp.maximum(jnp.abs(signal) - 2 * jnp.pi, 0) ** 2


def circle(options, objective):
    """An angle with two modes, seen as a point on the circle: no linear forward model."""

    def data(rng, batch):
        observation = on_circle(draw_angles(rng, batch)).astype(np.float32)
        return si.Example(None, si.View(observation))

    problem = si.StochasticInverseProblem(
        measure_angle,
        objective=replace(objective, regulariser=within_a_turn),
        signal=jax.ShapeDtypeStruct((), jnp.float32),
    )
    return Case(
        problem,
        data,
        None,
        [(None, None)],
        lambda index, rng, n: on_circle(draw_angles(rng, n)),
        rows=lambda signal: on_circle(np.asarray(signal)),
        figures=angle_figures,
        training_steps=8000,
    )


def choice_of_angles(number, *, key, width=128, latent_size=64):
    """A network that proposes several angles and their probabilities, given one measured point and the noisy target."""
    keys = jr.split(key, 5)
    network = si.nn.MLP(
        2 + width + 1 + latent_size, 2 * number, embedding_size=128, width=width, key=keys[0]
    )  # target, view, whether there is one, code -> angles and logits
    apart = jnp.concatenate([jnp.linspace(-2.0, 2.0, number), jnp.zeros(number)])
    return si.MixtureDenoiser(
        si.NetworkDenoiser(
            si.Flatten(eqx.nn.MLP(2, width, width, 1, jax.nn.silu, key=keys[1])),
            eqx.tree_at(lambda n: n.linear_out.bias, network, apart),
            si.nn.NoiseEmbedding(128, key=keys[2]),
            embedding_size=128,
            signal=si.MixtureDenoiser.structure(jax.ShapeDtypeStruct((), jnp.float32), number),
            latent_size=latent_size,
            latent="input",
            key=keys[3],
        )
    )


def noisy_circle(options, objective, noise=0.7, novel=32):
    """The same with noise as large as the spread of what is measured; one noisy measurement is given.

    Under so much noise the score of a mode's width is 1 % of that of its place, and grows with a smaller exponent;
    more novel measurements leave less noise in it.
    """

    def data(rng, batch):
        clean = on_circle(draw_angles(rng, batch))[:, None]
        observation = clean + noise * rng.normal(size=(batch, 2 + novel, 2))
        return stack_views(observation, np.zeros((batch, 2 + novel, 0)))

    rng = np.random.default_rng(11)
    observed = on_circle(draw_angles(rng, 10)) + noise * rng.normal(size=(10, 2))
    grid = np.linspace(-np.pi, np.pi, 20001)[:-1]
    wrapped = lambda mean: np.exp(-0.5 * (np.mod(grid - mean + np.pi, 2 * np.pi) - np.pi) ** 2 / 0.2**2)
    prior = (1 - SECOND_MODE) * wrapped(0) + SECOND_MODE * wrapped(np.pi)

    def reference(index, rng, n):
        density = prior * np.exp(-0.5 * ((on_circle(grid) - observed[index]) ** 2).sum(-1) / noise**2)
        return on_circle(rng.choice(grid, n, p=density / density.sum()))

    if objective.stochastic:
        objective = replace(objective, rule=si.EnergyRule(0.5))
    problem = si.StochasticInverseProblem(
        measure_angle,
        choice_of_angles(4, key=jr.key(options.seed)) if objective.stochastic else None,
        objective=replace(objective, regulariser=within_a_turn),
        noise=noise,
        signal=jax.ShapeDtypeStruct((), jnp.float32),
    )
    empty = jnp.zeros((0,))
    contexts = [(si.View(jnp.asarray(x[None], jnp.float32), empty[None]), empty) for x in observed]
    return Case(
        problem,
        data,
        si.RandomViews(1, 1, novel),
        contexts,
        reference,
        rows=lambda signal: on_circle(np.asarray(signal)),
        figures=lambda a, b: angle_figures(a, b) | moments(a, b),
        training_steps=16_000,
        learning_rate=1e-3,
    )


def project(signal, params):
    return params @ signal


MIXTURE_WEIGHTS = np.array([0.6, 0.4])
MIXTURE_MEANS = np.array([[1.0, 0.5, -0.5], [-1.0, -0.5, 0.8]])


def mixture_roots():
    rng = np.random.default_rng(0)
    return [np.linalg.qr(rng.normal(size=(3, 3)))[0] * np.array([0.5, 0.3, 0.2]) for _ in range(2)]


def draw_mixture(rng, n, weights, means, roots):
    second = rng.random(n) < weights[1]
    white = rng.normal(size=(n, means.shape[1]))
    return np.where(second[:, None], means[1] + white @ roots[1].T, means[0] + white @ roots[0].T)


def condition_mixture(direction, value):
    """Weights, means and roots of the mixture given that its projection has a value."""
    weights, means, roots = [], [], []
    for weight, mean, root in zip(MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots(), strict=True):
        covariance = root @ root.T
        image = covariance @ direction
        variance, residual = direction @ image, value - direction @ mean
        weights.append(weight * np.exp(-0.5 * residual**2 / variance) / np.sqrt(variance))
        means.append(mean + image * residual / variance)
        eigenvalues, basis = np.linalg.eigh(covariance - np.outer(image, image) / variance)
        roots.append(basis * np.sqrt(np.maximum(eigenvalues, 0)))
    return np.array(weights) / np.sum(weights), np.array(means), roots


def null_space(options, objective):
    """A mixture of two Gaussians in three dimensions, seen by projections: one given, one drawn, one to learn from."""

    def data(rng, batch):
        signals = draw_mixture(rng, batch, MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots())
        along = directions(rng, batch, 3, 3)[:, :, None]
        return stack_views(np.einsum("bvij,bj->bvi", along, signals), along)

    rng = np.random.default_rng(7)
    along, target = directions(rng, 20, 3), directions(rng, 20, 1, 3)
    signals = draw_mixture(rng, 20, MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots())
    values = np.einsum("cj,cj->c", along, signals)
    as_array = lambda x: jnp.asarray(x, jnp.float32)
    contexts = [
        (si.View(as_array([[v]]), as_array(d[None, None])), as_array(t))
        for v, d, t in zip(values, along, target, strict=True)
    ]
    problem = si.StochasticInverseProblem(project, objective=objective, signal=jax.ShapeDtypeStruct((3,), jnp.float32))
    reference = lambda index, rng, n: draw_mixture(rng, n, *condition_mixture(along[index], values[index]))
    return Case(problem, data, si.RandomViews(1, 1, 1), contexts, reference, figures=moments, training_steps=16_000)


def noisy_linear(options, objective, noise=1.0, novel=8):
    """A Gaussian in two dimensions, seen by projections with noise as large as its spread."""
    root = np.array([[1.0, 0.0], [0.8, 0.6]])

    def data(rng, batch):
        signals = rng.normal(size=(batch, 2)) @ root.T
        along = directions(rng, batch, 2 + novel, 2)[:, :, None]
        observation = np.einsum("bvij,bj->bvi", along, signals) + noise * rng.normal(size=(batch, 2 + novel, 1))
        return stack_views(observation, along)

    rng = np.random.default_rng(3)
    along, target = directions(rng, 10, 2), directions(rng, 10, 1, 2)
    values = np.einsum("cj,cj->c", along, rng.normal(size=(10, 2)) @ root.T) + noise * rng.normal(size=10)

    def reference(index, rng, n):
        covariance, d = root @ root.T, along[index]
        image = covariance @ d
        total = d @ image + noise**2
        mean, posterior = image * values[index] / total, covariance - np.outer(image, image) / total
        return mean + rng.normal(size=(n, 2)) @ np.linalg.cholesky(posterior).T

    as_array = lambda x: jnp.asarray(x, jnp.float32)
    contexts = [
        (si.View(as_array([[v]]), as_array(d[None, None])), as_array(t))
        for v, d, t in zip(values, along, target, strict=True)
    ]
    problem = si.StochasticInverseProblem(
        project, objective=objective, noise=noise, signal=jax.ShapeDtypeStruct((2,), jnp.float32)
    )
    roles = si.RandomViews(1, 1, novel)
    return Case(problem, data, roles, contexts, reference, figures=moments, training_steps=8000)


def nuts(options, objective, features, *, size, views, seed, noise=0.5, training_steps=10_000):
    """A standard Gaussian signal, seen by noisy projections of a nonlinear function of it; NUTS is the reference.

    `features(signal, np)` of signals `(..., size)`, in the NumPy given.
    """
    import numpyro.distributions as dist

    measure = lambda s, along, np_: np_.sum(along * features(s, np_), -1, keepdims=True)
    forward = lambda signal, params: measure(signal, params, jnp)

    def data(rng, batch):
        along = directions(rng, batch, views + 2, size)
        clean = measure(rng.normal(size=(batch, 1, size)), along, np)
        return stack_views(clean + noise * rng.normal(size=clean.shape), along)

    number = 4
    seen = data(np.random.default_rng(seed), number)
    cases = [si.View(jnp.asarray(seen.observation[i]), jnp.asarray(seen.params[i])) for i in range(number)]
    contexts = [(jax.tree.map(lambda x: x[:views], case), case.params[views]) for case in cases]
    prior = dist.Normal(jnp.zeros(size), 1.0).to_event(1)
    drawn = [
        np.asarray(
            si.diagnostics.reference_posterior(
                prior,
                forward,
                noise,
                context,
                key=jr.key(i),
                num_samples=max(2 * options.samples // 4, 500),
                target_accept_prob=0.98,
            ).samples
        ).reshape(-1, size)
        for i, (context, _) in enumerate(contexts)
    ]
    problem = si.StochasticInverseProblem(
        forward, objective=objective, noise=noise, signal=jax.ShapeDtypeStruct((size,), jnp.float32)
    )
    return Case(
        problem,
        data,
        si.RandomViews(views, 1, 1),
        contexts,
        lambda index, rng, n: rng.permutation(drawn[index])[:n],
        distance="C2ST",
        figures=moments,
        training_steps=training_steps,
    )


def banana(options, objective):
    """Two dimensions, bent to a banana by the measurement."""
    bend = lambda s, np_: np_.stack([s[..., 0], s[..., 1] + s[..., 0] ** 2 - 1], -1)
    return nuts(options, objective, bend, size=2, views=2, seed=1)


def concentrations(options, objective):
    """Positive concentrations of three substances, seen by mixtures of them; the signal is their logarithms."""
    mix = lambda s, np_: 2 * np_.exp(0.5 * s)
    return nuts(options, objective, mix, size=3, views=3, seed=2, training_steps=16_000)


def sigmoid(options, objective):
    """Five dimensions, each saturated before it is projected."""
    return nuts(options, objective, lambda s, np_: 2 * np_.tanh(s), size=5, views=4, seed=2)


def closed_curve(angle, size=5, modes=4):
    """Points `(..., size)` of a smooth closed curve, the same random one each time, with coordinates of unit size."""
    waves = np.arange(1, modes + 1)
    amplitudes = np.random.default_rng(4).normal(size=(2, size, modes)) / waves**1.5
    phases = waves * np.asarray(angle)[..., None, None]
    return np.sum(amplitudes[0] * np.cos(phases) + amplitudes[1] * np.sin(phases), -1) / np.sqrt(
        np.mean(np.sum(amplitudes**2 / 2, (0, 2)))
    )


def manifold(options, objective, noise=0.01):
    """The law of points on a closed curve in five dimensions, from two noisy projections of each of 65,536 points."""
    draw = lambda rng, n: closed_curve(rng.uniform(0, 2 * np.pi, n))
    rng = np.random.default_rng(options.seed)
    signals, along = draw(rng, 65_536), directions(rng, 65_536, 2, 5)[:, :, None]
    observation = np.einsum("nvij,nj->nvi", along, signals) + noise * rng.normal(size=(65_536, 2, 1))
    problem = si.StochasticInverseProblem(
        project, objective=objective, noise=noise, signal=jax.ShapeDtypeStruct((5,), jnp.float32)
    )

    def figures(rows, reference):
        rng = np.random.default_rng(0)
        gaussian = rng.multivariate_normal(reference.mean(0), np.cov(reference.T), len(reference))
        return {"gaussian": transport(gaussian, reference)} | moments(rows, reference)

    return Case(
        problem,
        stack_views(observation, along),
        si.RandomViews(0, 1, 1),
        [(None, jnp.eye(1, 5))],
        lambda index, rng, n: draw(rng, n),
        distance="W2²",
        figures=figures,
        training_steps=12_000,
    )


def transport(rows, reference, largest=2048):
    """The squared 2-Wasserstein distance of at most so many points of each, exactly."""
    n = min(len(rows), len(reference), largest)
    cost = cdist(rows[:n], reference[:n], "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean())


def two_moons_simulator(rng, theta):
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, len(theta)), 0.1 + 0.01 * rng.normal(size=len(theta))
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)
    turned = np.stack([-np.abs(theta[:, 0] + theta[:, 1]), theta[:, 1] - theta[:, 0]], -1) / np.sqrt(2)
    return crescent + turned


def slcp_simulator(rng, theta):
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    covariance = np.empty((len(theta), 2, 2))
    covariance[:, 0, 0], covariance[:, 1, 1] = first**2 + 1e-6, second**2 + 1e-6
    covariance[:, 0, 1] = covariance[:, 1, 0] = correlation * first * second
    white = rng.normal(size=(len(theta), 4, 2))
    return (theta[:, None, :2] + np.einsum("bij,bvj->bvi", np.linalg.cholesky(covariance), white)).reshape(-1, 8)


def gaussian_mixture_simulator(rng, theta):
    scale = np.where(rng.random(len(theta)) < 0.5, 1.0, 0.1)
    return theta + scale[:, None] * rng.normal(size=theta.shape)


def sbibm(name, simulator, size, bound, **settings):
    """A simulator with a uniform prior, 10,000 simulations, and 10 observations with reference samples."""

    def make(options, objective):
        if options.sbibm is None or not (options.sbibm / "sbibm" / "tasks" / name).is_dir():
            raise SystemExit(
                f"{name} needs `--sbibm FOLDER` with the unpacked files of sbibm 1.1.0, got {options.sbibm}."
            )
        if isinstance(objective, si.SquaredError):
            objective = replace(objective, weighting=si.snr_weight, sample_time=si.uniform_log_snr)
        rng = np.random.default_rng(options.seed)
        theta = rng.uniform(-bound, bound, (10_000, size)).astype(np.float32)
        observed = simulator(rng, theta.astype(np.float64))
        # Observations with heavy tails are squashed; a posterior does not depend on an invertible map of what is given.
        centre, spread = np.median(observed, 0), 1.5 * np.median(np.abs(observed - np.median(observed, 0)), 0)
        standard = lambda x: np.arcsinh((x - centre) / spread).astype(np.float32)
        records = si.Example(standard(observed), si.View(theta))
        cut = 500
        files = [options.sbibm / "sbibm" / "tasks" / name / "files" / f"num_observation_{i}" for i in range(1, 11)]
        read = lambda path: np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        contexts = [(jnp.asarray(standard(read(f / "observation.csv"))[0]), None) for f in files]
        references = [read(f / "reference_posterior_samples.csv.bz2") for f in files]
        problem = si.StochasticInverseProblem(
            lambda signal, params: signal, objective=objective, signal=jax.ShapeDtypeStruct((size,), jnp.float32)
        )
        return Case(
            problem,
            jax.tree.map(lambda x: x[cut:], records),
            None,
            contexts,
            lambda index, rng, n: rng.permutation(references[index])[:n],
            distance="C2ST",
            figures=moments,
            validation=jax.tree.map(lambda x: x[:cut], records),
            sampler=si.ExponentialAdams,
            bound=bound,
            learning_rate=2e-3,
            **settings,
        )

    return make


PROBLEMS = {
    "circle": circle,
    "null_space": null_space,
    "noisy_linear": noisy_linear,
    "noisy_circle": noisy_circle,
    "banana": banana,
    "concentrations": concentrations,
    "sigmoid": sigmoid,
    "manifold": manifold,
    "two_moons": sbibm("two_moons", two_moons_simulator, 2, 1.0, training_steps=10_000),
    "slcp": sbibm("slcp", slcp_simulator, 5, 3.0, training_steps=3000, weight_decay=1.0),
    "gaussian_mixture": sbibm("gaussian_mixture", gaussian_mixture_simulator, 2, 10.0, training_steps=8000),
}
