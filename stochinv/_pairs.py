r"""Records whose signals are known, or drawn: pairs of a signal and measurements of it."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._checks import check_instance
from ._complex import view_as_parts
from ._coordinates import Coordinates
from ._custom_types import Key, Params, Signal
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise, add_noise
from ._view import View, num_views, take_views, view_mask

# How often everything is given, as where signals are drawn for training.
SHARE_OF_ALL = 0.15


@final
class Pairs(eqx.Module):
    """Records whose signals are known, such as labels or the draws of a simulator.

    Training makes measurements of its own of each signal, at the parameters of these views and of those of other
    records. What the views observed gives the units.

    **Arguments:**

    - `signal`: the signals in raw units; for `fit` with a leading record axis.
    - `view`: the measurements of each, a [`stochinv.View`][] with a views axis; for `fit` with leading (record, views)
        axes, and a mask where the number of views varies.

    **Raises:**

    `ValueError` if `view` is not a `View`.
    """

    signal: Signal
    view: View

    def __check_init__(self) -> None:
        check_instance("Pairs: `view`", self.view, View, "a `View` such as `View(observation, params)`")


def in_coordinates(pairs: Pairs, coordinates: Coordinates) -> Pairs:
    """Records of signals' coordinates, and of real measurements."""
    return Pairs(coordinates.from_signal(pairs.signal), view_as_parts(pairs.view))


@final
class SimulatedContext(eqx.Module):
    """Makes the contexts that a denoiser of signals is trained with: measurements of a signal, simulated afresh.

    The parameters are those of another record, and a random number of its views is given: in 15 % of all records all,
    in a share of them none, and in the others from one to all, `n` in inverse proportion to `n²`: the fewer are given,
    the more there is to learn.

    **Arguments:**

    - `forward`: the forward model.
    - `noise`: the noise of measurements.
    - `share_of_prior`: how often nothing is given, so that the denoiser of the prior is learned too.
    """

    forward: AbstractForwardModel
    noise: AbstractNoise
    share_of_prior: float = eqx.field(static=True)

    def __call__(self, signals: Signal, views: View, *, key: Key) -> View:
        """Contexts for signals, at the parameters of records.

        **Arguments:**

        - `signals`: signals with a leading record axis.
        - `views`: as many records of views.
        - `key`: a PRNG key.
        """
        number = jax.tree.leaves(signals)[0].shape[0]
        order_key, deal_key, noise_key = jr.split(key, 3)
        views = take_views(views, jr.permutation(order_key, number))
        views = jax.vmap(self.deal)(views, jr.split(deal_key, number))
        return jax.vmap(self.observe)(signals, views, jr.split(noise_key, number))

    def deal(self, views: View, key: Key) -> View:
        """A random number of the views of a record, in random order.

        **Arguments:**

        - `views`: a stack of views.
        - `key`: a PRNG key.

        **Returns:**

        A stack of as many, with a mask.
        """
        order_key, number_key, extreme_key = jr.split(key, 3)
        # Views that count come first, in random order.
        order = jnp.argsort(jr.uniform(order_key, (num_views(views),)) + ~view_mask(views))
        views = take_views(View(views.observation, views.params, view_mask(views)), order)
        sizes = jnp.arange(num_views(views))
        most = jnp.maximum(jnp.sum(view_mask(views)), 1)
        number = 1 + jr.categorical(number_key, jnp.where(sizes < most, -2 * jnp.log1p(sizes.astype(float)), -jnp.inf))
        which = jr.uniform(extreme_key)
        number = jnp.where(which > 1 - SHARE_OF_ALL, most, jnp.where(which < self.share_of_prior, 0, number))
        return View(views.observation, views.params, view_mask(views) & (jnp.arange(num_views(views)) < number))

    def observe(self, signal: Signal, views: View, key: Key) -> View:
        """Measurements of a signal, noise included, with the parameters and the mask of `views`."""
        simulated = simulate_views(self.forward, self.noise, signal, views.params, num_views(views), key)
        return View(simulated.observation, views.params, views.mask)


def simulate_views(
    forward: AbstractForwardModel, noise: AbstractNoise, signal: Signal, params: Params, number: int, key: Key
) -> View:
    """Measures a signal with each of a number of parameters."""
    clean = jax.vmap(lambda p: forward(signal, p), axis_size=number)(params)
    observation = add_noise(noise, clean, key=key, stacked=True)
    return View(observation, params, jnp.ones(number, bool))
