"""The density of a measurement against closed forms of linear-Gaussian problems."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import helpers
import stochinv as si

TIGHT = dfx.PIDController(rtol=1e-8, atol=1e-8)


def gaussian_law(case, noise=0.0):
    """Mean and covariance of the target given the context, the schedule's last noise included."""
    level = case.problem.schedule.level(0.0)
    extra = noise**2 + float(level.sigma / level.alpha) ** 2
    covariance = case.matrix @ case.covariance @ case.matrix.T + extra * np.eye(len(case.matrix))
    return case.matrix @ case.mean, covariance


def gaussian_log_prob(x, mean, covariance):
    residual = np.asarray(x, np.float64) - mean
    _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * residual @ np.linalg.solve(covariance, residual) - 0.5 * logdet


def observation_of(case, flat):
    """A raveled measurement in the structure of the problem's."""
    struct = case.problem.observation_structure(case.params)
    _, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), struct))
    return unravel(jnp.asarray(flat, jax.tree.leaves(struct)[0].dtype))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": 0.5},
        {"tree": True, "num_context": 0},
        {"conditioning": 30.0, "noise": 0.1, "num_context": 1},
        {"schedule": si.VarianceExploding(), "num_context": 1},
        {"schedule": si.RectifiedFlow(), "num_context": 1},
    ],
    ids=["context", "noise", "tree", "conditioned", "variance_exploding", "rectified_flow"],
)
def test_closed_form(x64, options):
    case = helpers.linear_gaussian(3, dtype=jnp.float64, **options)
    mean, covariance = gaussian_law(case, options.get("noise", 0.0))
    root = np.linalg.cholesky(covariance)
    points = mean + np.random.default_rng(0).normal(size=(3, len(mean))) @ root.T
    value = lambda o: case.problem.posterior(case.context, case.params).log_prob(o, stepsize_controller=TIGHT)
    got = jax.vmap(value)(jax.vmap(lambda x: observation_of(case, x))(jnp.asarray(points)))
    expected = [gaussian_log_prob(x, mean, covariance) for x in points]
    # The start N(0, I) forgets the mean and the covariance of the data, some 1/150 of the noise there.
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_single_precision_and_jit():
    case = helpers.linear_gaussian(0)
    mean, covariance = gaussian_law(case)
    value = jax.jit(lambda o: case.problem.posterior(case.context, case.params).log_prob(o))
    got = value(jnp.asarray(mean, jnp.float32))
    assert got.shape == () and got.dtype == jnp.float32
    assert abs(got - gaussian_log_prob(mean, mean, covariance)) < 0.03


@pytest.mark.slow
def test_solution_converges_with_the_tolerance(x64):
    case = helpers.linear_gaussian(1, noise=0.3, dtype=jnp.float64)
    point = jnp.asarray(gaussian_law(case, 0.3)[0] + 0.5)
    at = lambda controller: case.problem.posterior(case.context, case.params).log_prob(
        point, stepsize_controller=controller
    )
    exact = at(dfx.PIDController(rtol=1e-10, atol=1e-10))
    np.testing.assert_allclose(at(TIGHT), exact, atol=1e-6)
    np.testing.assert_allclose(at(dfx.StepTo(ts=jnp.linspace(0, 1, 400) ** 2)), exact, atol=1e-4)
    default = case.problem.posterior(case.context, case.params).log_prob(point)
    np.testing.assert_allclose(default, exact, atol=5e-3)


@pytest.mark.slow
def test_probes_are_unbiased():
    case = helpers.linear_gaussian(2, noise=0.3, num_context=1)
    point = jnp.asarray(gaussian_law(case, 0.3)[0], jnp.float32)
    exact = case.problem.posterior(case.context, case.params).log_prob(point)
    value = lambda key: case.problem.posterior(case.context, case.params).log_prob(point, key=key, num_probes=1)
    values = np.asarray(jax.vmap(value)(jr.split(jr.key(0), 200)))
    assert np.std(values) > 1e-3
    # Of two entries only the off-diagonal one of the Jacobian contributes. 1e-3: of the solver.
    assert abs(values.mean() - exact) < 4 * np.std(values) / np.sqrt(200) + 1e-3
    np.testing.assert_array_equal(value(jr.key(5)), value(jr.key(5)))


@pytest.mark.thorough
def test_gradient_is_the_score(x64):
    case = helpers.linear_gaussian(4, noise=0.4, dtype=jnp.float64)
    mean, covariance = gaussian_law(case, 0.4)
    point = jnp.asarray(mean + np.asarray([0.3, -0.5]))
    value = lambda o: case.problem.posterior(case.context, case.params).log_prob(o, stepsize_controller=TIGHT)
    expected = -np.linalg.solve(covariance, point - mean)
    np.testing.assert_allclose(jax.grad(value)(point), expected, rtol=0.01, atol=0.01)
    level = case.problem.schedule.level(0.0)
    score = case.problem.score(level.alpha * point, level, case.context, case.params)
    np.testing.assert_allclose(score, expected, rtol=0.01, atol=0.01)


def test_standardisation_has_its_jacobian(x64):
    def forward(signal, params):
        return {"first": signal[:1], "rest": (signal[1:],)}

    signal = jnp.asarray([30.0, -2.0])
    covariance = jnp.diag(jnp.asarray([0.25, 16.0]))
    standard = si.GaussianDenoiser(lambda s, p: s, jnp.zeros(2), jnp.eye(2))

    def denoiser(noisy, level, context, params, *, key=None):
        flat = jnp.concatenate([noisy["first"], noisy["rest"][0]])
        return signal + jnp.sqrt(jnp.diag(covariance)) * standard(flat, level, None, None)

    struct = jax.eval_shape(lambda: forward(signal, None))
    centre = {"first": jnp.asarray(30.0), "rest": (jnp.asarray(-2.0),)}
    spread = {"first": jnp.asarray(0.5), "rest": (jnp.asarray(4.0),)}
    info = si.DataInfo(struct, None, None, si.Units(centre, spread))
    shape = jax.ShapeDtypeStruct((2,), jnp.float64)
    problem = si.StochasticInverseProblem(forward, denoiser, objective=si.SquaredError(), signal=shape, data_info=info)
    point = {"first": jnp.asarray([30.4]), "rest": (jnp.asarray([1.0]),)}
    got = problem.posterior(None, None).log_prob(point, stepsize_controller=TIGHT)
    np.testing.assert_allclose(got, gaussian_log_prob([30.4, 1.0], [30.0, -2.0], np.asarray(covariance)), atol=0.005)


@pytest.mark.slow
def test_stochastic_denoiser_averages_draws():
    case = helpers.linear_gaussian(0, objective=si.ProperScore(), noise=0.5)
    mean, covariance = gaussian_law(case, 0.5)
    point = jnp.asarray(mean, jnp.float32)
    with pytest.raises(ValueError, match="`key` must be given, since the denoiser is stochastic"):
        case.problem.posterior(case.context, case.params).log_prob(point)
    value = lambda key: case.problem.posterior(case.context, case.params).log_prob(point, key=key, num_draws=256)
    values = np.asarray(jax.vmap(value)(jr.split(jr.key(0), 8)))
    # The score's error from draws is common to the whole path.
    assert abs(values.mean() - gaussian_log_prob(mean, mean, covariance)) < 0.1


@pytest.mark.thorough
def test_large_measurements_take_probes():
    size = 65
    denoiser = si.GaussianDenoiser(lambda s, p: s, jnp.zeros(size), jnp.eye(size))
    shape = jax.ShapeDtypeStruct((size,), jnp.float32)
    problem = si.StochasticInverseProblem(lambda s, p: s, denoiser, objective=si.SquaredError(), signal=shape)
    with pytest.raises(ValueError, match=r"the divergence is estimated \(65 entries\)"):
        problem.posterior(None, None).log_prob(jnp.zeros(size))
    # Probes are exact where the Jacobian is diagonal.
    got = problem.posterior(None, None).log_prob(jnp.zeros(size), key=jr.key(0), num_probes=1)
    np.testing.assert_allclose(got, -0.5 * size * np.log(2 * np.pi), atol=0.05)


def test_errors():
    case = helpers.linear_gaussian(0)
    with pytest.raises(ValueError, match=r"`value` is float32\[3\], but float32\[2\] is expected"):
        case.problem.posterior(case.context, case.params).log_prob(jnp.zeros(3))
    with pytest.raises(ValueError, match="`num_probes` must be an integer of at least 1"):
        case.problem.posterior(case.context, case.params).log_prob(jnp.zeros(2), num_probes=0)
    untrained = eqx.tree_at(lambda p: p.denoiser, case.problem, None, is_leaf=lambda x: x is None)
    with pytest.raises(ValueError, match="not trained"):
        untrained.posterior(case.context, case.params).log_prob(jnp.zeros(2))
