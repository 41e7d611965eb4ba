"""What a refused input must look like, and small problems to refuse it in.

Users have no run-time checks of annotations, and meet those of the library itself. So these tests switch the checks of
jaxtyping off while they run (`without_annotations`): the option of Pytest has them on in all others.
"""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.random as jr
import jaxtyping
import numpy as np
import pytest

import stochinv as si
import training

COMPILED = []


def _count(name, duration, **options):
    if name.endswith("backend_compile_duration"):
        COMPILED.append(name)


jax.monitoring.register_event_duration_secs_listener(_count)


@contextlib.contextmanager
def without_annotations():
    """No run-time checks of annotations, as users have it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def refuse(call, message, kind=ValueError, *, compiles=False):
    """Whether a call is refused in one sentence that names an argument and says what to do, before any compilation."""
    warm_up()
    with without_annotations():
        before = len(COMPILED)
        with pytest.raises(kind) as caught:
            call()
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text and text.endswith("."), text
    assert len(text) < 600, text
    assert re.search("`[^`]+`", text) and re.search(r"must |give |use |make |write |convert |; ", text), text
    assert compiles or len(COMPILED) == before, f"{len(COMPILED) - before} programs were compiled for: {text}"
    return caught.value


def warm_up():
    """Makes what all cases share, so that its compilation is not counted as theirs.

    Anew each time, since what was compiled is forgotten from one file of tests to the next.
    """
    return key(), examples(), views(), problem(), trained().posterior(record().context, record().target.params)


@functools.cache
def key():
    return jr.key(0)


@functools.cache
def examples():
    return jax.tree.map(np.asarray, training.examples())


@functools.cache
def views():
    return jax.tree.map(np.asarray, training.views())


@functools.cache
def problem(**options):
    return training.problem(**options)


def problem_of(forward=training.measure, denoiser="linear", **options):
    denoiser = problem().denoiser if denoiser == "linear" else denoiser
    return si.StochasticInverseProblem(
        forward, denoiser, **{"signal": training.SIGNAL, "objective": si.SquaredError(), **options}
    )


def record():
    return jax.tree.map(lambda x: x[0], examples())


@functools.cache
def trained():
    """A problem as `fit` leaves it, without the fit."""
    struct = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    units = si.Units(np.float32(0), np.float32(1))
    one = record()
    info = si.DataInfo(struct(one.target.observation), struct(one.target.params), struct(one.context), units)
    return dataclasses.replace(problem(), data_info=info)


def altered(array, index, value):
    """A copy of an array with one entry changed."""
    array = np.array(array)
    array[index] = value
    return array


def with_target(observation=None, params=None):
    data = examples()
    observation = data.target.observation if observation is None else observation
    params = data.target.params if params is None else params
    return si.Example(data.context, si.View(observation, params), data.novel)


def fit(data=None, problem=None, **options):
    problem = globals()["problem"]() if problem is None else problem
    options = {"key": key(), "steps": 2, "batch_size": 8, "progress": False, **options}
    return problem.fit(examples() if data is None else data, **options)


def fit_views(data=None, problem=None, **options):
    return fit(views() if data is None else data, problem, **{"roles": training.ROLES, **options})
