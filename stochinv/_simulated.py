r"""A simulator with a prior as training data: signals are drawn from the prior, and measured."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._checks import check_arrays, check_callable, check_finite
from ._custom_types import AnyCallable, Key, Params, Signal
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise
from ._pairs import Pairs, simulate_views


@final
class Simulated(eqx.Module):
    """A simulator whose signals have a known prior, as data for [`stochinv.StochasticInverseProblem.fit`][].

    Every round of training draws fresh signals and simulates measurements of them, by the problem's forward model and
    noise. Inference is amortised: one network is the posterior of every context, as in neural posterior estimation.

    **Arguments:**

    - `prior`: a NumPyro distribution, or a callable from a PRNG key to a signal in raw units.
    - `params`: the parameters of measurements, arrays with leading (record, views) axes. Each signal drawn is measured
        with those of a random record. `None` for a forward model without parameters, and one measurement each.

    **Raises:**

    `ValueError` if the prior cannot draw, or if the parameters do not share their leading axes.

    ??? cite "Source"

        Papamakarios and Murray 2016, "Fast ε-free inference of simulation models with Bayesian conditional density
        estimation"; Cranmer, Brehmer and Louppe 2020, "The frontier of simulation-based inference", for the field.
    """

    prior: AnyCallable
    params: Params

    def __init__(self, prior: dist.Distribution | AnyCallable, params: Params = None):
        self.prior = as_law("Simulated: `prior`", prior)
        self.params = params

    def __check_init__(self):
        check_arrays("Simulated: params", self.params)
        check_finite("Simulated: params", self.params, "remove their records")
        shapes = [jnp.shape(x) for x in jax.tree.leaves(self.params)]
        if any(len(x) < 2 or 0 in x[:2] for x in shapes) or len({x[:2] for x in shapes}) > 1:
            raise ValueError(
                f"Simulated: `params` has arrays of shapes {shapes}, but all must have the same leading (record, views)"
                " axes; give parameters of one measurement each a views axis of length 1, `x[:, None]`."
            )

    def __repr__(self) -> str:
        shapes = [jnp.shape(x)[:2] for x in jax.tree.leaves(self.params)][:1]
        given = "without parameters" if not shapes else f"parameters of {shapes[0][0]} records of {shapes[0][1]} views"
        return f"Simulated({given})"

    @property
    def one(self) -> PyTree:
        """The parameters of one measurement."""
        return jax.tree.map(lambda x: x[0, 0], self.params)


def simulate_pairs(
    simulated: Simulated, forward: AbstractForwardModel, noise: AbstractNoise, number: int, key: Key
) -> Pairs:
    """Draws signals, and measures each.

    **Arguments:**

    - `simulated`: the prior, and the parameters of measurements.
    - `forward`, `noise`: the forward model and the noise of measurements.
    - `number`: how many signals.
    - `key`: a PRNG key.
    """
    signal_key, choice_key, noise_key = jr.split(key, 3)
    signals: Signal = jax.vmap(simulated.prior)(jr.split(signal_key, number))
    sizes = [x.shape[:2] for x in jax.tree.leaves(simulated.params)]
    records, views = sizes[0] if sizes else (1, 1)
    index = jr.randint(choice_key, (number,), 0, records)
    params = jax.tree.map(lambda x: jnp.asarray(x)[index], simulated.params)
    measure = lambda signal, params, key: simulate_views(forward, noise, signal, params, views, key)
    return Pairs(signals, jax.vmap(measure)(signals, params, jr.split(noise_key, number)))


def as_law(name: str, law: Any) -> AnyCallable:
    """A law that a user gave as a callable from a key to a draw.

    **Raises:**

    `ValueError` if it is neither a NumPyro distribution nor a callable.
    """
    if isinstance(law, dist.Distribution):
        return eqx.Partial(draw_from, law)
    check_callable(name, law, "a NumPyro distribution or a callable from a key to a signal")
    return law


def draw_from(law: dist.Distribution, key: Key) -> Signal:
    return law.sample(key)


def holds_signals(data: Any) -> bool:
    """Whether training data hold or simulate signals, so that none has to be found."""
    return isinstance(data, Pairs | Simulated)
