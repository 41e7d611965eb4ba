r"""Draws guided by the likelihood: the learned prior, conditioned on measurements inside the sampler.

In the coordinates `z` of signal space the prior's denoiser tells more than a mean: the covariance of the signal given
its noised version is `V = (σ²/α) ∂ẑ/∂z_t` (Tweedie's formula of second order). With a Gaussian of this mean and
covariance, a context that is worth measurements `y = B z + ε` of standard normal noise, `B = √λ Eᵀ` (see
`_denoiser.evidence`), changes the mean to

`ẑ + V Bᵀ u`,  `(I + B V Bᵀ) u = y − B ẑ`

(Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization", which calls it moment
matching posterior sampling). It is solved by conjugate gradients, without a matrix. For the best Gaussian
`V = 1/(1 + α²/σ²)`, and `I + B V Bᵀ` is diagonal: that preconditions them, and one step is exact. With no step at all
`u` is the preconditioned misfit, as in guidance by a pseudo-inverse (Song et al. 2023, "Pseudoinverse-guided diffusion
models for inverse problems"); diffusion posterior sampling (Chung et al. 2023) has a number in the place of the matrix.
"""

import dataclasses
from typing import Any, final

import jax
from jax.flatten_util import ravel_pytree

from .._checks import check_integer
from .._custom_types import Context, Key, Observation, Params, Signal
from .._denoiser.base import AbstractDenoiser
from .._denoiser.evidence import AbstractEvidence
from .._denoiser.gaussian_residual import GaussianResidual
from .._problem_base import encode_context
from .._schedule import NoiseLevel
from .base import AbstractIndependentSampler, AbstractSampler, Sample
from .exponential_adams import ExponentialAdams


@final
class Guidance(AbstractIndependentSampler):
    """Draws of the learned prior, conditioned on the context by its likelihood alone.

    For signals of any size in signal space, measured by an affine forward model with Gaussian noise, or with none,
    which is taken for noise of a thousandth of the measurements' standard deviation. The network is given nothing; what
    it knows of contexts is not used. Exact for a Gaussian signal, and otherwise as good as a Gaussian is at telling
    what is uncertain at each noise level.

    **Arguments:**

    - `sampler`: the sampler that goes through the noise levels.
    - `num_iterations`: conjugate-gradient steps at each of them, each as costly as a derivative of the network. With 0,
        the Gaussian that the network corrects says alone what is uncertain.

    ??? cite "Source"

        Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization", section 4.2.
    """

    sampler: AbstractSampler = ExponentialAdams()
    num_iterations: int = 5

    def __check_init__(self) -> None:
        check_integer("Guidance: `num_iterations`", self.num_iterations, least=0)

    def __call__(self, problem: Any, context: Context, params: Params, *, key: Key) -> Sample:
        known = problem.data_info is not None and problem.data_info.affine and problem.measurement_noise.every_level
        if not known or not guides(problem.denoiser):
            raise ValueError(
                "Guidance: `problem` must be trained in signal space without a `denoiser` of one's own, with a "
                "`forward` that is affine and `noise` that is Gaussian; leave the sampler out."
            )
        return self.sampler(self.guided(problem), context, params, key=key)

    def guided(self, problem: Any) -> Any:
        """A problem whose denoiser is that of the prior, conditioned on whatever evidence it is given."""
        nothing = encode_context(problem, problem.as_context(None))
        return dataclasses.replace(problem, denoiser=Guided(problem.denoiser, nothing, self.num_iterations))


def guides(denoiser: Any) -> bool:
    """Whether a denoiser tells what evidence is in its coordinates."""
    return isinstance(denoiser, GaussianResidual)


@final
class Guided(AbstractDenoiser):
    """A denoiser of the prior whose answers are conditioned on what it is given.

    **Arguments:**

    - `denoiser`: the denoiser.
    - `nothing`: an encoded context without a view.
    - `num_iterations`: conjugate-gradient steps.
    """

    denoiser: GaussianResidual
    nothing: AbstractEvidence
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
        precision = 1 + (level.alpha / level.sigma) ** 2

        def product(u):
            return u + context.measure(covariance(context.transpose(u)))

        def precondition(u):
            return u / (1 + context.values / precision)

        u = precondition(context.misfit(mean))
        if self.num_iterations:
            options = {"maxiter": self.num_iterations, "tol": 1e-4, "M": precondition}
            u, _ = jax.scipy.sparse.linalg.cg(product, context.misfit(mean), **options)
        return coordinates.destandardise(unravel(mean + covariance(context.transpose(u))))
