r"""The density of what is noised, by the probability-flow ODE.

The ODE that samples also transports densities. With the rescaled measurement `y = o_t / √(α² + σ²)` and its velocity
`v(t, y) = −½ ĝ² [y + ∇ log p̂_t(y | c)]`, forward in `t`,

`log p̂_0(y(0) | c) = log N(y(1); 0, I) + ∫₀¹ ∇·v(t, y(t)) dt`

(Song et al. 2021, "Score-based generative modeling through stochastic differential equations", equation 39). The
divergence is exact, or estimated by `εᵀ (∂v/∂y) ε` with random signs `ε` that stay the same along the path
(Hutchinson's estimator; Grathwohl et al. 2019, "FFJORD").
"""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree

from ._checks import check_instance, check_integer, check_key
from ._custom_types import Context, FloatScalar, Key, Observation, Params, Solver, StepSizeController
from ._data_info import check_measurement, check_structure
from ._problem_base import AbstractProblem, encode_context, trained_denoiser
from ._sampler.base import draw_keys
from ._sampler.diffrax_terms import reverse_drift
from ._structure import count_entries, zeros_of

# The largest measurement, in entries, whose divergence is exact by default, and the probes of larger ones.
EXACT_SIZE, NUM_PROBES = 64, 16
SOLVER = dfx.Tsit5()
CONTROLLER = dfx.PIDController(rtol=1e-4, atol=1e-4)


def log_prob(
    problem: AbstractProblem,
    observation: Observation,
    context: Context,
    params: Params,
    *,
    key: Key | None,
    num_probes: int | None,
    solver: Solver,
    stepsize_controller: StepSizeController,
    max_steps: int,
    num_draws: int,
) -> FloatScalar:
    """What `problem.log_prob` does, with all its defaults filled in."""
    check_measurement("value", observation)
    user, problem = problem, problem.noised
    trained_denoiser(problem)
    if key is not None:
        check_key(key)
    if num_probes is not None:
        check_integer("`num_probes`", num_probes)
    check_integer("`num_draws`", num_draws)
    check_integer("`max_steps`", max_steps)
    check_instance("`solver`", solver, dfx.AbstractSolver, "a diffrax solver such as `diffrax.Tsit5()`")
    wanted = "a diffrax controller such as `diffrax.PIDController(rtol=1e-4, atol=1e-4)`"
    check_instance("`stepsize_controller`", stepsize_controller, dfx.AbstractStepSizeController, wanted)
    check_measurement("params", params)
    of_signals = user is not problem
    expected = user.signal if of_signals else problem.observation_structure(params)
    remedy = "give one signal, or one measurement for `params`; map over several with `jax.vmap`"
    check_structure("value", observation, expected, remedy)
    size = count_entries(problem.observation_structure(params))
    if num_probes is None and size > EXACT_SIZE:
        num_probes = NUM_PROBES
    if key is None and (num_probes is not None or problem.objective.stochastic):
        why = "the denoiser is stochastic" if num_probes is None else f"the divergence is estimated ({size} entries)"
        raise ValueError(f"`key` must be given, since {why}; got None.")
    context, (observation, params) = problem.as_context(context), jax.tree.map(jnp.asarray, (observation, params))
    options = (num_probes, solver, stepsize_controller, max_steps, num_draws)
    if not of_signals:
        return _log_prob(problem, observation, context, params, key, options)
    found = user.coordinates.from_signal(observation)
    return _log_prob(problem, found, context, params, key, options) - user.coordinates.log_volume(found)


@eqx.filter_jit
def _log_prob(problem, observation, context, params, key, options):
    num_probes, solver, controller, max_steps, num_draws = options
    flat, unravel = ravel_pytree(problem.units.standardise(observation))
    probes, keys = jnp.eye(flat.size, dtype=flat.dtype), None
    if key is not None:
        probe_key, draws_key = jr.split(key)
        keys = draw_keys(problem, num_draws, draws_key)
        if num_probes is not None:
            probes = jr.rademacher(probe_key, (num_probes, flat.size), flat.dtype)
    drift = reverse_drift(problem, encode_context(problem, context), params, keys, unravel, 0.0)
    weight = 1.0 if num_probes is None else 1 / num_probes

    def velocity(t, state, args):
        y, _ = state
        value, derivative = jax.linearize(lambda y: -drift.vector_field(1 - t, y, None), y)
        return value, weight * jnp.sum(probes * jax.vmap(derivative)(probes))

    scale = _final_scale(problem, flat)
    start = (scale * flat, jnp.zeros((), flat.dtype))
    y, gained = _solve(velocity, start, solver, controller, max_steps)
    standard = -0.5 * jnp.sum(y**2) - 0.5 * y.size * jnp.log(2 * jnp.pi).astype(y.dtype)
    log_jacobian = flat.size * jnp.log(scale)
    log_jacobian = log_jacobian - problem.units.log_volume(observation)
    return (standard + gained + log_jacobian).astype(flat.dtype)


@eqx.filter_jit
def sample_measurement(
    problem: AbstractProblem,
    context: Context,
    params: Params,
    *,
    key: Key,
    draws_key: Key | None = None,
    solver: Solver = SOLVER,
    stepsize_controller: StepSizeController = CONTROLLER,
    max_steps: int = 4096,
    num_draws: int = 16,
) -> Observation:
    """A draw from the density that `problem.log_prob` evaluates, by the same ODE backwards, in raw units."""
    problem = problem.noised
    context = problem.as_context(context)
    flat, unravel = zeros_of(problem.observation_structure(params))
    draws_key = jr.fold_in(key, 1) if draws_key is None else jr.split(draws_key)[1]
    keys = draw_keys(problem, num_draws, draws_key)
    drift = reverse_drift(problem, encode_context(problem, context), params, keys, unravel, 0.0)
    start = jr.normal(key, flat.shape, flat.dtype)
    y = _solve(drift.vector_field, start, solver, stepsize_controller, max_steps)
    return problem.units.destandardise(unravel(y / _final_scale(problem, flat)))


def _final_scale(problem, flat):
    """`y / o` at `t = 0` without noise, `α / √(α² + σ²)`."""
    level = problem.schedule.level(0.0)
    return (level.alpha / jnp.sqrt(level.alpha**2 + level.sigma**2)).astype(flat.dtype)


def _solve(vector_field, start, solver, controller, max_steps):
    solution = dfx.diffeqsolve(
        dfx.ODETerm(vector_field),
        solver,
        t0=0.0,
        t1=1.0,
        dt0=None if isinstance(controller, dfx.StepTo) else 1e-3,
        y0=start,
        stepsize_controller=controller,
        max_steps=max_steps,
    )
    assert solution.ys is not None
    return jax.tree.map(lambda x: x[-1], solution.ys)
