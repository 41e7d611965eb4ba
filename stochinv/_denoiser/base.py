r"""Denoisers: from a noisy measurement and the context to the signal behind it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_callable
from .._custom_types import AnyCallable, Context, Key, Observation, Params, PyTree, Signal
from .._data_info import AbstractUnits
from .._frozen import count_trained
from .._schedule import NoiseLevel
from .._view import View, is_view


class AbstractDenoiser(eqx.Module):
    """Maps a noisy target measurement, its noise level and the context to a signal.

    A denoiser may be *stochastic*: with a key it then returns a draw from its law of the signal. `key=None` always
    asks for a deterministic answer.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({count_trained(self):,} parameters)"

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


class AbstractStandardisedDenoiser(AbstractDenoiser):
    """A denoiser in signal space whose answers are in the standardised units in which signals are noised."""


class AbstractMixtureDenoiser(AbstractDenoiser):
    """A denoiser whose draws choose one of several signals, such as [`stochinv.nn.LiftingDenoiser`][].

    A network is continuous in its latent code: where a posterior has separate modes, some of its draws lie between
    them. A choice has no between.

    ??? cite "Source"

        Bishop 1994, "Mixture density networks".
    """

    @abc.abstractmethod
    def components(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> tuple[Signal, Float[Array, " components"]]:
        """All the signals that a draw chooses from, and the logarithms of their probabilities.

        [`stochinv.ProperScore`][] weights each by its probability, so that the choice itself has a gradient.

        **Arguments:** as of a call.

        **Returns:**

        Signals with a leading components axis, and log-probabilities of shape `(components,)`.
        """


class AbstractEncodingDenoiser(AbstractDenoiser):
    """A denoiser that computes what a context says once, for all noise levels and draws.

    It is called with the encoded context, whose field `view` is the context, in the place of the context. In training,
    where nothing is computed twice, it is called with the context itself.
    """

    @abc.abstractmethod
    def encode(self, context: Context) -> PyTree:
        """What a context says, its measurements in standardised units."""


class AbstractSignalDenoiser(AbstractEncodingDenoiser):
    """A denoiser of signals that knows how uncertain it is, given an encoded context: training has it encoded too."""

    @abc.abstractmethod
    def encode_again(self, context: PyTree, view: View) -> PyTree:
        """What `encode` makes of a context that differs from an encoded one in the values of its measurements alone.

        For affine forward models and noise whose size does not depend on what is measured.
        """

    @abc.abstractmethod
    def normalised_error(
        self, noisy: Observation, level: NoiseLevel, context: PyTree, clean: Observation
    ) -> Float[Array, " n"]:
        """The error of the denoised signal, in units in which a first estimate has errors of size 1.

        **Arguments:**

        - `noisy`, `level`: as of a call.
        - `context`: what `encode` returns.
        - `clean`: the true signal, in standardised units.
        """


def encode(denoiser: Any, context: Context) -> Any:
    """What a denoiser takes in the place of a context: what it makes of its views, or the context itself."""
    encodes = isinstance(denoiser, AbstractEncodingDenoiser) and is_view(context)
    return denoiser.encode(context) if encodes else context


def encode_in_training(denoiser: Any, context: Context) -> Any:
    """What a denoiser takes in the place of a context in training."""
    return encode(denoiser, context) if isinstance(denoiser, AbstractSignalDenoiser) else context


def decode(denoiser: Any, context: Any) -> Context:
    """The context behind what a denoiser takes in its place."""
    if context is None or is_view(context) or not isinstance(denoiser, AbstractEncodingDenoiser):
        return context
    return context.view


def encode_again(denoiser: Any, context: Any, view: View) -> Any:
    """What a denoiser takes in the place of a context that differs from one it took in the values of measurements."""
    return denoiser.encode_again(context, view) if isinstance(denoiser, AbstractSignalDenoiser) else view


def denoise(
    denoiser: AnyCallable,
    units: AbstractUnits,
    noisy: Observation,
    level: NoiseLevel,
    context: Any,
    params: Params,
    *,
    key: Key | None,
) -> Signal:
    """A denoiser's answer in raw units.

    **Arguments:** as of a call, and the units in which the signal is noised, if it is.
    """
    signal = denoiser(noisy, level, context, params, key=key)
    return units.destandardise(signal) if is_standardised(denoiser) else signal


def is_standardised(denoiser: Any) -> bool:
    """Whether a denoiser's answers are in the units in which signals are noised."""
    return isinstance(denoiser, AbstractStandardisedDenoiser)


def normalised_error(
    problem: Any, noisy: Observation, level: NoiseLevel, context: PyTree, clean: Observation
) -> Float[Array, " n"]:
    """The error of a problem's denoised signal, in units of the uncertainty of its denoiser's first estimate, or of
    that of a standard normal signal."""
    if isinstance(problem.denoiser, AbstractSignalDenoiser):
        return problem.denoiser.normalised_error(noisy, level, context, clean)
    denoised = ravel_pytree(problem.denoise(noisy, level, context, None).observation)[0]
    return jnp.sqrt(1 + (level.alpha / level.sigma) ** 2) * (denoised - ravel_pytree(clean)[0])


def as_denoiser(denoiser: Any) -> AnyCallable | None:
    """What a user gave as a denoiser: an object that can be called, or `None` to have one made.

    **Raises:**

    `ValueError` if it cannot be called, or is a class.
    """
    if denoiser is not None:
        wanted = "a callable (noisy, level, context, params, *, key) -> signal, or None"
        check_callable("`denoiser`", denoiser, wanted)
    return denoiser


def components(
    denoiser: AnyCallable, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key
) -> tuple[Signal, Float[Array, " components"]]:
    """The signals that a draw of a denoiser chooses from, see [`stochinv.AbstractMixtureDenoiser`][].

    **Arguments:** as of a call.

    **Returns:**

    Signals with a leading components axis, and log-probabilities of shape `(components,)`: one, unless the denoiser has
    several.
    """
    if isinstance(denoiser, AbstractMixtureDenoiser):
        return denoiser.components(noisy, level, context, params, key=key)
    signal = denoiser(noisy, level, context, params, key=key)
    return jax.tree.map(lambda x: jnp.asarray(x)[None], signal), jnp.zeros(1)
