r"""Records whose signals are known, or drawn: pairs of a signal and measurements of it."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._checks import check_instance
from ._custom_types import Key, Params, Signal
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise
from ._view import Example, View, num_views, take_views, view_mask

# How often nothing is given, so that the denoiser of the prior is learned too.
SHARE_OF_PRIOR = 0.15


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

    def __check_init__(self):
        check_instance("Pairs: `view`", self.view, View, "a `View` such as `View(observation, params)`")


@final
class SimulatedContext(eqx.Module):
    """Turns pairs into training records of signal space: the signal is the target, the context is simulated afresh.

    The parameters of a context are those of another record, and a random number of its views is given: in
    `SHARE_OF_PRIOR` of all records none, in the others from one to all.

    **Arguments:**

    - `forward`: the forward model.
    - `noise`: the noise of measurements.
    """

    forward: AbstractForwardModel
    noise: AbstractNoise

    def __call__(self, pairs: Pairs, *, key: Key) -> Example:
        """Deals a batch of records.

        **Arguments:**

        - `pairs`: a batch of pairs.
        - `key`: a PRNG key.

        **Returns:**

        [`stochinv.Example`][]s with a leading record axis.
        """
        number = jax.tree.leaves(pairs.signal)[0].shape[0]
        order_key, deal_key = jr.split(key)
        views = take_views(pairs.view, jr.permutation(order_key, number))
        return jax.vmap(self._one)(pairs.signal, views, jr.split(deal_key, number))

    def _one(self, signal: Any, views: View, key: Key) -> Example:
        order_key, number_key, none_key, noise_key = jr.split(key, 4)
        capacity = num_views(views)
        # Views that count come first, in random order.
        order = jnp.argsort(jr.uniform(order_key, (capacity,)) + ~view_mask(views))
        views = take_views(View(views.observation, views.params, view_mask(views)), order)
        number = jr.randint(number_key, (), 1, jnp.maximum(jnp.sum(view_mask(views)), 1) + 1)
        number = jnp.where(jr.bernoulli(none_key, SHARE_OF_PRIOR), 0, number)
        simulated = simulate_views(self.forward, self.noise, signal, views.params, capacity, noise_key)
        mask = view_mask(views) & (jnp.arange(capacity) < number)
        return Example(View(simulated.observation, views.params, mask), View(signal), None)


def simulate_views(
    forward: AbstractForwardModel, noise: AbstractNoise, signal: Signal, params: Params, number: int, key: Key
) -> View:
    """Measures a signal with each of a number of parameters."""
    clean = jax.vmap(lambda p: forward(signal, p), axis_size=number)(params)
    observation = jax.vmap(noise.sample)(jr.split(key, number), clean)
    return View(observation, params, jnp.ones(number, bool))
