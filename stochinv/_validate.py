r"""What `fit` checks before the first step: each failure says in one sentence what is wrong and what to do."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

from ._custom_types import Key, Structure
from ._data_info import describe
from ._forward.base import AbstractForwardModel, MultiView, known_signal_structure
from ._likelihood import check_likelihood
from ._view import Example, RandomViews, View, structure


def check_records(name: str, records: Any, batch_size: int):
    """Arrays in memory: a common, sufficient number of records."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(records)]
    lengths = {shape[:1] for shape in shapes}
    if () in lengths or len(lengths) != 1:
        raise ValueError(
            f"`{name}` has arrays of shapes {shapes}, but all must have the same leading record axis; give every "
            "array one entry per record."
        )
    ((number,),) = lengths
    if number == 0:
        raise ValueError(f"`{name}` has no records; give at least one.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if batch_size > number:
        raise ValueError(f"`batch_size` is {batch_size}, but `{name}` has {number} records; use at most {number}.")


def check_roles(data: Any, roles: RandomViews | None, forward: AbstractForwardModel):
    """Whether the data need roles, and whether the roles fit the forward model."""
    if isinstance(data, View) and roles is None:
        raise ValueError(
            "`data` is a `View`, so `roles` is needed: `roles=RandomViews(context=..., target=..., novel=...)`."
        )
    if isinstance(data, Example) and roles is not None:
        raise ValueError("`data` is an `Example`, whose roles are dealt already; leave out `roles`, or give a `View`.")
    if isinstance(data, View) and not jax.tree.leaves(data.params):
        raise ValueError(
            "`data.params` is None, but several views of one signal need the parameters that tell them apart."
        )
    if roles is not None and (roles.target > 1) != isinstance(forward, MultiView):
        needed, got = (
            ("MultiView(forward)", "one view")
            if roles.target > 1
            else ("the forward model of one view", "a `MultiView`")
        )
        raise ValueError(
            f"`roles` deals {roles.target} target view(s), which need {needed}, but `forward` measures {got}."
        )


def check_values(name: str, tree: Any):
    """Finite numbers, in one floating-point format."""
    for path, x in jtu.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            bad = int(jnp.sum(~jnp.isfinite(x)))
            if bad:
                raise ValueError(
                    f"`{name}{jtu.keystr(path)}` has {bad} NaN or infinite values of {jnp.size(x)}; remove or fill "
                    "them "
                    "(missing parts belong in `params`, as a mask)."
                )


def check_example(example: Example, forward: AbstractForwardModel):
    """One record: floating-point measurements in one number format, parameters for every stack of views."""
    dtypes = {}
    views = {"target": example.target, "novel": example.novel}
    if isinstance(example.context, View):
        views["context"] = example.context
    for name, view in views.items():
        if view is None:
            continue
        for path, x in jtu.tree_flatten_with_path(view.observation)[0]:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"`{name}.observation{jtu.keystr(path)}` is {x.dtype}, but measurements must be floating-point "
                    "arrays; "
                    "convert with `.astype(jnp.float32)`."
                )
            dtypes[f"{name}.observation{jtu.keystr(path)}"] = x.dtype
        if name != "target" and not jax.tree.leaves(view.params):
            raise ValueError(f"`{name}.params` is None, but a stack of views needs the parameters of each.")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"Measurements mix number formats ({listed}); convert all of them to the same.")
    target = structure(example.target.observation)
    stacked = isinstance(forward, MultiView)
    one = _first(target) if stacked else target
    for name in ("novel", "context"):
        view = views.get(name)
        if view is None:
            continue
        stack = structure(view.observation)
        each = _first(stack)
        if describe(each) != describe(one) and not (name == "novel" and _measured_otherwise(example, forward)):
            raise ValueError(
                f"`{name}.observation` is {describe(stack)} and `target.observation` {describe(target)}, but "
                f"`{name}` must "
                "be a stack of measurements like the target's; give a context of another kind as a plain PyTree."
            )


def _measured_otherwise(example: Example, forward: AbstractForwardModel) -> bool:
    """Whether novel measurements have parameters of another kind than the target, such as those of a smaller image."""
    params = structure(example.target.params)
    if isinstance(forward, MultiView):
        params = _first(params)
    return example.novel is not None and describe(_first(structure(example.novel.params))) != describe(params)


def _first(stack: Structure) -> Structure:
    """The structure of one view of a stack."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)


def check_noise(problem: Any, example: Example):
    """Whether the objective and the roles suit the noise of measurements."""
    observation = structure(example.target.observation)
    other = callable(problem.noise)
    if other:
        if isinstance(problem.forward, MultiView):
            observation = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), observation)
        check_likelihood(problem.noise, observation)
        if not problem.objective.stochastic:
            raise ValueError(
                f"`noise` is not Gaussian, but `objective` is a {type(problem.objective).__name__}, which needs a "
                "noise whose mean can be told from the noisy target; use `EnergyScore()`."
            )
    else:
        problem.noise_scale(example.target.observation)
        if not any(float(x) > 0 for x in jax.tree.leaves(problem.noise)):
            return
    given = "not Gaussian" if other else "positive"
    if example.novel is None:
        raise ValueError(
            f"`noise` is {given}, so novel measurements are needed (`Example.novel`, or `roles` with `novel=1`): the "
            "target's own noise cannot tell the signal."
        )
    if getattr(problem.objective, "context_weight", 0.0) > 0:
        raise ValueError(f"`noise` is {given}, so the context must not be scored: set `context_weight=0`.")
    for name in ("marginal_weight", "local_weight"):
        if other and getattr(problem.objective, name, 0.0) > 0:
            raise ValueError(f"`noise` is {given}, so views are scored together alone: set `{name}=0`.")


def check_forward(forward: AbstractForwardModel, signal: Structure, example: Example, key: Key) -> bool:
    """Shapes, number format and differentiability of the forward model.

    **Returns:**

    Whether it was found to be affine in the signal, and can be linearised.
    """
    params, expected = example.target.params, structure(example.target.observation)
    _check_output(forward, signal, params, expected)
    if example.novel is not None and _measured_otherwise(example, forward):
        one = forward.forward if isinstance(forward, MultiView) else forward
        novel = jax.tree.map(lambda x: x[0], example.novel.params)
        _check_output(one, signal, novel, _first(structure(example.novel.observation)))
    return _probe(forward, signal, params, key)


def _check_output(forward, signal, params, expected):
    """Whether the forward model returns differentiable measurements of the expected structure."""
    try:
        output = eqx.filter_eval_shape(forward, signal, params)
    except Exception as error:
        raise ValueError(
            f"`forward` fails on a signal {describe(signal)} with params {describe(params)} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); it must be traceable by JAX and take what the "
            "data give."
        ) from error
    for path, x in jtu.tree_flatten_with_path(output)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"`forward` returns {x.dtype} at output{jtu.keystr(path)}, but measurements must be floating-point and "
                "differentiable in the signal."
            )
    same = jax.tree.structure(output) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=False))
    if not same or any(a.shape != b.shape for a, b in pairs):
        raise ValueError(
            f"`forward` returns {describe(output)} for a signal {describe(signal)}, but the data's measurements are "
            f"{describe(expected)}; change `forward`, `signal` or the data."
        )
    if any(a.dtype != b.dtype for a, b in pairs):
        raise ValueError(
            f"`forward` returns {describe(output)}, but the data are {describe(expected)}; use one number format, for "
            "instance by converting the data with `.astype(jnp.float32)`."
        )


def _probe(forward, signal, params, key):
    random = lambda like, key: jax.tree.unflatten(
        jax.tree.structure(like),
        [
            jr.normal(k, x.shape, x.dtype)
            for k, x in zip(jr.split(key, len(jax.tree.leaves(like))), jax.tree.leaves(like), strict=True)
        ],
    )

    @eqx.filter_jit
    def probe(forward, params, key):
        first_key, second_key, cotangent_key = jr.split(key, 3)
        first, second = random(signal, first_key), random(signal, second_key)
        middle = jax.tree.map(lambda a, b: 0.5 * (a + b), first, second)
        measure = lambda s: forward(s, params)
        # Training needs reverse mode alone, and so do solvers with a derivative of their own.
        at_first, pull_back = jax.vjp(measure, first)
        (gradient,) = pull_back(random(structure(at_first), cotangent_key))
        largest = lambda tree: jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]))
        gap = jax.tree.map(lambda a, b, m: a + b - 2 * m, at_first, measure(second), measure(middle))
        return largest(gradient), largest(gap), largest(at_first) + largest(measure(second))

    try:
        derivatives, gaps, sizes = zip(*(probe(forward, params, k) for k in jr.split(key, 3)), strict=True)
    except Exception as error:
        raise ValueError(
            f"`forward` cannot be differentiated with respect to the signal ({type(error).__name__}); write it with "
            "differentiable JAX operations, or give it a `jax.custom_vjp`."
        ) from error
    derivatives, gaps, sizes = (jnp.stack(x) for x in (derivatives, gaps, sizes))
    if not bool(jnp.all(jnp.isfinite(derivatives))):
        raise ValueError(
            "`forward` has NaN or infinite derivatives at random signals; make it differentiable everywhere."
        )
    if bool(jnp.all(derivatives == 0)):
        raise ValueError(
            "`forward` has zero derivative at random signals, so nothing can be learned through it; replace rounding, "
            "comparisons and integer conversions by differentiable operations."
        )
    tolerance = 1e3 * jnp.finfo(sizes.dtype).eps
    affine = bool(jnp.all(gaps <= tolerance * jnp.maximum(sizes, 1e-30)))
    return affine and _linearises(forward, signal, params)


def _linearises(forward, signal, params) -> bool:
    """Whether there are derivatives in forward mode, which encoders of affine measurements linearise with."""
    try:
        jax.jit(lambda s: jax.jvp(lambda x: forward(x, params), (s,), (s,))).lower(signal)  # where it is refused
    except TypeError:
        return False
    return True


def find_signal(problem: Any, example: Example) -> Structure:
    """The structure of the signal: as given, as the denoiser returns it, or as the forward model knows it."""
    target = structure(example.target)
    if problem.denoiser is not None:
        level = problem.schedule.level(0.5)
        dtype = jax.tree.leaves(example.target.observation)[0].dtype
        level = jax.tree.map(lambda x: x.astype(dtype), level)
        try:
            signal = eqx.filter_eval_shape(
                lambda e: problem.denoiser(e.target.observation, level, e.context, e.target.params, key=None), example
            )
        except Exception as error:
            raise ValueError(
                f"`denoiser` fails on a record of the data ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}); it must be a callable (noisy, level, context, "
                "params, "
                "*, key) -> signal that takes what the data give."
            ) from error
        if problem.signal is not None and describe(problem.signal) != describe(signal):
            raise ValueError(
                f"`denoiser` returns {describe(signal)}, but `signal` is {describe(problem.signal)}; change one of "
                "them."
            )
    else:
        signal = problem.signal
        if signal is None:
            signal = known_signal_structure(problem.forward, target.observation, target.params)
        if signal is None:
            raise ValueError(
                "`signal` is not known: give `StochasticInverseProblem(signal=...)` the PyTree of "
                "`jax.ShapeDtypeStruct` of a "
                "signal, or a denoiser."
            )
    for x in jax.tree.leaves(signal):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"`signal` is {describe(signal)}, but signals must be floating-point arrays; use `jnp.float32`."
            )
        if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            raise ValueError(
                f"`signal` is {jnp.dtype(x.dtype).name}{list(x.shape)}, but JAX computes in single precision; use "
                "`jnp.float32`, or "
                "`jax.config.update('jax_enable_x64', True)`."
            )
    return signal


def check_closures(denoiser: Any):
    """Warns of a network that a function inside the denoiser refers to: `fit` cannot see it, so it is not trained."""
    for leaf in jax.tree.leaves(denoiser):
        for cell in getattr(leaf, "__closure__", None) or ():
            held = cell.cell_contents
            if isinstance(held, eqx.Module) and any(map(eqx.is_inexact_array, jax.tree.leaves(held))):
                warnings.warn(
                    f"`denoiser` holds a {type(held).__name__} in the closure of {leaf.__qualname__}, where `fit` does "
                    "not train it; make the denoiser an Equinox module with it as a field.",
                    stacklevel=3,
                )
