r"""The mathematics of a stochastic inverse problem, derived once from its parts.

The score of the noisy target measurement follows from the denoiser through the forward model, with
`ô = f(D(o_t; α, σ, c, φ), φ)` and measurement noise `τ`:

`∇ log p_t(o_t | c) = (α ô − o_t) / (σ² + α² τ²)`.

Samplers, training and everything else that works on problems import this; the class that users have is above them.
"""

import abc
from typing import Any

import equinox as eqx
import jax

from ._coordinates import Coordinates
from ._custom_types import AnyCallable, Context, FloatScalar, Key, Observation, Params, Structure
from ._data_info import AbstractUnits, DataInfo, Units, check_structure, standardise_view
from ._denoiser import base as denoising
from ._denoiser.base import AbstractDenoiser
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise
from ._objective.base import AbstractObjective
from ._sampler.base import Sample
from ._schedule import AbstractNoiseSchedule, NoiseLevel
from ._view import Example, View


class AbstractProblem(eqx.Module):
    """What samplers, objectives and training know of a [`stochinv.StochasticInverseProblem`][]."""

    forward: eqx.AbstractVar[AbstractForwardModel]
    denoiser: eqx.AbstractVar[AbstractDenoiser | AnyCallable | None]
    schedule: eqx.AbstractVar[AbstractNoiseSchedule]
    objective: eqx.AbstractVar[AbstractObjective]
    noise: eqx.AbstractVar[AbstractNoise]
    signal: eqx.AbstractVar[Structure | None]
    data_info: eqx.AbstractVar[DataInfo | None]

    @property
    @abc.abstractmethod
    def noised(self) -> "AbstractProblem":
        """The problem that samplers and training work on: of the signal, or of a measurement, whichever is noised."""

    @property
    @abc.abstractmethod
    def likelihood_known(self) -> bool:
        """Whether draws can be weighted by how likely they make the context."""

    @property
    @abc.abstractmethod
    def coordinates(self) -> Coordinates:
        """The real numbers without bounds by which signals are noised in signal space.

        **Raises:**

        `ValueError` if signals are not known yet.
        """

    @abc.abstractmethod
    def as_context(self, context: Context) -> Context:
        """A context in raw units as arrays, checked, with what does not count filled in."""

    @property
    def units(self) -> AbstractUnits:
        """The units of what is noised; without a fit, it is left as it is."""
        return Units() if self.data_info is None else self.data_info.units

    def observation_structure(self, params: Params) -> Structure:
        """The `jax.ShapeDtypeStruct`s of what is noised: a measurement with parameters `params`, or a signal (`None`).

        **Raises:**

        `ValueError` if the signal is not known, or if `params` are not like those of training.
        """
        problem = self.noised
        if self.data_info is not None:
            remedy = "give the parameters of one target measurement, as in the training data"
            check_structure("params", params, self.data_info.params, remedy)
        if self.signal is None:
            raise ValueError(
                "`signal` is not known: give `StochasticInverseProblem(signal=...)` the PyTree of "
                "`jax.ShapeDtypeStruct` of a signal, or use a fitted problem."
            )
        return eqx.filter_eval_shape(problem.forward, self.signal, params)

    def denoise(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Sample:
        """Denoises what is noised by way of the signal: a measurement, or the signal itself.

        **Arguments:**

        - `noisy`: the noisy target `o_t`, or the noisy signal, in standardised units.
        - `level`: its [`stochinv.NoiseLevel`][].
        - `context`: the context, its measurements in standardised units, as the denoiser takes it.
        - `params`: the parameters `φ` of the target; `None` in signal space.
        - `key`: a PRNG key for a draw of a stochastic denoiser; `None` for a deterministic answer.

        **Returns:**

        A [`stochinv.Sample`][]: the signal `ŝ`, and in standardised units `ô = f(ŝ, φ)`, or the signal again.

        **Raises:**

        `ValueError` if the problem is not trained.
        """
        signal = denoising.denoise(trained_denoiser(self), self.units, noisy, level, context, params, key=key)
        return Sample(signal, self.units.standardise(self.noised.forward(signal, params)))

    def measured(
        self, noisy: Observation, level: NoiseLevel, observation: Observation, *, key: Key | None = None
    ) -> Observation:
        """What the *noisy* measurement is, given its noised version and the noise-free prediction `ô`.

        All in standardised units; see [`stochinv.AbstractNoise.conditional`][].
        """
        return self.noised.noise.conditional(noisy, level, observation, self.units.unit(observation), key=key)

    def score(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Observation:
        """The score `∇ log p_t(o_t | c)` of the noisy target measurement, or of the noisy signal.

        **Arguments:**

        - `noisy`: it in raw units: `mean + std · o_t`, where `o_t = α o + σ ε` is standardised.
        - `level`, `params`, `key`: as in `denoise`.
        - `context`: the context in raw units.

        **Returns:**

        The gradient with respect to `noisy`, in its structure.
        """
        problem = self.noised
        standardised, pull_back = jax.vjp(self.units.standardise, noisy)
        context = encode_context(self, problem.as_context(context))
        predicted = problem.denoise(standardised, level, context, params, key=key).observation
        variance = problem.noise.total_variance(level, predicted, self.units.unit(predicted))
        score = lambda o, x, v: (level.alpha * o - x) / v
        (raw,) = pull_back(jax.tree.map(score, predicted, standardised, variance))
        return raw

    def loss(self, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        """The training loss of one record in raw units, and a dictionary of its parts."""
        problem = self.noised
        return problem.objective(problem, standardise_example(problem, example), key=key)


def context_units(problem: Any) -> AbstractUnits:
    """The units of a context's measurements."""
    info = problem.data_info
    return problem.units if info is None or info.context_units is None else info.context_units


def encode_context(problem: Any, context: Context) -> Any:
    """A context in raw units as a problem's denoiser takes it: standardised, and with all that is computed once for all
    noise levels and draws."""
    return denoising.encode(problem.denoiser, standardise_view(context_units(problem), context))


def encode_again(problem: Any, context: Any, view: View) -> Any:
    """`encode_context` of a view in raw units that differs from an encoded context in its measured values alone."""
    return denoising.encode_again(problem.denoiser, context, standardise_view(context_units(problem), view))


def standardise_example(problem: Any, example: Example) -> Example:
    """A record in raw units as a problem's objective takes it."""
    target, novel = (standardise_view(problem.units, x) for x in (example.target, example.novel))
    context = standardise_view(context_units(problem), example.context)
    return Example(denoising.encode_in_training(problem.denoiser, context), target, novel)


def trained_denoiser(problem: Any) -> AnyCallable:
    """The denoiser of a problem that has one.

    **Raises:**

    `ValueError` if the problem is not trained.
    """
    if problem.denoiser is None:
        raise ValueError(
            "The problem is not trained (`denoiser=None`): call `fit`, use `stochinv.load`, or give a denoiser."
        )
    return problem.denoiser
