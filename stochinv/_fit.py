r"""Training: measurements in, a trained problem out."""

import dataclasses
import os
import signal as signals
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, PyTree
from tqdm import tqdm

from ._batches import ArrayBatches, as_batches, warn_exhausted
from ._checkpoint import Checkpoints
from ._custom_types import Key, Structure
from ._data_info import DataInfo, check_structure, describe, measure_data
from ._ema import AbstractEMA, PowerEMA
from ._frozen import trainable
from ._problem import StochasticInverseProblem
from ._validate import (
    check_closures,
    check_example,
    check_forward,
    check_noise,
    check_records,
    check_roles,
    check_values,
    find_signal,
)
from ._view import Example, RandomViews, View, structure


@dataclasses.dataclass
class History:
    """What was seen during training.

    **Arguments:**

    - `loss`: the mean loss of each step's batch, shape `(steps,)`.
    - `validation_steps`, `validation_loss`: after how many steps the loss of held-out records was taken, and its
        values.
    - `seconds`: how long training took, compilation included.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    validation_steps: list[int] = dataclasses.field(default_factory=list)
    validation_loss: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of a `fit`.

    **Arguments:**

    - `problem`: the trained [`stochinv.StochasticInverseProblem`][]; its denoiser is the average over training.
    - `history`: the [`stochinv.History`][] of the training.
    """

    problem: StochasticInverseProblem
    history: History


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback of `fit` is given.

    **Arguments:**

    - `step`: the number of steps done.
    - `loss`: the mean loss since the last call.
    - `metrics`: the parts of the loss at the last step.
    - `history`: the [`stochinv.History`][] so far.
    - `current_problem`: a function that returns the problem as trained so far.
    """

    step: int
    loss: float
    metrics: dict[str, float]
    history: History
    current_problem: Callable[[], StochasticInverseProblem]


class _State(eqx.Module):
    params: PyTree
    optimizer: PyTree
    average: PyTree
    step: Array
    mean: PyTree
    std: PyTree


def fit(
    problem: StochasticInverseProblem,
    data: Example | View | Iterable[Any],
    *,
    key: Key,
    steps: int = 10_000,
    batch_size: int = 64,
    roles: RandomViews | None = None,
    optimizer: optax.GradientTransformation | None = None,
    gradient_clip: float | None = 1.0,
    ema: AbstractEMA | None = PowerEMA(),
    standardise: bool = True,
    validation: Example | View | None = None,
    validation_every: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    resume: bool = True,
    callbacks: Sequence[Callable[[Progress], Any]] = (),
    log_every: int = 50,
    progress: bool | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Fit:
    """Trains a problem's denoiser from measurements alone.

    All checks of shapes, finiteness and differentiability are done before the first step. Ctrl-C ends training
    and keeps what was trained. A run with a `checkpoint` folder goes on from the last checkpoint in it, to the same
    result, bit for bit, as one that was never interrupted.

    **Arguments:**

    - `problem`: the [`stochinv.StochasticInverseProblem`][].
    - `data`: an [`stochinv.Example`][] whose arrays have a leading record axis; or a [`stochinv.View`][] with leading
        (record, views) axes and `roles`; or any iterable of batches of either kind and of equal shapes, such as a grain
        dataset. Units are taken from all arrays in memory, or from the first batch of an iterable.
    - `key`: a PRNG key.
    - `steps`: the number of optimiser steps.
    - `batch_size`: records per step, for arrays in memory.
    - `roles`: how the views of a record are dealt, anew at each step.
    - `optimizer`: an optax transformation; by default Adam with a warm-up to 1e-3 and a cosine decay over `steps`.
    - `gradient_clip`: the largest global norm of the gradient; `None` does not clip.
    - `ema`: how the parameters are averaged over training; `None` does not average.
    - `standardise`: whether measurements are brought to mean 0 and standard deviation 1 (one of each per leaf).
    - `validation`: held-out records, like `data` in memory; their loss is taken with fixed noise.
    - `validation_every`: the number of steps between validations; a tenth of `steps` by default.
    - `checkpoint`: a folder for checkpoints.
    - `checkpoint_every`: the number of steps between checkpoints.
    - `resume`: whether to go on from the last checkpoint; otherwise old checkpoints in the folder are deleted.
    - `callbacks`: called with a [`stochinv.Progress`][] every `log_every` steps; one that returns `True` ends training.
    - `log_every`: the number of steps between looks at the loss (each waits for the device).
    - `progress`: whether to show a progress bar; by default only on a terminal.
    - `sharding`: how a batch's record axis is laid out over devices; parameters are replicated.

    **Returns:**

    A [`stochinv.Fit`][].

    **Raises:**

    `ValueError` for data, forward model and denoiser that do not fit together; `FloatingPointError` when the loss stops
    being finite, with the step and the last good checkpoint.
    """
    start_time = time.perf_counter()
    if steps < 1 or log_every < 1 or checkpoint_every < 1:
        raise ValueError(
            f"`steps`, `log_every` and `checkpoint_every` must be at least 1, got {steps}, {log_every} and "
            f"{checkpoint_every}."
        )
    if validation is not None and not isinstance(validation, Example | View):
        raise ValueError(
            f"`validation` must be an `Example` or a `View` of arrays in memory, got {type(validation).__name__}."
        )
    for name, records in (("data", data), ("validation", validation)):
        if isinstance(records, Example | View):
            check_roles(records, roles, problem.forward)
            check_records(name, records, batch_size if name == "data" else 1)
            check_values(name, records)
    denoiser_key, probe_key, train_key, validation_key = jr.split(key, 4)
    key_data = tuple(
        int(x) for x in np.ravel(jr.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)
    )
    batches = as_batches(data, batch_size, key_data)
    if isinstance(batches, ArrayBatches):
        seen = batches.records
    else:
        seen = jax.tree.map(jnp.asarray, batches.first())
        if not isinstance(seen, Example | View):
            raise ValueError(
                f"`data` yields batches of type {type(seen).__name__}; make each an `Example` or a `View` (with "
                "`roles`)."
            )
        check_roles(seen, roles, problem.forward)
        check_records("data", seen, 1)
        check_values("data", seen)
    problem = prepare(problem, seen, roles, standardise, denoiser_key, probe_key)

    if optimizer is None:
        optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, max(steps // 50, 1), max(steps, 2), 1e-5))
    if gradient_clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(gradient_clip), optimizer)
    info = problem.data_info
    assert info is not None
    check_closures(problem.denoiser)
    params, rest = eqx.partition(problem, _trainable_part(problem))
    if not jax.tree.leaves(params):
        raise ValueError("`denoiser` has no floating-point arrays to train; make it an Equinox module that holds them.")
    fixed, static = eqx.partition(rest, eqx.is_array)
    copy = lambda tree: jax.tree.map(jnp.array, tree)
    state = _State(
        copy(params),
        optimizer.init(eqx.filter(params, eqx.is_inexact_array)),
        None if ema is None else copy(params),
        jnp.zeros((), jnp.int32),
        copy(info.mean),
        copy(info.std),
    )

    def assemble(params, fixed, state):
        whole = eqx.combine(params, fixed, static)
        return eqx.tree_at(lambda p: (p.data_info.mean, p.data_info.std), whole, (state.mean, state.std))

    def batch_loss(params, fixed, state, batch, key):
        whole = assemble(params, fixed, state)
        number = jax.tree.leaves(batch)[0].shape[0]

        def record_loss(record, key):
            deal_key, loss_key = jr.split(key)
            return whole.loss(_deal(record, roles, deal_key), key=loss_key)

        losses, parts = jax.vmap(record_loss)(batch, jr.split(key, number))
        return jnp.mean(losses), jax.tree.map(jnp.mean, parts)

    def train_step(state, fixed, key, batch, records):
        if records is not None:
            batch = jax.tree.map(lambda x: x[batch], records)
        if sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, sharding)
        step_key = jr.fold_in(key, state.step)
        value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
        (loss, parts), gradient = value_and_grad(state.params, fixed, state, batch, step_key)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        new_params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        average = None if ema is None else ema.update(state.average, new_params, step)
        return _State(new_params, optimizer_state, average, step, state.mean, state.std), loss, parts

    if sharding is not None:
        # The partitioner lays out the rest; `jax.make_mesh` leaves that to the user.
        auto = (jax.sharding.AxisType.Auto,) * len(sharding.mesh.axis_names)
        mesh = jax.sharding.Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names, axis_types=auto)
        sharding = jax.sharding.NamedSharding(mesh, sharding.spec)
    train_step = jax.jit(train_step, donate_argnums=0)
    evaluate = jax.jit(_make_evaluate(batch_loss, batch_size))
    records = batches.records if isinstance(batches, ArrayBatches) else None
    if validation is not None:
        validation = jax.tree.map(jnp.asarray, validation)
        remedy = "give validation records like those of `data`"
        check_structure("validation[0]", _first(validation), structure(_first(seen)), remedy)

    validation_every = max(steps // 10, 1) if validation_every is None else validation_every

    history = History()
    described = {"record": describe(_first(seen)), "roles": str(roles)}
    if isinstance(batches, ArrayBatches):
        described |= {"num_records": batches.num_records, "batch_size": batch_size}
    checkpoints = None if checkpoint is None else Checkpoints(checkpoint)
    step = 0
    if sharding is not None:
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        state, fixed, records = jax.device_put((state, fixed, records), replicated)
    if checkpoints is not None and checkpoints.latest() is not None:
        if resume:
            state, record = checkpoints.restore(state)
            if record["data"] != described:
                raise ValueError(
                    f"`data`: the checkpointed run had {record['data']}, but this one has {described}; give the same "
                    "`data`, `batch_size` and `roles`, or `resume=False`."
                )
            if record["key"] != list(key_data):
                raise ValueError(
                    "`key` is not the one that the checkpointed run was started with; give the same, or `resume=False`."
                )
            step = record["step"]
            history = History(**record["history"])
            batches.restore(record["batches"], step)
        else:
            checkpoints.clear()
    elapsed_before = history.seconds
    last_good = step if checkpoints is not None and step else None

    def averaged():
        return state.params if ema is None else state.average

    def result():
        # Copies, since the next step donates the buffers.
        return assemble(copy(averaged()), fixed, copy(state))

    pending: list[Array] = []

    def flush():
        """Reads the losses since the last look, and stops on one that is not finite."""
        values = [float(x) for x in jax.device_get(pending)]
        pending.clear()
        for index, value in enumerate(values):
            if not np.isfinite(value):
                kept = "no checkpoint was kept (give `checkpoint=`)"
                if checkpoints is not None and last_good is not None:
                    kept = f"the last good checkpoint is that of step {last_good} in {checkpoints.folder}"
                raise FloatingPointError(
                    f"The loss is {value} at step {len(history.loss) + 1 + index}: {kept}; lower the learning rate, "
                    "or look for "
                    "infinite derivatives in `forward`."
                )
        history.loss.extend(values)
        history.seconds = elapsed_before + time.perf_counter() - start_time
        return float(np.mean(values)) if values else float("nan")

    def save():
        nonlocal last_good
        flush()
        if checkpoints is not None:
            record = {
                "step": step,
                "key": list(key_data),
                "data": described,
                "history": dataclasses.asdict(history),
                "batches": batches.state(),
            }
            checkpoints.save(step, state, record)
            last_good = step

    bar = tqdm(
        total=steps, initial=step, disable=None if progress is None else not progress, unit="step", dynamic_ncols=True
    )
    stop = False
    with bar, _interruptible() as interrupted:
        while step < steps and not stop:
            batch = batches.batch(step)
            if batch is None:
                warn_exhausted(step, steps)
                break
            state, loss, parts = train_step(state, fixed, train_key, batch, records)
            pending.append(loss)
            step += 1
            bar.update()
            if validation is not None and (step % validation_every == 0 or step == steps):
                history.validation_steps.append(step)
                history.validation_loss.append(float(evaluate(averaged(), fixed, state, validation, validation_key)))
            if step % log_every == 0 or step == steps:
                mean_loss = flush()
                bar.set_postfix(loss=f"{mean_loss:.4g}")
                metrics = {name: float(x) for name, x in parts.items()} if callbacks else {}
                for callback in callbacks:
                    stop = bool(callback(Progress(step, mean_loss, metrics, history, result))) or stop
            if step % checkpoint_every == 0:
                save()
            stop = stop or interrupted.is_set()
    save()
    if checkpoints is not None:
        checkpoints.close()
    return Fit(result(), history)


def prepare(
    problem: StochasticInverseProblem,
    records: Example | View,
    roles: RandomViews | None,
    standardise: bool,
    denoiser_key: Key,
    probe_key: Key,
) -> StochasticInverseProblem:
    """A problem that knows the structure and the units of its data, and has a denoiser, all of it checked."""
    example = _deal(_first(records), roles, probe_key)
    check_example(example, problem.forward)
    check_noise(problem, example)
    measured = records if isinstance(records, View) else records.target
    signal = find_signal(problem, example)
    affine = check_forward(problem.forward, signal, example, probe_key)
    info = measure_data(measured, example, standardise=standardise, affine=affine)
    if problem.data_info is not None:
        # Training goes on in the units that the denoiser knows.
        info = dataclasses.replace(info, mean=problem.data_info.mean, std=problem.data_info.std)
    denoiser = problem.denoiser
    if denoiser is None:
        denoiser = make_denoiser(problem.forward, signal, info, problem.noise, key=denoiser_key)
    problem = dataclasses.replace(problem, denoiser=denoiser, signal=signal, data_info=info)
    return problem


def make_denoiser(forward: Any, signal: Structure, info: DataInfo, noise: PyTree, *, key: Key) -> Any:
    """The denoiser to train where none is given: the forward model's own, or a network for the shapes of the data."""
    own = getattr(forward, "default_denoiser", None)
    if own is not None:
        return own(Example(info.context, View(info.observation, info.params)), key=key)
    from .nn import default_denoiser

    return default_denoiser(forward, signal, info, noise=noise, key=key)


def _first(records):
    return jax.tree.map(lambda x: x[0], records)


def _deal(record, roles, key):
    return record if roles is None else roles(record, key=key)


def _trainable_part(problem):
    """`True` for the trainable arrays of the denoiser, `False` for all else."""
    nothing = jax.tree.map(lambda _: False, problem)
    return eqx.tree_at(lambda p: p.denoiser, nothing, trainable(problem.denoiser))


def _make_evaluate(batch_loss, batch_size):
    def evaluate(params, fixed, state, records, key):
        number = jax.tree.leaves(records)[0].shape[0]

        def one(inputs):
            record, key = inputs
            return batch_loss(params, fixed, state, jax.tree.map(lambda x: x[None], record), key)[0]

        keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(number))
        losses = (
            jax.lax.map(one, (records, keys), batch_size=batch_size)
            if number > batch_size
            else jax.vmap(one)((records, keys))
        )
        return jnp.mean(losses)

    return evaluate


@contextmanager
def _interruptible():
    """Turns the first Ctrl-C into a flag, so that no step is cut in half; a second one interrupts at once."""
    interrupted = threading.Event()

    def handle(number, frame):
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = signals.signal(signals.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signals.signal(signals.SIGINT, previous)
