"""Samplers against the closed form of linear-Gaussian problems, and under JAX's transformations."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import helpers
import stochinv as si
from stochinv._sampler.brownian import FixedStepBrownianPath

# The start `N(0, α² + σ²)` forgets the mean and the covariance of the data, which are some 1/150 of the noise there.
START_BIAS = 0.02
# Of the discretisation in the direction of the smallest variance, as measured at 20000 samples, with a margin.
DISCRETISATION_BIAS = {
    "exponential_adams": 0.01,
    "flow_heun": 0.03,
    "flow_tsit5_adaptive": 0.02,
    "sde_shark": 0.03,
    "sde_shark_churn_half": 0.03,
    "sde_euler": 0.06,
    "sde_tree": 0.05,
    "ancestral_ddpm": 0.08,
    "ancestral_ddim": 0.06,
    "ancestral_second_order": 0.03,
}
NUM_SAMPLES = 2000

seeds = st.integers(0, 2**16)
conditionings = st.floats(1.0, 30.0)


def draw(case, sampler, seed, number=NUM_SAMPLES, *, params=None):
    params = case.params if params is None else params
    return case.problem.sample(
        case.context, params, key=jr.key(seed), sampler=sampler, num_samples=number, chunk_size=number
    )


def assert_measurement(sample, case, bias):
    mean, covariance = case.matrix @ case.mean, case.matrix @ case.covariance @ case.matrix.T
    helpers.assert_gaussian(
        helpers.ravel_samples(sample.observation), mean, covariance, bias=bias, name="the measurement"
    )


def assert_signal(sample, case, bias):
    helpers.assert_gaussian(
        helpers.ravel_samples(sample.signal), case.mean, case.covariance, bias=bias, name="the signal"
    )


def slow_but_for(quick, *values):
    """Parameters that are `slow` unless `quick` says otherwise."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


QUICK = {(name, "cosine") for name in helpers.samplers() if name != "sde_tree"}
QUICK |= {("exponential_adams", "variance_exploding")}
SAMPLERS_AND_SCHEDULES = [
    slow_but_for((name, schedule) in QUICK, name, schedule)
    for name in helpers.samplers()
    for schedule in helpers.schedules()
]
EXACT_STEPS_AND_SCHEDULES = [
    slow_but_for(schedule == "cosine" and num_steps > 1 and eta != 0.5, num_steps, eta, schedule)
    for num_steps, eta in [(1, 1.0), (2, 0.0), (5, 1.0), (5, 0.5)]
    for schedule in helpers.schedules()
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "schedule"), SAMPLERS_AND_SCHEDULES)
def test_measurement_and_determined_signal(name, schedule):
    sampler, noise_schedule = helpers.samplers()[name], helpers.schedules()[schedule]
    bias = START_BIAS + DISCRETISATION_BIAS[name]

    @settings(max_examples=2)
    @given(seed=seeds, conditioning=conditionings, num_context=st.sampled_from([1, 2]))
    def check(seed, conditioning, num_context):
        case = helpers.linear_gaussian(
            seed, schedule=noise_schedule, conditioning=conditioning, num_context=num_context
        )
        sample = draw(case, sampler, seed)
        assert_measurement(sample, case, bias)
        if num_context == 2:
            assert_signal(sample, case, bias)

    check()


@pytest.mark.thorough
@pytest.mark.parametrize(("num_steps", "eta", "schedule"), EXACT_STEPS_AND_SCHEDULES)
def test_ancestral_with_exact_draws_is_exact_at_any_number_of_steps(num_steps, eta, schedule):
    sampler, noise_schedule = si.Ancestral(num_steps=num_steps, eta=eta), helpers.schedules()[schedule]

    @settings(max_examples=2)
    @given(
        seed=seeds,
        conditioning=conditionings,
        num_context=st.sampled_from([0, 1, 2]),
        noise=st.sampled_from([0.0, 0.5]),
    )
    def check(seed, conditioning, num_context, noise):
        case = helpers.linear_gaussian(
            seed,
            schedule=noise_schedule,
            objective=si.ProperScore(),
            conditioning=conditioning,
            num_context=num_context,
            noise=noise,
        )
        sample = draw(case, sampler, seed)
        assert_signal(sample, case, START_BIAS)
        assert_measurement(sample, case, START_BIAS)

    check()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["exponential_adams", "flow_heun", "sde_shark", "ancestral_ddpm"])
def test_mean_denoiser_under_measurement_noise(name):
    """Squared error samples the noisy measurement; its signals are `E[s | o, c]`, too narrow by design."""
    sampler = helpers.samplers()[name]

    @settings(max_examples=2)
    @given(seed=seeds, noise=st.floats(0.2, 1.0), num_context=st.sampled_from([0, 1, 2]))
    def check(seed, noise, num_context):
        case = helpers.linear_gaussian(seed, noise=noise, num_context=num_context)
        sample = draw(case, sampler, seed)
        signal = case.matrix @ case.covariance @ case.matrix.T
        measured = signal + noise**2 * np.eye(len(signal))
        covariance = signal @ np.linalg.solve(measured, signal)
        helpers.assert_gaussian(
            helpers.ravel_samples(sample.observation),
            case.matrix @ case.mean,
            covariance,
            bias=START_BIAS + DISCRETISATION_BIAS[name],
        )

    check()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["exponential_adams", "sde_shark", "ancestral_ddpm"])
def test_pytrees(name):
    case = helpers.linear_gaussian(3, tree=True)
    sample = draw(case, helpers.samplers()[name], 0)
    assert set(sample.signal) == {"a", "b"} and sample.signal["b"].shape == (NUM_SAMPLES, 2, 2)
    assert_measurement(sample, case, START_BIAS + DISCRETISATION_BIAS[name])
    assert_signal(sample, case, START_BIAS + DISCRETISATION_BIAS[name])


@pytest.mark.thorough
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("exact_draws", [False, True])
def test_several_targets(joint, exact_draws):
    """Two targets, one after the other or jointly; with the context they determine the signal."""
    case = helpers.linear_gaussian(5, num_context=1, objective=si.ProperScore() if exact_draws else si.SquaredError())
    params = jnp.stack([case.params, case.context.params[1]])
    sampler = si.Ancestral(num_steps=3) if exact_draws else si.ExponentialAdams()
    if joint:
        forward = si.MultiView(helpers.measure)
        case = case._replace(
            problem=eqx.tree_at(lambda p: (p.forward, p.denoiser.forward), case.problem, (forward,) * 2)
        )
    else:
        sampler = si.Autoregressive(sampler)
    sample = draw(case, sampler, 0, params=params)
    assert_signal(sample, case, START_BIAS)
    matrix = np.asarray(params, np.float64).reshape(4, -1)
    helpers.assert_gaussian(
        helpers.ravel_samples(sample.observation),
        matrix @ case.mean,
        matrix @ case.covariance @ matrix.T,
        bias=START_BIAS,
        name="the joint measurement",
    )


@pytest.mark.thorough
def test_autoregressive_appends_noisy_measurements():
    case = helpers.linear_gaussian(6, num_context=1, noise=0.7, objective=si.ProperScore())
    params = jnp.stack([case.params, case.context.params[1]])
    sample = draw(case, si.Autoregressive(si.Ancestral(num_steps=2)), 0, params=params)
    assert_signal(sample, case, START_BIAS)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [slow_but_for(name == "Heun", name) for name in ("Heun", "Midpoint", "Ralston")])
@pytest.mark.parametrize("schedule", [slow_but_for(s == "cosine", s) for s in helpers.schedules()])
def test_flow_of_second_order_in_few_steps(solver, schedule):
    """Steps in which the state itself shrank by orders of magnitude had errors of 40 % for `VarianceExploding`."""
    case = helpers.linear_gaussian(0, schedule=helpers.schedules()[schedule])
    sample = draw(case, si.ProbabilityFlow(num_steps=32, solver=getattr(dfx, solver)()), 0)
    assert_measurement(sample, case, START_BIAS + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dfx.SPaRK(), dfx.SRA1(), dfx.ItoMilstein()], ids=lambda s: type(s).__name__)
def test_stochastic_solvers(solver):
    case = helpers.linear_gaussian(1)
    sample = draw(case, si.ReverseSDE(num_steps=192, solver=solver), 0)
    assert_measurement(sample, case, START_BIAS + 0.05)


@pytest.mark.slow
def test_adaptive_sde():
    case = helpers.linear_gaussian(1)
    sampler = si.ReverseSDE(
        solver=dfx.SPaRK(),
        brownian_path=dfx.VirtualBrownianTree,
        stepsize_controller=dfx.PIDController(rtol=1e-2, atol=1e-2, dtmin=2e-3),
    )
    assert_measurement(draw(case, sampler, 0, 500), case, START_BIAS + 0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("grid", [si.UniformTime(), si.UniformLogSNR(), si.Karras()], ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("schedule", helpers.schedules())
def test_grids_fall_from_one_to_zero(grid, schedule):
    for number in (2, 3, 42):  # 41 times the rounded 1/41 is not 1
        times = np.asarray(eqx.filter_jit(grid)(helpers.schedules()[schedule], number))
        assert times.shape == (number,) and times[0] == 1 and times[-1] == 0
        assert np.all(np.diff(times) < 0)
    np.testing.assert_array_equal(grid(helpers.schedules()[schedule], 1), [1.0])


def test_grids_are_uniform_in_what_they_say():
    schedule = si.CosineSchedule()
    times = si.UniformLogSNR()(schedule, 17)
    steps = np.diff(jax.vmap(schedule.log_snr)(times))
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)
    times = si.Karras(rho=3.0)(schedule, 17)
    steps = np.diff(jnp.exp(-jax.vmap(schedule.log_snr)(times) / 6))
    np.testing.assert_allclose(steps, steps.mean(), rtol=5e-3)


DIFFERENTIABLE = {
    "exponential_adams": si.ExponentialAdams(num_steps=6),
    "ancestral": si.Ancestral(num_steps=4),
    "flow": si.ProbabilityFlow(num_steps=5),
    "sde": si.ReverseSDE(num_steps=5, brownian_path=dfx.VirtualBrownianTree),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", [slow_but_for(name not in ("sde", "flow"), name) for name in DIFFERENTIABLE])
def test_gradient_by_the_context_equals_finite_differences(name, x64):
    case = helpers.linear_gaussian(0, dtype=jnp.float64)
    weights = jnp.arange(1.0, 7.0)

    @jax.jit
    def value(observed):
        context = si.View(observed, case.context.params, case.context.mask)
        sample = case.problem.sample(context, case.params, key=jr.key(0), sampler=DIFFERENTIABLE[name])
        return weights @ sample.signal + jnp.sum(sample.observation**2)

    at, direction = case.context.observation, jr.normal(jr.key(1), case.context.observation.shape)
    gradient = jax.grad(value)(at)
    step = 1e-5
    difference = (value(at + step * direction) - value(at - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_forward_mode_through_an_unsafe_brownian_path(x64):
    case = helpers.linear_gaussian(0, dtype=jnp.float64)
    sampler = si.ReverseSDE(num_steps=5)

    def value(observed):
        context = si.View(observed, case.context.params, case.context.mask)
        return sampler(case.problem, context, case.params, key=jr.key(0)).signal

    at, direction = case.context.observation, jr.normal(jr.key(1), case.context.observation.shape)
    _, tangent = jax.jvp(value, (at,), (direction,))
    step = 1e-5
    difference = (value(at + step * direction) - value(at - step * direction)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("levy_area", [dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea])
def test_increments_of_the_fixed_step_path(levy_area, dtype, x64):
    """Increments and Lévy areas of two neighbouring steps are independent, of variances h, h/12 and h/720."""
    steps, number = np.array([0.0, 0.25, 0.3]), 20000

    def increments(key):
        path = FixedStepBrownianPath(jax.ShapeDtypeStruct((2,), jnp.dtype(dtype)), key, levy_area)
        return [
            [getattr(step, name) for name in ("W", "H", "K") if hasattr(step, name)]
            for step in (path.evaluate(*jnp.asarray(ends, dtype), use_levy=True) for ends in (steps[:2], steps[1:]))
        ]

    drawn = jax.jit(jax.vmap(increments))(jr.split(jr.key(0), number))
    flat = np.concatenate([np.asarray(x) for step in drawn for x in step], axis=1)
    assert flat.dtype == dtype
    kinds = flat.shape[1] // 4
    variances = np.concatenate([h / np.array([1, 12, 720])[:kinds] for h in np.diff(steps)])
    helpers.assert_gaussian(flat, np.zeros(4 * kinds), np.diag(np.repeat(variances, 2)), bias=0.0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [slow_but_for(x == "flow_heun", x) for x in ("exponential_adams", "flow_heun", "sde_shark")]
)
def test_score_based_samplers_average_a_stochastic_denoiser(name):
    """Averages of 256 draws are off by a sixteenth of the conditional spread, the same at all noise levels."""
    case = helpers.linear_gaussian(2, objective=si.ProperScore())
    sampler = eqx.tree_at(lambda s: s.num_draws, helpers.samplers()[name], 256)
    sample = draw(case, sampler, 0, 1000)
    assert_measurement(sample, case, START_BIAS + DISCRETISATION_BIAS[name] + 1 / 16)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(si.ExponentialAdams(num_steps=4), marks=pytest.mark.slow),
        si.Ancestral(num_steps=4),
        pytest.param(si.ReverseSDE(num_steps=4), marks=pytest.mark.slow),
    ],
    ids=lambda s: type(s).__name__,
)
def test_jit_vmap_and_chunks_change_nothing(sampler):
    case = helpers.linear_gaussian(0)
    sample = lambda key, **more: case.problem.sample(case.context, case.params, key=key, sampler=sampler, **more)
    expected = sample(jr.key(0), num_samples=7)
    assert expected.signal.shape == (7, 6) and expected.observation.shape == (7, 2)
    close = lambda got: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), expected, got)
    close(sample(jr.key(0), num_samples=7, chunk_size=3))
    close(jax.vmap(sample)(jr.split(jr.key(0), 7)))
    close(eqx.filter_jit(lambda key: sample(key, num_samples=7))(jr.key(0)))
    measured = jax.vmap(lambda s: helpers.measure(s, case.params))(expected.signal)
    np.testing.assert_allclose(expected.observation, measured, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (si.ExponentialAdams(num_steps=9), 9),
        (si.ExponentialAdams(num_steps=1), 1),
        (si.Ancestral(num_steps=9), 9),
        (si.Ancestral(num_steps=1), 1),
        (si.ProbabilityFlow(num_steps=9, solver=dfx.Euler()), 9),
        (si.ProbabilityFlow(num_steps=9, solver=dfx.Heun()), 17),
        (si.ProbabilityFlow(num_steps=1), 1),
        (si.ReverseSDE(num_steps=9, solver=dfx.Euler()), 9),
        (si.ReverseSDE(num_steps=1), 1),
    ],
    ids=str,
)
def test_number_of_evaluations(sampler, expected):
    case = helpers.linear_gaussian(0)
    calls = []

    def denoiser(*args, key=None):
        jax.debug.callback(lambda: calls.append(1))
        return case.problem.denoiser(*args, key=key)

    problem = eqx.tree_at(lambda p: p.denoiser, case.problem, denoiser)
    jax.block_until_ready(problem.sample(case.context, case.params, key=jr.key(0), sampler=sampler))
    jax.effects_barrier()
    assert len(calls) == expected


@pytest.mark.thorough
def test_second_call_compiles_nothing():
    compiled = []

    def listen(name, seconds, **options):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def forward(signal, params):
        return params @ signal

    def problem_of(seed, noise):
        case = helpers.linear_gaussian(seed, noise=noise)
        covariance = jnp.asarray(case.prior_covariance, jnp.float32)
        mean = jnp.asarray(case.prior_mean, jnp.float32)
        denoiser = si.GaussianDenoiser(forward, mean, covariance, noise=noise)
        return case, si.StochasticInverseProblem(forward, denoiser, noise=noise, signal=case.problem.signal)

    def use(seed, noise):
        case, problem = problem_of(seed, noise)
        problem.sample(case.context, case.params, key=jr.key(seed), num_samples=3)
        posterior = problem.posterior(case.context, case.params)
        posterior.sample(jr.key(seed), (2, 2))
        posterior.predict(jr.key(seed), case.params, (4,))

    use(0, 0.0)
    first = len(compiled)
    assert first > 0
    use(1, 0.3)
    assert len(compiled) == first
