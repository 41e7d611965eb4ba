"""Problems in signal space whose posteriors are known, for `posterior_accuracy.py`: physics and counts.

Measurements and references are NumPy and SciPy; nothing of the library makes any.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit
from signal_case import (
    Case,
    Figure,
    Sizes,
    draws_of,
    mean_error,
    one_record,
    records,
    score_ratio,
    std_ratio,
    within,
)
from signal_references import laplace_jumps, runge_kutta, standard_normal, tempered

import stochinv as si


def pendulum(signal, times):
    """The angles of `docs/bring-your-own.md`, at increasing times between 0 and 4 s."""
    frequency, damping = jnp.array([1.0, 0.0]) + jnp.array([3.0, 1.0]) * jax.nn.sigmoid(signal)

    def motion(t, state, args):
        angle, speed = state
        return speed, -(frequency**2) * jnp.sin(angle) - damping * speed

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(motion),
        diffrax.Tsit5(),
        t0=0.0,
        t1=4.0,
        dt0=0.2,
        y0=(jnp.ones(()), jnp.zeros(())),
        saveat=diffrax.SaveAt(ts=times),
        max_steps=32,
    )
    assert solution.ys is not None
    return solution.ys[0]


def swing(signals, times, step=0.05):
    """The same by NumPy, for signals `(n, 2)`: at the same times for all, or `(n, times)`; cubic between steps."""
    frequency, damping = 1 + 3 * expit(signals[:, 0]), expit(signals[:, 1])

    def motion(state):
        angle, speed = state
        return np.stack([speed, -(frequency**2) * np.sin(angle) - damping * speed])

    start = np.stack([np.ones(len(signals)), np.zeros(len(signals))])
    path = runge_kutta(motion, start, step, round(4 / step))
    times = np.broadcast_to(times, (len(signals), np.shape(times)[-1]))
    index = np.minimum((times / step).astype(int), len(path) - 2)
    u, rows = times / step - index, np.arange(len(signals))[:, None]
    (a, va), (b, vb) = (np.moveaxis(path[i, :, rows], -1, 0) for i in (index, index + 1))
    hermite = (1 + 2 * u) * (1 - u) ** 2 * a + u**2 * (3 - 2 * u) * b
    return hermite + step * (u * (1 - u) ** 2 * va + u**2 * (u - 1) * vb)


def make_pendulum(views):
    def make(sizes: Sizes) -> Case:
        """Frequency and damping of a pendulum, from clips of four angles."""
        rng, noise = np.random.default_rng(sizes.seed), 0.05
        number, held = sizes(4000, 128), sizes(40, 2)
        signals = rng.normal(size=(number + held, 2))
        times = np.sort(rng.uniform(0, 4, (number + held, views, 4)), -1)
        clips = swing(signals, times.reshape(len(times), -1)).reshape(times.shape)
        data = records(clips + noise * rng.normal(size=clips.shape), times)

        def reference(index):
            rng = np.random.default_rng(index)
            at, observed = data.params[index].ravel(), data.observation[index].ravel()
            log_likelihood = lambda x: -0.5 * np.sum((swing(x, at) - observed) ** 2, -1) / noise**2
            return tempered(rng, rng.normal(size=(sizes(2000, 50), 2)), standard_normal, log_likelihood)

        def assess(problem):
            index = range(number, number + held)
            references = [reference(i) for i in index]
            draws = draws_of(problem, [one_record(data, i) for i in index], sizes(500, 20))
            return [
                Figure("energy score / truth's", score_ratio(draws, references, signals[number:]), 1, (0.0, 1.05)),
                Figure("stds / truth's", std_ratio(draws, references), 1, within(0.1)),
            ]

        problem = si.StochasticInverseProblem(pendulum, noise=noise, signal=(2,))
        return Case(problem, jax.tree.map(lambda x: x[:number], data), assess)

    return make


def law_of_signals(mean, stds, correlation):
    """The mean of a Gaussian and a root of its covariance, all entries equally correlated."""
    size = len(mean)
    root = np.linalg.cholesky(np.eye(size) + correlation * (np.ones((size, size)) - np.eye(size)))
    return np.asarray(mean), np.asarray(stds)[:, None] * root


def scanned(motion, state, step, number):
    """`runge_kutta` in JAX, compiled once for all steps."""

    def advance(state, _):
        after = runge_kutta(motion, state, step, 1, jnp)[1]
        return after, after

    return jnp.concatenate([state[None], jax.lax.scan(advance, state, None, length=number)[1]])


def populations(signal, np_=np, integrate=runge_kutta):
    """Logarithms of prey and predators, at times 1, …, 10, of signals `(..., 4)`: the logarithms of four rates."""
    growth, hunting, breeding, death = np_.moveaxis(np_.exp(0.5 * signal), -1, 0)

    def motion(state):
        prey, predators = state
        return np_.stack([growth - hunting * np_.exp(predators), breeding * np_.exp(prey) - death])

    start = np_.stack([0.5 + 0 * growth, -0.5 + 0 * growth])
    return np_.moveaxis(integrate(motion, start, 0.1, 100)[10::10], (0, 1), (-2, -1))


def moments(
    problem: Any, data: si.View, held_out: range, reference: Callable[[int], np.ndarray], sizes: Sizes, bar: Any
) -> list[Figure]:
    """How draws given held-out records compare with those of a reference, by means and standard deviations."""
    references = [reference(i) for i in held_out]
    draws = draws_of(problem, [one_record(data, i) for i in held_out], sizes(500, 20))
    return [
        Figure("stds / truth's", std_ratio(draws, references), 1, bar),
        Figure("means' error in stds", mean_error(draws, references), 0, (0.0, 0.3)),
    ]


def lotka_volterra(sizes: Sizes) -> Case:
    """Four rates of prey and predators, from one noisy trajectory each."""
    rng, noise = np.random.default_rng(sizes.seed), 0.1
    number, held = sizes(4000, 128), sizes(16, 2)
    mean, root = law_of_signals([0.3, -0.2, 0.1, -0.3], [0.8, 0.7, 0.9, 0.6], 0.5)
    draw = lambda rng, n: mean + rng.normal(size=(n, 4)) @ root.T
    clean = populations(draw(rng, number + held))
    data = records((clean + noise * rng.normal(size=clean.shape))[:, None])

    def reference(index):
        rng = np.random.default_rng(index)
        log_prior = lambda x: standard_normal(np.linalg.solve(root, (x - mean).T).T)
        misfit = lambda x: (populations(x) - data.observation[index, 0]) / noise
        log_likelihood = lambda x: -0.5 * np.sum(misfit(x) ** 2, (-1, -2))
        return tempered(rng, draw(rng, sizes(1500, 50)), log_prior, log_likelihood)

    held_out = range(number, number + held)
    assess = lambda problem: moments(problem, data, held_out, reference, sizes, within(0.2))

    forward = lambda signal, params: populations(signal, jnp, scanned)
    problem = si.StochasticInverseProblem(forward, noise=noise, signal=(4,))
    return Case(problem, jax.tree.map(lambda x: x[:number], data), assess)


def spectrum(signal, np_, bins=64):
    """Expected counts of signals `(..., 5)`: level and slope of the continuum; strength, place and width of a line."""
    level, slope, strength, place, width = (x[..., None] for x in np_.moveaxis(signal, -1, 0))
    x = np.linspace(-1, 1, bins)
    line = np_.exp(-0.5 * ((x - 0.25 * place) / (0.1 * np_.exp(0.3 * width))) ** 2)
    return 8 * np_.exp(0.4 * level + 0.3 * slope * x) + 20 * np_.exp(0.5 * strength) * line


def spectra(sizes: Sizes) -> Case:
    """Counts in 64 bins, one exposure each."""
    rng = np.random.default_rng(sizes.seed)
    number, held = sizes(4000, 128), sizes(16, 2)
    mean, root = law_of_signals([0.2, -0.3, 0.3, 0.2, -0.2], [0.8, 0.9, 0.7, 0.9, 0.7], 0.3)
    draw = lambda rng, n: mean + rng.normal(size=(n, 5)) @ root.T
    data = records(rng.poisson(spectrum(draw(rng, number + held), np))[:, None])

    def reference(index):
        rng, counts = np.random.default_rng(index), data.observation[index, 0]
        log_prior = lambda x: standard_normal(np.linalg.solve(root, (x - mean).T).T)

        def log_likelihood(x):
            rates = spectrum(x, np)
            return np.sum(counts * np.log(rates) - rates, -1)

        return tempered(rng, draw(rng, sizes(1500, 50)), log_prior, log_likelihood)

    held_out = range(number, number + held)
    assess = lambda problem: moments(problem, data, held_out, reference, sizes, within(0.25))

    forward = lambda signal, params: spectrum(signal, jnp)
    problem = si.StochasticInverseProblem(forward, noise=si.PoissonNoise(), signal=(5,))
    return Case(problem, jax.tree.map(lambda x: x[:number], data), assess)


def jumps(sizes: Sizes) -> Case:
    """Cumulative sums of Laplace jumps in 64 dimensions, half of their entries seen with noise, once each."""
    rng, size = np.random.default_rng(sizes.seed), sizes(64, 8)
    number, held = sizes(12_000, 128), sizes(32, 2)
    signals = np.cumsum(rng.laplace(size=(number + held, size)), -1)
    # 25 dB below the signals, whose mean square is `2 (1 + … + n) / n`.
    noise = float(np.sqrt((size + 1) / 10**2.5))
    seen = rng.random(signals.shape) < 0.5
    noisy = np.where(seen, signals, 0) + noise * rng.normal(size=signals.shape)
    data = records(noisy[:, None], seen[:, None])

    def assess(problem):
        index = range(number, number + held)
        sampled = lambda i: laplace_jumps(np.random.default_rng(i), noisy[i], seen[i], noise, sizes(1500, 20))
        references = [sampled(i) for i in index]
        draws = draws_of(problem, [one_record(data, i) for i in index], sizes(500, 20))
        ratios = np.concatenate([x.std(0) / r.std(0) for x, r in zip(draws, references, strict=True)])
        return [
            Figure("energy score / truth's", score_ratio(draws, references, signals[number:]), 1, (0.0, 1.035)),
            Figure("stds / truth's", float(np.median(ratios)), 1, within(0.09)),
        ]

    problem = si.StochasticInverseProblem(si.forward.Mask(), noise=noise)
    return Case(problem, jax.tree.map(lambda x: x[:number], data), assess)
