r"""Objectives: what a denoiser is trained to minimise, from measurements alone."""

import abc
from typing import Any

import equinox as eqx

from .._custom_types import FloatScalar, Key
from .._view import Example


class AbstractObjective(eqx.Module):
    """The training loss of one record.

    `stochastic` says what the trained denoiser is: `False` for a conditional mean, called with `key=None`; `True` for a
    sampler, called with a key. Samplers of the problem follow it.
    """

    stochastic: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, problem: Any, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        """The loss of one record.

        **Arguments:**

        - `problem`: the [`stochinv.StochasticInverseProblem`][] that is trained.
        - `example`: one record, its measurements in standardised units.
        - `key`: a PRNG key.

        **Returns:**

        The loss, and a dictionary of scalars to report beside it.
        """
