r"""Training as two pure functions: `init` makes a `State`, `step` takes it one batch further.

[`stochinv.StochasticInverseProblem.fit`][] is a loop over these two, with checkpoints and progress around it.
"""

import dataclasses
from typing import Any, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int

from .._checks import check_finite, check_instance, check_key
from .._custom_types import AnyCallable, FloatScalar, Key, PyTree
from .._frozen import trainable
from .._problem_base import AbstractProblem
from .._view import Example, RandomViews, View, count, first
from .checks import FILL, check_batch, check_closures, check_compute, check_training
from .ema import AbstractEMA, PowerEMA
from .prepare import find_structures, prepare

Precision = Literal["float32", "bf16"]


class State(eqx.Module):
    """A training run between two steps: a PyTree, to be jitted, donated, sharded and saved.

    **Arguments:**

    - `problem`: the problem with the parameters of the last step.
    - `average`: the average of its trained arrays, or `None`.
    - `optimizer_state`: that of `optimizer`.
    - `count`: the number of steps done.
    - `key`: the PRNG key of all steps.
    - `optimizer`: the optax transformation.
    - `ema`: how parameters are averaged, or `None`.
    - `roles`: how the views of a record are dealt, or `None`.
    - `precision`: in what networks compute.
    - `accumulate`: in how many parts a batch is worked on.
    """

    problem: AbstractProblem
    average: PyTree
    optimizer_state: PyTree
    count: Int[Array, ""]
    key: Key
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    ema: AbstractEMA | None
    roles: RandomViews | None
    precision: Precision = eqx.field(static=True, default="float32")
    accumulate: int = eqx.field(static=True, default=1)

    def __repr__(self) -> str:
        return f"State(after {self.count} steps,\n{self.problem!r})"

    @property
    def trained(self) -> AbstractProblem:
        """The problem with the averaged parameters, or with the last ones where none are averaged."""
        if self.average is None:
            return self.problem
        return eqx.combine(self.average, self.problem)


def init(
    problem: Any,
    data: Example | View,
    *,
    key: Key,
    roles: RandomViews | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 10_000,
    gradient_clip: float | None = 1.0,
    ema: AbstractEMA | None = PowerEMA(),
    standardise: bool = True,
    precision: Precision = "float32",
    accumulate: int = 1,
) -> State:
    """The start of a training run: checks problem and data, takes the units, makes the denoiser where there is none.

    **Arguments:**

    - `problem`: the [`stochinv.StochasticInverseProblem`][].
    - `data`: records or a batch of them, from which units and structures are taken: an [`stochinv.Example`][] with a
        leading record axis, or a [`stochinv.View`][] with leading (record, views) axes and `roles`.
    - `key`: a PRNG key.
    - `steps`: the length of the default optimiser's schedule.
    - `roles`, `optimizer`, `gradient_clip`, `ema`, `standardise`, `precision`, `accumulate`: as in
        [`stochinv.StochasticInverseProblem.fit`][].

    **Returns:**

    A [`stochinv.State`][] before its first step. None of its arrays is the caller's, so it may be donated.

    **Raises:**

    `ValueError` for data, forward model and denoiser that do not fit together.
    """
    check_key(key)
    check_instance("`problem`", problem, AbstractProblem, "a `StochasticInverseProblem`")
    check_training(
        steps=steps, optimizer=optimizer, gradient_clip=gradient_clip, ema=ema, standardise=standardise, roles=roles
    )
    check_compute(precision, accumulate)
    check_batch(data, roles, problem.forward)
    check_finite("data", data, FILL)
    signal = find_structures(problem, data, roles)
    denoiser_key, probe_key, train_key = jr.split(key, 3)
    problem = prepare(problem, data, signal, roles, standardise, denoiser_key, probe_key)
    check_closures(problem.denoiser)
    given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema, "roles": roles}
    given |= {"precision": precision, "accumulate": accumulate}
    return start_state(problem, steps=steps, key=train_key, **given)


def start_state(
    problem: AbstractProblem,
    *,
    steps: int,
    key: Key,
    roles: RandomViews | None,
    optimizer: optax.GradientTransformation | None,
    gradient_clip: float | None,
    ema: AbstractEMA | None,
    precision: Precision,
    accumulate: int,
) -> State:
    """The state of a prepared problem before its first step; the arguments are those of `init`."""
    params = eqx.filter(problem, trained_part(problem))
    if not jax.tree.leaves(params):
        raise ValueError("`denoiser` has no floating-point arrays to train; make it an Equinox module that holds them.")
    if optimizer is None:
        optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, max(steps // 50, 1), max(steps, 2), 1e-5))
    if gradient_clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optimizer)
    copy = lambda tree: jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, tree)
    return State(
        copy(problem),
        None if ema is None else copy(params),
        optimizer.init(cast(Any, params)),
        jnp.zeros((), jnp.int32),
        key,
        optimizer,
        ema,
        roles,
        precision,
        accumulate,
    )


def step(state: State, batch: Example | View) -> tuple[State, dict[str, FloatScalar]]:
    """One step of training: pure, to be jitted.

    A step whose loss or gradient is not finite leaves parameters, averages and the optimiser's state as they were, and
    says so in its metrics.

    **Arguments:**

    - `state`: the state.
    - `batch`: records with a leading axis, like the data that `init` saw; as many as `accumulate` divides.

    **Returns:**

    The state after the step, and its metrics: the `loss`, the parts that the objective names, and `finite`.
    """
    params, rest = eqx.partition(state.problem, trained_part(state.problem))
    key = jr.fold_in(state.key, state.count)

    def loss_of(params, records, keys):
        problem = eqx.combine(compute_dtype(params, state.precision), rest)
        return mean_loss(problem, state.roles, records, keys)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, parts), gradient = accumulated(value_and_grad, params, batch, key, state.accumulate)
    count = state.count + 1

    def move():
        updates, optimizer_state = state.optimizer.update(gradient, state.optimizer_state, params)
        new = optax.apply_updates(params, updates)
        average = None if state.ema is None else state.ema.update(state.average, new, count)
        return new, average, optimizer_state

    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    # A branch, and no choice array by array, which would cost a fifth of a perceptron's step.
    moved = jax.lax.cond(finite, move, lambda: (params, state.average, state.optimizer_state))
    problem = eqx.combine(moved[0], rest)
    after = dataclasses.replace(state, problem=problem, average=moved[1], optimizer_state=moved[2], count=count)
    return after, {"loss": loss, "finite": finite, **parts}


def batch_loss(
    problem: AbstractProblem, roles: RandomViews | None, batch: Example | View, key: Key
) -> tuple[FloatScalar, dict[str, FloatScalar]]:
    """The mean loss of records, each with noise and roles of its own, and the means of its parts."""
    return mean_loss(problem, roles, batch, jr.split(key, count(batch)))


def mean_loss(
    problem: AbstractProblem, roles: RandomViews | None, batch: Example | View, keys: Array
) -> tuple[FloatScalar, dict[str, FloatScalar]]:
    """`batch_loss` with a key for each record."""

    def record_loss(record, key):
        deal_key, loss_key = jr.split(key)
        return problem.loss(deal(record, roles, deal_key), key=loss_key)

    losses, parts = jax.vmap(record_loss)(batch, keys)
    return jnp.mean(losses), jax.tree.map(jnp.mean, parts)


def loss_of_records(
    problem: AbstractProblem, roles: RandomViews | None, records: Example | View, key: Key, chunk_size: int
) -> FloatScalar:
    """The mean loss of any number of records, so many of them at a time."""
    number = count(records)
    keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(number))
    one = lambda inputs: batch_loss(problem, roles, jax.tree.map(lambda x: x[None], inputs[0]), inputs[1])[0]
    mapped = jax.vmap(one) if number <= chunk_size else lambda x: jax.lax.map(one, x, batch_size=chunk_size)
    return jnp.mean(mapped((records, keys)))


def accumulated(
    value_and_grad: AnyCallable, params: PyTree, batch: Example | View, key: Key, number: int
) -> tuple[tuple[FloatScalar, dict[str, FloatScalar]], PyTree]:
    """The loss of a batch, its parts and the gradient, as means of those of so many parts of the batch, which are
    worked on one after the other: memory for activations is that of a part."""
    keys = jr.split(key, count(batch))
    if number == 1:
        return value_and_grad(params, batch, keys)
    # Each part is spread over the whole batch, as the batch is over devices.
    deal_out = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // number, number, *x.shape[1:]), 0, 1)
    parts = jax.tree.map(deal_out, (batch, keys))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, *first(parts)))
    add = lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / number, total)


def compute_dtype(params: PyTree, precision: Precision) -> PyTree:
    """Parameters as networks compute with them; the gradient by those in single precision is the same."""
    if precision == "float32":
        return params
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, params)


def deal(record: Example | View, roles: RandomViews | None, key: Key) -> Example:
    """A record with its roles."""
    return cast(Example, record) if roles is None else roles(cast(View, record), key=key)


def trained_part(problem: Any) -> PyTree:
    """`True` for the trained arrays of the denoiser, `False` for all else of a problem."""
    nothing = jax.tree.map(lambda _: False, problem)
    return eqx.tree_at(lambda p: p.denoiser, nothing, trainable(problem.denoiser))


def moving_part(state: State) -> PyTree:
    """`True` for what a step changes and a checkpoint holds, `False` for all else of a state."""
    everything = lambda tree: jax.tree.map(eqx.is_array, tree)
    moved = lambda s: (s.problem, s.average, s.optimizer_state, s.count)
    parts = (trained_part(state.problem), everything(state.average), everything(state.optimizer_state), True)
    nothing = jax.tree.map(lambda _: False, state)
    return eqx.tree_at(moved, nothing, parts, is_leaf=lambda x: x is None)
