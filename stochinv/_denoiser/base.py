r"""Denoisers: from a noisy measurement and the context to the signal behind it."""

import abc

import equinox as eqx

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
