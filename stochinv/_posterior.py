r"""The posterior of a signal given its measurements."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_integer, check_key, is_integer, is_traced, shown
from ._complex import as_parts
from ._custom_types import (
    AnyCallable,
    Context,
    FloatScalar,
    FloatScalarLike,
    Key,
    Observation,
    Params,
    PyTree,
    Signal,
    Solver,
    StepSizeController,
    summary,
)
from ._data_info import check_measurement, describe
from ._forward.base import measures_stack
from ._instrument import AbstractInstrument, effective_number
from ._lazy import LazyModule, optional
from ._log_prob import CONTROLLER, SOLVER, log_prob
from ._mode import find_mode
from ._noise import add_noise
from ._pareto import pareto_k
from ._problem_base import AbstractProblem, trained_denoiser
from ._sampler.base import AbstractSampler, as_sampler
from ._sampler.importance import ImportanceSampling
from ._sampling import encode, sample

if TYPE_CHECKING:
    from . import _numpyro
else:
    _numpyro = LazyModule(f"{__package__}._numpyro")


@final
class Posterior(eqx.Module):
    """The posterior `p(s | c)` of the signal given a context, known by its samples.

    **Arguments:**

    - `problem`: a trained [`stochinv.StochasticInverseProblem`][].
    - `context`: the context in raw units.
    - `params`: in measurement space, the parameters of the target measurement that samples go through.
    - `sampler`: the sampler, or `None` for the problem's default.
    - `instrument`: under another forward model or noise than those of training, how signals are drawn.
    """

    problem: AbstractProblem
    context: Context
    params: Params = None
    sampler: AbstractSampler | AnyCallable | None = None
    instrument: AbstractInstrument | None = None

    def __check_init__(self) -> None:
        trained_denoiser(self.problem)
        noised = self.problem.noised
        check_measurement("params", self.params)
        if self.sampler is None:
            noised.observation_structure(self.params)
        else:
            as_sampler(self.sampler)
        noised.as_context(self.context)

    def __repr__(self) -> str:
        given = "nothing given" if self.context is None else f"given {describe(self.context)}"
        how = f"sampler={self.sampler or 'default'}" if self.instrument is None else repr(self.instrument)
        return f"Posterior({given}, {how})"

    def sample(self, key: Key, sample_shape: int | tuple[int, ...] = (), *, chunk_size: int = 1024) -> Signal:
        """Draws signals.

        **Arguments:**

        - `key`: a PRNG key.
        - `sample_shape`: leading axes of the answer, or how many signals.
        - `chunk_size`: how many are drawn at once.

        **Returns:**

        Signals: a PyTree whose leaves have the leading axes `sample_shape`.
        """
        shape = _as_shape(sample_shape)
        if self.instrument is not None:
            check_key(key)
            check_integer("`chunk_size`", chunk_size)
            noised = self.problem.noised
            context = noised.as_context(self.context)
            drawn = self.instrument.draw(noised, context, key, math.prod(shape), chunk_size)
            signals = self.problem.coordinates.to_signal(drawn)
            return jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), signals)
        options = {"sampler": self.sampler, "num_samples": math.prod(shape), "chunk_size": chunk_size}
        drawn = sample(self.problem, self.context, self.params, key=key, **options)
        return jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), drawn.signal)

    def predict(
        self, key: Key, params: Params, sample_shape: int | tuple[int, ...] = (), *, chunk_size: int = 1024
    ) -> Observation:
        """Draws measurements from the posterior predictive, measurement noise included.

        The same `key` predicts different measurements of the same signals, those that `sample` draws with it.

        **Arguments:**

        - `key`: a PRNG key.
        - `params`: the parameters of the measurement to predict.
        - `sample_shape`, `chunk_size`: as in `sample`.

        **Returns:**

        Measurements in raw units: a PyTree whose leaves have the leading axes `sample_shape`.
        """
        check_measurement("params", params)
        _check_measurable(self.problem, params)
        signals = self.sample(key, sample_shape, chunk_size=chunk_size)
        params = jax.tree.map(jnp.asarray, params)
        return _measure(self.problem, signals, params, jr.fold_in(key, 1), len(_as_shape(sample_shape)))

    def mean(self, key: Key, num_samples: int = 256) -> Signal:
        """The posterior mean of the signal, from `num_samples` draws."""
        return jax.tree.map(lambda x: jnp.mean(x, 0), self._draws(key, num_samples))

    def std(self, key: Key, num_samples: int = 256) -> Signal:
        """The posterior standard deviation of each entry of the signal, from `num_samples` draws."""
        return jax.tree.map(lambda x: jnp.std(x, 0), self._draws(key, num_samples))

    def quantile(self, key: Key, q: FloatScalarLike | Float[Array, " q"], num_samples: int = 256) -> Signal:
        """Quantiles of each entry of the signal at probabilities `q ∈ [0, 1]`, from `num_samples` draws.

        An array `q` gives the leaves a leading axis. Of complex entries they are those of their real and imaginary
        parts, on a last axis.
        """
        _check_probabilities(q)
        return jax.tree.map(lambda x: jnp.quantile(x, jnp.asarray(q), 0), as_parts(self._draws(key, num_samples)))

    def _draws(self, key, num_samples):
        check_integer("`num_samples`", num_samples)
        return self.sample(key, (num_samples,))

    def mode(self, key: Key, num_samples: int = 64) -> Signal:
        """The most likely signal, the maximum a posteriori (MAP) estimate.

        It is one signal, and need not be typical: in many dimensions draws are nowhere near it. For signals of up to 64
        entries the density is maximised by BFGS, from the best of `num_samples` draws; for larger ones a mode is
        followed from much noise to little, and `key` makes no difference.

        **Raises:**

        `ValueError` in measurement space, where signals have no density, and under another `forward` or `noise`.

        ??? cite "Source"

            Cheng 1995, "Mean shift, mode seeking, and clustering", for large signals.
        """
        check_key(key)
        check_integer("`num_samples`", num_samples)
        _check_density(self)
        noised = self.problem.noised
        if noised is self.problem:
            raise ValueError(
                "In measurement space signals have no density, and so no `mode`; use `mean`, or fit in signal space."
            )
        coordinates = self.problem.coordinates
        context, known = noised.as_context(self.context), noised.likelihood_known
        return coordinates.to_signal(find_mode(noised, context, coordinates, key, num_samples, known))

    def effective_sample_size(self, key: Key, num_samples: int = 256) -> FloatScalar:
        """How many independent draws of the posterior `num_samples` draws of the network are worth.

        In signal space draws of the network are weighted by how likely they make the context (see
        [`stochinv.ImportanceSampling`][]). `(Σ w)² / Σ w²` near `num_samples` says that the network is right by
        itself; near 1, that few of its draws fit the measurements, and that corrected draws repeat these; 0, that none
        fits.

        **Raises:**

        `ValueError` if the likelihood is not known: in measurement space, or without noise.
        """
        return effective_number(self._log_weights("The effective sample size", key, num_samples, 2))

    def pareto_k(self, key: Key, num_samples: int = 256) -> FloatScalar:
        """The shape `k` of the generalised Pareto law of the largest weights, for draws as in `effective_sample_size`.

        Below 0.5 weights have a variance, and corrected draws are right; above 0.7 they are not to be relied on,
        however many there are: the network is too narrow for the likelihood, or looks elsewhere.

        **Raises:**

        `ValueError` as `effective_sample_size`, and for fewer than 25 samples.

        ??? cite "Source"

            Vehtari et al. 2024, "Pareto smoothed importance sampling".
        """
        return pareto_k(self._log_weights("Pareto k", key, num_samples, 25))

    def _log_weights(self, what, key, num_samples, fewest):
        check_key(key)
        check_integer("`num_samples`", num_samples, fewest)
        noised = self.problem.noised
        if not noised.likelihood_known:
            raise ValueError(f"{what} needs a likelihood: a problem in signal space, with a `noise` that is not 0.")
        context = noised.as_context(self.context)
        if self.instrument is None:
            return ImportanceSampling().propose(noised, encode(noised, context), key, num_samples)[1]
        return self.instrument.propose(noised, context, key, num_samples)[1]

    def to_arviz(self, key: Key, num_samples: int = 256) -> Any:
        """Posterior draws as an `arviz.InferenceData`, one variable per leaf of the signal, in a single chain.

        **Raises:**

        `ImportError` if ArviZ is not installed.
        """
        arviz = optional("arviz", "`Posterior.to_arviz` needs ArviZ", "diagnostics")
        leaves, _ = jax.tree_util.tree_flatten_with_path(as_parts(self._draws(key, num_samples)))
        name = lambda path: "signal" + jax.tree_util.keystr(path)
        return arviz.from_dict(posterior={name(path): jax.device_get(x)[None] for path, x in leaves})

    def log_prob(
        self,
        value: PyTree,
        *,
        key: Key | None = None,
        num_probes: int | None = None,
        solver: Solver = SOLVER,
        stepsize_controller: StepSizeController = CONTROLLER,
        max_steps: int = 4096,
        num_draws: int = 16,
    ) -> FloatScalar:
        """The log-density of what is noised, by the probability-flow ODE: `log p(s | c)` of a signal in signal space,
        and `log p(o | c)` of a measurement with parameters `params` in measurement space.

        It is the density with the noise of the schedule's end added, `σ(0) / α(0)` of a standard deviation: 0.002 by
        default. What the context determines has no density without it. It is that of the network, as right as the
        denoiser whatever its objective, and differentiable in `value`.

        **Arguments:**

        - `value`: one signal, or one measurement with its noise, in raw units.
        - `key`: a PRNG key; needed where probes are used or the denoiser is stochastic. The same key gives the same
            function of `value`.
        - `num_probes`: how many random directions estimate the divergence, without bias; by default it is exact for
            measurements of up to 64 entries, at the price of as many derivatives, and takes 16 probes for larger ones.
        - `solver`: a diffrax solver of ordinary differential equations.
        - `stepsize_controller`: an adaptive controller, or `diffrax.StepTo` with times from 0 to 1. The default
            tolerance is 1e-4; ask for more in double precision.
        - `max_steps`: the largest number of solver steps; more raise an error.
        - `num_draws`: how many draws of a stochastic denoiser are averaged per evaluation.

        **Returns:**

        The log-density in raw units, a scalar.

        **Raises:**

        `ValueError` if the noise is not Gaussian, an argument is not structured as in training, or a key is missing.

        ??? cite "Source"

            Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
            equation 39; Grathwohl et al. 2019, "FFJORD", for the probes.
        """
        _check_density(self)
        return log_prob(
            self.problem,
            value,
            self.context,
            self.params,
            key=key,
            num_probes=num_probes,
            solver=solver,
            stepsize_controller=stepsize_controller,
            max_steps=max_steps,
            num_draws=num_draws,
        )

    def to_numpyro(
        self, of: Literal["signal", "observation"] = "signal", *, key: Key | None = None, **options: Any
    ) -> Any:
        """The posterior as a `numpyro.distributions.Distribution`, to be used in NumPyro models.

        Its events are raveled to vectors; `.unravel` of the distribution undoes that. With a density they are vectors
        of `problem.coordinates`: of real and imaginary parts where the signal is complex, and without bounds where it
        has a `support`; `problem.coordinates.to_signal` makes the signal of them. It is a PyTree of arrays.

        **Arguments:**

        - `of`: `"signal"` for the law of the signal; `"observation"`, in measurement space alone, for that of a
            measurement with parameters `params`, measurement noise included. The law of what is noised has a density
            (see `log_prob`), and is sampled by the same ODE: MCMC can run on it. That of a signal in measurement space
            simulates and has none, so that MCMC on it raises.
        - `key`: a PRNG key for `log_prob`, where one is needed; it makes the density a fixed function.
        - `options`: other arguments of [`stochinv.Posterior.log_prob`][], for a law with a density.

        **Raises:**

        `ValueError` if `of` is anything else, or if options are given for a law without a density.
        """
        if of not in ("signal", "observation"):
            raise ValueError(f'`of` must be "signal" or "observation", got {shown(of)}.')
        _check_density(self)
        noised = self.problem.noised
        signals = noised is not self.problem
        if of == "observation" and signals:
            raise ValueError(
                '`of` is "observation", but in signal space the signal has the density; take `to_numpyro()`, and '
                "`predict` for measurements."
            )
        if of == "signal" and not signals:
            if options or key is not None:
                raise ValueError(
                    f"`key` and the options {sorted(options)} are those of `log_prob`, which signals do not have; "
                    'leave them out or take `to_numpyro("observation")`.'
                )
            return _numpyro.SignalDistribution(self, jax.eval_shape(lambda: self.sample(jr.key(0))))
        if key is not None:
            check_key(key)
        inner = dataclasses.replace(self, problem=noised)
        return _numpyro.DensityDistribution((inner, key, options), noised.observation_structure(self.params))


def _check_density(posterior):
    if posterior.instrument is not None:
        raise ValueError(
            "The posterior under another `forward` or `noise` is known by its draws alone, and has no density; use "
            "`sample`, or leave both out."
        )


@eqx.filter_jit
def _measure(problem, signals, params, key, num_axes):
    def measure(signal, key):
        clean = problem.forward(signal, params)
        return add_noise(problem.noise, clean, key=key, stacked=measures_stack(problem.forward))

    shape = jax.tree.leaves(signals)[0].shape[:num_axes]
    keys = jr.split(key, shape) if num_axes else key
    for _ in range(num_axes):
        measure = jax.vmap(measure)
    return measure(signals, keys)


def _check_measurable(problem, params):
    """Whether measurements can be predicted, which may be of another kind than those of training."""
    try:
        eqx.filter_eval_shape(problem.forward, problem.signal, params)
    except Exception as error:
        raise ValueError(
            f"`params` is {describe(params)}, with which `forward` fails ({summary(error)}); give the parameters of "
            "one measurement."
        ) from error


def _check_probabilities(q: Any):
    known = isinstance(q, int | float | list | tuple | np.ndarray | np.generic | jax.Array) and not isinstance(q, bool)
    array = np.asarray(q) if known and not is_traced(q) else None
    if not known or (array is not None and (array.dtype.kind not in "iuf" or not np.all((array >= 0) & (array <= 1)))):
        raise ValueError(f"`q` must be a probability between 0 and 1, or an array of such, got {shown(q)}.")


def _as_shape(sample_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes that a user asked for."""
    shape: Any = (sample_shape,) if is_integer(sample_shape) else sample_shape
    if not isinstance(shape, tuple | list) or not all(is_integer(x) and x > 0 for x in shape):
        raise ValueError(f"`sample_shape` must be a positive integer or a tuple of such, got {shown(sample_shape)}.")
    return tuple(int(x) for x in shape)
