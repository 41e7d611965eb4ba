r"""The posterior of a signal given its measurements."""

from typing import Any, Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ._custom_types import AnyCallable, Context, FloatScalar, FloatScalarLike, Key, Observation, Params, Signal
from ._problem import StochasticInverseProblem
from ._sampler.base import AbstractSampler


@final
class Posterior(eqx.Module):
    """The posterior `p(s | c)` of the signal given a context, known by its samples.

    **Arguments:**

    - `problem`: a trained [`stochinv.StochasticInverseProblem`][].
    - `context`: the context in raw units.
    - `params`: the parameters of the target measurement that samples go through.
    - `sampler`: the sampler, or `None` for the problem's default.
    """

    problem: StochasticInverseProblem
    context: Context
    params: Params = None
    sampler: AbstractSampler | AnyCallable | None = None

    def __check_init__(self):
        if self.problem.denoiser is None:
            raise ValueError("The problem is not trained (`denoiser=None`): call `fit`, `load`, or give a denoiser.")
        if self.sampler is None:
            self.problem.check_inputs(self.context, self.params)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = (), *, chunk_size: int = 1024) -> Signal:
        """Draws signals.

        **Arguments:**

        - `key`: a PRNG key.
        - `sample_shape`: leading axes of the answer.
        - `chunk_size`: how many are drawn at once.

        **Returns:**

        Signals: a PyTree whose leaves have the leading axes `sample_shape`.
        """
        size = 1
        for length in sample_shape:
            size *= length
        sample = self.problem.sample(
            self.context, self.params, key=key, sampler=self.sampler, num_samples=size, chunk_size=chunk_size
        )
        return jax.tree.map(lambda x: x.reshape(sample_shape + x.shape[1:]), sample.signal)

    def predict(
        self, key: Key, params: Params, sample_shape: tuple[int, ...] = (), *, chunk_size: int = 1024
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
        signals = self.sample(key, sample_shape, chunk_size=chunk_size)
        return _measure(self.problem, signals, params, jr.fold_in(key, 1), len(sample_shape))

    def mean(self, key: Key, num_samples: int = 256) -> Signal:
        """The posterior mean of the signal, from `num_samples` draws."""
        return jax.tree.map(lambda x: jnp.mean(x, 0), self.sample(key, (num_samples,)))

    def std(self, key: Key, num_samples: int = 256) -> Signal:
        """The posterior standard deviation of each entry of the signal, from `num_samples` draws."""
        return jax.tree.map(lambda x: jnp.std(x, 0), self.sample(key, (num_samples,)))

    def quantile(self, key: Key, q: FloatScalarLike | Float[Array, " q"], num_samples: int = 256) -> Signal:
        """Quantiles of each entry of the signal at probabilities `q ∈ [0, 1]`, from `num_samples` draws.

        An array `q` gives the leaves a leading axis.
        """
        return jax.tree.map(lambda x: jnp.quantile(x, jnp.asarray(q), 0), self.sample(key, (num_samples,)))

    def to_arviz(self, key: Key, num_samples: int = 256) -> Any:
        """Posterior draws as an `arviz.InferenceData`, one variable per leaf of the signal, in a single chain.

        **Raises:**

        `ImportError` if ArviZ is not installed.
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError("`Posterior.to_arviz` needs ArviZ: `pip install arviz`.") from error
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.sample(key, (num_samples,)))
        name = lambda path: "signal" + jax.tree_util.keystr(path)
        return arviz.from_dict(posterior={name(path): jax.device_get(x)[None] for path, x in leaves})

    def log_prob(self, observation: Observation, *, key: Key | None = None, **options: Any) -> FloatScalar:
        """The log-density of a measurement with parameters `params` given the context, by the probability-flow ODE.

        The density of the *signal* is not available.

        **Arguments:**

        - `observation`: one measurement in raw units, measurement noise included.
        - `key`, `options`: as in [`stochinv.StochasticInverseProblem.log_prob`][].

        **Returns:**

        The log-density in raw units, a scalar.
        """
        return self.problem.log_prob(observation, self.context, self.params, key=key, **options)

    def to_numpyro(
        self, of: Literal["signal", "observation"] = "signal", *, key: Key | None = None, **options: Any
    ) -> Any:
        """The posterior as a `numpyro.distributions.Distribution`, to be used in NumPyro models.

        Its events are raveled to vectors; `.unravel` of the distribution undoes it. It is a PyTree of arrays.

        **Arguments:**

        - `of`: `"signal"` for the law of the signal, which simulates and has no `log_prob`, so that MCMC on it raises;
            `"observation"` for that of a measurement with parameters `params`, measurement noise included. That law
            has a density (see `log_prob`), and is sampled by the same ODE. MCMC can run on it.
        - `key`: a PRNG key for `log_prob`, where one is needed; it makes the density a fixed function.
        - `options`: other arguments of [`stochinv.StochasticInverseProblem.log_prob`][], for `"observation"` alone.

        **Raises:**

        `ValueError` if `of` is anything else, or if options are given for the signal.
        """
        from ._numpyro import ObservationDistribution, SignalDistribution

        if of == "signal":
            if options or key is not None:
                raise ValueError(
                    f"`key` and the options {sorted(options)} are those of `log_prob`, which signals do not have; "
                    'leave them out or take `to_numpyro("observation")`.'
                )
            return SignalDistribution(self, jax.eval_shape(lambda: self.sample(jr.key(0))))
        if of != "observation":
            raise ValueError(f'`of` must be "signal" or "observation", got {of!r}.')
        known = self.problem.data_info
        struct = self.problem.observation_structure(self.params) if known is None else known.observation
        return ObservationDistribution((self, key, options), struct)


@eqx.filter_jit
def _measure(problem, signals, params, key, num_axes):
    def measure(signal, key):
        return problem.add_noise(problem.forward(signal, params), key=key)

    shape = jax.tree.leaves(signals)[0].shape[:num_axes]
    keys = jr.split(key, shape) if num_axes else key
    for _ in range(num_axes):
        measure = jax.vmap(measure)
    return measure(signals, keys)
