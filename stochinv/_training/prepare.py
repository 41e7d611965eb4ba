r"""From a problem as it was written to one that can be trained: checked, with units and a denoiser."""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

from .._checks import shown
from .._custom_types import Key, Structure, summary
from .._data_info import DataInfo, describe, measure_units, witness
from .._denoiser.base import components, is_standardised
from .._forward.base import known_signal_structure, measures_stack
from .._noising import noise_level
from .._problem_base import AbstractProblem
from .._structure import count_entries
from .._view import Example, RandomViews, View, check_signal, first, first_view, is_view, structure
from ..nn import default_denoiser
from .checks import check_example, measured_otherwise
from .probe import probe

# The most parameters of a measurement, in entries, that are kept to tell forward models apart.
LARGEST_WITNESS = 100_000


def find_structures(problem: AbstractProblem, records: Example | View, roles: RandomViews | None) -> Structure:
    """All checks that shapes and number formats allow, before anything is compiled; the structure of the signal."""
    record = first_view(structure(records))
    deal = lambda views: cast(RandomViews, roles)(views, key=jr.key(0))
    example: Any = record if roles is None else eqx.filter_eval_shape(deal, record)
    check_example(example, problem.forward)
    target = example.target
    problem.noise.check(first_view(target.observation) if measures_stack(problem.forward) else target.observation)
    signal = find_signal(problem, example)
    check_output(problem.forward, signal, target.params, target.observation)
    if example.novel is not None and measured_otherwise(example, problem.forward):
        one: Any = problem.forward.forward if measures_stack(problem.forward) else problem.forward  # pyright: ignore
        novel = first_view(example.novel)
        check_output(one, signal, novel.params, novel.observation)
    return signal


def prepare(
    problem: AbstractProblem,
    records: Example | View,
    signal: Structure,
    roles: RandomViews | None,
    standardise: bool,
    denoiser_key: Key,
    probe_key: Key,
) -> AbstractProblem:
    """A problem that knows the structure and the units of its data, and has a denoiser, all of it checked."""
    record = jax.tree.map(jnp.asarray, first(records))
    example: Any = record if roles is None else roles(record, key=probe_key)
    target = structure(example.target)
    affine = probe(problem.forward, signal, example.target.params, probe_key)
    units = measure_units(_measured(records).observation, standardise=standardise)
    _check_noise(problem, units, example)
    if problem.data_info is not None:
        # Training goes on in the units that the denoiser knows.
        units = problem.data_info.units
    params = example.target.params
    small = count_entries(params) <= LARGEST_WITNESS
    seen = witness(problem.forward, signal, params) if small else None
    info = DataInfo(target.observation, target.params, structure(example.context), units, affine, seen)
    denoiser = problem.denoiser
    if denoiser is None:
        denoiser = default_denoiser(problem.forward, signal, info, key=denoiser_key)
    problem = dataclasses.replace(problem, denoiser=denoiser, signal=signal, data_info=info)
    _check_draws(problem, example)
    problem.objective.check(problem, example)
    return problem


def _measured(records: Any) -> View:
    return records if is_view(records) else records.target


def _check_noise(problem, units, example):
    """Whether the noise can be that of these measurements, which vary by more than their noise."""
    clean = units.destandardise(jax.tree.map(jnp.zeros_like, example.target.observation))
    if not problem.noise.every_level:
        return
    for noise, std in zip(jax.tree.leaves(problem.noise.std(clean)), jax.tree.leaves(units.unit(clean)), strict=True):
        if float(jnp.max(noise)) > 3 * float(std):
            raise ValueError(
                f"`noise` is {float(jnp.max(noise)):.3g}, but measurements have a standard deviation of "
                f"{float(std):.3g} with their noise in it; give the noise in the units of the measurements."
            )


def _check_draws(problem, example):
    """Whether the denoiser of an objective that compares draws makes use of its key."""
    if not problem.objective.stochastic:
        return
    noisy, context, params = example.target.observation, example.context, example.target.params
    level = noise_level(problem.schedule, 0.5, noisy)
    # A mixture draws by its choice alone.
    draw = lambda key: components(problem.denoiser, noisy, level, context, params, key=key)
    traced = jax.make_jaxpr(draw)(jr.key(0)).jaxpr
    used = any(variable is traced.invars[0] for equation in traced.eqns for variable in equation.invars)
    number = jax.tree.leaves(jax.eval_shape(draw, jr.key(0))[1])[0].shape[0]
    if not used and number == 1:
        raise ValueError(
            f"`denoiser` makes no use of its `key`, but `objective` is a {type(problem.objective).__name__}, which "
            "compares draws; use `SquaredError()`, or a denoiser that draws."
        )


def measured_structure(forward, signal, params):
    """The structure of what the forward model returns."""
    try:
        return eqx.filter_eval_shape(forward, signal, params)
    except Exception as error:
        raise ValueError(
            f"`forward` fails on a signal {describe(signal)} with params {describe(params)} ({summary(error)}); it "
            "must be traceable by JAX and take what the data give."
        ) from error


def check_output(forward, signal, params, expected):
    """Whether the forward model returns differentiable measurements of the expected structure."""
    output = measured_structure(forward, signal, params)
    _check_arrays("forward", output)
    holds_complex = any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(expected))
    wanted = jnp.inexact if holds_complex else jnp.floating
    for path, x in jtu.tree_flatten_with_path(output)[0]:
        if not jnp.issubdtype(x.dtype, wanted):
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


def _check_arrays(name, output):
    """Whether a user's function returns arrays, whose structures are `output`."""
    for path, x in jtu.tree_flatten_with_path(output)[0]:
        if not isinstance(x, jax.ShapeDtypeStruct):
            raise ValueError(
                f"`{name}` returns {shown(x)} at output{jtu.keystr(path)}; make it return arrays of numbers."
            )


def find_signal(problem: AbstractProblem, example: Example) -> Structure:
    """The structure of the signal: as given, as the denoiser returns it, or as the forward model knows it."""
    if problem.denoiser is not None:
        signal = _denoised(problem, example)
        if problem.signal is not None and describe(problem.signal) != describe(signal):
            raise ValueError(
                f"`denoiser` returns {describe(signal)}, but `signal` is {describe(problem.signal)}; change one "
                "of them."
            )
    else:
        target = structure(example.target)
        signal = known_signal(problem, target.observation, target.params)
    check_signal(signal)
    _check_real(signal)
    return signal


def _check_real(signal):
    for x in jax.tree.leaves(signal):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError(
                f"`signal` has {x.dtype}{list(x.shape)}, but signals must be real in measurement space; give real and "
                "imaginary parts an axis of their own, and let `forward` join them."
            )


def known_signal(problem: AbstractProblem, observation: Structure, params: Structure) -> Structure:
    """The structure of the signal, as given or as the forward model knows it from that of a measurement.

    **Raises:**

    `ValueError` if neither tells it.
    """
    signal = problem.signal
    if signal is None:
        signal = known_signal_structure(problem.forward, observation, params)
    if signal is None:
        raise ValueError(
            "`signal` is not known: give `StochasticInverseProblem(signal=...)` the PyTree of "
            "`jax.ShapeDtypeStruct` of a signal, or a denoiser."
        )
    return signal


def _denoised(problem, example):
    if is_standardised(problem.denoiser):
        raise ValueError(
            f"`denoiser` is a {type(problem.denoiser).__name__}, which is for signals that are noised; leave `roles` "
            "out for signal space, or give a denoiser of signals in raw units."
        )
    try:
        signal = eqx.filter_eval_shape(
            lambda noisy, context, params: problem.denoiser(
                noisy, noise_level(problem.schedule, 0.5, noisy), context, params, key=None
            ),
            example.target.observation,
            example.context,
            example.target.params,
        )
    except Exception as error:
        raise ValueError(
            f"`denoiser` fails on a record of the data ({summary(error)}); it must be a callable (noisy, level, "
            "context, params, *, key) -> signal that takes what the data give."
        ) from error
    _check_arrays("denoiser", signal)
    return signal
