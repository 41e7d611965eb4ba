r"""Training as two pure functions: `init` makes a `State`, `step` takes it one batch further.

[`stochinv.StochasticInverseProblem.fit`][] is a loop over these two, with checkpoints and progress around it.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PyTree

from .._checks import check_finite, check_instance, check_key
from .._custom_types import FloatScalar, Key
from .._frozen import trainable
from .._problem_base import AbstractProblem
from .._view import Example, RandomViews, View
from .checks import FILL, check_batch, check_closures, check_training
from .ema import AbstractEMA, PowerEMA
from .prepare import find_structures, prepare


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
    """

    problem: AbstractProblem
    average: PyTree
    optimizer_state: PyTree
    count: Int[Array, ""]
    key: Key
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    ema: AbstractEMA | None
    roles: RandomViews | None

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
) -> State:
    """The start of a training run: checks problem and data, takes the units, makes the denoiser where there is none.

    **Arguments:**

    - `problem`: the [`stochinv.StochasticInverseProblem`][].
    - `data`: records or a batch of them, from which units and structures are taken: an [`stochinv.Example`][] with a
        leading record axis, or a [`stochinv.View`][] with leading (record, views) axes and `roles`.
    - `key`: a PRNG key.
    - `steps`: the length of the default optimiser's schedule.
    - `roles`, `optimizer`, `gradient_clip`, `ema`, `standardise`: as in [`stochinv.StochasticInverseProblem.fit`][].

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
    check_batch(data, roles, problem.forward)
    check_finite("data", data, FILL)
    signal = find_structures(problem, data, roles)
    denoiser_key, probe_key, train_key = jr.split(key, 3)
    problem = prepare(problem, data, signal, roles, standardise, denoiser_key, probe_key)
    check_closures(problem.denoiser)
    given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema, "roles": roles}
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
    )


def step(state: State, batch: Example | View) -> tuple[State, dict[str, FloatScalar]]:
    """One step of training: pure, to be jitted.

    A step whose loss or gradient is not finite leaves parameters, averages and the optimiser's state as they were, and
    says so in its metrics.

    **Arguments:**

    - `state`: the state.
    - `batch`: records with a leading axis, like the data that `init` saw.

    **Returns:**

    The state after the step, and its metrics: the `loss`, the parts that the objective names, and `finite`.
    """
    params, rest = eqx.partition(state.problem, trained_part(state.problem))
    key = jr.fold_in(state.key, state.count)
    loss_of = lambda params: batch_loss(eqx.combine(params, rest), state.roles, batch, key)
    (loss, parts), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
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
    after = State(problem, moved[1], moved[2], count, state.key, state.optimizer, state.ema, state.roles)
    return after, {"loss": loss, "finite": finite, **parts}


def batch_loss(
    problem: AbstractProblem, roles: RandomViews | None, batch: Example | View, key: Key
) -> tuple[FloatScalar, dict[str, FloatScalar]]:
    """The mean loss of records, each with noise and roles of its own, and the means of its parts."""

    def record_loss(record, key):
        deal_key, loss_key = jr.split(key)
        return problem.loss(deal(record, roles, deal_key), key=loss_key)

    losses, parts = jax.vmap(record_loss)(batch, jr.split(key, jax.tree.leaves(batch)[0].shape[0]))
    return jnp.mean(losses), jax.tree.map(jnp.mean, parts)


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
