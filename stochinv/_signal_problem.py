r"""The problem of drawing a signal itself: what samplers and training work on in signal space.

It is a problem whose measurement is the signal. The known forward model and the noise then tell how likely a context is
for a signal, `p(c | s)`.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp

from ._complex import view_as_parts
from ._contexts import as_views
from ._coordinates import Coordinates, RealForward, coordinates_of
from ._custom_types import AnyCallable, Context, FloatScalar, Params, Signal, Structure
from ._data_info import DataInfo
from ._denoiser.base import AbstractDenoiser
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise, GaussianNoise
from ._objective.base import AbstractObjective
from ._problem_base import AbstractProblem
from ._schedule import AbstractNoiseSchedule
from ._view import View, view_mask


@final
class Identity(AbstractForwardModel):
    """What is seen of a signal that is itself what is noised."""

    def __call__(self, signal: Signal, params: Params) -> Signal:
        return signal


@final
class SignalProblem(AbstractProblem):
    """A [`stochinv.StochasticInverseProblem`][] in signal space, as samplers, objectives and training see it.

    **Arguments:**

    - `measure`: the forward model, of the coordinates of a user's signals.
    - `measurement_noise`: the noise of measurements.
    - `signal`: the `jax.ShapeDtypeStruct`s of the signal, of its real and imaginary parts where it is complex.
    - `denoiser`, `schedule`, `objective`, `data_info`: as of the problem.
    """

    measure: RealForward
    measurement_noise: AbstractNoise
    denoiser: AbstractDenoiser | AnyCallable | None
    schedule: AbstractNoiseSchedule
    objective: AbstractObjective
    signal: Structure | None
    data_info: DataInfo | None
    forward: AbstractForwardModel = Identity()
    noise: AbstractNoise = eqx.field(default_factory=GaussianNoise)

    @property
    def noised(self) -> AbstractProblem:
        return self

    @property
    def coordinates(self) -> Coordinates:
        return coordinates_of(self.signal)

    @property
    def likelihood_known(self) -> bool:
        return not self.measurement_noise.exact

    def as_context(self, context: Context) -> Context:
        context = view_as_parts(context)
        return context if self.data_info is None else as_views(self.data_info, context)

    def log_likelihood(self, signal: Signal, views: View) -> FloatScalar:
        """`log p(c | s)`, the sum over the views that count.

        **Arguments:**

        - `signal`: a signal in raw units.
        - `views`: a stack of views in raw units.
        """
        log = lambda o, p: self.measurement_noise.log_prob(o, self.measure(signal, p))
        logs = jax.vmap(log)(views.observation, views.params)
        return jnp.sum(jnp.where(view_mask(views), logs, 0))
