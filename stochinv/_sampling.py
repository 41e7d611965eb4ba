r"""Draws from a trained problem: checks, the choice of a sampler, and chunks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ._checks import check_arrays, check_integer, check_key
from ._chunks import in_chunks, rounded
from ._custom_types import AnyCallable, Context, Key, Params
from ._data_info import check_counted, check_measurement
from ._grid import is_costly, is_large
from ._problem_base import AbstractProblem, encode_context, trained_denoiser
from ._sampler.ancestral import Ancestral
from ._sampler.base import AbstractSampler, Sample, as_sampler
from ._sampler.exponential_adams import ExponentialAdams
from ._sampler.guidance import guides
from ._sampler.importance import ImportanceSampling
from ._structure import count_entries

# The largest signal, in entries, whose draws are chosen by importance weights.
LARGEST_CORRECTED = 16
# How draws are corrected in rounds, where the signals of the rounds before are candidates too. Not in fewer steps: what
# the prior's density is off by is learned, round after round.
OF_ROUNDS = ImportanceSampling(num_proposals=2)


def corrects(problem: AbstractProblem) -> bool:
    """Whether draws given a context are chosen by importance weights."""
    return problem.likelihood_known and count_entries(problem.signal) <= LARGEST_CORRECTED


def default_sampler(problem: AbstractProblem, *, given: bool = True) -> AbstractSampler:
    """The sampler that suits a problem, as [`stochinv.StochasticInverseProblem.sample`][] says.

    **Arguments:**

    - `problem`: the problem of what is noised.
    - `given`: whether there is a context; without one there is no likelihood to correct draws by.
    """
    if given and corrects(problem):
        return ImportanceSampling()
    if not problem.noise.every_level:
        return Ancestral(1)
    if problem.objective.stochastic:
        return Ancestral()
    return of_images(12) if is_image_of_signals(problem) else ExponentialAdams()


def of_images(num_steps: int) -> AbstractSampler:
    """Few steps through a network of images, as these are dear; fresh noise makes up for what it has not learned."""
    return Ancestral(num_steps, order=2)


def is_image_of_signals(problem: AbstractProblem) -> bool:
    """Whether what is noised is a signal of more entries than a perceptron denoises."""
    info = problem.data_info
    return info is not None and info.form is not None and is_large(problem.signal)


def corrects_rounds(problem: Any) -> bool:
    """Whether draws in expectation maximisation's rounds are chosen by importance weights.

    Not where the Gaussian that the network corrects is conditioned exactly: what was measured is then repeated by any
    network, and all records drawn anew in each round gain more than a few of them drawn better.
    """
    info = problem.data_info
    exact = info is not None and info.affine and info.form is not None and problem.measurement_noise.every_level
    return corrects(problem) and not (exact and guides(problem.denoiser))


def sampler_of_rounds(problem: AbstractProblem) -> tuple[AbstractSampler, int]:
    """The sampler of expectation maximisation's rounds, whose draws are learned from, not looked at, and on how many
    records training takes as long as one draw."""
    if corrects_rounds(problem):
        # Six densities, of 48 evaluations and as many derivatives as a signal has entries, more of them at once than
        # there are records in a step. This is on the safe side: draws take a third to a half of the time of training.
        return OF_ROUNDS, 30 * (count_entries(problem.signal) + 1)
    if not is_costly(problem.signal):
        return ExponentialAdams(), 8
    # To decompose what is measured of whitened pixels is dear.
    info = problem.data_info
    return of_images(8), 8 if info is not None and info.form == "dense" else 4


def sample(
    problem: AbstractProblem,
    context: Context,
    params: Params,
    *,
    key: Key,
    sampler: AbstractSampler | AnyCallable | None,
    num_samples: int | None,
    chunk_size: int,
) -> Sample:
    """What `problem.sample` does, with all its defaults filled in."""
    user, problem = problem, problem.noised
    trained_denoiser(problem)
    check_key(key)
    if num_samples is not None:
        check_integer("`num_samples`", num_samples)
    check_integer("`chunk_size`", chunk_size)
    sampler = default_sampler(problem, given=context is not None) if sampler is None else as_sampler(sampler)
    check_measurement("params", params)
    context, params = problem.as_context(context), jax.tree.map(jnp.asarray, params)
    if num_samples is None:
        return as_given(user, _sample(problem, sampler, context, params, key))
    options = {"key": key, "num_samples": num_samples, "chunk_size": chunk_size}
    return as_given(user, sampler.many(problem, encode(problem, context), params, **options))


@eqx.filter_jit
def _sample(problem, sampler, context, params, key):
    return sampler(problem, encode_context(problem, context), params, key=key)


encode = eqx.filter_jit(encode_context)


def sample_many(
    problem: AbstractProblem,
    contexts: Context,
    params: Params,
    *,
    key: Key,
    num_samples: int,
    sampler: AbstractSampler | AnyCallable | None,
    chunk_size: int,
) -> Sample:
    """What `problem.sample_many` does, with all its defaults filled in."""
    user, problem = problem, problem.noised
    trained_denoiser(problem)
    check_key(key)
    check_integer("`num_samples`", num_samples)
    check_integer("`chunk_size`", chunk_size)
    sampler = default_sampler(problem) if sampler is None else as_sampler(sampler)
    check_measurement("params", params)
    number = check_contexts(contexts, params)
    contexts, params = jax.tree.map(jnp.asarray, (contexts, params))
    first = jax.tree.map(lambda x: x[0], (contexts, params))
    problem.observation_structure(first[1])
    jax.eval_shape(lambda context: problem.as_context(context), first[0])
    keys = jr.split(key, number)
    drawn = _sample_many(problem, sampler, contexts, params, keys, rounded(num_samples), chunk_size)
    return as_given(user, jax.tree.map(lambda x: x[:, :num_samples], drawn))


@eqx.filter_jit
def _sample_many(problem, sampler, contexts, params, keys, num_samples, chunk_size):
    def one(inputs):
        context, params, key = inputs
        context = encode_context(problem, problem.as_context(context))
        return sampler.many(problem, context, params, key=key, num_samples=num_samples, chunk_size=chunk_size)

    return in_chunks(one, (contexts, params, keys), max(chunk_size // num_samples, 1))


def as_given(problem: AbstractProblem, drawn: Sample) -> Sample:
    """Draws as signals of the user's, which may be complex or bounded."""
    if problem.noised is problem:
        return drawn
    return Sample(*(problem.coordinates.to_signal(x) for x in (drawn.signal, drawn.observation)))


def check_contexts(contexts: Context, params: Params) -> int:
    """How many contexts there are, whose arrays all have one leading axis, finite where they count."""
    check_arrays("contexts", contexts)
    shapes = [jnp.shape(x) for x in jax.tree.leaves((contexts, params))]
    lengths = {shape[:1] for shape in shapes}
    if not jax.tree.leaves(contexts) or len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(
            f"`contexts` and `params` have arrays of shapes {shapes}, but all must have one leading contexts axis; "
            "stack the contexts, or take `posterior(context)` for one, or for nothing given."
        )
    check_counted("contexts", contexts)
    return shapes[0][0]
