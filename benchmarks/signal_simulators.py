"""Simulators with a prior, for `posterior_accuracy.py`: problems of sbibm 1.1.0 and its reference posteriors.

10,000 parameter vectors, unless another number is asked for, with one simulation each are given, as `Pairs`. What was
simulated gives the units alone: training simulates measurements of these signals afresh in each round, by the forward
model and the noise that the library is told. So there are as many parameter vectors as in sbibm's benchmark, and more
simulations.

A uniform prior has edges, which a denoiser of parameters smooths. So the signal is what is standard normal, and the
parameters are quantiles of it: no draw is outside of the box.

Simulators are NumPy. The distributions of noise here are what a user of the library would write.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from scipy import special
from signal_case import Case, Figure, Sizes, draws_of

import stochinv as si

RADIUS, THICKNESS, OFFSET = 0.1, 0.01, 0.25
JITTER = 1e-6


class Crescent(dist.Distribution):
    """Half a ring, open to the left, in the plane: `centre + r (cos a, sin a)` with a uniform angle `|a| < π/2` and
    `r ~ N(RADIUS, THICKNESS²)`, whose density in the plane is `p(r) p(a) / r`."""

    support: Any = dist.constraints.real_vector

    def __init__(self, centre):
        self.centre = centre
        super().__init__(jnp.shape(centre)[:-1], jnp.shape(centre)[-1:])

    def sample(self, key: Any, sample_shape=()):
        angle_key, radius_key = jr.split(key)
        shape = sample_shape + self.batch_shape
        angle = jr.uniform(angle_key, shape, minval=-math.pi / 2, maxval=math.pi / 2)
        radius = RADIUS + THICKNESS * jr.normal(radius_key, shape)
        return self.centre + radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def log_prob(self, value, intermediates=None):
        apart = jnp.asarray(value - self.centre)
        radius = jnp.linalg.norm(apart, axis=-1)
        log_density = dist.Normal(RADIUS, THICKNESS).log_prob(radius) - jnp.log(math.pi * radius)
        return jnp.where(apart[..., 0] > 0, log_density, -jnp.inf)


def from_normal(signal, bound, erf):
    """Parameters that are uniform between `±bound` where the signal is standard normal."""
    return bound * erf(signal / math.sqrt(2))


def fold(theta, np_):
    """Where the crescent is: the square of parameters turned by 45° and folded along its diagonal."""
    first, second = theta[..., 0], theta[..., 1]
    return np_.stack([OFFSET - np_.abs(first + second) / math.sqrt(2), (second - first) / math.sqrt(2)], -1)


def simulate_two_moons(rng, theta):
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = RADIUS + THICKNESS * rng.normal(size=len(theta))
    return fold(theta, np) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def simulate_gaussian_mixture(rng, theta):
    scale = np.where(rng.random(len(theta)) < 0.5, 1.0, 0.1)
    return theta + scale[:, None] * rng.normal(size=theta.shape)


def wide_or_narrow(clean):
    components = dist.Normal(clean[..., None, :], jnp.array([[1.0], [0.1]])).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), components)


class FourPoints(dist.Distribution):
    """Four points of one Gaussian in the plane.

    `told` is as large as the four points: the mean, the three entries of the covariance's Cholesky factor, and zeros.
    """

    support: Any = dist.constraints.independent(dist.constraints.real, 2)

    def __init__(self, told):
        self.told = told
        super().__init__(jnp.shape(told)[:-2], jnp.shape(told)[-2:])

    def law(self):
        zero = jnp.zeros(self.batch_shape)
        rows = [[self.told[..., 1, 0], zero], [self.told[..., 1, 1], self.told[..., 2, 0]]]
        factor = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
        return dist.MultivariateNormal(self.told[..., None, 0, :], scale_tril=factor[..., None, :, :])

    def sample(self, key: Any, sample_shape=()):
        white = jr.normal(key, sample_shape + self.batch_shape + self.event_shape)
        law = self.law()
        return law.loc + jnp.einsum("...ij,...nj->...ni", law.scale_tril[..., 0, :, :], white)

    def log_prob(self, value, intermediates=None):
        return jnp.sum(self.law().log_prob(value), -1)


def tell_gaussian(theta):
    """What `FourPoints` is told: the parameters are the mean, roots of the standard deviations, and a correlation."""
    first, second, correlation = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
    along = jnp.sqrt(first**2 + JITTER)
    across = correlation * first * second / along
    rest = jnp.sqrt(jnp.maximum(second**2 - across**2, 0) + JITTER)
    return jnp.stack([theta[:2], jnp.stack([along, across]), jnp.stack([rest, 0 * rest]), jnp.zeros(2)])


def simulate_slcp(rng, theta):
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    covariance = np.empty((len(theta), 2, 2))
    covariance[:, 0, 0], covariance[:, 1, 1] = first**2 + JITTER, second**2 + JITTER
    covariance[:, 0, 1] = covariance[:, 1, 0] = correlation * first * second
    white = rng.normal(size=(len(theta), 4, 2))
    return theta[:, None, :2] + np.einsum("bij,bvj->bvi", np.linalg.cholesky(covariance), white)


class Simulator(Protocol):
    """A problem of so many simulations, with reference posteriors in a folder."""

    def __call__(self, sizes: Sizes, folder: Path | None, *, simulations: int = 10_000) -> Case: ...


def simulator(
    name: str,
    simulate: Callable[..., np.ndarray],
    forward: Callable[..., Any],
    noise: Callable[..., dist.Distribution],
    *,
    bound: float,
    bar: float,
    size: int = 2,
) -> Simulator:
    """A problem of `size` parameters that are uniform between `±bound`; `simulate(rng, theta)` of rows."""

    def make(sizes: Sizes, folder: Path | None, *, simulations: int = 10_000) -> Case:
        files = reference_files(name, folder)
        rng = np.random.default_rng(sizes.seed)
        theta = rng.uniform(-bound, bound, (sizes(simulations, 128), size))
        observed = simulate(rng, theta).astype(np.float32)
        signals = math.sqrt(2) * special.erfinv(theta / bound)
        problem = si.StochasticInverseProblem(
            lambda signal, params: forward(from_normal(signal, bound, jax.lax.erf)),
            noise=noise,
            signal=(size,),
        )
        data = si.Pairs(signals.astype(np.float32), si.View(observed[:, None]))
        parameters = lambda draws: from_normal(draws, bound, special.erf)
        return Case(problem, data, two_sample_tests(files, sizes, parameters, observed.shape[1:], bar=bar))

    return make


def bernoulli_glm(sizes: Sizes, folder: Path | None, *, simulations: int = 10_000) -> Case:
    """A hundred coin tosses, whose log-odds are linear in ten parameters with a smooth Gaussian prior.

    The signal is what is standard normal, and the parameters are linear in it. What is given is the tosses, not
    sbibm's ten sums of them, on which alone the posterior depends: the sums' noise has no likelihood in closed form.
    """
    files = reference_files("bernoulli_glm", folder)
    design, root = stimulus(), smooth_root()
    rng = np.random.default_rng(sizes.seed)
    signals = rng.normal(size=(sizes(simulations, 128), len(root)))
    observed = (rng.random((len(signals), len(design))) < special.expit(signals @ (design @ root).T)).astype(np.float32)
    log_odds = jnp.asarray(design @ root, jnp.float32)
    problem = si.StochasticInverseProblem(
        lambda signal, params: jax.nn.sigmoid(log_odds @ signal),
        noise=dist.BernoulliProbs,
        signal=jax.ShapeDtypeStruct((len(root),), jnp.float32),
    )
    data = si.Pairs(signals.astype(np.float32), si.View(observed[:, None]))
    parameters = lambda draws: draws @ root.T
    assess = two_sample_tests(files, sizes, parameters, observed.shape[1:], bar=0.6, name="observation_raw.csv")
    return Case(problem, data, assess)


def stimulus() -> np.ndarray:
    """sbibm's design matrix: a constant, and white noise at delays of 0 to 8 of its 100 time steps."""
    white = np.random.RandomState(42).randn(100)
    delayed = [np.concatenate([np.zeros(delay), white[: 100 - delay]]) for delay in range(9)]
    return np.stack([np.ones(100), *delayed], -1)


def smooth_root() -> np.ndarray:
    """A root of the prior's covariance: of precision 1/2 for the constant, and for the filter of nine delays one that
    penalises second differences, and late delays more."""
    size = 9
    difference = np.eye(size) - np.eye(size, k=-1)
    penalty = difference @ difference + np.diag(np.sqrt(np.arange(size) / size))
    precision = np.zeros((size + 1, size + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, penalty.T @ penalty
    return np.linalg.cholesky(np.linalg.inv(precision))


def reference_files(name: str, folder: Path | None) -> Path:
    files = None if folder is None else folder / "sbibm" / "tasks" / name / "files"
    if files is None or not files.is_dir():
        raise SystemExit(f"{name} needs `--sbibm FOLDER` with the unpacked files of sbibm 1.1.0, got {folder}.")
    return files


def two_sample_tests(
    files: Path,
    sizes: Sizes,
    parameters: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    *,
    bar: float,
    name: str = "observation.csv",
) -> Callable[[si.StochasticInverseProblem], list[Figure]]:
    """How well a classifier tells draws, as parameters, from the references: the mean over observations."""
    number = sizes(3000, 50)
    given, references = read_references(files, sizes(10, 2), number, name)
    contexts = [si.View(x.reshape(1, *shape)) for x in given]

    def assess(problem):
        draws = parameters(draws_of(problem, contexts, number))
        accuracy = [si.diagnostics.c2st(r, x) for r, x in zip(references, draws, strict=True)]
        return [Figure("C2ST", float(np.mean(accuracy)), 0.5, (0.0, bar))]

    return assess


def read_references(
    files: Path, observations: int, number: int, name: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first observations, and so many samples of each one's posterior."""
    read = lambda path: np.loadtxt(path, np.float32, delimiter=",", skiprows=1, max_rows=number, ndmin=2)
    folders = [files / f"num_observation_{i + 1}" for i in range(observations)]
    given = [read(x / name) for x in folders]
    return given, [read(x / "reference_posterior_samples.csv.bz2") for x in folders]


two_moons = simulator("two_moons", simulate_two_moons, lambda theta: fold(theta, jnp), Crescent, bound=1.0, bar=0.52)
slcp = simulator("slcp", simulate_slcp, tell_gaussian, FourPoints, bound=3.0, bar=0.75, size=5)
gaussian_mixture = simulator(
    "gaussian_mixture", simulate_gaussian_mixture, lambda theta: theta, wide_or_narrow, bound=10.0, bar=0.53
)
