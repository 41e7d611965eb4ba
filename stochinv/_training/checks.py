r"""What training checks of its data and its options before the first step.

Each failure says in one sentence what is wrong and what to do.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._checks import (
    check_arrays,
    check_finite,
    check_flag,
    check_instance,
    check_integer,
    check_number,
    is_integer,
    shorten,
    shown,
)
from .._data_info import describe
from .._forward.base import AbstractForwardModel, measures_stack
from .._tracker import Tracker
from .._view import Example, RandomViews, View, first_view, is_view, structure
from .ema import AbstractEMA

FILL = "remove or fill them (missing parts belong in `params`, as a mask)"


def check_training(*, steps: Any, optimizer: Any, gradient_clip: Any, ema: Any, standardise: Any, roles: Any):
    """Whether the options of `init` are of their kinds and in their ranges."""
    check_integer("`steps`", steps)
    if gradient_clip is not None:
        wanted = "a positive number, or None for no clipping"
        check_number("`gradient_clip`", gradient_clip, wanted, lambda x: x > 0, arrays=False)
    if isinstance(optimizer, type) or (
        optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update"))
    ):
        raise ValueError(
            f"`optimizer` must be an optax transformation or None, got {shown(optimizer)}; write `optax.adam(1e-3)`."
        )
    if ema is not None:
        check_instance("`ema`", ema, AbstractEMA, "an average such as `PowerEMA()`, or None")
    check_flag("`standardise`", standardise)
    if roles is not None:
        check_instance("`roles`", roles, RandomViews, "a `RandomViews` such as `RandomViews(context=1)`, or None")


def check_compute(precision: Any, accumulate: Any, batch_size: int | None = None):
    """Whether a step can be computed as asked for."""
    if precision not in ("float32", "bf16"):
        raise ValueError(f'`precision` must be "float32" or "bf16", got {shown(precision)}.')
    check_integer("`accumulate`", accumulate)
    if batch_size is not None and batch_size % accumulate:
        raise ValueError(
            f"`accumulate` is {accumulate}, but `batch_size` is {batch_size}; give a number that divides it."
        )


def check_loop(options: Any, batch_size: Any):
    """Whether the options of a `fit` that its loop reads are of their kinds and in their ranges."""
    check_integer("`batch_size`", batch_size)
    check_integer("`validation_every`", options.validation_every)
    check_integer("`checkpoint_every`", options.checkpoint_every)
    check_integer("`log_every`", options.log_every)
    if options.seconds is not None:
        wanted = "a positive number, or None for no limit"
        check_number("`seconds`", options.seconds, wanted, lambda x: x > 0, arrays=False)
    check_folder(options.checkpoint)
    check_flag("`resume`", options.resume)
    check_flag("`progress`", options.progress, none=True)
    if not isinstance(options.callbacks, list | tuple) or not all(map(callable, options.callbacks)):
        raise ValueError(f"`callbacks` must be a list of callables, got {shown(options.callbacks)}.")
    if options.tracker is not None:
        wanted = "a `stochinv.trackers.Tracker` such as `CSVTracker('run.csv')`, or None"
        check_instance("`tracker`", options.tracker, Tracker, wanted)
    check_profile(options.profile, options.checkpoint)


def check_profile(profile: Any, checkpoint: Any):
    """Whether some steps are named that can be profiled, and there is a folder for it."""
    if profile is None:
        return
    pair = isinstance(profile, tuple | list) and len(profile) == 2 and all(map(is_integer, profile))
    if not pair or profile[0] < 0 or profile[1] < 1:
        raise ValueError(
            f"`profile` must be a pair (start, steps) of integers, start >= 0 and steps >= 1, got {shown(profile)}; "
            "write `profile=(10, 5)`, or None."
        )
    if checkpoint is None:
        raise ValueError(
            f"`profile` is {shown(profile)}, but is written into the folder of `checkpoint`, which is None; give one."
        )


def check_folder(checkpoint: Any):
    """Whether checkpoints can go into a folder."""
    if checkpoint is None:
        return
    if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
        raise ValueError(f"`checkpoint` must be the path of a folder, got {shown(checkpoint)}; give one of its own.")
    path = os.path.abspath(os.fspath(checkpoint))
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise ValueError(f"`checkpoint` is {os.fspath(checkpoint)!r}, but {path} is a file; give the path of a folder.")


def check_data(data: Any, validation: Any, roles: RandomViews | None, forward: AbstractForwardModel, batch_size: int):
    """The kinds of the data of a `fit`; of arrays in memory also their roles and records, and the values of held-out
    ones."""
    if validation is not None and not isinstance(validation, Example | View):
        raise ValueError(
            f"`validation` must be an `Example` or a `View` of arrays in memory, got {shown(validation)}; leave it out "
            "if there are none."
        )
    if not isinstance(data, Example | View) and (
        not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping | np.ndarray | jax.Array)
    ):
        raise ValueError(
            f"`data` must be an `Example`, a `View` (with `roles`) or an iterable of these, got {shown(data)}; write "
            "`View(observation, params)`."
        )
    if isinstance(data, Example | View):
        check_records("data", data, roles, forward, batch_size)
    if validation is not None:
        check_records("validation", validation, roles, forward, 1)
        check_finite("validation", validation, FILL)


def check_batch(batch: Any, roles: RandomViews | None, forward: AbstractForwardModel):
    """The records that a run starts from: all of those in memory, or the first batch of an iterable."""
    if not isinstance(batch, Example | View):
        raise ValueError(
            f"`data` must be, or yield, an `Example` or a `View` (with `roles`), but a batch is {shown(batch)}; write "
            "`View(observation, params)`."
        )
    check_records("data", batch, roles, forward, 1)


def check_records(name: str, records: Any, roles: RandomViews | None, forward: AbstractForwardModel, batch_size: int):
    """Arrays in memory: numbers, their roles, and a common, sufficient number of records."""
    check_arrays(name, records)
    check_roles(name, records, roles, forward)
    check_number_of_records(name, records, batch_size)


def check_number_of_records(name: str, records: Any, batch_size: int):
    """A common, sufficient number of records."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(records)]
    lengths = {shape[:1] for shape in shapes}
    if () in lengths or len(lengths) != 1:
        raise ValueError(
            f"`{name}` has arrays of shapes {shorten(str(shapes), 200)}, but all must have the same leading record "
            "axis; give every array one entry per record, and arrays instead of lists of numbers."
        )
    ((number,),) = lengths
    if number == 0:
        raise ValueError(f"`{name}` has no records; give at least one.")
    if batch_size > number:
        raise ValueError(f"`batch_size` is {batch_size}, but `{name}` has {number} records; use at most {number}.")


def check_roles(name: str, data: Any, roles: RandomViews | None, forward: AbstractForwardModel):
    """Whether the data need roles, and whether the roles fit the forward model."""
    if not is_view(data):
        if roles is not None:
            raise ValueError(
                f"`{name}` is an `Example`, whose roles are dealt already; leave out `roles`, or give a `View`."
            )
        return
    if roles is None:
        raise ValueError(
            f"`{name}` is a `View`, so `roles` is needed; give `roles=RandomViews(context=..., target=..., novel=...)`."
        )
    if not jax.tree.leaves(data.params):
        raise ValueError(
            f"`{name}.params` is None, but several views of one signal need the parameters that tell them apart; "
            "give one per view."
        )
    if (roles.target > 1) != measures_stack(forward):
        several = roles.target > 1
        needed, got = (
            ("MultiView(forward)", "one view") if several else ("the forward model of one view", "a `MultiView`")
        )
        raise ValueError(
            f"`roles` deals {roles.target} target view(s), which need {needed}, but `forward` measures {got}; "
            "change one of them."
        )


def check_example(example: Example, forward: AbstractForwardModel):
    """One record: floating-point measurements in one number format, parameters for every stack of views."""
    views = {"target": example.target, "novel": example.novel}
    if is_view(example.context):
        views["context"] = example.context
    views = {name: view for name, view in views.items() if view is not None}
    for name, view in views.items():
        if not jax.tree.leaves(view.observation):
            raise ValueError(f"`{name}.observation` is {view.observation}, without any array; give the measurements.")
    _check_formats(views)
    for name, view in views.items():
        if name != "target" and not jax.tree.leaves(view.params):
            raise ValueError(
                f"`{name}.params` is None, but a stack of views needs the parameters of each; give one per view."
            )
    target = structure(example.target.observation)
    one = first_view(target) if measures_stack(forward) else target
    for name, view in views.items():
        stack = structure(view.observation)
        if name == "target" or (name == "novel" and measured_otherwise(example, forward)):
            continue
        if describe(first_view(stack)) != describe(one):
            raise ValueError(
                f"`{name}.observation` is {describe(stack)} and `target.observation` {describe(target)}, but "
                f"`{name}` must be a stack of measurements like the target's; give a context of another kind as a "
                "plain PyTree."
            )


def _check_formats(views):
    dtypes = {}
    for name, view in views.items():
        for path, x in jtu.tree_flatten_with_path(view.observation)[0]:
            where = f"{name}.observation{jtu.keystr(path)}"
            if jnp.issubdtype(x.dtype, jnp.complexfloating):
                raise ValueError(
                    f"`{where}` is {x.dtype}, but measurements must be real; give real and imaginary parts as two "
                    "channels, `jnp.stack([x.real, x.imag], -1)`, from `forward` too."
                )
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"`{where}` is {x.dtype}, but measurements must be floating-point arrays; convert with "
                    "`.astype(jnp.float32)`."
                )
            dtypes[where] = x.dtype
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"`data` mixes number formats ({listed}); convert all of them to the same.")


def check_closures(denoiser: Any):
    """Warns of a network that a function inside the denoiser refers to: `fit` cannot see it, so it is not trained."""
    for leaf in jax.tree.leaves(denoiser):
        for cell in getattr(leaf, "__closure__", None) or ():
            held = cell.cell_contents
            if isinstance(held, eqx.Module) and any(map(eqx.is_inexact_array, jax.tree.leaves(held))):
                warnings.warn(
                    f"`denoiser` holds a {type(held).__name__} in the closure of {leaf.__qualname__}, where `fit` does "
                    "not train it; make the denoiser an Equinox module with it as a field.",
                    stacklevel=2,
                )


def measured_otherwise(example: Example, forward: AbstractForwardModel) -> bool:
    """Whether novel measurements have parameters of another kind than the target, such as those of a smaller image."""
    params = structure(example.target.params)
    if measures_stack(forward):
        params = first_view(params)
    return example.novel is not None and describe(first_view(structure(example.novel.params))) != describe(params)


def refuse_rounds(**given: Any):
    """Raises a `ValueError` for options of the rounds of signal space, which measurement space has none of."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is for the rounds of signal space, but the problem is in measurement space; leave it out, "
                "or leave out `roles` and `space`."
            )


def default_validation(steps: Any) -> Any:
    """A tenth of `steps`, or of 10,000; what is no number is left to be refused."""
    return max(steps // 10, 1) if is_integer(steps) else 1000
