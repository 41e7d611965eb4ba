"""Bad input: each case is refused before the first step, in one sentence that says what is wrong and what to do."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from stochinv._batches import as_batches


def refuse(problem, data, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        training.fit(problem, data, **options)
    assert "\n" not in str(caught.value)


def problem_of(forward, denoiser=None, **options):
    return si.StochasticInverseProblem(forward, denoiser, **{"signal": training.SIGNAL, **options})


def with_target(data, observation=None, params=None):
    target = data.target
    return si.Example(
        data.context,
        si.View(
            target.observation if observation is None else observation, target.params if params is None else params
        ),
        data.novel,
    )


EXAMPLES = training.examples


def test_measurements_of_another_shape():
    data = EXAMPLES()
    refuse(
        problem_of(lambda s, p: (p @ s)[:1]),
        data,
        r"`forward` returns float32\[1\] for a signal float32\[3\], but the data's .* float32\[2\]; change",
    )
    refuse(problem_of(lambda s, p: {"a": p @ s}), data, r"`forward` returns \{a: float32\[2\]\}")


def test_a_forward_model_that_fails_on_the_params():
    refuse(problem_of(lambda s, p: p["matrix"] @ s), EXAMPLES(), r"`forward` fails on a signal .* with params float32")


def test_context_and_novel_views_must_be_like_the_target():
    data = EXAMPLES()
    wrong = si.View(data.novel.observation[..., :1], data.novel.params)
    refuse(
        training.problem(),
        si.Example(data.context, data.target, wrong),
        r"`novel.observation` is .*must be a stack of measurements like the target's",
    )
    unstacked = si.View(data.context.observation[:, 0], data.context.params[:, 0])
    refuse(training.problem(), si.Example(unstacked, data.target, data.novel), "`context.observation` is ")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad):
    data = EXAMPLES()
    observation = data.target.observation.at[3, 1].set(bad)
    message = r"`data.target.observation` has 1 NaN or infinite values of 48; remove or fill them"
    refuse(training.problem(), with_target(data, observation), message)
    refuse(training.problem(), [with_target(data, observation)], message)
    params = data.target.params.at[0].set(bad)
    refuse(training.problem(), with_target(data, params=params), "`data.target.params` has 6 NaN")
    views = training.views()
    views = si.View(views.observation.at[0].set(bad), views.params)
    refuse(training.problem(), views, "`data.observation` has 8 NaN", roles=training.ROLES)
    refuse(training.problem(), data, "`validation.target.observation` has", validation=with_target(data, observation))


def test_missing_params():
    data = EXAMPLES()
    missing = si.Example(data.context, si.View(data.target.observation), data.novel)
    refuse(problem_of(training.measure), missing, "`forward` fails on a signal .* with params None")
    refuse(
        training.problem(),
        si.View(training.views().observation),
        "`data.params` is None, but several views of one signal need the parameters",
        roles=training.ROLES,
    )
    novel = si.View(data.novel.observation)
    refuse(training.problem(), si.Example(data.context, data.target, novel), "`novel.params` is None")
    context = si.View(data.context.observation)
    refuse(training.problem(), si.Example(context, data.target, data.novel), "`context.params` is None")


def call_back(signal, params):
    return jax.pure_callback(lambda p, s: np.asarray(p) @ s, jax.ShapeDtypeStruct((2,), jnp.float32), params, signal)


@pytest.mark.parametrize(
    "forward, message",
    [
        (lambda s, p: jnp.asarray(np.asarray(p) @ np.asarray(s)), "`forward` fails .*must be traceable by JAX"),
        (call_back, "`forward` cannot be differentiated with respect to the signal .*custom_vjp"),
        (lambda s, p: jnp.round(p @ s), "`forward` has zero derivative at random signals.*replace rounding"),
        (lambda s, p: p[:, 0], "`forward` has zero derivative"),
        (lambda s, p: jnp.sqrt(p @ (s - 100 * jnp.abs(s))), "`forward` has NaN or infinite derivatives"),
        (lambda s, p: (p @ s).astype(jnp.int32), "`forward` returns int32 at output.*must be floating-point"),
        (lambda s, p: p @ s > 0, "`forward` returns bool"),
    ],
    ids=["numpy", "callback", "rounding", "constant", "nan", "integers", "booleans"],
)
def test_a_forward_model_that_cannot_be_learned_through(forward, message):
    refuse(problem_of(forward), EXAMPLES(), message)


@jax.custom_vjp
def in_reverse_only(signal, params):
    return params @ signal


in_reverse_only.defvjp(lambda s, p: (p @ s, (s, p)), lambda kept, g: (kept[1].T @ g, jnp.outer(g, kept[0])))


@pytest.mark.slow
def test_a_forward_model_with_a_derivative_of_its_own_trains():
    # Affine, but not to be linearised; so are solvers of differential equations.
    fit = training.fit(problem_of(in_reverse_only), EXAMPLES())
    assert np.all(np.isfinite(fit.history.loss)) and not fit.problem.data_info.affine
    assert training.fit(problem_of(training.measure), EXAMPLES()).problem.data_info.affine


def test_integer_measurements():
    data = EXAMPLES()
    message = r"`target.observation` is int32, but measurements must be floating-point arrays; convert with"
    refuse(training.problem(), with_target(data, jnp.ones((24, 2), jnp.int32)), message)


def test_mixed_number_formats(x64):
    data = EXAMPLES()
    mixed = with_target(data, np.asarray(data.target.observation, np.float64))
    message = "Measurements mix number formats .*target.observation float64, .*novel.observation float32.*convert all"
    refuse(training.problem(), mixed, message)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), data)
    single = lambda s, p: (p @ s).astype(jnp.float32)
    message = r"`forward` returns float32\[2\], but the data are float64\[2\]; use one number format"
    refuse(problem_of(single), double, message)


def test_double_precision_trains(x64):
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), EXAMPLES())
    denoiser = jax.tree.map(lambda x: x.astype(jnp.float64), training.LinearDenoiser(jr.key(0)))
    trained = training.fit(problem_of(training.measure, denoiser, signal=None), double, steps=2).problem
    assert trained.denoiser.target.dtype == jnp.float64
    context = jax.tree.map(lambda x: x[0], double.context)
    sample = trained.sample(context, double.target.params[0], key=jr.key(0), sampler=si.Ancestral(2))
    assert sample.signal.dtype == jnp.float64


def test_number_of_records():
    none = jax.tree.map(lambda x: x[:0], EXAMPLES())
    refuse(training.problem(), none, "`data` has no records; give at least one")
    refuse(
        training.problem(), EXAMPLES(), "`batch_size` is 25, but `data` has 24 records; use at most 24", batch_size=25
    )
    refuse(training.problem(), EXAMPLES(), "`batch_size` must be at least 1, got 0", batch_size=0)
    data = EXAMPLES()
    uneven = si.Example(data.context, data.target, jax.tree.map(lambda x: x[:-1], data.novel))
    refuse(training.problem(), uneven, "`data` has arrays of shapes .*the same leading record axis")
    refuse(training.problem(), [], "`data` is an iterable without a single batch")


def test_roles():
    refuse(training.problem(), training.views(), r"`data` is a `View`, so `roles` is needed: `roles=RandomViews")
    refuse(
        training.problem(), EXAMPLES(), "`data` is an `Example`, whose roles are dealt already", roles=si.RandomViews()
    )
    refuse(
        training.problem(),
        training.views(),
        r"RandomViews: 6 views are needed \(context 4, target 1, novel 1\), but a record has 4; give more views",
        roles=si.RandomViews(4, 1, 1),
    )
    refuse(
        training.problem(),
        training.views(),
        r"`roles` deals 2 target view\(s\), which need MultiView\(forward\)",
        roles=si.RandomViews(1, 2, 1),
    )
    multi = problem_of(si.MultiView(training.measure))
    refuse(multi, training.views(), "`forward` measures a `MultiView`", roles=training.ROLES)
    data = training.views()
    masked = si.View(data.observation, data.params, jnp.ones((24, 4), bool))
    refuse(training.problem(), masked, "with a `mask` cannot be dealt", roles=training.ROLES)
    for options in ({"context": (2, 1)}, {"context": -1}, {"target": 0}, {"novel": -1}):
        with pytest.raises(ValueError, match=f"RandomViews: `{next(iter(options))}` must be"):
            si.RandomViews(**options)


def test_other_types_of_data():
    with pytest.raises(ValueError, match="`data` must be an `Example`, a `View` .* got int"):
        as_batches(3, 8, (0,))
    refuse(training.problem(), [{"image": jnp.ones((4, 2))}], "`data` yields batches of type dict; make each")
    other = si.Example(None, EXAMPLES().target, EXAMPLES().novel)
    refuse(training.problem(), EXAMPLES(), r"`validation\[0\]` is .*like those of `data`", validation=other)


def test_measurement_noise():
    data = EXAMPLES()
    alone = si.Example(data.context, data.target)
    refuse(training.problem(noise=0.1), alone, "`noise` is positive, so novel measurements are needed")
    refuse(
        training.problem(noise=0.1), training.views(), "novel measurements are needed", roles=si.RandomViews(1, 1, 0)
    )
    objective = si.ProperScore(context_weight=1.0)
    refuse(
        training.problem(noise=0.1, objective=objective), data, "`noise` is positive, so the context must not be scored"
    )
    refuse(training.problem(noise={"a": 0.1}), data, "`noise`")
    with pytest.raises(ValueError, match=r"`noise` must consist of scalars, got one of shape \(2,\)"):
        training.problem(noise=jnp.ones(2))


def test_denoisers():
    def failing(noisy, level, context, params, *, key=None):
        raise RuntimeError("out of order")

    refuse(
        problem_of(training.measure, failing),
        EXAMPLES(),
        r"`denoiser` fails on a record of the data \(RuntimeError: out of order\); it must be a callable",
    )
    other = lambda noisy, level, context, params, *, key=None: jnp.zeros(4)
    refuse(
        problem_of(training.measure, other),
        EXAMPLES(),
        r"`denoiser` returns float32\[4\], but `signal` is float32\[3\]",
    )
    bare = lambda noisy, level, context, params, *, key=None: params.T @ noisy
    refuse(problem_of(training.measure, bare), EXAMPLES(), "`denoiser` has no floating-point arrays to train")


def test_signals():
    refuse(problem_of(training.measure, signal=None), EXAMPLES(), "`signal` is not known: give")
    whole = jax.ShapeDtypeStruct((3,), jnp.int32)
    refuse(
        problem_of(training.measure, signal=whole), EXAMPLES(), r"`signal` is int32\[3\], but signals must be floating"
    )
    double = jax.ShapeDtypeStruct((3,), np.float64)
    refuse(
        problem_of(training.measure, signal=double),
        EXAMPLES(),
        r"`signal` is float64\[3\], but JAX computes in single",
    )
    huge = jax.ShapeDtypeStruct((70_000,), jnp.float32)
    refuse(problem_of(lambda s, p: p @ s[:3], signal=huge), EXAMPLES(), "MLP with 70000 outputs; give a `denoiser`")


@pytest.mark.parametrize("option", ["steps", "log_every", "checkpoint_every"])
def test_numbers_of_steps(option):
    refuse(training.problem(), EXAMPLES(), "must be at least 1, got", **{option: 0})


def test_averages():
    with pytest.raises(ValueError, match="PowerEMA: `gamma` must be greater than -1, got -1"):
        si.PowerEMA(-1.0)
    with pytest.raises(ValueError, match="ExponentialEMA: `rate` must lie strictly between 0 and 1, got 1"):
        si.ExponentialEMA(1.0)


@pytest.fixture(scope="module")
def trained():
    return training.fit(training.problem(), EXAMPLES(), steps=1).problem


def test_context_and_params_other_than_in_training(trained):
    data = EXAMPLES()
    context = jax.tree.map(lambda x: x[0], data.context)
    params = data.target.params[0]
    trained.posterior(context, params)
    remedy = "give a context like those of the training data"
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), context)
    for bad in (None, context.observation, two, si.View(context.observation, None)):
        with pytest.raises(ValueError, match=f"`context` is .* is expected; {remedy}"):
            trained.posterior(bad, params)
        with pytest.raises(ValueError, match=f"`context` is .*{remedy}"):
            trained.sample(bad, params, key=jr.key(0))
    for bad in (None, {"matrix": params}, params[:1], params.astype(jnp.int32)):
        with pytest.raises(ValueError, match="`params` is .* is expected; give the parameters of one target"):
            trained.posterior(context, bad)


def test_an_untrained_problem_does_not_sample():
    untrained = training.problem(denoiser=None)
    params = EXAMPLES().target.params[0]
    message = r"not trained \(`denoiser=None`\): call `fit`, `load`, or give a denoiser"
    with pytest.raises(ValueError, match=message):
        untrained.posterior(None, params)
    with pytest.raises(ValueError, match=message):
        untrained.sample(None, params, key=jr.key(0))
    level = untrained.schedule.level(0.5)
    with pytest.raises(ValueError, match=message):
        untrained.score(jnp.zeros(2), level, None, params)


@pytest.mark.parametrize("number", [0, -3])
@pytest.mark.parametrize("sampler", [si.Ancestral, si.ReverseSDE, si.ProbabilityFlow, si.ExponentialAdams])
def test_samplers_need_steps(sampler, number):
    with pytest.raises(ValueError, match=f"{sampler.__name__}: `num_steps` must be .*{number}"):
        sampler(num_steps=number)


def test_numbers_of_samples(trained):
    data = EXAMPLES()
    context = jax.tree.map(lambda x: x[0], data.context)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        trained.sample(context, data.target.params[0], key=jr.key(0), num_samples=0)
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1, got 0"):
        trained.sample(context, data.target.params[0], key=jr.key(0), num_samples=1, chunk_size=0)
    unknown = dataclasses.replace(trained, signal=None)
    with pytest.raises(ValueError, match="`signal` is not known"):
        unknown.sample(context, data.target.params[0], key=jr.key(0))


def test_a_network_in_a_closure_is_not_trained():
    network = training.problem().denoiser

    class Denoiser(eqx.Module):
        scale: jax.Array
        function: Any

        def __call__(self, *args, key=None):
            return self.scale * self.function(*args)

    denoiser = Denoiser(jnp.ones(()), lambda *args: network(*args))
    with pytest.warns(UserWarning, match="`denoiser` holds a LinearDenoiser in the closure of .*lambda"):
        training.fit(training.problem(denoiser=denoiser), training.examples())
