r"""Posteriors under another instrument: a learned prior, with another forward model or noise.

Signals that the network draws are weighted by how likely the new forward model and noise make the context, `p'(c | s)`.
Draws of the prior, `s_k ~ q(s)`, get the weights `p'(c | s_k)`. Where the context has the structure of those of
training, half of the proposals are what the network draws given it, as if the instrument were that of training:

`w_k = p'(c | s_k) q(s_k) / (½ q(s_k | c) + ½ q(s_k))`,

at most `2 p'(c | s_k)`, however wrong these are: a defensive mixture (Hesterberg 1995, "Weighted average importance
sampling and defensive mixture distributions").

Of many entries no draw of the prior explains a measurement. Where the new forward model is affine and its noise
Gaussian, what the context says of a Gaussian signal guides the sampler instead, see `_sampler.guidance`.
"""

import abc
import dataclasses
import warnings
from typing import Any, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ._checks import is_traced
from ._chunks import in_chunks, rounded
from ._complex import view_as_parts
from ._contexts import as_view
from ._coordinates import RealForward
from ._custom_types import Context, FloatScalar, Key, Signal
from ._data_info import Units, describe, standardise_view
from ._denoiser.evidence import Measured
from ._forward.base import as_forward_model, measures_stack
from ._noise import as_noise
from ._problem_base import AbstractProblem, encode_context, trained_denoiser
from ._sampler.exponential_adams import ExponentialAdams
from ._sampler.guidance import Guidance, guides
from ._sampler.importance import ImportanceSampling, two_densities
from ._sampling import LARGEST_CORRECTED
from ._structure import count_entries, same_structure, zeros_of
from ._training.probe import is_affine
from ._view import View, first_view, num_views, structure, view_mask

# How many draws of the network are weighted; those of the prior alone have no densities to be computed.
INFORMED, UNINFORMED = 4096, 16384
# Fewer effective draws than these are warned of.
FEW = 10
WANTED = (
    "another `forward` or `noise` needs a `View`; write `View(observation, params)`, and leave both out for the prior"
)


class AbstractInstrument(eqx.Module):
    """How signals are drawn by the prior of a trained problem, and by another instrument's measurements."""

    @abc.abstractmethod
    def draw(self, problem: Any, context: View, key: Key, number: int, chunk_size: int) -> Signal:
        """Draws signals, in raw units and with a leading axis.

        **Arguments:** as of `propose`.
        """

    @abc.abstractmethod
    def propose(
        self, problem: Any, context: View, key: Key, number: int, chunk_size: int = 1024
    ) -> tuple[Signal, Float[Array, " number"]]:
        """Draws of the network, and the logarithms of their weights.

        **Arguments:**

        - `problem`: the problem of signals under the other instrument.
        - `context`: a stack of views in raw units.
        - `key`: a PRNG key.
        - `number`: how many.
        - `chunk_size`: how many are drawn at once.

        **Raises:**

        `ValueError` if draws are not weighted.
        """


@final
class GuidedDraws(AbstractInstrument):
    """Draws of a trained network that are guided by another instrument's likelihood.

    **Arguments:**

    - `trained`: the problem of signals that the network was trained for.
    - `measured`: the instrument, which is affine and has Gaussian noise.
    """

    trained: AbstractProblem
    measured: Measured

    def __repr__(self) -> str:
        return "guided by another instrument"

    def draw(self, problem: Any, context: View, key: Key, number: int, chunk_size: int) -> Signal:
        options = {"key": key, "num_samples": number, "chunk_size": chunk_size}
        return Guidance().sampler.many(*self._guided(context), None, **options).signal

    @eqx.filter_jit
    def _guided(self, context):
        view = standardise_view(self.measured.units, context)
        evidence = cast(Any, self.trained.denoiser).evidence(self.measured, "dense", view)
        return Guidance().guided(self.trained), evidence

    def propose(
        self, problem: Any, context: View, key: Key, number: int, chunk_size: int = 1024
    ) -> tuple[Signal, Float[Array, " number"]]:
        raise ValueError("Draws that are guided by another instrument have no weights; look at `predict`.")


@final
class WeightedDraws(AbstractInstrument):
    """Draws of a trained network, weighted for another problem with the same signals.

    **Arguments:**

    - `trained`: the problem of signals that the network was trained for.
    - `informed`: whether the network can be given the context.
    """

    trained: AbstractProblem
    informed: bool = eqx.field(static=True)

    def __repr__(self) -> str:
        return "weighted for another instrument"

    def draw(self, problem: Any, context: View, key: Key, number: int, chunk_size: int) -> Signal:
        return resample(problem, self, context, key, number, chunk_size)

    @eqx.filter_jit
    def propose(
        self, problem: Any, context: View, key: Key, number: int, chunk_size: int = 1024
    ) -> tuple[Signal, Float[Array, " number"]]:
        nothing = encode_context(self.trained, self.trained.as_context(None))
        keys = jr.split(key, number)
        if self.informed:
            given = encode_context(self.trained, context)
            contexts = jax.tree.map(lambda *x: jnp.stack(x), nothing, given)
            draw = lambda inputs: self._of_mixture(contexts, *inputs)
            inputs = (keys, jnp.arange(number) % 2)
        else:
            # One that draws from the prior without its density.
            sampler = ExponentialAdams()
            draw = lambda key: (sampler(self.trained, nothing, None, key=key).signal, jnp.zeros(()))
            inputs = keys

        def one(inputs):
            signal, log_ratio = draw(inputs)
            return signal, problem.log_likelihood(signal, context) + log_ratio

        return in_chunks(one, inputs, chunk_size)

    def _of_mixture(self, contexts, key, own):
        """A draw given nothing or the context (`own` 0 or 1), and the logarithm of the prior over the mixture."""
        flat, unravel = zeros_of(self.trained.signal)
        ordered = jax.tree.map(lambda x: x[jnp.stack([own, 1 - own])], contexts)
        start = jr.normal(key, flat.shape, flat.dtype)
        z, logs = two_densities(self.trained, ordered, unravel, start, ImportanceSampling().num_steps)
        log_mixture = jax.nn.logsumexp(logs) - jnp.log(2.0)
        return self.trained.units.destandardise(unravel(z)), logs[own] - log_mixture


def resample(problem: Any, weighted: WeightedDraws, context: View, key: Key, number: int, chunk_size: int) -> Signal:
    """Signals drawn from weighted ones with replacement; warns where few of these carry all weight."""
    propose_key, choice_key = jr.split(key)
    total = INFORMED if weighted.informed else UNINFORMED
    signals, log_weights = weighted.propose(problem, context, propose_key, total, chunk_size)
    signals, effective = _resample(signals, log_weights, choice_key, rounded(number))
    signals = jax.tree.map(lambda x: x[:number], signals)
    if not is_traced(effective) and not float(effective) >= FEW:
        total = INFORMED if weighted.informed else UNINFORMED
        warnings.warn(
            f"Of {total} signals drawn from the learned prior, only {float(effective):.1f} effectively explain the "
            "context under the new `forward` and `noise`; train a problem with these.",
            stacklevel=4,
        )
    return signals


@eqx.filter_jit
def _resample(signals, log_weights, key, number):
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    index = jr.categorical(key, log_weights, shape=(number,))
    return jax.tree.map(lambda x: x[index], signals), effective_number(log_weights)


def effective_number(log_weights: Float[Array, " draws"]) -> FloatScalar:
    """`(Σ w)² / Σ w²`; 0 where all weights are."""
    number = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))
    return jnp.where(jnp.all(jnp.isneginf(log_weights)), 0.0, number)


def under_instrument(
    problem: Any, context: Context, forward: Any, noise: Any
) -> tuple[Any, Context, AbstractInstrument]:
    """A trained problem with another forward model or noise, its context, and how signals are drawn.

    **Raises:**

    `ValueError` if the problem was not trained in signal space, if the likelihood is not known, or if the context is
    not what the forward model makes of a signal.
    """
    trained_denoiser(problem)
    info, space = problem.data_info, problem.space
    if info is None or space is None or not space.of_signals:
        raise ValueError(
            "`forward` and `noise` of a posterior may differ from those of training in signal space alone; `fit` a "
            "`View` without `roles`, or leave them out."
        )
    other = dataclasses.replace(
        problem,
        forward=problem.forward if forward is None else as_forward_model(forward),
        noise=problem.noise if noise is None else as_noise(noise),
    )
    if measures_stack(other.forward):
        raise ValueError("`forward` is a `MultiView`, but in signal space views are stacked already; give that of one.")
    if other.noise.exact:
        raise ValueError("`noise` is 0, under which no draw explains a measurement; give the new instrument's noise.")
    views = as_stack(other, context)
    one = first_view(structure(View(views.observation, views.params)))
    other.noise.check(one.observation)
    capacity = num_views(cast(View, info.context))
    size = count_entries(problem.noised.signal)
    alike = same_structure(one, info.measurement) and num_views(views) <= capacity
    if alike and size <= LARGEST_CORRECTED:
        return other, views, WeightedDraws(problem.noised, True)
    # What is told by the likelihood alone is in no units.
    views = View(views.observation, views.params, view_mask(views))
    seen = dataclasses.replace(info, context=structure(views), context_units=Units())
    other = dataclasses.replace(other, data_info=seen)
    measured = None if size <= LARGEST_CORRECTED else guiding(problem, other.noised, views)
    how = WeightedDraws(problem.noised, False) if measured is None else GuidedDraws(problem.noised, measured)
    return other, views, how


def guiding(problem: Any, other: Any, views: View) -> Measured | None:
    """What tells how a measurement conditions a Gaussian signal, where it can, in units of the noise.

    **Arguments:**

    - `problem`: the trained problem.
    - `other`: the problem of signals under the other instrument.
    - `views`: what was measured.
    """
    params = jax.tree.map(lambda x: jnp.asarray(x)[0], views.params)
    affine = other.measurement_noise.every_level and is_affine(other.measure, other.signal, params, jr.key(0))
    if not affine or not guides(problem.denoiser):
        return None
    first = jax.tree.map(lambda x: jnp.asarray(x)[0], views.observation)
    std = jax.tree.map(jnp.max, other.measurement_noise.std(first))
    return Measured(other.measure, other.measurement_noise, Units(jax.tree.map(jnp.zeros_like, std), std))


def as_stack(problem: Any, context: Any) -> View:
    """A context as a stack of views that the forward model can have made: with a views axis, or one view without.

    Where both can be, what is like a measurement of training is one view.
    """
    views = as_view(view_as_parts(context), WANTED)
    found = structure(View(views.observation, views.params))
    shapes = {x.shape[:1] for x in jax.tree.leaves(found)}
    stack = found if len(shapes) == 1 and not shapes & {(), (0,)} else None
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), found)
    readings = [x for x in (None if views.mask is not None else single, stack) if x is not None]
    readings = [x for x in readings if _measures(problem, first_view(x))]
    if not readings:
        raise ValueError(
            f"`context` is {describe(found)}, which `forward` does not make of a signal {describe(problem.signal)}; "
            "give measurements by the new `forward`, with its parameters."
        )
    seen = [x for x in readings if same_structure(first_view(x), problem.data_info.measurement)]
    return views if (seen or readings)[0] is stack else jax.tree.map(lambda x: jnp.asarray(x)[None], views)


def _measures(problem, one):
    """Whether the forward model returns measurements of this structure."""
    try:
        forward = RealForward(problem.forward, problem.coordinates)
        output = eqx.filter_eval_shape(forward, problem.coordinates.structure(), one.params)
    except Exception:
        return False
    return same_structure(output, one.observation)
