r"""Records whose signals are known, or drawn: pairs of a signal and measurements of it."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._custom_types import Key, Signal
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise
from ._view import View, num_views, take_views, view_mask

# How often nothing is given, so that the denoiser of the prior is learned too.
SHARE_OF_PRIOR = 0.15


class Pairs(eqx.Module):
    """Signals and measurements of them.

    **Arguments:**

    - `signal`: the signal, in raw units.
    - `view`: a [`stochinv.View`][] with a views axis, and a mask where the number of views varies.
    """

    signal: Signal
    view: View


@final
class SimulatedContext(eqx.Module):
    """Makes the contexts that a denoiser of signals is trained with: measurements of a signal, simulated afresh.

    The parameters are those of another record, and a random number of its views is given: in `SHARE_OF_PRIOR` of all
    records none, in the others from one to all, `n` in inverse proportion to `n`: the fewer are given, the more there
    is to learn.

    **Arguments:**

    - `forward`: the forward model.
    - `noise`: the noise of measurements.
    """

    forward: AbstractForwardModel
    noise: AbstractNoise

    def deal(self, views: View, key: Key) -> View:
        """A random number of the views of a record, in random order.

        **Arguments:**

        - `views`: a stack of views.
        - `key`: a PRNG key.

        **Returns:**

        A stack of as many, with a mask.
        """
        order_key, number_key, none_key = jr.split(key, 3)
        # Views that count come first, in random order.
        order = jnp.argsort(jr.uniform(order_key, (num_views(views),)) + ~view_mask(views))
        views = take_views(View(views.observation, views.params, view_mask(views)), order)
        sizes = jnp.arange(num_views(views))
        most = jnp.maximum(jnp.sum(view_mask(views)), 1)
        number = 1 + jr.categorical(number_key, jnp.where(sizes < most, -jnp.log1p(sizes.astype(float)), -jnp.inf))
        number = jnp.where(jr.bernoulli(none_key, SHARE_OF_PRIOR), 0, number)
        return View(views.observation, views.params, view_mask(views) & (jnp.arange(num_views(views)) < number))

    def observe(self, signal: Signal, views: View, key: Key) -> View:
        """Measurements of a signal, noise included, with the parameters and the mask of `views`."""
        clean = jax.vmap(lambda p: self.forward(signal, p), axis_size=num_views(views))(views.params)
        observation = jax.vmap(self.noise.sample)(jr.split(key, num_views(views)), clean)
        return View(observation, views.params, views.mask)
