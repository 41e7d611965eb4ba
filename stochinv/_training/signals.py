r"""`fit` in signal space: checks, the start, and the rounds of expectation maximisation around the loop of training."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import numpyro.distributions as dist
import optax

from .._checks import check_arrays, check_callable, check_finite, check_integer, check_key
from .._custom_types import AnyCallable, Key, Structure
from .._data_info import describe
from .._forward.base import measures_stack
from .._structure import same_structure
from .._view import View, check_signal, structure, view_mask
from .batches import ArrayBatches
from .checks import FILL, check_closures, check_number_of_records, check_training
from .ema import AbstractEMA
from .expectation_maximisation import Rounds, prepare_signals
from .loop import Options, Run, check_options, seed_of
from .prepare import check_output, known_signal
from .state import start_state

# Dense matrices of n × n numbers are kept for every record.
LARGEST_SIGNAL = 256


def train_signals(
    problem: Any,
    data: View,
    *,
    key: Key,
    options: Options,
    rounds: int,
    start: Any,
    optimizer: optax.GradientTransformation | None,
    gradient_clip: float | None,
    ema: AbstractEMA | None,
    standardise: bool,
) -> tuple[Any, Any]:
    """What `fit` does in signal space, with all its defaults filled in."""
    began = time.perf_counter()
    check_key(key)
    check_options(options)
    given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema}
    check_training(steps=options.steps, roles=None, standardise=standardise, **given)
    check_integer("`rounds`", rounds)
    if options.validation is not None:
        raise ValueError(
            "`validation` is not used in signal space, whose training signals change from round to round; leave it out."
        )
    check_views(problem, data, options.batch_size)
    signal = find_signal(problem, data)
    data = jax.tree.map(jnp.asarray, View(data.observation, data.params, np.asarray(_masks(data))))
    prepare_key, rounds_key, train_key = jr.split(key, 3)
    start, trained = as_start(start, signal), problem.data_info is not None and start is None
    problem = prepare_signals(problem, data, signal, start, standardise, prepare_key)
    check_closures(problem.denoiser)
    seed = seed_of(key)
    length = -(-options.steps // rounds)
    state = start_state(problem.noised, steps=options.steps, key=train_key, roles=None, **given)
    schedule = Rounds(state.problem, data, start, rounds_key, length, options.batch_size, trained=trained)
    batches = ArrayBatches(data, options.batch_size, seed)
    configuration = {"key": list(seed), "standardise": standardise, "gradient_clip": gradient_clip, "rounds": rounds}
    configuration |= {"measurement_noise": problem.noise}
    public = lambda trained: dataclasses.replace(problem, denoiser=trained.denoiser)
    return Run(state, batches, options, configuration, began, schedule, public).run()


def _masks(data: View):
    return jax.vmap(view_mask)(data)


def check_views(problem: Any, data: View, batch_size: int):
    """Records of one or more views each: numbers, with record and views axes, finite where they count."""
    check_arrays("data", data)
    check_number_of_records("data", data, batch_size)
    shapes = [jnp.shape(x) for x in jax.tree.leaves((data.observation, data.params))]
    if any(len(shape) < 2 for shape in shapes) or len({shape[:2] for shape in shapes}) != 1 or shapes[0][1] == 0:
        raise ValueError(
            f"`data` has arrays of shapes {shapes}, but all must have the same leading (record, views) axes; give a "
            "record of one measurement a views axis of length 1, `x[:, None]`."
        )
    if data.mask is not None and np.shape(data.mask) != shapes[0][:2]:
        raise ValueError(f"`data.mask` has shape {np.shape(data.mask)}, but must have the shape {shapes[0][:2]}.")
    if measures_stack(problem.forward):
        raise ValueError("`forward` is a `MultiView`, but in signal space views are stacked already; give that of one.")
    mask = np.asarray(_masks(data))
    check_finite("data", jax.tree.map(lambda x: np.asarray(x)[mask], View(data.observation, data.params)), FILL)
    for path, x in jtu.tree_flatten_with_path(data.observation)[0]:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"`data.observation{jtu.keystr(path)}` is {jnp.result_type(x)}, but measurements must be real "
                "floating-point arrays; use `.astype(jnp.float32)`, and give real and imaginary parts an axis."
            )


def find_signal(problem: Any, data: View) -> Structure:
    """The structure of the signal, as given or as the forward model knows it, with which `forward` measures."""
    one = structure(jax.tree.map(lambda x: x[0, 0], View(data.observation, data.params)))
    signal = known_signal(problem, one.observation, one.params)
    check_signal(signal)
    size = sum(x.size for x in jax.tree.leaves(signal))
    if size > LARGEST_SIGNAL:
        raise ValueError(
            f"`signal` has {size} entries, but signal space takes up to {LARGEST_SIGNAL}; deal the views by "
            "`roles=RandomViews(...)`, to train in measurement space."
        )
    problem.noise.check(one.observation)
    check_output(problem.forward, signal, one.params, one.observation)
    return signal


def as_start(start: Any, signal: Structure) -> AnyCallable | None:
    """A law of signals that a user guesses, as a callable from a key to a signal.

    **Raises:**

    `ValueError` if it is neither a NumPyro distribution nor a callable, or draws something else.
    """
    if start is None:
        return None
    draw = start.sample if isinstance(start, dist.Distribution) else start
    check_callable("`start`", draw, "a NumPyro distribution or a callable from a key to a signal, or None")
    drawn = jax.eval_shape(draw, jr.key(0))
    if not same_structure(drawn, signal):
        raise ValueError(f"`start` draws {describe(drawn)}, but the signal is {describe(signal)}; change one of them.")
    return draw
