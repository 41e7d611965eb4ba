"""Problems in signal space whose posteriors are known, for `posterior_accuracy.py`: closed forms and small dimensions.

Measurements and references are NumPy and SciPy; nothing of the library makes any.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.special import logsumexp
from signal_case import Case, Figure, Sizes, draws_of, one_record, records
from signal_laws import (
    MIXTURE_MEANS,
    MIXTURE_WEIGHTS,
    SECOND_MODE,
    closed_curve,
    condition_mixture,
    directions,
    draw_angles,
    draw_mixture,
    mixture_roots,
    on_circle,
    transport,
)
from signal_references import standard_normal, tempered

import stochinv as si


def project(signal, params):
    return params @ signal


def measure_angle(signal, params):
    return jnp.stack([jnp.cos(signal), jnp.sin(signal)])


def draw_signals(rng, number):
    return draw_mixture(rng, number, MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots())


def projections(rng, signals, views, rows=1, noise=0.0):
    """Projections onto random directions, `rows` of them in each view."""
    along = directions(rng, len(signals), views, rows, signals.shape[1])
    clean = np.einsum("nvij,nj->nvi", along, signals)
    return records(clean + noise * rng.normal(size=clean.shape), along)


def null_space(sizes: Sizes) -> Case:
    """A mixture of two Gaussians in three dimensions, from three projections each; given one."""
    rng, held = np.random.default_rng(sizes.seed), np.random.default_rng(7)
    data = projections(rng, draw_signals(rng, sizes(20_000, 128)), 3)
    given = projections(held, draw_signals(held, sizes(20, 2)), 1)
    number = sizes(4000, 50)

    def reference(index, rng):
        along = np.asarray(given.params[index, 0, 0], np.float64)
        return draw_mixture(rng, number, *condition_mixture(along, float(given.observation[index, 0, 0])))

    def distance(a, b, index):
        sliced = si.diagnostics.sliced_wasserstein(a, b, key=jr.key(index), num_projections=200)
        return float(sliced)

    def assess(problem):
        index = range(len(given.params))
        draws = draws_of(problem, [one_record(given, i) for i in index], number)
        first, second = ([reference(i, np.random.default_rng([s, i])) for i in index] for s in (0, 1))
        floor = np.mean([distance(a, b, i) for i, (a, b) in enumerate(zip(first, second, strict=True))])
        found = np.mean([distance(a, b, i) for i, (a, b) in enumerate(zip(draws, second, strict=True))])
        return [Figure("sliced W1 / floor", float(found / floor), 1, (0.0, 1.3))]

    return Case(si.StochasticInverseProblem(project, signal=(3,)), data, assess)


def draw_curve(rng, number):
    return closed_curve(rng.uniform(0, 2 * np.pi, number))


def manifold(sizes: Sizes, *, measurements: int = 65_536) -> Case:
    """The law of points on a closed curve in five dimensions, from one measurement of each: two noisy projections."""
    rng = np.random.default_rng(sizes.seed)
    data = projections(rng, draw_curve(rng, sizes(measurements, 128)), 1, rows=2, noise=0.01)
    number, sets = sizes(2048, 20), 8

    def assess(problem):
        rng = np.random.default_rng(0)
        (drawn,) = draws_of(problem, [None], sets * number)
        split = lambda rows: np.split(rows, sets)
        truth, other = split(draw_curve(rng, sets * number)), split(draw_curve(rng, sets * number))
        distance = lambda sets: float(np.mean([transport(a, b) for a, b in zip(sets, truth, strict=True)]))
        return [Figure("squared W2 of the prior", distance(split(drawn)), distance(other), (0.0, 0.12))]

    return Case(si.StochasticInverseProblem(project, noise=0.01, signal=(5,)), data, assess)


def noisy_circle(sizes: Sizes, noise=0.7) -> Case:
    """An angle with two modes, seen as a point under noise as large as its spread, 34 times in training; given once."""
    rng, held = np.random.default_rng(sizes.seed), np.random.default_rng(11)
    measure = lambda rng, n, views: on_circle(draw_angles(rng, n))[:, None] + noise * rng.normal(size=(n, views, 2))
    data = records(measure(rng, sizes(10_000, 128), 34))
    given = records(measure(held, sizes(10, 2), 1))
    number = sizes(40_000, 50)
    grid = np.linspace(-np.pi, np.pi, 20001)[:-1]
    wrapped = lambda mean: np.exp(-0.5 * (np.mod(grid - mean + np.pi, 2 * np.pi) - np.pi) ** 2 / 0.2**2)
    prior = (1 - SECOND_MODE) * wrapped(0) + SECOND_MODE * wrapped(np.pi)

    def assess(problem):
        index = range(len(given.observation))
        angles = draws_of(problem, [one_record(given, i) for i in index], number)
        points, means, variances = on_circle(grid), [], []
        for i in index:
            likelihood = np.exp(-0.5 * ((points - given.observation[i, 0]) ** 2).sum(-1) / noise**2)
            weight = prior * likelihood / np.sum(prior * likelihood)
            means.append(weight @ points)
            variances.append(weight @ (points - means[-1]) ** 2)
        rows = on_circle(angles[..., 0])
        size = lambda x: np.sqrt(np.mean(np.square(x), axis=0))
        spread = size(np.sqrt(variances))
        mean = np.max(size(rows.mean(1) - means) / spread)
        variance = np.max(size(rows.var(1) - variances) / size(np.asarray(variances)))
        return [
            Figure("means' error in stds", float(mean), 0, (0.0, 0.05)),
            Figure("variances' error", float(variance), 0, (0.0, 0.05)),
        ]

    problem = si.StochasticInverseProblem(measure_angle, noise=noise, signal=())
    return Case(problem, data, assess)


def bent(features, *, size, views, bar, noise=0.5):
    """A standard normal signal, from noisy projections of a nonlinear function of it; `features(signal, np)`."""

    def make(sizes: Sizes) -> Case:
        rng, held = np.random.default_rng(sizes.seed), np.random.default_rng(1)
        measure = lambda s, along, np_: np_.sum(along * features(s, np_), -1, keepdims=True)

        def measured(rng, n, views):
            along = directions(rng, n, views, size)
            clean = measure(rng.normal(size=(n, 1, size)), along, np)
            return records(clean + noise * rng.normal(size=clean.shape), along)

        data, given, number = measured(rng, sizes(10_000, 128), views + 2), measured(held, 4, views), sizes(3000, 50)

        def reference(index):
            rng = np.random.default_rng(index)
            along, observed = given.params[index], given.observation[index, :, 0]
            log_likelihood = lambda x: -0.5 * np.sum((features(x, np) @ along.T - observed) ** 2, -1) / noise**2
            return tempered(rng, rng.normal(size=(number, size)), standard_normal, log_likelihood)

        def assess(problem):
            draws = draws_of(problem, [one_record(given, i) for i in range(4)], number)
            accuracy = np.mean([si.diagnostics.c2st(reference(i), x) for i, x in enumerate(draws)])
            return [Figure("C2ST", float(accuracy), 0.5, (0.0, bar))]

        problem = si.StochasticInverseProblem(
            lambda signal, params: measure(signal, params, jnp), noise=noise, signal=(size,)
        )
        return Case(problem, data, assess)

    return make


banana = bent(lambda s, np_: np_.stack([s[..., 0], s[..., 1] + s[..., 0] ** 2 - 1], -1), size=2, views=2, bar=0.55)
concentrations = bent(lambda s, np_: 2 * np_.exp(0.5 * s), size=3, views=3, bar=0.55)
sigmoid = bent(lambda s, np_: 2 * np_.tanh(s), size=5, views=4, bar=0.60)


def density(sizes: Sizes, noise=0.3) -> Case:
    """The null space's mixture, from three noisy projections each; the density of draws given one, in closed form."""
    rng, held = np.random.default_rng(sizes.seed), np.random.default_rng(7)
    data = projections(rng, draw_signals(rng, sizes(10_000, 128)), 3, noise=noise)
    given = projections(held, draw_signals(held, sizes(8, 2)), 1, noise=noise)

    def exact(points, index):
        """Up to a constant, that of the prior and the likelihood."""
        logs = []
        for weight, mean, root in zip(MIXTURE_WEIGHTS, MIXTURE_MEANS, mixture_roots(), strict=True):
            white = np.linalg.solve(root, (points - mean).T).T
            logs.append(np.log(weight) - np.linalg.slogdet(root)[1] + standard_normal(white))
        misfit = (points @ given.params[index, 0, 0] - given.observation[index, 0, 0]) / noise
        return logsumexp(logs, axis=0) - 0.5 * misfit**2

    def assess(problem):
        contexts = [one_record(given, i) for i in range(len(given.params))]
        draws, correlations = draws_of(problem, contexts, sizes(200, 10)), []
        for index, context in enumerate(contexts):
            log_prob = jax.vmap(problem.posterior(context).log_prob)
            found = np.asarray(log_prob(jnp.asarray(draws[index], jnp.float32)))
            correlations.append(np.corrcoef(found, exact(draws[index], index))[0, 1])
        return [Figure("correlation of log-densities", float(np.mean(correlations)), 1, (0.99, 1.0))]

    return Case(si.StochasticInverseProblem(project, noise=noise, signal=(3,)), data, assess)
