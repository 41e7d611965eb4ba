r"""Draws guided by the likelihood: the learned prior, conditioned on measurements inside the sampler.

In the coordinates `z` of signal space the prior's denoiser tells more than a mean: the covariance of the signal given
its noised version is `V = (σ²/α) ∂ẑ/∂z_t` (Tweedie's formula of second order). With a Gaussian of this mean and
covariance, measurements `c = f(s, φ) + noise` with `B = R^(−1/2) ∂f/∂z` and the misfit `r = R^(−1/2) (c − f(ŝ, φ))`
change the mean to

`ẑ + V Bᵀ u`,  `(I + B V Bᵀ) u = r`

(Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization", which calls it moment
matching posterior sampling). It is solved by conjugate gradients, without a matrix. `V` is `1/(1 + α²/σ²)` for the best
Gaussian, whose `(I + B Bᵀ/(1 + α²/σ²))⁻¹ = I − B P⁻¹ Bᵀ` preconditions them: for a Gaussian signal one step is exact.
"""

import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._checks import check_integer
from .._custom_types import Context, Key, Observation, Params, Signal
from .._data_info import destandardise_view
from .._denoiser.base import AbstractDenoiser
from .._denoiser.evidence import AbstractEvidence, Measured
from .._denoiser.gaussian_residual import GaussianResidual
from .._problem_base import context_units, encode_context
from .._schedule import NoiseLevel
from .._view import View, view_mask
from .base import AbstractSampler, Sample
from .exponential_adams import ExponentialAdams


@final
class Guidance(AbstractSampler):
    """Draws of the learned prior, conditioned on the context by its likelihood alone.

    For signals of any size in signal space, measured by an affine forward model with Gaussian noise, or with none: then
    measurements are repeated to a thousandth of their standard deviation. The network is given nothing; what it knows
    of contexts is not used. Exact for a Gaussian signal, and otherwise as good as a Gaussian is at telling what is
    uncertain at each noise level.

    **Arguments:**

    - `sampler`: the sampler that goes through the noise levels.
    - `num_iterations`: conjugate-gradient steps at each of them, each as costly as a derivative of the network.

    ??? cite "Source"

        Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization", section 4.2.
    """

    sampler: AbstractSampler = ExponentialAdams()
    num_iterations: int = 5

    def __check_init__(self):
        check_integer("Guidance: `num_iterations`", self.num_iterations)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        check_guidable(problem)
        view = destandardise_view(context_units(problem), context.view)
        nothing = View(view.observation, view.params, jnp.zeros_like(view_mask(view)))
        measured = Measured(problem.measure, problem.measurement_noise, context_units(problem))
        guided = Guided(problem.denoiser, encode_context(problem, nothing), measured, self.num_iterations)
        return self.sampler(dataclasses.replace(problem, denoiser=guided), context, params, key=key)


def check_guidable(problem: Any):
    """Raises a `ValueError` if a problem is not one that `Guidance` is for."""
    known = problem.data_info is not None and problem.data_info.affine and problem.measurement_noise.every_level
    if not known or not isinstance(problem.denoiser, GaussianResidual):
        raise ValueError(
            "Guidance: `problem` must be trained in signal space without a `denoiser` of one's own, with a `forward` "
            "that is affine and `noise` that is Gaussian; leave the sampler out."
        )


@final
class Guided(AbstractDenoiser):
    """A denoiser of the prior whose answers are conditioned on what it is given.

    **Arguments:**

    - `denoiser`: the denoiser.
    - `nothing`: an encoded context without a view.
    - `measured`: how signals are measured.
    - `num_iterations`: conjugate-gradient steps.
    """

    denoiser: GaussianResidual
    nothing: AbstractEvidence
    measured: Measured
    num_iterations: int

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Any, params: Params, *, key: Key | None = None
    ) -> Signal:
        flat, unravel = ravel_pytree(noisy)
        coordinates = self.denoiser.coordinates

        def denoise(z):
            signal = self.denoiser(unravel(z), level, self.nothing, params)
            return ravel_pytree(coordinates.standardise(signal))[0]

        mean, derivative = jax.linearize(denoise, flat)
        covariance = lambda x: level.sigma**2 / level.alpha * derivative(x)
        misfit = self.measured.misfit(lambda z: coordinates.destandardise(unravel(z)), context.view)
        rest, linear = jax.linearize(misfit, mean)
        transpose = jax.linear_transpose(linear, mean)
        precision = 1 + (level.alpha / level.sigma) ** 2

        def product(u):
            return u + linear(covariance(transpose(u)[0]))

        def precondition(u):
            return u - linear(context.apply(lambda values: 1 / (precision + values), transpose(u)[0]))

        u, _ = jax.scipy.sparse.linalg.cg(product, rest, maxiter=self.num_iterations, tol=1e-4, M=precondition)
        # `linear` is that of the misfit, −B.
        return coordinates.destandardise(unravel(mean - covariance(transpose(u)[0])))
