"""`fit` refuses bad data, options, forward models and denoisers before its first step, in one sentence."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import stochinv as si
import training
from refusals import altered, examples, fit, fit_views, key, problem, problem_of, refuse, views, with_target

NAN, INF = float("nan"), float("inf")
case = pytest.param


def target(number=24, dtype=np.float32):
    return np.ones((number, 2), dtype)


def with_views(observation=None, params=None):
    data = views()
    observation = data.observation if observation is None else observation
    return fit_views(si.View(observation, data.params if params is None else params))


def with_novel(novel):
    return fit(si.Example(examples().context, examples().target, novel))


def with_context(context, **options):
    return fit(si.Example(context, examples().target, examples().novel), problem_of(**options))


def first(number):
    return jax.tree.map(lambda x: x[:number], examples())


OBSERVATION, PARAMS = "`data.target.observation", "`data.target.params"
MASKED = si.View(np.ones((24, 4, 2), np.float32), np.ones((24, 4, 2, 3), np.float32), np.ones((24, 4), bool))
DATA = [
    case(lambda: fit(3), "`data` must be an `Example`, a `View` .* got 3", id="number"),
    case(lambda: fit("clips.npz"), "`data` must be .* got 'clips.npz'", id="path"),
    case(lambda: fit({"image": target()}), r"`data` must be .* got \{'image'", id="dict"),
    case(lambda: fit(target()), r"`data` must be .* array of float32 of shape \(24, 2\)", id="array"),
    case(lambda: fit((target(), target())), "`data` must be, or yield, .* a batch is an array", id="tuple"),
    case(lambda: fit([]), "`data` is an iterable without a single batch; give", id="no-batches"),
    case(lambda: fit([None]), "`data` must be, or yield.* a batch is None", id="batch-none"),
    case(lambda: fit([{"image": target()}]), r"a batch is \{'image'", id="batch-dict"),
    case(lambda: fit(iter(["a"])), "a batch is 'a'", id="batch-string"),
    case(lambda: fit([with_target(altered(target(), 0, NAN))]), OBSERVATION + "` has 2 NaN or inf", id="batch-nan"),
    case(
        lambda: fit(with_target(altered(target(), (3, 1), NAN))), OBSERVATION + "` has 1 NaN .* of 48; remove", id="nan"
    ),
    case(lambda: fit(with_target(altered(target(), 3, INF))), OBSERVATION + "` has 2 NaN or infinite", id="inf"),
    case(lambda: fit(with_target(params=np.full((24, 2, 3), NAN))), PARAMS + "` has 144 NaN", id="params-nan"),
    case(lambda: with_views(np.full((24, 4, 2), NAN)), "`data.observation` has 192 NaN", id="views-nan"),
    case(lambda: fit(si.Example(None, si.View(None))), "`data` has arrays of shapes", id="nothing"),
    case(lambda: fit(with_target(["a"] * 24)), OBSERVATION + r"\[0\]` is 'a', but must be an array", id="strings"),
    case(lambda: fit(with_target(np.array(["a"] * 24))), OBSERVATION + "` is an array of <U1, but", id="string-array"),
    case(lambda: fit(with_target(np.array([None] * 24))), OBSERVATION + "` is an array of object", id="objects"),
    case(lambda: fit(with_target([[1.0, 2.0]] * 24)), "`data` has arrays of shapes .* lists of numbers", id="lists"),
    case(
        lambda: fit(with_target([np.ones(2), np.ones(3)])), "`data` has arrays of shapes .* same leading", id="ragged"
    ),
    case(lambda: fit(with_target(lambda: 0)), OBSERVATION + "` is <function", id="function"),
    case(
        lambda: fit(with_target(target(dtype=bool))),
        r"`target.observation` is bool, .*astype\(jnp.float32\)",
        id="booleans",
    ),
    case(lambda: fit(with_target(target(dtype=bool))), "`target.observation` is bool, .* floating-point", id="bools"),
    case(
        lambda: fit(with_target(target(dtype=complex))), "`target.observation` is complex.*x.real, x.imag", id="complex"
    ),
    case(lambda: fit(with_target(target(dtype=np.float16))), "`data` mixes number formats .*convert all", id="half"),
    case(lambda: fit(with_target(target(23))), "`data` has arrays of shapes .* same leading record axis", id="uneven"),
    case(lambda: fit(first(0)), "`data` has no records; give at least one", id="no-records"),
    case(lambda: fit(with_target(np.float32(1))), "`data` has arrays of shapes", id="no-axis"),
    case(lambda: fit(batch_size=25), "`batch_size` is 25, but `data` has 24 records; use at most 24", id="batch-size"),
    case(
        lambda: fit(views(), problem=problem_of(space=si.MeasurementSpace())),
        r"`data` is a `View`, so `roles` is needed; give `roles=RandomViews",
        id="no-roles",
    ),
    case(
        lambda: fit(roles=si.RandomViews()),
        "`data` is an `Example`, whose roles are dealt .* leave out",
        id="roles-twice",
    ),
    case(
        lambda: fit_views(roles=si.RandomViews(4, 1, 1)),
        r"RandomViews: 6 views are needed .* has 4; give",
        id="few-views",
    ),
    case(
        lambda: fit_views(roles=si.RandomViews(1, 2, 1)),
        r"`roles` deals 2 target .*need MultiView\(forward\)",
        id="two",
    ),
    case(
        lambda: fit_views(problem=problem_of(si.MultiView(training.measure))),
        "`roles` deals 1 target .* `forward` measures a `MultiView`",
        id="one-target-of-multi-view",
    ),
    case(lambda: fit_views(MASKED), "RandomViews: a stack of views with a `mask` cannot be dealt; give", id="masked"),
    case(
        lambda: fit_views(si.View(views().observation)),
        "`data.params` is None, but several .* give one",
        id="no-params",
    ),
    case(lambda: with_novel(si.View(examples().novel.observation)), "`novel.params` is None.* give", id="novel-params"),
    case(
        lambda: with_novel(si.View(examples().novel.observation[..., :1], examples().novel.params)),
        "`novel.observation` is .* must be a stack of measurements like the target's",
        id="novel-shape",
    ),
    case(
        lambda: with_context(si.View(examples().context.observation)), "`context.params` is None", id="context-params"
    ),
    case(
        lambda: with_context(jax.tree.map(lambda x: x[:, 0], examples().context)),
        "`context.observation` is .* must be a stack .*; give",
        id="context-not-stacked",
    ),
    case(
        lambda: fit(si.Example(None, si.View(target(), None))), "`denoiser` fails .*AttributeError", id="target-params"
    ),
    case(
        lambda: fit(si.Example(None, examples().target), problem_of(noise=0.1)),
        "`noise` is GaussianNoise.*, so novel measurements are needed",
        id="noise-without-novel",
    ),
    case(
        lambda: fit_views(problem=problem_of(noise=0.1), roles=si.RandomViews(1, 1, 0)),
        "`noise` is GaussianNoise.*, so novel measurements are needed",
        id="noise-without-novel-views",
    ),
    case(
        lambda: fit(problem=problem_of(noise={"a": 0.1})), "`noise` must be a scalar or have the structure", id="noise"
    ),
    case(lambda: fit(problem=problem_of(noise=1e30)), r"`noise` is 1e\+30, but measurements have", id="noise-1e30"),
    case(lambda: fit(with_target(7 * target())), "`data` is constant: every measurement is 7, .*check", id="constant"),
    case(lambda: fit(validation=[examples()]), "`validation` must be an `Example` or a `View`", id="validation-list"),
    case(lambda: fit(validation=0.1), "`validation` must be .* got 0.1; leave it out", id="validation-share"),
    case(lambda: fit(validation=views()), "`validation` is a `View`, so `roles` is needed", id="validation-view"),
    case(lambda: fit(validation=first(0)), "`validation` has no records; give", id="validation-empty"),
    case(
        lambda: fit(validation=with_target(altered(target(), 0, NAN))),
        "`validation.target.observation` has 2 NaN",
        id="validation-nan",
    ),
    case(
        lambda: fit(validation=si.Example(None, examples().target, examples().novel)),
        r"`validation\[0\]` is .* is expected; give validation records like",
        id="validation-without-context",
    ),
]
# What is known of values alone is found by a few small programs.
COMPUTED = {"noise-1e30", "constant", "noise-without-novel", "noise-without-novel-views"}


@pytest.mark.parametrize("call, message", DATA)
def test_data(call, message, request):
    refuse(call, message, compiles=request.node.callspec.id in COMPUTED)


WRONG = {
    "steps": (0, -1, 10.5, True, "10", NAN),
    "batch_size": (0, -1, 2.5, True, "8", None),
    "log_every": (0, 2.5),
    "checkpoint_every": (0, None),
    "validation_every": (0, "1"),
    "gradient_clip": (0, -1, NAN, INF, "1", True),
    "optimizer": (1e-3, "adam", optax.adam, optax.GradientTransformation),
    "ema": (0.999, "power", si.PowerEMA),
    "callbacks": (print, ["a"], None, {}),
    "tracker": ("run.csv", print, si.trackers.CSVTracker),
    "profile": (10, (10,), (-1, 5), (10, 0), (1.5, 5), True, "10", (0, 1)),
    "progress": ("yes", 1),
    "sharding": (0, "model"),
    "checkpoint": ("", 3, __file__, __file__ + "/folder"),
    "resume": ("no", 1, None),
    "standardise": (2, "yes", None),
    "roles": ((1, 1, 1), 2, si.RandomViews),
    "key": (0, None, "0", np.int32(0), np.zeros(2, np.int32), jnp.zeros(3, jnp.uint32)),
}
OPTIONS = [case(name, value, id=f"{name}-{value!r:.20}") for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize("name, value", OPTIONS)
def test_options(name, value):
    refuse(lambda: fit_views(**{name: value}), f"`{name}` (must be|is) ")


@pytest.mark.parametrize("name", ["steps", "gradient_clip", "optimizer", "ema", "standardise", "roles", "key"])
def test_options_of_init(name):
    options = {"key": key(), "roles": training.ROLES, name: WRONG[name][0]}
    refuse(lambda: si.init(problem(), views(), **options), f"`{name}` must be ")


def test_more_of_init():
    refuse(lambda: si.init(training.measure, views(), key=key()), "`problem` must be a `StochasticInverseProblem`")
    refuse(lambda: si.init(problem(), [examples()], key=key()), "`data` must be, or yield, an `Example`")
    refuse(lambda: si.init(problem(), views(), key=key()), "`data` is a `View`, so `roles` is needed")
    refuse(lambda: fit(key=jr.split(key())), r"`key` must be one PRNG key .*of shape \(2,\)", compiles=True)


def call_back(signal, params):
    return jax.pure_callback(lambda p, s: np.asarray(p) @ s, jax.ShapeDtypeStruct((2,), jnp.float32), params, signal)


def raise_own(*args, **options):
    raise RuntimeError("the detector is off\nand cold")


FORWARD = [
    case(lambda s, p: (p @ s)[:1], r"`forward` returns float32\[1\] for .* data's .* float32\[2\]; change", id="shape"),
    case(lambda s, p: {"a": p @ s}, r"`forward` returns \{a: float32\[2\]\}", id="structure"),
    case(lambda s, p: p["matrix"] @ s, "`forward` fails on a signal .* with params float32", id="params"),
    case(lambda s: s, "`forward` fails on a signal .*TypeError", id="arguments"),
    case(lambda s, p: jnp.asarray(np.asarray(p) @ np.asarray(s)), "`forward` fails .*must be traceable", id="numpy"),
    case(lambda s, p: None, "`forward` returns None", id="none"),
    case(lambda s, p: "image", "`forward` (fails|returns) ", id="string"),
    case(lambda s, p: (p @ s).astype(jnp.int32), "`forward` returns int32 at output.* must be floating", id="ints"),
    case(lambda s, p: p @ s > 0, "`forward` returns bool at output", id="bools"),
    case(lambda s, p: (p @ s).astype(jnp.float16), r"`forward` returns float16\[2\], but .*use one number", id="half"),
    case(lambda s, p: (p @ s).astype(jnp.complex64), "`forward` returns complex64 at output.* must be", id="complex"),
    case(raise_own, r"`forward` fails .*\(RuntimeError: the detector is off\); it must", id="raises"),
    case(lambda s, p: jnp.log(p @ s), "`forward` returns NaN or infinite measurements of . of 3 random", id="nan"),
    case(call_back, "`forward` cannot be differentiated with respect .*custom_vjp", id="callback"),
    case(lambda s, p: jnp.round(p @ s), "`forward` has zero derivative .*replace rounding", id="rounding"),
    case(lambda s, p: p[:, 0], "`forward` has zero derivative at random signals", id="constant"),
    case(lambda s, p: jnp.sqrt(p @ (s - s)), "`forward` has NaN or infinite derivatives.*make it", id="derivative"),
]
# These are found by measuring random signals.
MEASURED = {"nan", "callback", "rounding", "constant", "derivative"}


@pytest.mark.parametrize("forward, message", FORWARD)
def test_forward_models(forward, message, request):
    name = request.node.callspec.id
    error = refuse(lambda: fit(problem=problem_of(forward)), message, compiles=name in MEASURED)
    # The user's own exception, all of it.
    assert name != "raises" or str(error.__cause__) == "the detector is off\nand cold"


class Whole(eqx.Module):
    weight: Any

    def __call__(self, noisy, level, context, params, *, key=None):
        return jnp.zeros(3) + 0.0 * self.weight[0]


SCORED = si.ProperScore()
DENOISERS = [
    case(lambda: problem_of(denoiser=raise_own), r"`denoiser` fails .*\(RuntimeError: the detector", id="raises"),
    case(lambda: problem_of(denoiser=lambda x: x), "`denoiser` fails .*TypeError.* must be a callable", id="arguments"),
    case(
        lambda: problem_of(denoiser=lambda *a, key: jnp.zeros(4)), r"`denoiser` returns float32\[4\], but", id="shape"
    ),
    case(lambda: problem_of(denoiser=lambda *a, key: None), "`denoiser` returns None, but `signal` is", id="none"),
    case(lambda: problem_of(denoiser=lambda *a, key: "a"), "`denoiser` (returns|fails)", id="string"),
    case(
        lambda: problem_of(denoiser=lambda *a, key: jnp.zeros(3, jnp.int32), signal=None),
        r"`signal` has int32\[3\]",
        id="integers",
    ),
    case(lambda: problem_of(denoiser=None, signal=None), "`signal` is not known: give", id="unknown-signal"),
    case(
        lambda: problem_of(
            lambda s, p: p @ s[:3], None, signal=jax.ShapeDtypeStruct((70_000,), jnp.float32), objective=SCORED
        ),
        "MLP with 70000 outputs; give a `denoiser`",
        id="huge",
    ),
    case(
        lambda: problem_of(denoiser=lambda noisy, level, context, params, *, key: params.T @ noisy),
        "`denoiser` has no floating-point arrays to train; make",
        id="nothing-to-train",
    ),
    case(
        lambda: problem_of(denoiser=Whole(np.ones(1, np.int32))),
        "`denoiser` has no floating-point arrays to train",
        id="integers-to-train",
    ),
    case(lambda: problem_of(objective=SCORED), "`denoiser` makes no use of its `key`.* use `SquaredError", id="no-key"),
    case(
        lambda: problem_of(noise=si.PoissonNoise()),
        "`objective` is a SquaredError, but `noise` is PoissonNoise.*; use `ProperScore",
        id="squared-error-of-counts",
    ),
]
TRACED = {"raises", "arguments", "shape", "none", "string", "integers", "unknown-signal"}


@pytest.mark.parametrize("make, message", DENOISERS)
def test_denoisers(make, message, request):
    refuse(lambda: fit(problem=make()), message, compiles=request.node.callspec.id not in TRACED)


@pytest.mark.thorough
def test_complex_params_of_the_default_network():
    """Their real and imaginary parts are two numbers each."""
    data = jax.tree.map(lambda x: x.astype(complex) if x.shape[-1] == 3 else x, examples())
    made = problem_of(lambda signal, params: params.real @ signal, None, objective=SCORED)
    assert np.isfinite(fit(data, made).history.loss[-1])
