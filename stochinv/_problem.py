r"""A stochastic inverse problem: a forward model, a denoiser, a noise schedule and an objective.

The score of the noisy target measurement follows from the denoiser through the forward model, with
`ô = f(D(o_t; α, σ, c, φ), φ)` and measurement noise `τ`:

`∇ log p_t(o_t | c) = (α ô − o_t) / (σ² + α² τ²)`.

Training and sampling are derived from it and from the schedule alone.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from ._custom_types import AnyCallable, Context, FloatScalar, Key, Observation, Params, Signal, Structure
from ._data_info import DataInfo, check_structure
from ._denoiser.base import AbstractDenoiser, AbstractMixtureDenoiser
from ._forward.base import AbstractForwardModel, MultiView, as_forward_model
from ._likelihood import draw
from ._log_prob import CONTROLLER, SOLVER, log_prob
from ._noise import scaled_normal, where_noisy
from ._objective.base import AbstractObjective
from ._objective.squared_error import SquaredError
from ._sampler.autoregressive import Autoregressive
from ._sampler.base import AbstractSampler, Sample
from ._sampler.default import default_sampler
from ._schedule import AbstractNoiseSchedule, CosineSchedule, NoiseLevel
from ._view import Example, View

if TYPE_CHECKING:
    from ._fit import Fit
    from ._posterior import Posterior


@final
class StochasticInverseProblem(eqx.Module):
    """Signals that are never observed, measured by a known forward model.

    **Arguments:**

    - `forward`: the forward model `f(s, φ)`: an [`stochinv.AbstractForwardModel`][] or any callable
        `(signal, params) -> observation`.
    - `denoiser`: an [`stochinv.AbstractDenoiser`][] or a callable of its signature; `None` to have one made from the
        data by `fit`.
    - `schedule`: the noise schedule.
    - `objective`: what training minimises.
    - `noise`: the standard deviation `τ ≥ 0` of Gaussian noise on every measurement, in raw units: a scalar, or a
        PyTree of scalars in the structure of an observation. Or the law of any other noise: a callable from a
        noise-free measurement in raw units to a NumPyro distribution, or to a PyTree of them like an observation, such
        as `numpyro.distributions.Poisson`. It takes a stochastic objective, trains on novel measurements alone, and is
        sampled in one step, `Ancestral(1)`.
    - `signal`: the PyTree of `jax.ShapeDtypeStruct` of the signal; needed where neither `forward` nor a fit tells it.
    - `data_info`: structures and units of the data; set by `fit`.
    """

    forward: AbstractForwardModel
    denoiser: AbstractDenoiser | AnyCallable | None
    schedule: AbstractNoiseSchedule
    objective: AbstractObjective
    noise: PyTree | AnyCallable
    signal: Structure | None
    data_info: DataInfo | None

    def __init__(
        self,
        forward: AbstractForwardModel | AnyCallable,
        denoiser: AbstractDenoiser | AnyCallable | None = None,
        *,
        schedule: AbstractNoiseSchedule = CosineSchedule(),
        objective: AbstractObjective = SquaredError(),
        noise: PyTree = 0.0,
        signal: Structure | None = None,
        data_info: DataInfo | None = None,
    ):
        self.forward = as_forward_model(forward)
        self.denoiser = denoiser
        self.schedule = schedule
        self.objective = objective
        as_array = lambda x: jnp.asarray(x, jnp.result_type(float))
        self.noise = noise if callable(noise) else jax.tree.map(as_array, noise)
        self.signal = signal
        self.data_info = data_info

    def __check_init__(self):
        if self.denoiser is not None and not callable(self.denoiser):
            raise ValueError(f"`denoiser` must be callable or None, got {self.denoiser!r}.")
        for noise in () if callable(self.noise) else jax.tree.leaves(self.noise):
            if jnp.shape(noise) != ():
                raise ValueError(f"`noise` must consist of scalars, got one of shape {jnp.shape(noise)}.")

    def standardise(self, observation: Observation) -> Observation:
        """A raw measurement, or a stack of them, in standardised units."""
        return observation if self.data_info is None else self.data_info.standardise(observation)

    def destandardise(self, observation: Observation) -> Observation:
        """A standardised measurement, or a stack of them, in raw units."""
        return observation if self.data_info is None else self.data_info.destandardise(observation)

    def standardise_context(self, context: Context) -> Context:
        """A context with its measurements in standardised units; one that is not a `View` is left alone."""
        if not isinstance(context, View):
            return context
        return View(self.standardise(context.observation), context.params, context.mask)

    def noise_scale(self, observation: Observation, *, full: bool = False) -> PyTree:
        """The standard deviation `τ` of measurement noise in standardised units.

        **Arguments:**

        - `observation`: a measurement, for its structure and dtype.
        - `full`: broadcast to the shape of the measurement instead of scalars.

        **Raises:**

        `ValueError` if the noise is not Gaussian: no bridge and no score is known for it.
        """
        if callable(self.noise):
            raise ValueError(
                "`noise` is not Gaussian but a law, for which only one step from noise is exact: sample by "
                "`Ancestral(1)`, and do without `score` and `log_prob`."
            )
        noise = self.noise
        if jax.tree.structure(noise) == jax.tree.structure(0.0):
            noise = jax.tree.map(lambda x: noise, observation)
        elif jax.tree.structure(noise) != jax.tree.structure(observation):
            raise ValueError(
                f"`noise` must be a scalar or have the structure of an observation, {jax.tree.structure(observation)}, "
                f"got {jax.tree.structure(noise)}."
            )
        if self.data_info is not None:
            noise = jax.tree.map(lambda n, s: n / s, noise, self.data_info.std)
        noise = jax.tree.map(lambda n, x: n.astype(x.dtype), noise, observation)
        return jax.tree.map(lambda n, x: jnp.broadcast_to(n, x.shape), noise, observation) if full else noise

    def measured(
        self, noisy: Observation, level: NoiseLevel, observation: Observation, *, key: Key | None = None
    ) -> Observation:
        """What the *noisy* measurement is, given its noised version and the noise-free prediction `ô`.

        Without a key its mean `ô + k (o_t − α ô)`, `k = α τ² / (α² τ² + σ²)`; with a key a draw around that, of
        variance `τ² σ² / (α² τ² + σ²)`. Without measurement noise it is `ô`. All in standardised units.
        """
        scale = self.noise_scale(observation)
        total = jax.tree.map(lambda n: (level.alpha * n) ** 2 + level.sigma**2, scale)
        pull = lambda o, x, n, v: o + level.alpha * n**2 / v * (x - level.alpha * o)
        mean = lambda: jax.tree.map(pull, observation, noisy, scale, total)
        if key is None:
            return mean()
        spread = jax.tree.map(lambda n, v: n * level.sigma / jnp.sqrt(v), scale, total)
        around_mean = lambda: jax.tree.map(jnp.add, mean(), scaled_normal(observation, spread, key))
        return where_noisy(scale, around_mean, observation)

    def add_noise(self, observation: Observation, *, key: Key, stacked: bool = False) -> Observation:
        """A noisy measurement, given a noise-free one; both in raw units.

        **Arguments:**

        - `observation`: `f(s, φ)`, or a stack of such.
        - `key`: a PRNG key.
        - `stacked`: whether it is a stack of views; for a [`stochinv.MultiView`][] it always is.
        """

        def add(observation, key):
            if callable(self.noise):
                return draw(self.noise, observation, key)
            scale = self.noise_scale(observation)

            def noisy():
                noise = scaled_normal(observation, scale, key)
                if self.data_info is not None:
                    noise = jax.tree.map(jnp.multiply, noise, self.data_info.std)
                return jax.tree.map(jnp.add, observation, noise)

            return where_noisy(scale, noisy, observation)

        if not stacked and not isinstance(self.forward, MultiView):
            return add(observation, key)
        return jax.vmap(add)(observation, jr.split(key, jax.tree.leaves(observation)[0].shape[0]))

    def observation_structure(self, params: Params) -> Structure:
        """The `jax.ShapeDtypeStruct`s of a measurement with parameters `params`."""
        if self.signal is None:
            raise ValueError(
                "`signal` is not known: give `StochasticInverseProblem(signal=...)` the PyTree of "
                "`jax.ShapeDtypeStruct` of a signal, or use a fitted problem."
            )
        return eqx.filter_eval_shape(self.forward, self.signal, params)

    def denoise(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Sample:
        """Denoises a measurement by way of the signal.

        **Arguments:**

        - `noisy`: the noisy target `o_t`, in standardised units.
        - `level`: its [`stochinv.NoiseLevel`][].
        - `context`: the context, its measurements in standardised units.
        - `params`: the parameters `φ` of the target.
        - `key`: a PRNG key for a draw of a stochastic denoiser; `None` for a deterministic answer.

        **Returns:**

        A [`stochinv.Sample`][]: the signal `ŝ`, and `ô = f(ŝ, φ)` in standardised units.
        """
        if self.denoiser is None:
            raise ValueError("The problem is not trained (`denoiser=None`): call `fit`, `load`, or give a denoiser.")
        signal = self.denoiser(noisy, level, context, params, key=key)
        return Sample(signal, self.standardise(self.forward(signal, params)))

    def components(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key
    ) -> tuple[Signal, Float[Array, " components"]]:
        """The signals that a draw of the denoiser chooses from, see [`stochinv.AbstractMixtureDenoiser`][].

        **Arguments:** as of `denoise`.

        **Returns:**

        Signals with a leading components axis, and log-probabilities of shape `(components,)`: one, unless the denoiser
        has several.
        """
        if isinstance(self.denoiser, AbstractMixtureDenoiser):
            return self.denoiser.components(noisy, level, context, params, key=key)
        signal = self.denoise(noisy, level, context, params, key=key).signal
        return jax.tree.map(lambda x: jnp.asarray(x)[None], signal), jnp.zeros(1)

    def score(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Observation:
        """The score `∇ log p_t(o_t | c)` of the noisy target measurement.

        **Arguments:**

        - `noisy`: the noisy target in raw units: `mean + std · o_t`, where `o_t = α o + σ ε` is standardised.
        - `level`, `params`, `key`: as in `denoise`.
        - `context`: the context in raw units.

        **Returns:**

        The gradient with respect to `noisy`, in its structure.
        """
        standardised = self.standardise(noisy)
        context = self.standardise_context(context)
        predicted = self.denoise(standardised, level, context, params, key=key).observation
        noise = self.noise_scale(predicted)
        std = jax.tree.map(jnp.ones_like, noise) if self.data_info is None else self.data_info.std
        score = lambda o, x, n, s: (level.alpha * o - x) / (level.sigma**2 + (level.alpha * n) ** 2) / s
        return jax.tree.map(score, predicted, standardised, noise, std)

    def loss(self, example: Example, *, key: Key) -> tuple[FloatScalar, dict[str, FloatScalar]]:
        """The training loss of one record in raw units, and a dictionary of its parts."""
        return self.objective(self, self.standardise_example(example), key=key)

    def standardise_example(self, example: Example) -> Example:
        """A record with all its measurements in standardised units."""
        target, novel = example.target, example.novel
        return Example(
            self.standardise_context(example.context),
            View(self.standardise(target.observation), target.params),
            None if novel is None else self.standardise_context(novel),
        )

    def check_inputs(self, context: Context, params: Params, *, stacked: bool = False):
        """Raises a `ValueError` if context or parameters are not of the structure that the problem was fitted to.

        With `stacked`, `params` has a leading axis, one entry per target.
        """
        if self.data_info is None:
            return
        check_structure("context", context, self.data_info.context, "give a context like those of the training data")
        remedy = "give the parameters of one target measurement, as in the training data"
        if stacked:
            params = jax.tree.map(lambda x: x[0], params)
        check_structure("params", params, self.data_info.params, remedy)

    def sample(
        self,
        context: Context,
        params: Params = None,
        *,
        key: Key,
        sampler: AbstractSampler | AnyCallable | None = None,
        num_samples: int | None = None,
        chunk_size: int = 1024,
    ) -> Sample:
        """Draws signals, and the target measurements they explain, from their law given the context.

        **Arguments:**

        - `context`: the context in raw units, structured as in training.
        - `params`: the parameters `φ` of the target measurement. Where context and target determine the signal, any
            choice gives the same law.
        - `key`: a PRNG key.
        - `sampler`: the sampler; by default `Ancestral()` for a stochastic objective, `Ancestral(1)` if the noise is
            not Gaussian, and `ExponentialAdams()` for others.
        - `num_samples`: how many; `None` draws one, without a leading axis.
        - `chunk_size`: how many are drawn at once; memory grows with it and not with `num_samples`.

        **Returns:**

        A [`stochinv.Sample`][] in raw units, its leaves with a leading axis of `num_samples`.

        **Raises:**

        `ValueError` if the problem is not trained, or if the context or the parameters are not as in training.
        """
        if self.denoiser is None:
            raise ValueError("The problem is not trained (`denoiser=None`): call `fit`, `load`, or give a denoiser.")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
        sampler = default_sampler(self) if sampler is None else sampler
        context, params = jax.tree.map(jnp.asarray, (context, params))
        self.check_inputs(context, params, stacked=isinstance(sampler, Autoregressive))
        keys = key if num_samples is None else jr.split(key, num_samples)
        return _sample(self, sampler, context, params, keys, None if num_samples is None else chunk_size)

    def log_prob(
        self,
        observation: Observation,
        context: Context,
        params: Params = None,
        *,
        key: Key | None = None,
        num_probes: int | None = None,
        solver: dfx.AbstractSolver = SOLVER,
        stepsize_controller: dfx.AbstractStepSizeController = CONTROLLER,
        max_steps: int = 4096,
        num_draws: int = 16,
    ) -> FloatScalar:
        """The log-density `log p(o | c)` of a measurement given the context, by the probability-flow ODE.

        It is the density of the measurement with the noise of the schedule's end added to it, `σ(0) / α(0)` of a
        standard deviation of the data: 0.002 by default. A measurement that the context determines has no density
        without it. The density of the *signal* is not available. It is as right as the denoiser, whatever its
        objective, and differentiable in `observation`.

        **Arguments:**

        - `observation`: one measurement in raw units, measurement noise included.
        - `context`: the context in raw units, structured as in training.
        - `params`: the parameters `φ` of the measurement.
        - `key`: a PRNG key; needed where probes are used or the denoiser is stochastic. The same key gives the same
            function of `observation`.
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

        `ValueError` if the problem is not trained, if an argument is not structured as in training, or if a key is
        missing.

        ??? cite "Source"

            Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
            equation 39; Grathwohl et al. 2019, "FFJORD", for the probes.
        """
        return log_prob(
            self,
            observation,
            context,
            params,
            key=key,
            num_probes=num_probes,
            solver=solver,
            stepsize_controller=stepsize_controller,
            max_steps=max_steps,
            num_draws=num_draws,
        )

    def posterior(
        self, context: Context, params: Params = None, *, sampler: AbstractSampler | AnyCallable | None = None
    ) -> "Posterior":
        """The posterior of the signal given a context, as an object.

        **Arguments:** as in `sample`.

        **Returns:**

        A [`stochinv.Posterior`][].
        """
        from ._posterior import Posterior

        return Posterior(self, context, params, sampler)

    def fit(self, data: Example | View | Iterable[Any], *, key: Key, **options: Any) -> "Fit":
        """Trains the denoiser from measurements alone. See [`stochinv.fit`][] for the arguments.

        **Returns:**

        A [`stochinv.Fit`][]: the trained problem and the history of its training.
        """
        from ._fit import fit

        return fit(self, data, key=key, **options)

    def save(self, path: str | os.PathLike):
        """Writes what training determined (the denoiser's arrays and the units) to one file.

        The forward model, the schedule and the objective are code, and not stored.

        **Arguments:**

        - `path`: the file; an existing one is replaced in one step.
        """
        from ._save import save

        save(self, path)

    def load(self, path: str | os.PathLike) -> "StochasticInverseProblem":
        """This problem as it was trained and saved.

        **Arguments:**

        - `path`: a file written by `save` of a problem with the same forward model and denoiser.

        **Returns:**

        The trained problem.

        **Raises:**

        `ValueError` if the file is damaged or was written by another kind of problem; `FileNotFoundError` if it is
        missing.
        """
        from ._save import load

        return load(self, path)


@eqx.filter_jit
def _sample(problem, sampler, context, params, keys, chunk_size):
    context = problem.standardise_context(context)
    draw = lambda key: sampler(problem, context, params, key=key)
    if chunk_size is None:
        return draw(keys)
    if keys.shape[0] <= chunk_size:
        return jax.vmap(draw)(keys)
    return jax.lax.map(draw, keys, batch_size=chunk_size)
