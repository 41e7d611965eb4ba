r"""Forward models: the known, differentiable map from a signal to a measurement, `f(s, φ)`."""

import abc
from typing import cast, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_callable, shown
from .._custom_types import AnyCallable, Observation, Params, PyTree, Signal, Structure
from .._view import first_view, structure


class AbstractForwardModel(eqx.Module):
    """The known differentiable map `f(s, φ)` from a signal to a noise-free measurement.

    A new forward model defines `__call__` for one signal and one measurement. One more method is optional:
    `signal_structure(observation, params)` returns the PyTree of `jax.ShapeDtypeStruct` of the signal, given those of a
    measurement and its parameters, so that no `signal=` is needed where a network is made from the data.
    """

    @abc.abstractmethod
    def __call__(self, signal: Signal, params: Params) -> Observation:
        """Measures a signal.

        **Arguments:**

        - `signal`: the signal, a PyTree of arrays.
        - `params`: the parameters `φ` of the measurement.

        **Returns:**

        The noise-free measurement `f(s, φ)`, a PyTree of floating-point arrays, in raw units.
        """


class AbstractLinearForwardModel(AbstractForwardModel):
    """A forward model that is linear in the signal. It knows its signal, and so has an adjoint."""

    @abc.abstractmethod
    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The shapes and dtypes of the signal, given those of a measurement and its parameters."""

    def adjoint(self, observation: Observation, params: Params) -> Signal:
        """The adjoint `Aᴴ o` of the measurement `A s`: `Re⟨A s, o⟩ = Re⟨s, Aᴴ o⟩`.

        It is the transpose of a real measurement of real signals, and the conjugate transpose of a complex one of
        complex signals.

        **Arguments:**

        - `observation`: a measurement.
        - `params`: its parameters.

        **Returns:**

        A PyTree like the signal.
        """
        signal = self.signal_structure(structure(observation), params)
        transpose = jax.linear_transpose(lambda s: self(s, params), signal)
        (conjugate,) = transpose(jax.tree.map(jnp.conj, observation))
        return jax.tree.map(jnp.conj, conjugate)


@final
class ForwardFunction(AbstractForwardModel):
    """Any callable `(signal, params) -> observation` as a forward model.

    **Arguments:**

    - `function`: the callable; traceable by JAX and differentiable in its first argument.
    - `signal`: the PyTree of `jax.ShapeDtypeStruct` of the signal, if known.
    """

    function: AnyCallable
    signal: PyTree = None

    def __call__(self, signal: Signal, params: Params) -> Observation:
        return self.function(signal, params)

    def signal_structure(self, observation: Structure, params: Params) -> Structure | None:
        """The signal's structure as it was given, or `None`."""
        return self.signal


@final
class Composed(AbstractForwardModel):
    """One forward model after the other: `f_n(… f_2(f_1(s, φ_1), φ_2) …, φ_n)`.

    The parameters are a tuple with one entry per stage, `None` for a stage without parameters.

    **Arguments:**

    - `stages`: the forward models in the order in which they are applied, at least one.
    """

    stages: tuple[AbstractForwardModel, ...]

    def __init__(self, *stages: AbstractForwardModel | AnyCallable) -> None:
        self.stages = tuple(as_forward_model(stage) for stage in stages)

    def __check_init__(self) -> None:
        if not self.stages:
            raise ValueError("Composed: `stages` must be at least one forward model, got none.")

    def _check_params(self, params):
        if not isinstance(params, tuple) or len(params) != len(self.stages):
            raise ValueError(
                f"Composed: `params` must be a tuple with one entry for each of the {len(self.stages)} stages "
                f"(`None` for a stage without parameters), got {shown(params)}."
            )

    def __call__(self, signal: Signal, params: Params) -> Observation:
        self._check_params(params)
        for stage, stage_params in zip(self.stages, params, strict=True):
            signal = stage(signal, stage_params)
        return signal

    def signal_structure(self, observation: Structure, params: Params) -> Structure | None:
        """The signal's structure, found from the last stage to the first; `None` where a stage does not know it."""
        self._check_params(params)
        for stage, stage_params in zip(reversed(self.stages), reversed(params), strict=True):
            observation = known_signal_structure(stage, observation, stage_params)
            if observation is None:
                return None
        return observation


@final
class MultiView(AbstractForwardModel):
    """Several measurements of one signal at once: the forward model mapped over a leading views axis of `params`.

    As the forward model of a problem it makes the target a stack of views, whose *joint* law is then sampled.

    **Arguments:**

    - `forward`: the forward model of one view.
    """

    forward: AbstractForwardModel

    def __init__(self, forward: AbstractForwardModel | AnyCallable) -> None:
        self.forward = as_forward_model(forward)

    def __check_init__(self) -> None:
        if measures_stack(self.forward):
            raise ValueError("MultiView: `forward` is a MultiView already; wrap the forward model of one view.")

    def __call__(self, signal: Signal, params: Params) -> Observation:
        if not jax.tree.leaves(params):
            raise ValueError("MultiView: several views need `params` with a leading views axis, got none.")
        return jax.vmap(self.forward, in_axes=(None, 0))(signal, params)

    def signal_structure(self, observation: Structure, params: Params) -> Structure | None:
        """The signal's structure as the forward model of one view knows it."""
        return known_signal_structure(self.forward, *first_view((observation, params)))


def as_forward_model(forward: AbstractForwardModel | AnyCallable) -> AbstractForwardModel:
    """Wraps a plain callable; leaves a forward model as it is."""
    if isinstance(forward, AbstractForwardModel):
        return forward
    check_callable("`forward`", forward, "a forward model or a callable (signal, params) -> observation")
    return ForwardFunction(forward)


def as_multi_view(forward: AbstractForwardModel) -> MultiView:
    """The forward model of a stack of views."""
    return cast(MultiView, forward) if measures_stack(forward) else MultiView(forward)


def measures_stack(forward: AbstractForwardModel) -> bool:
    """Whether a measurement is a stack of views."""
    return isinstance(forward, MultiView)


def known_signal_structure(forward: AbstractForwardModel, observation: Structure, params: Params) -> Structure | None:
    """What the forward model says about its signal, `None` if it says nothing."""
    method = getattr(forward, "signal_structure", None)
    return None if method is None else method(observation, params)
