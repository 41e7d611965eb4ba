"""Objects refuse bad settings where they are made: in one sentence, and before anything is compiled."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import stochinv as si
import training
from refusals import problem_of, refuse, trained

NAN, INF = float("nan"), float("inf")
case = pytest.param


def struct(shape=(3,), dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def posterior(**options):
    return trained().posterior(None, None, **options)


PROBLEMS = [
    case(lambda: problem_of(si.forward.Blur), "`forward` is the class Blur; give an instance", id="forward-class"),
    case(lambda: problem_of(3), r"`forward` must be a forward model or a callable .*, got 3", id="forward-number"),
    case(lambda: problem_of(None), "`forward` must be .*, got None", id="forward-none"),
    case(lambda: problem_of(np.ones((2, 3))), r"`forward` must be .* array of float64 of shape \(2, 3\)", id="matrix"),
    case(lambda: problem_of(denoiser=si.nn.MLP), "`denoiser` is the class MLP", id="denoiser-class"),
    case(lambda: problem_of(denoiser=0), "`denoiser` must be a callable .*, or None, got 0", id="denoiser-number"),
    case(lambda: problem_of(denoiser="unet"), "`denoiser` must be a callable .* got 'unet'", id="denoiser-name"),
    case(lambda: problem_of(schedule=si.CosineSchedule), "`schedule` is the class CosineSchedule", id="schedule-class"),
    case(lambda: problem_of(schedule="cosine"), "`schedule` must be a noise schedule .* got 'cosine'", id="schedule"),
    case(lambda: problem_of(schedule=None), "`schedule` must be a noise schedule .* got None", id="schedule-none"),
    case(lambda: problem_of(objective=si.ProperScore), "`objective` is the class ProperScore", id="objective-class"),
    case(lambda: problem_of(objective="mse"), "`objective` must be an objective .* got 'mse'", id="objective-name"),
    case(lambda: problem_of(objective=si.EnergyRule()), "`objective` must be .*EnergyRule", id="objective-rule"),
    case(lambda: problem_of(data_info={}), r"`data_info` must be .* got \{\}", id="data-info"),
    case(lambda: problem_of(signal=(2.5,)), r"`signal` must be a shape, .*, got \(2.5,\); write", id="signal-shape"),
    case(lambda: problem_of(signal=0), "`signal` must be .* got 0", id="signal-number"),
    case(lambda: problem_of(signal="float16"), "`signal` must be .* got 'float16'", id="signal-dtype"),
    case(lambda: problem_of(signal=struct), "`signal` must be .* got <function", id="signal-function"),
    case(lambda: problem_of(signal=jax.ShapeDtypeStruct), "`signal` must be .* got <class", id="signal-class"),
    case(lambda: problem_of(signal={}), r"`signal` must be .* got \{\}", id="signal-empty"),
    case(lambda: problem_of(signal=[struct(), "3"]), "`signal` must be", id="signal-mixed"),
    case(
        lambda: problem_of(signal=struct((3,), jnp.int32)), r"`signal` has int32\[3\], .*jnp.float32", id="signal-int"
    ),
    case(lambda: problem_of(signal=struct((3,), bool)), r"`signal` has bool\[3\]", id="signal-bool"),
    case(lambda: problem_of(signal=np.ones(3, complex)), "`signal` has complex128.*single", id="signal-complex"),
    case(lambda: problem_of(signal=np.ones(3)), r"`signal` has float64\[3\], but JAX .* single", id="signal-double"),
]

NOISES = [
    case(lambda: problem_of(noise="big"), "`noise` must be a number, got 'big'; give a standard", id="string"),
    case(lambda: problem_of(noise=-0.1), "`noise` must be finite and at least 0, got -0.1", id="negative"),
    case(lambda: problem_of(noise=NAN), "`noise` must be finite .* got nan", id="nan"),
    case(lambda: problem_of(noise=INF), "`noise` must be finite .* got inf", id="inf"),
    case(lambda: problem_of(noise=True), "`noise` must be a number, got True", id="true"),
    case(lambda: problem_of(noise=None), "`noise` must be .* got None; give 0.0", id="none"),
    case(lambda: problem_of(noise=[]), r"`noise` must be .* got \[\]", id="empty"),
    case(lambda: problem_of(noise=1e300), r"`noise` must be finite .* got 1e\+300", id="overflow"),
    case(lambda: problem_of(noise=1 + 1j), "`noise` must be finite .* got .1.1j", id="complex"),
    case(lambda: problem_of(noise=np.ones(2)), r"`noise` must consist of scalars, got one of shape \(2,\)", id="array"),
    case(lambda: problem_of(noise=np.array("a")), "`noise` must be a number", id="array-of-strings"),
    case(lambda: problem_of(noise=np.array(None)), "`noise` must be a number", id="array-of-objects"),
    case(lambda: problem_of(noise={"a": "x"}), "`noise` must be a number, got 'x'", id="tree-of-strings"),
    case(lambda: problem_of(noise=si.GaussianNoise), "`noise` is the class GaussianNoise; give an inst", id="class"),
    case(lambda: si.GaussianNoise(-1), "`noise` must be finite and at least 0, got -1", id="gaussian"),
    case(lambda: si.PoissonNoise(gain=0), "PoissonNoise: `gain` must be finite and above 0, got 0", id="gain-0"),
    case(lambda: si.PoissonNoise(gain=-1.0), "PoissonNoise: `gain` .* got -1.0", id="gain-negative"),
    case(lambda: si.PoissonNoise(gain="a"), "PoissonNoise: `gain` must be a number, got 'a'", id="gain-string"),
    case(lambda: si.PoissonNoise(background=NAN), "PoissonNoise: `background` .* got nan", id="background-nan"),
    case(lambda: si.PoissonGaussianNoise(gain=0), "PoissonGaussianNoise: `gain` .* above 0, got 0", id="camera-gain"),
    case(
        lambda: si.PoissonGaussianNoise(read_std=0.0),
        "`read_std` must be finite and above 0, got 0.0",
        id="camera-read",
    ),
    case(lambda: si.PoissonGaussianNoise(read_std="a"), "`read_std` must be a number, got 'a'", id="camera-string"),
    case(lambda: si.PoissonGaussianNoise(background=-1.0), "`background` .* 0, got -1.0", id="camera-background"),
    case(lambda: si.PoissonNoise(background=None), "PoissonNoise: `background` .* got None", id="background-none"),
    case(lambda: si.NoiseLaw(0.1), "NoiseLaw: `law` must be a callable .* got 0.1", id="law-number"),
    case(lambda: si.NoiseLaw(dist.Laplace(0, 1)), "NoiseLaw: `law` must be a callable", id="law-distribution"),
    case(lambda: problem_of(noise=dist.Normal(0.0, 0.1)), "NoiseLaw: `law` must be a callable", id="distribution"),
]

SCHEDULES = [
    case(lambda: si.CosineSchedule(NAN), "CosineSchedule: `log_snr_min` must be a finite number, got nan", id="nan"),
    case(lambda: si.CosineSchedule(-INF, 9.0), "CosineSchedule: `log_snr_min` must be .* got -inf", id="inf"),
    case(lambda: si.CosineSchedule(5.0, -5.0), "`log_snr_min` must be below `log_snr_max`, got 5.0 and", id="reversed"),
    case(lambda: si.CosineSchedule("low"), "`log_snr_min` must be a finite number, got 'low'", id="string"),
    case(lambda: si.CosineSchedule(-500.0), "`log_snr_min` must lie within .80, got -500.0", id="out-of-range"),
    case(lambda: si.CosineSchedule(-(10**400)), "`log_snr_min` must lie within .80, got -1000", id="large-integer"),
    case(lambda: si.CosineSchedule(True), "`log_snr_min` must be a finite number, got True", id="true"),
    case(lambda: si.CosineSchedule(None), "`log_snr_min` must be a finite number, got None", id="none"),
    case(lambda: si.CosineSchedule(np.ones(2)), r"`log_snr_min` .* of shape \(2,\)", id="array"),
    case(lambda: si.RectifiedFlow(1.0, 1.0), "RectifiedFlow: `log_snr_min` must be below", id="flow-equal"),
    case(
        lambda: si.RectifiedFlow(-10, 1e6), r"RectifiedFlow: `log_snr_max` must lie .* got 1000000.0", id="flow-large"
    ),
    case(lambda: si.VarianceExploding(0.0), "VarianceExploding: must have 0 < `sigma_min`", id="exploding-0"),
    case(
        lambda: si.VarianceExploding(2.0, 1.0),
        "VarianceExploding: must have .* got 2.0 and 1.0",
        id="exploding-reversed",
    ),
    case(lambda: si.VarianceExploding("a"), "VarianceExploding: `sigma_min` must be a finite", id="exploding-string"),
    case(lambda: si.VarianceExploding(0.1, INF), "VarianceExploding: `sigma_max` .* got inf", id="exploding-inf"),
    case(lambda: si.VariancePreserving(-1.0), "VariancePreserving: must have 0 < `beta_min`", id="preserving-negative"),
    case(
        lambda: si.VariancePreserving(20.0, 0.1), "VariancePreserving: must have .* got 20.0", id="preserving-reversed"
    ),
    case(lambda: si.VariancePreserving(beta_max=1e9), "VariancePreserving: .*`beta_max`", id="preserving-large"),
    case(
        lambda: si.VariancePreserving(beta_max=NAN), "`beta_max` must be a finite number, got nan", id="preserving-nan"
    ),
]

OBJECTIVES = [
    case(
        lambda: si.ProperScore(num_draws=1), "ProperScore: `num_draws` must be an integer of .* 2, got 1", id="draws-1"
    ),
    case(lambda: si.ProperScore(num_draws=2.5), "ProperScore: `num_draws` .* got 2.5", id="draws-2.5"),
    case(lambda: si.ProperScore(num_draws=True), "ProperScore: `num_draws` .* got True", id="draws-true"),
    case(lambda: si.ProperScore(num_draws="4"), "ProperScore: `num_draws` .* got '4'", id="draws-string"),
    case(lambda: si.ProperScore(fair=2), "ProperScore: `fair` must be a number between 0 and 1, got 2", id="fair-2"),
    case(lambda: si.ProperScore(fair=NAN), "ProperScore: `fair` .* got nan", id="fair-nan"),
    case(lambda: si.ProperScore(fair=True), "ProperScore: `fair` .* got True", id="fair-true"),
    case(lambda: si.ProperScore(rule=1.0), "ProperScore: `rule` must be a scoring rule .* got 1.0", id="rule-number"),
    case(lambda: si.ProperScore(si.EnergyRule), "ProperScore: `rule` is the class EnergyRule", id="rule-class"),
    case(lambda: si.ProperScore(score_target=1), "ProperScore: `score_target` must be `True` or", id="score-target"),
    case(
        lambda: si.ProperScore(weighting="x"), "ProperScore: `weighting` must be a callable .* got 'x'", id="weighting"
    ),
    case(lambda: si.ProperScore(regulariser=3), "ProperScore: `regulariser` must be a callable", id="regulariser"),
    case(lambda: si.ProperScore(sample_time=3), "ProperScore: `sample_time` must be a callable", id="sample-time"),
    case(
        lambda: si.SquaredError(weighting=1.0), "SquaredError: `weighting` must be a callable", id="squared-weighting"
    ),
    case(
        lambda: si.SquaredError(novel_weight=-1), "SquaredError: `novel_weight` must be at least 0, got -1", id="novel"
    ),
    case(lambda: si.SquaredError(novel_weight=NAN), "SquaredError: `novel_weight` .* got nan", id="novel-nan"),
    case(lambda: si.SquaredError(novel_weight="1"), "SquaredError: `novel_weight` .* got '1'", id="novel-string"),
    case(
        lambda: si.SquaredError(regulariser=3), "SquaredError: `regulariser` must be .* got 3", id="squared-regulariser"
    ),
    case(lambda: si.SquaredError(sample_time=None), "SquaredError: `sample_time` .* got None", id="squared-time"),
    case(lambda: si.EnergyRule(2), "EnergyRule: `beta` must be .* strictly between 0 and 2, got 2", id="beta-2"),
    case(lambda: si.EnergyRule(beta="1"), "EnergyRule: `beta` .* got '1'", id="beta-string"),
    case(lambda: si.EnergyRule(np.ones(2)), "EnergyRule: `beta` .* got an array", id="beta-array"),
    case(lambda: si.KernelRule(0), "KernelRule: `bandwidth` must be positive and finite, got 0", id="bandwidth-0"),
    case(lambda: si.KernelRule(INF), "KernelRule: `bandwidth` .* got inf", id="bandwidth-inf"),
    case(lambda: si.PerView(1), "PerView: `rule` must be a scoring rule", id="per-view"),
    case(
        lambda: si.Patches(si.EnergyRule(), 0), "Patches: `size` must be an integer of at least 1, got 0", id="size-0"
    ),
    case(lambda: si.Patches(si.EnergyRule(), 2.0), "Patches: `size` .* got 2.0", id="size-2.0"),
    case(lambda: si.Patches(8, si.EnergyRule()), "Patches: `rule` must be .* got 8", id="swapped"),
    case(lambda: si.Scales(si.EnergyRule(), 0), "Scales: `levels` must be an integer of at least 1", id="levels"),
    case(lambda: si.EnergyRule() + 3, "SumOfRules: `rule` must be a scoring rule .* got 3", id="sum-with-number"),
    case(lambda: -1.0 * si.EnergyRule(), "SumOfRules: `weights` must be positive .* got -1.0", id="negative-weight"),
    case(lambda: "a" * si.EnergyRule(), "SumOfRules: `weights` must be positive .* got 'a'", id="string-weight"),
    case(lambda: si.SumOfRules((), ()), r"SumOfRules: `rules` must be a tuple .* got \(\)", id="no-rules"),
    case(lambda: si.SumOfRules((si.EnergyRule(),), (1.0, 2.0)), "SumOfRules: `weights` must be .* each of 1", id="two"),
]

AVERAGES = [
    case(lambda: si.PowerEMA(-1.0), "PowerEMA: `gamma` must be a number greater than -1, got -1.0", id="gamma"),
    case(lambda: si.PowerEMA(NAN), "PowerEMA: `gamma` .* got nan", id="gamma-nan"),
    case(lambda: si.PowerEMA("6"), "PowerEMA: `gamma` .* got '6'", id="gamma-string"),
    case(lambda: si.ExponentialEMA(1.0), "ExponentialEMA: `rate` must be a number strictly between", id="rate-1"),
    case(lambda: si.ExponentialEMA(rate=None), "ExponentialEMA: `rate` .* got None", id="rate-none"),
]

VIEWS = [
    case(lambda: si.RandomViews(1.5), "RandomViews: `context` must be a number >= 0 or a pair .* got 1.5", id="1.5"),
    case(lambda: si.RandomViews((2, 1)), r"RandomViews: `context` .* got \(2, 1\)", id="reversed"),
    case(lambda: si.RandomViews((1, 2, 3)), r"RandomViews: `context` .* got \(1, 2, 3\)", id="triple"),
    case(lambda: si.RandomViews(-1), "RandomViews: `context` .* got -1", id="negative"),
    case(lambda: si.RandomViews("2"), "RandomViews: `context` .* got '2'", id="string"),
    case(lambda: si.RandomViews(None), "RandomViews: `context` .* got None", id="none"),
    case(lambda: si.RandomViews(True), "RandomViews: `context` .* got True", id="true"),
    case(
        lambda: si.RandomViews(target=0), "RandomViews: `target` must be an integer of at least 1, got 0", id="target"
    ),
    case(lambda: si.RandomViews(novel=1.0), "RandomViews: `novel` .* at least 0, got 1.0", id="novel"),
    case(lambda: si.View(np.ones((2, 3)), None, np.ones(2)), "View: `mask` must .* booleans", id="float-mask"),
    case(lambda: si.View(np.ones((2, 3)), None, np.ones(2, int)), "View: `mask` must .* booleans", id="integer-mask"),
    case(lambda: si.View(np.ones((2, 3)), None, [True, False]), "View: `mask` must .* got .True", id="list-mask"),
    case(lambda: si.View(np.ones((2, 3)), None, np.ones(3, bool)), r"View: `mask` has shape \(3,\)", id="mask-shape"),
    case(lambda: si.View(np.ones((2, 3)), np.ones(4), np.ones(2, bool)), r"shape \(4,\)", id="mask-of-params"),
    case(lambda: si.Example(None, np.ones(2)), "Example: `target` must be a `View`.* got an arr", id="target-array"),
    case(lambda: si.Example(None, None), "Example: `target` must be a `View`, .* got None", id="target-none"),
    case(
        lambda: si.Example(None, si.View(np.ones(2)), np.ones(2)), "Example: `novel` must be a `View`", id="novel-array"
    ),
    case(lambda: si.Composed(), "`stages` must be", id="composed-nothing"),
    case(lambda: si.Composed(training.measure, 3), "`forward` must be .* got 3", id="composed-number"),
    case(lambda: si.MultiView(si.MultiView(training.measure)), "MultiView: `forward` is a MultiView", id="multi-multi"),
]

EVERY = (si.Ancestral, si.ReverseSDE, si.ProbabilityFlow, si.ExponentialAdams)
SAMPLERS = [
    *(
        case(
            lambda kind=kind, n=number: kind(num_steps=n),
            f"{kind.__name__}: `num_steps` must be an integer of at least 1, got {number!r}",
            id=f"{kind.__name__}-steps-{number}",
        )
        for kind in EVERY
        for number in (0, 1.5)
    ),
    case(lambda: si.Ancestral(True), "Ancestral: `num_steps` .* got True", id="steps-true"),
    case(lambda: si.Ancestral(eta=1.5), "Ancestral: `eta` must be a number between 0 and 1, got 1.5", id="eta-1.5"),
    case(lambda: si.Ancestral(eta=-0.1), "Ancestral: `eta` .* got -0.1", id="eta-negative"),
    case(lambda: si.Ancestral(eta=NAN), "Ancestral: `eta` .* got nan", id="eta-nan"),
    case(lambda: si.Ancestral(grid="karras"), "Ancestral: `grid` must be a time grid .* got 'karras'", id="grid-name"),
    case(lambda: si.Ancestral(grid=si.Karras), "Ancestral: `grid` is the class Karras", id="grid-class"),
    case(lambda: si.Ancestral(grid=np.linspace(1, 0, 32)), "Ancestral: `grid` must be", id="grid-array"),
    case(lambda: si.ReverseSDE(churn=2), "ReverseSDE: `churn` must be a number between 0 and 1, got 2", id="churn"),
    case(lambda: si.ReverseSDE(solver="euler"), "ReverseSDE: `solver` must be a diffrax solver", id="solver-name"),
    case(lambda: si.ReverseSDE(solver=dfx.Euler), "ReverseSDE: `solver` is the class Euler", id="solver-class"),
    case(lambda: si.ReverseSDE(brownian_path="tree"), "ReverseSDE: `brownian_path` must be .* 'tree'", id="path"),
    case(
        lambda: si.ReverseSDE(stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3)),
        "ReverseSDE: adaptive steps .*use `brownian_path=diffrax.VirtualBrownianTree`",
        id="adaptive-on-unsafe-path",
    ),
    case(lambda: si.ProbabilityFlow(max_steps=0), "ProbabilityFlow: `max_steps` .* got 0", id="max-steps"),
    case(lambda: si.ProbabilityFlow(num_draws=0), "ProbabilityFlow: `num_draws` .* got 0", id="num-draws"),
    case(lambda: si.ProbabilityFlow(stepsize_controller=1e-3), "`stepsize_controller` must be", id="controller"),
    case(lambda: si.ExponentialAdams(num_draws=-1), "ExponentialAdams: `num_draws` .* got -1", id="adams-draws"),
    case(lambda: si.Karras(0.0), "Karras: `rho` must be positive and finite, got 0.0", id="rho-0"),
    case(lambda: si.Karras(NAN), "Karras: `rho` .* got nan", id="rho-nan"),
    case(lambda: si.CrankNicolson("normal"), "CrankNicolson: `prior` must be a NumPyro", id="chain-string"),
    case(lambda: si.CrankNicolson({}), "CrankNicolson: `prior` must be a NumPyro", id="chain-empty"),
    case(lambda: si.CrankNicolson(dist.Poisson(3.0)), "CrankNicolson: `prior` must be", id="chain-counts"),
    case(lambda: si.CrankNicolson(None, "adams"), "CrankNicolson: `sampler` must be a sampler", id="chain-sampler"),
    case(lambda: si.CrankNicolson(num_moves=0), "CrankNicolson: `num_moves` must be", id="chain-moves"),
    case(lambda: si.CrankNicolson(num_steps=1.5), "CrankNicolson: `num_steps` must be", id="chain-steps"),
    case(lambda: si.Autoregressive(si.Ancestral), "Autoregressive: `sampler` is the class", id="autoregressive-class"),
    case(lambda: si.Autoregressive(lambda: 0), "Autoregressive: `sampler` must be", id="autoregressive-function"),
    case(
        lambda: si.Autoregressive(si.Autoregressive(si.Ancestral())),
        "Autoregressive: `sampler` must draw one target",
        id="autoregressive-twice",
    ),
]


@pytest.mark.parametrize("call, message", PROBLEMS)
def test_problems(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", NOISES)
def test_noises(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", SCHEDULES)
def test_schedules(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", OBJECTIVES)
def test_objectives_and_rules(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", AVERAGES)
def test_averages(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", VIEWS)
def test_views_and_forward_models(call, message):
    refuse(call, message)


@pytest.mark.parametrize("call, message", SAMPLERS)
def test_samplers(call, message):
    refuse(call, message)
