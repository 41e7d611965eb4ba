r"""Denoisers: from a noisy measurement and the context to the signal behind it."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from .._custom_types import Context, Key, Observation, Params, Signal
from .._schedule import NoiseLevel


class AbstractDenoiser(eqx.Module):
    """Maps a noisy target measurement, its noise level and the context to a signal.

    A denoiser may be *stochastic*: with a key it then returns a draw from its law of the signal. `key=None` always
    asks for a deterministic answer.
    """

    @abc.abstractmethod
    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        """Denoises one measurement.

        **Arguments:**

        - `noisy`: the noisy target `o_t = α o + σ ε` in standardised units.
        - `level`: its [`stochinv.NoiseLevel`][].
        - `context`: the context; its measurements are in standardised units.
        - `params`: the parameters `φ` of the target.
        - `key`: a PRNG key for a draw; `None` for a deterministic answer.

        **Returns:**

        The signal `ŝ`, in the units that the forward model takes.
        """


class AbstractMixtureDenoiser(AbstractDenoiser):
    """A denoiser whose draws choose one of several signals, such as [`stochinv.MixtureDenoiser`][]."""

    @abc.abstractmethod
    def components(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> tuple[Signal, Float[Array, " components"]]:
        """All the signals that a draw chooses from, and the logarithms of their probabilities.

        [`stochinv.EnergyScore`][] weights each by its probability, so that the choice itself has a gradient.

        **Arguments:** as of a call.

        **Returns:**

        Signals with a leading components axis, and log-probabilities of shape `(components,)`.
        """
