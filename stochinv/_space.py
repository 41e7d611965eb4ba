r"""What a problem noises and denoises: the signal itself, or a measurement of it.

A denoiser always returns a signal `ŝ`. In *signal space* it is the signal that is noised, `s_t = α s + σ ε`, and `ŝ` is
the denoised one. In *measurement space* it is a target measurement, and `f(ŝ, φ)` the denoised one (Tewari et al. 2023,
"Diffusion with forward models").
"""

import abc
from typing import Any, ClassVar, final

import equinox as eqx

from ._checks import check_callable, check_instance, plain
from ._coordinates import RealForward
from ._custom_types import AnyCallable
from ._grid import is_large
from ._noising import half_middle_log_snr, middle_log_snr
from ._objective.denoising import DenoisingError
from ._problem_base import AbstractProblem
from ._signal_problem import SignalProblem
from ._simulated import holds_signals
from ._view import is_view


class AbstractSpace(eqx.Module):
    """What a problem noises and denoises.

    `of_signals` says that it is signals, from draws of which a denoiser learns.
    """

    of_signals: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def problem(self, problem: Any) -> AbstractProblem:
        """The problem that samplers and training work on, given that of the user."""


@final
class SignalSpace(AbstractSpace):
    """The signal is noised: posteriors are as sharp as the known likelihood makes them, and signals have a density.

    For signals of up to some hundred entries. The denoiser learns from draws of the signals, by expectation
    maximisation from measurements alone: see [`stochinv.StochasticInverseProblem.fit`][]. Denoisers see the real and
    the imaginary part of complex signals and measurements, on a last axis.

    **Arguments:**

    - `sample_time`: draws the training's `t ∈ [0, 1]`, a callable `(schedule, key) -> t`. By default
        [`stochinv.half_middle_log_snr`][], and for signals of more than 256 entries [`stochinv.middle_log_snr`][].
    """

    sample_time: AnyCallable | None = None
    of_signals: ClassVar[bool] = True

    def __check_init__(self) -> None:
        if self.sample_time is not None:
            check_callable("SignalSpace: `sample_time`", self.sample_time, "a callable such as `uniform_log_snr`")

    def problem(self, problem: Any) -> SignalProblem:
        coordinates = None if problem.signal is None else problem.coordinates
        signal = None if coordinates is None else coordinates.structure()
        chosen = middle_log_snr if is_large(signal) else half_middle_log_snr
        return SignalProblem(
            measure=RealForward(problem.forward, coordinates),
            measurement_noise=problem.noise,
            denoiser=problem.denoiser,
            schedule=problem.schedule,
            objective=DenoisingError(chosen if self.sample_time is None else self.sample_time),
            signal=signal,
            data_info=problem.data_info,
        )


@final
class MeasurementSpace(AbstractSpace):
    """A target measurement is noised: for signals too large or too ambiguous to be drawn first, such as 3D scenes.

    ??? cite "Source"

        Tewari et al. 2023, "Diffusion with forward models", section 3.
    """

    of_signals: ClassVar[bool] = False

    def problem(self, problem: AbstractProblem) -> AbstractProblem:
        return problem


def as_space(space: Any) -> AbstractSpace | None:
    """The space that a user gave, `None` to have it chosen by the data.

    **Raises:**

    `ValueError` if it is none, or a class.
    """
    if space is None:
        return None
    check_instance("`space`", space, AbstractSpace, "`SignalSpace()`, `MeasurementSpace()` or None")
    return plain(space)


def choose_space(space: AbstractSpace | None, data: Any, known: Any, roles: Any) -> AbstractSpace:
    """The space of a fit: as given, or by the data.

    **Raises:**

    `ValueError` if the data are not those of the space that was given.
    """
    signals = (is_view(data) and roles is None) or holds_signals(data)
    if holds_signals(data) and roles is not None:
        raise ValueError(f"`roles` is for measurements alone, but `data` is a {type(data).__name__}; leave it out.")
    if space is not None and space.of_signals and not signals:
        raise ValueError(
            "`space` is `SignalSpace()`, whose `data` must be a `View` with leading (record, views) axes, without "
            "`roles`, or `Pairs` or `Simulated`; give such, or `MeasurementSpace()`."
        )
    if space is None:
        space = SignalSpace() if signals else MeasurementSpace()
    if not space.of_signals and (known is not None or holds_signals(data)):
        raise ValueError(
            "Known signals are learned from in signal space alone, but the problem is in measurement space; leave out "
            "`roles` and `space`, or the signals."
        )
    return space
