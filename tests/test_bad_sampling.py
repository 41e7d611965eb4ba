"""Posteriors, samplers at work and files refuse bad input in one sentence."""

import dataclasses

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from refusals import altered, key, problem, problem_of, record, refuse, trained

NAN, INF = float("nan"), float("inf")
case = pytest.param


def context(observation=None, params=None, mask=None):
    one = record().context
    return si.View(
        one.observation if observation is None else observation, one.params if params is None else params, mask
    )


def params():
    return record().target.params


def posterior(given=None, at=None, **options):
    return trained().posterior(context() if given is None else given, params() if at is None else at, **options)


def sample(given=None, at=None, **options):
    return trained().sample(
        context() if given is None else given, params() if at is None else at, **{"key": key(), **options}
    )


def log_prob(observation=None, at=None, **options):
    return posterior(at=at).log_prob(record().target.observation if observation is None else observation, **options)


TWICE = jax.tree.map(lambda x: np.concatenate([x, x]), record().context)
UNLIKE = "`context` is .* is expected; give a context like those of the training data"
GIVEN = [
    case(lambda: trained().posterior(None, params()), UNLIKE, id="none"),
    case(lambda: posterior(context().observation), UNLIKE, id="array"),
    case(lambda: posterior(TWICE), UNLIKE, id="more-views"),
    case(lambda: sample(TWICE), UNLIKE, id="more-views-to-sample"),
    case(lambda: posterior(si.View(context().observation)), UNLIKE, id="without-params"),
    case(lambda: posterior(record()), UNLIKE, id="example"),
    case(lambda: posterior(jax.tree.map(lambda x: x[None], context())), UNLIKE, id="batch"),
    case(lambda: posterior(context(np.ones((1, 2), bool))), UNLIKE, id="booleans"),
    case(lambda: posterior([[1.0, 2.0]] * 500), UNLIKE, id="lists"),
    case(lambda: posterior("clip.npz"), "`context` is 'clip.npz', but must be an array .* convert", id="string"),
    case(lambda: posterior(print), "`context` is <built-in function print>", id="function"),
    case(lambda: posterior(np.array(["a"])), "`context` is an array of <U1, but must hold numbers", id="string-array"),
    case(lambda: posterior(context(np.full((1, 2), NAN))), "`context.observation` has 2 NaN .* of 2; remove", id="nan"),
    case(lambda: sample(context(np.full((1, 2), INF))), "`context.observation` has 2 NaN or infinite", id="inf"),
    case(lambda: sample(context(params=np.full((1, 2, 3), NAN))), "`context.params` has 6 NaN", id="nan-in-params"),
    case(
        lambda: sample(context(np.full((1, 2), NAN), mask=np.ones(1, bool))),
        "`context.observation` has 2 NaN .*or mask their view out",
        id="nan-that-counts",
    ),
    case(
        lambda: trained().posterior(context()), "`params` is None, but .* is expected; give the parameters", id="params"
    ),
    case(lambda: posterior(at={"matrix": params()}), r"`params` is \{matrix: .* is expected; give", id="params-dict"),
    case(
        lambda: posterior(at=params()[:1]),
        r"`params` is float32\[1, 3\], but float32\[2, 3\] is exp",
        id="params-shape",
    ),
    case(lambda: posterior(at=params().astype(int)), r"`params` is int\d+\[2, 3\]", id="params-ints"),
    case(lambda: posterior(at=np.full((2, 3), NAN)), "`params` has 6 NaN or infinite values of 6", id="params-nan"),
    case(
        lambda: sample(at=np.full((2, 3), NAN)), "`params` has 6 NaN or infinite values of 6", id="params-nan-to-sample"
    ),
    case(lambda: posterior(sampler="ddim"), "`sampler` must be a sampler .* got 'ddim'", id="sampler-name"),
    case(lambda: posterior(sampler=si.Ancestral), "`sampler` is the class Ancestral; give", id="sampler-class"),
    case(lambda: sample(sampler=32), "`sampler` must be a sampler .* got 32", id="sampler-number"),
]

NUMBERS = [
    *(
        case(lambda n=n: sample(num_samples=n), f"`num_samples` must be an .* got {n!r}", id=f"samples-{n}")
        for n in (0, -1)
    ),
    *(
        case(lambda n=n: sample(num_samples=n), f"`num_samples` must .* got {n!r}", id=f"samples-{n}")
        for n in (2.5, True)
    ),
    *(
        case(lambda n=n: sample(chunk_size=n), f"`chunk_size` must .* got {n!r}", id=f"chunk-{n}")
        for n in (0, None, 1.5)
    ),
    *(
        case(lambda k=k: sample(key=k), "`key` must be one PRNG key", id=f"key-{k!r:.9}")
        for k in (0, None, "0", (0, 1))
    ),
    case(lambda: posterior().sample(0), "`key` must be one PRNG key .*, got 0", id="sample-key"),
    case(lambda: posterior().sample(5, key()), "`sample_shape` must be a positive", id="swapped"),
    case(lambda: posterior().sample(key(), -1), "`sample_shape` must be a positive .* got -1", id="shape-negative"),
    case(lambda: posterior().sample(key(), (2, 0)), r"`sample_shape` .* got \(2, 0\)", id="shape-0"),
    case(lambda: posterior().sample(key(), "3"), "`sample_shape` .* got '3'", id="shape-string"),
    case(lambda: posterior().sample(key(), True), "`sample_shape` .* got True", id="shape-true"),
    case(lambda: posterior().sample(key(), None), "`sample_shape` .* got None", id="shape-none"),
    case(lambda: posterior().sample(key(), 2.0), "`sample_shape` .* got 2.0", id="shape-float"),
    case(lambda: posterior().predict(0, params()), "`key` must be one PRNG key .*, got 0", id="predict-key"),
    case(lambda: posterior().predict(key(), None), "`params` is None, with which `forward` fails", id="predict-none"),
    case(lambda: posterior().predict(key(), np.ones(7)), r"`params` is float32\[7\], with which", id="predict-shape"),
    case(lambda: posterior().predict(key(), params() * NAN), "`params` has 6 NaN", id="predict-nan"),
    case(lambda: posterior().predict(key(), params(), 0), "`sample_shape` .* got 0", id="predict-0"),
    case(lambda: posterior().mean(None), "`key` must be one PRNG key .*, got None", id="mean-key"),
    case(lambda: posterior().mean(key(), 0), "`num_samples` must be an integer .* got 0", id="mean-0"),
    case(lambda: posterior().std(key(), 2.5), "`num_samples` must be an integer .* got 2.5", id="std-2.5"),
    case(lambda: posterior().quantile(key(), 1.5), "`q` must be a probability .* got 1.5", id="quantile-1.5"),
    case(lambda: posterior().quantile(key(), [0.1, NAN]), "`q` must be a probability", id="quantile-nan"),
    case(lambda: posterior().quantile(key(), "median"), "`q` must be .* got 'median'", id="quantile-string"),
    case(lambda: posterior().quantile(0, 0.5), "`key` must be one PRNG key", id="quantile-key"),
    case(lambda: log_prob(key=0), "`key` must be one PRNG key .*, got 0", id="log-prob-key"),
    case(lambda: log_prob(num_probes=0), "`num_probes` must be an integer of at least 1, got 0", id="probes-0"),
    case(lambda: log_prob(num_probes=2.5), "`num_probes` .* got 2.5", id="probes-2.5"),
    case(lambda: log_prob(num_probes=4), "`key` must be given, since the divergence is", id="probes-without-key"),
    case(lambda: log_prob(num_draws=0), "`num_draws` must be an integer of at least 1, got 0", id="draws-0"),
    case(lambda: log_prob(max_steps=0), "`max_steps` must be an integer of at least 1, got 0", id="max-steps-0"),
    case(lambda: log_prob(solver=dfx.Tsit5), "`solver` is the class Tsit5; give an instance", id="solver-class"),
    case(lambda: log_prob(solver="tsit5"), "`solver` must be a diffrax solver", id="solver-name"),
    case(lambda: log_prob(stepsize_controller=1e-3), "`stepsize_controller` must be a diffrax", id="controller"),
    case(lambda: log_prob(np.ones(3, np.float32)), r"`value` is float32\[3\], but float32\[2\]", id="observation"),
    case(lambda: log_prob(np.ones(2, int)), r"`value` is int\d+\[2\]", id="observation-ints"),
    case(lambda: log_prob(np.full(2, NAN)), "`value` has 2 NaN", id="observation-nan"),
    case(lambda: log_prob("clip"), "`value` is 'clip', but must be", id="observation-string"),
    case(lambda: posterior().to_numpyro("density"), "`of` must be .* got 'density'", id="numpyro-of"),
    case(lambda: posterior().to_numpyro(num_probes=3), "`key` and the options .* leave them out", id="numpyro-options"),
    case(lambda: posterior().to_numpyro("observation", key=1), "`key` must be one PRNG key", id="numpyro-key"),
]


def untrained():
    return problem_of(denoiser=None)


UNTRAINED = [
    case(lambda: untrained().posterior(None, params()), "not trained .`denoiser=None`.: call `fit`", id="posterior"),
    case(lambda: untrained().sample(None, params(), key=key()), "not trained", id="sample"),
    case(lambda: untrained().score(np.ones(2), si.NoiseLevel(1.0, 1.0), None, params()), "not trained", id="score"),
    case(lambda: untrained().save("/nowhere"), "not trained", id="save"),
    case(
        lambda: dataclasses.replace(trained(), signal=None).posterior(context(), params()),
        r"`signal` is not known: give `StochasticInverseProblem\(signal=...\)`",
        id="signal",
    ),
]


@pytest.mark.parametrize("call, message", GIVEN + NUMBERS + UNTRAINED)
def test_posteriors(call, message):
    refuse(call, message)


GRIDS = [
    case(si.Ancestral(4, grid=lambda schedule, n: jnp.linspace(1.0, 0.0, n + 1)), id="length"),
    case(si.Ancestral(4, grid=lambda schedule, n: jnp.arange(n)), id="integers"),
    case(si.ProbabilityFlow(4, grid=lambda schedule, n: 1.0), id="scalar"),
    case(si.ReverseSDE(4, grid=lambda schedule, n: jnp.ones(0)), id="empty"),
]


@pytest.mark.parametrize("sampler", GRIDS)
def test_grids_of_ones_own(sampler):
    refuse(lambda: sample(sampler=sampler), "`grid` returns .* for 4 steps; return 4 falling times", compiles=True)


def test_what_a_masked_view_holds_does_not_count():
    data = jax.tree.map(lambda x: x[0], training.views())
    views = lambda value: si.View(
        altered(data.observation[:2], 1, value), altered(data.params[:2], 1, value), np.array([True, False])
    )
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), views(0.0))
    info = dataclasses.replace(trained().data_info, context=like)
    able = dataclasses.replace(trained(), data_info=info)
    options = {"key": key(), "num_samples": 2, "sampler": si.Ancestral(2)}
    draws = [able.sample(views(value), params(), **options) for value in (NAN, INF, 5.0)]
    assert np.all(np.isfinite(draws[0].signal))
    training.assert_equal(draws[0], draws[1])
    training.assert_equal(draws[0], draws[2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "problem.si"
    witness = si._data_info.witness(si.ForwardFunction(training.measure), training.SIGNAL, jnp.asarray(params()))
    info = dataclasses.replace(trained().data_info, witness=witness)
    dataclasses.replace(trained(), data_info=info).save(path)
    return path


def load(path, forward=training.measure, denoiser="linear", **options):
    return si.load(path, forward, problem().denoiser if denoiser == "linear" else denoiser, **options)


WIDE = training.LinearDenoiser(jr.key(0), 4)
LOADED = [
    case(
        {"forward": lambda s, p: 2 * p @ s},
        "`forward` measures a fixed signal otherwise .*; load it with",
        id="forward",
    ),
    case(
        {"forward": lambda s, p: p @ s[:2]}, "`forward` fails on the signal .*TypeError.* give the forward", id="fails"
    ),
    case({"forward": si.forward.Blur}, "`forward` is the class Blur", id="forward-class"),
    case({"denoiser": None}, "`path`: .* is of another problem: .*; load it with", id="denoiser-needed"),
    case({"denoiser": WIDE}, "`path`: .* is of another problem: .*denoiser", id="denoiser-shape"),
    case({"denoiser": eqx.nn.Identity()}, "`path`: .* is of another problem: .*denoiser", id="denoiser-kind"),
    case({"denoiser": "linear "}, "`denoiser` must be a callable", id="denoiser-name"),
    case({"schedule": si.RectifiedFlow()}, "`path`: .*schedule", id="schedule"),
    case({"schedule": si.CosineSchedule(-9.0)}, "`path`: .*log_snr_min", id="schedule-setting"),
    case({"objective": si.ProperScore()}, "`path`: .*objective", id="objective"),
    case({"noise": 0.5}, "`path`: .*noise", id="noise"),
    case({"noise": si.PoissonNoise()}, "`path`: .*noise", id="noise-kind"),
    case({"noise": "big"}, "`noise` must be a number, got 'big'", id="noise-name"),
    case(
        {"signal": jax.ShapeDtypeStruct((4,), jnp.float32)},
        r"`signal` is float32\[3\] in the file and float32\[4\] here; load it with",
        id="signal",
    ),
    case({"signal": (3.5,)}, r"`signal` must be .* got \(3.5,\)", id="signal-tuple"),
]


@pytest.mark.parametrize("options, message", LOADED)
def test_files_of_other_problems(saved, options, message):
    refuse(lambda: load(saved, **options), message, compiles=True)


def test_other_files(saved, tmp_path):
    assert load(saved).data_info is not None and load(str(saved)).signal == training.SIGNAL
    refuse(lambda: load(tmp_path / "missing"), "`path`: there is no file .*missing; give", FileNotFoundError)
    refuse(lambda: load(tmp_path), "`path`: .* is not a stochinv file.*no regular file.*; use another")
    content = saved.read_bytes()
    for name, damaged in (
        ("text", b"a text"),
        ("empty", b""),
        ("short", content[:-9]),
        ("flipped", content[:-1] + bytes([content[-1] ^ 1])),
    ):
        (tmp_path / name).write_bytes(damaged)
        refuse(
            lambda name=name: load(tmp_path / name), f"`path`: .*{name} is not a stochinv file, or is damaged .*; use"
        )
    for bad in (3, None, "", b"a"):
        refuse(lambda bad=bad: load(bad), "`path` must be a path, got .*; give")
        refuse(lambda bad=bad: trained().save(bad), "`path` must be a path, got .*; give")
    refuse(lambda: trained().save(tmp_path), "`path`: .* is no regular file, and is not overwritten; give another")
    bad = eqx.tree_at(lambda p: p.denoiser.target, trained(), np.full((3, 2), NAN, np.float32))
    refuse(lambda: bad.save(tmp_path / "nan"), r"`denoiser` has NaN .*denoiser.target.*; ", compiles=True)
    assert not (tmp_path / "nan").exists()


def test_a_file_that_needs_code_of_ones_own(tmp_path):
    path = tmp_path / "problem.si"
    weighted = si.SquaredError(weighting=lambda level: level.alpha)
    dataclasses.replace(trained(), objective=weighted).save(path)
    refuse(lambda: load(path), "`objective` cannot be rebuilt from the file .*; give it yourself", compiles=True)
