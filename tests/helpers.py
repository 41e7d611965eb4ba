"""Registries of every instance of an abstraction, and problems with a known answer.

Each registry is a function from nothing to a dictionary, so that importing this file creates no arrays.
"""

from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

import stochinv as si


def schedules() -> dict[str, si.AbstractNoiseSchedule]:
    return {
        "variance_preserving": si.VariancePreserving(),
        "variance_exploding": si.VarianceExploding(),
        "cosine": si.CosineSchedule(),
        "rectified_flow": si.RectifiedFlow(),
    }


def samplers() -> dict[str, si.AbstractSampler]:
    """Every sampler of a single target, in the settings in which the laws are tested."""
    return {
        "exponential_adams": si.ExponentialAdams(),
        "flow_heun": si.ProbabilityFlow(num_steps=48),
        "flow_tsit5_adaptive": si.ProbabilityFlow(
            solver=dfx.Tsit5(), stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-4)
        ),
        "sde_shark": si.ReverseSDE(num_steps=64),
        "sde_shark_churn_half": si.ReverseSDE(num_steps=64, churn=0.5),
        "sde_euler": si.ReverseSDE(num_steps=192, solver=dfx.Euler()),
        "sde_tree": si.ReverseSDE(num_steps=48, brownian_path=dfx.VirtualBrownianTree),
        "ancestral_ddpm": si.Ancestral(num_steps=256),
        "ancestral_ddim": si.Ancestral(num_steps=256, eta=0.0),
        "ancestral_second_order": si.Ancestral(num_steps=48, order=2),
    }


def objectives() -> dict[str, si.AbstractObjective]:
    return {
        "squared_error": si.SquaredError(),
        "squared_error_weighted": si.SquaredError(
            weighting=inverse_variance_weight, novel_weight=0.5, regulariser=ridge
        ),
        "proper_score": si.ProperScore(),
        "proper_score_beta": si.ProperScore(si.EnergyRule(1.5), num_draws=3, regulariser=ridge),
    }


def scoring_rules() -> dict[str, si.AbstractScoringRule]:
    energy = si.EnergyRule()
    return {
        "energy": energy,
        "energy_half": si.EnergyRule(0.5),
        "energy_beta": si.EnergyRule(1.7),
        "kernel": si.KernelRule(0.7),
        "per_view": si.PerView(energy),
        "patches": si.Patches(energy, 2),
        "pixels": si.Patches(energy, 1),
        "scales": si.Scales(energy, 3),
        "sum": si.Patches(si.KernelRule(), 2) + 0.05 * energy,
    }


def noises() -> dict[str, si.AbstractNoise]:
    return {
        "none": si.GaussianNoise(),
        "gaussian": si.GaussianNoise(0.5),
        "poisson": si.PoissonNoise(),
        "poisson_gain": si.PoissonNoise(gain=0.5, background=2.0),
        "camera": si.PoissonGaussianNoise(gain=0.5, read_std=0.4),
        "law_with_path": si.NoiseLaw(lambda o: jax.tree.map(lambda x: dist.Laplace(x, 0.3), o)),
        "law_without_path": si.NoiseLaw(lambda o: jax.tree.map(dist.Poisson, o)),
    }


def inverse_variance_weight(level):
    return 1 / (level.sigma**2 + 0.1)


def ridge(signal, params):
    return 1e-3 * sum(jnp.sum(x**2) for x in jax.tree.leaves(signal))


class ForwardCase(NamedTuple):
    forward: si.AbstractForwardModel
    signal: Any
    params: Any


class LinearFunction(si.AbstractLinearForwardModel):
    """A linear function without parameters, of a signal of a given structure."""

    function: Any
    signal: Any

    def __call__(self, signal, params):
        return self.function(signal)

    def signal_structure(self, observation, params):
        return self.signal


def linear_forward_models() -> dict[str, ForwardCase]:
    """Every linear forward model, with a signal and parameters."""
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    image, kernel = array(6, 8, 2), array(3, 5)
    mask = jnp.asarray(rng.integers(0, 2, size=(6, 8, 1)), jnp.float32)
    corner = jnp.asarray([1, 2])
    complex_array = lambda *shape: jax.lax.complex(array(*shape), array(*shape))
    complex_image, scan, mri = complex_array(5, 6), si.forward.MRIScan, si.forward.CartesianMRI
    cases = {
        f"blur_{boundary}": ForwardCase(si.forward.Blur(kernel, boundary), image, None)
        for boundary in ("edge", "reflect", "constant", "wrap")
    }
    return cases | {
        "blur_kernel_as_params": ForwardCase(si.forward.Blur(), image, kernel),
        "cartesian_mri": ForwardCase(mri((5, 6)), complex_image, scan(jnp.asarray([1, 2, 4]))),
        "cartesian_mri_coils": ForwardCase(
            mri((5, 6), complex_array(2, 5, 6)), complex_image, scan(jnp.asarray([[0, 5], [2, 3], [4, 1], [4, 1]]))
        ),
        "cartesian_mri_coils_as_params": ForwardCase(
            mri((5, 6)), complex_image, scan(jnp.asarray([3, 0]), complex_array(2, 5, 6))
        ),
        "channel_mix": ForwardCase(si.forward.ChannelMix(array(3, 2)), image, None),
        "channel_mix_matrix_as_params": ForwardCase(si.forward.ChannelMix(), image, array(1, 2)),
        "downsample": ForwardCase(si.forward.Downsample(2), image, None),
        "linear": ForwardCase(si.forward.Linear(array(4, 7)), array(7), None),
        "linear_complex": ForwardCase(si.forward.Linear(complex_array(4, 7)), complex_array(7), None),
        "linear_matrix_as_params": ForwardCase(si.forward.Linear(), array(7), array(4, 7)),
        "mask": ForwardCase(si.forward.Mask(), image, mask),
        "parallel_beam": ForwardCase(si.forward.ParallelBeam((6, 8)), image, jnp.asarray([0.0, 20.0, 135.0])),
        "parallel_beam_one_angle": ForwardCase(si.forward.ParallelBeam((6, 8), 11), image[..., 0], jnp.asarray(200.0)),
        "fan_beam": ForwardCase(si.forward.FanBeam((6, 8), 7, 9.0, 6.0, 2.0), image, jnp.asarray([10.0, 300.0])),
        "window": ForwardCase(si.forward.Window((6, 8, 2), (3, 4)), image, corner),
        "composed": ForwardCase(
            si.Composed(si.forward.Blur(kernel), si.forward.Window((6, 8, 2), (4, 4)), si.forward.Downsample(2)),
            image,
            (None, corner, None),
        ),
        "multi_view": ForwardCase(
            si.MultiView(si.forward.Window((6, 8, 2), (3, 4))), image, jnp.asarray([[0, 0], [2, 3], [9, 9]])
        ),
    }


def forward_models() -> dict[str, ForwardCase]:
    """Every forward model, the nonlinear ones included."""
    angle = ForwardCase(si.ForwardFunction(measure_angle), jnp.asarray(0.3), None)
    counts = ForwardCase(si.forward.BeerLambert(50.0), jnp.asarray([0.5, 2.0]), None)
    rng = np.random.default_rng(2)
    field, wells = (jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(4, 5)), rng.uniform(size=(3, 2))))
    darcy = ForwardCase(si.forward.Darcy((4, 5)), field, wells)
    others = {"beer_lambert": counts, "darcy": darcy, "forward_function": angle}
    return linear_forward_models() | others | warps() | intensities()


def intensities() -> dict[str, ForwardCase]:
    rng = np.random.default_rng(2)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)
    image = array(5, 6)
    return {
        "fourier_intensity": ForwardCase(si.forward.FourierIntensity(), image, None),
        "fourier_intensity_real": ForwardCase(si.forward.FourierIntensity(), jnp.real(image), None),
        "coded_diffraction": ForwardCase(si.forward.CodedDiffraction(), image, array(5, 6)),
        "ptychography": ForwardCase(si.forward.Ptychography(array(3, 4)), image, jnp.asarray([1, 2])),
    }


def warps() -> dict[str, ForwardCase]:
    rng = np.random.default_rng(1)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    Warp = si.forward.Warp
    return {
        "warp_edge": ForwardCase(Warp(), 2 * array(6, 8, 2), array(6, 8, 3)),
        "warp_coarse_with_margin": ForwardCase(Warp(scale=4, margin=2), array(2, 2, 2), array(10, 12, 1)),
        "warp_frames_of_one_field": ForwardCase(Warp(num_frames=3), array(6, 8, 2), array(6, 8, 1)),
    }


def measure_angle(signal, params):
    return jnp.stack([jnp.cos(signal), jnp.sin(signal)])


def measure(signal, params):
    """A measurement of a vector by the matrix that is its parameters."""
    return params @ signal


def measure_tree(signal, params):
    """The same for a signal and a measurement that are PyTrees."""
    observation = params @ jnp.concatenate([signal["a"], signal["b"].ravel()])
    return {"first": observation[:1], "rest": (observation[1:],)}


class LinearGaussian(NamedTuple):
    """A problem with the exact denoiser, and the law of its signal given the context."""

    problem: si.StochasticInverseProblem
    context: si.View
    params: Any
    mean: np.ndarray  # of the signal given the context, raveled
    covariance: np.ndarray
    matrix: np.ndarray  # of the target measurement
    prior_mean: np.ndarray
    prior_covariance: np.ndarray


SIGNAL_SIZE, TARGET_SIZE, CONTEXT_VIEWS = 6, 2, 2


def linear_gaussian(
    seed: int,
    *,
    schedule: si.AbstractNoiseSchedule | None = None,
    objective: si.AbstractObjective | None = None,
    noise: float = 0.0,
    conditioning: float = 10.0,
    num_context: int = 2,
    tree: bool = False,
    dtype: Any = jnp.float32,
) -> LinearGaussian:
    """A random linear-Gaussian problem: 6 unknowns, a target of 2 entries, a context of up to 2 views of 2 entries.

    With `num_context=2` context and noise-free target determine the signal, with fewer they do not. The eigenvalues
    of the signal's covariance spread over `conditioning`; the rows of all matrices are orthonormal, so that the
    law of the target given the context is conditioned no worse.
    """
    rng = np.random.default_rng(seed)
    n, p, views = SIGNAL_SIZE, TARGET_SIZE, CONTEXT_VIEWS
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    eigenvalues = 2.0 * conditioning ** -np.linspace(0, 1, n)
    covariance = basis * eigenvalues @ basis.T
    mean = 0.5 * rng.normal(size=n)
    rows, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrices = rows.reshape(views + 1, p, n)
    signal = mean + np.linalg.cholesky(covariance) @ rng.normal(size=n)
    context_rows = matrices[1:].reshape(views * p, n)
    observed = context_rows @ signal + noise * rng.normal(size=views * p)
    used = num_context * p
    posterior_mean, posterior_covariance = condition(
        mean, covariance, context_rows[:used], observed[:used], noise**2 * np.eye(used)
    )

    cast = lambda x: jnp.asarray(x, dtype)
    forward = measure_tree if tree else measure
    unravel = (lambda x: {"a": x[:2], "b": x[2:].reshape(2, 2)}) if tree else (lambda x: x)
    split = (lambda o: {"first": o[:, :1], "rest": (o[:, 1:],)}) if tree else (lambda o: o)
    prior_mean = unravel(cast(mean))
    problem = si.StochasticInverseProblem(
        forward,
        si.GaussianDenoiser(forward, prior_mean, cast(covariance), noise=noise),
        schedule=si.CosineSchedule() if schedule is None else schedule,
        objective=si.SquaredError() if objective is None else objective,
        noise=noise,
        signal=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), prior_mean),
    )
    context = si.View(split(cast(observed.reshape(views, p))), cast(matrices[1:]), jnp.arange(views) < num_context)
    return LinearGaussian(
        problem, context, cast(matrices[0]), posterior_mean, posterior_covariance, matrices[0], mean, covariance
    )


def condition(mean, covariance, rows, observed, noise_covariance):
    """The Gaussian `N(mean, covariance)` given `rows @ s + noise = observed`."""
    total = rows @ covariance @ rows.T + noise_covariance
    gain = np.linalg.solve(total, rows @ covariance).T
    return mean + gain @ (observed - rows @ mean), covariance - gain @ rows @ covariance


def ravel_samples(samples: Any) -> np.ndarray:
    """Samples with a leading axis as rows of a matrix."""
    return np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(samples), np.float64)


def assert_gaussian(samples, mean, covariance, *, bias, k=5.0, name="samples"):
    """Mean and covariance of samples, in units of the expected ones, within `k` standard errors and a bias.

    In the basis in which the expected law is `N(0, I)`, a mean has the standard error `1/√N`, an entry of the
    covariance `√((1 + [i = j])/N)`. Directions without variance must have none.
    """
    samples = np.asarray(samples, np.float64)
    eigenvalues, basis = np.linalg.eigh(covariance)
    kept = eigenvalues > 1e-6 * eigenvalues[-1]
    centred = (samples - mean) @ basis
    flat = centred[:, ~kept]
    assert np.all(np.abs(flat) < 0.02 * np.sqrt(eigenvalues[-1])), f"{name}: variance where there should be none"
    white = centred[:, kept] / np.sqrt(eigenvalues[kept])
    number, size = white.shape
    mean_error = np.abs(white.mean(0)).max()
    assert mean_error < k / np.sqrt(number) + bias, f"{name}: mean off by {mean_error:.3f} standard deviations"
    error = np.abs(np.cov(white, rowvar=False).reshape(size, size) - np.eye(size))
    allowed = k * np.sqrt((1 + np.eye(size)) / number) + bias
    assert np.all(error < allowed), f"{name}: covariance off by {error.max():.3f} (allowed {allowed.max():.3f})"
