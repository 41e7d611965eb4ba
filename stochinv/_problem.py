r"""A stochastic inverse problem, as users have it: its parts, training, posteriors, files."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast, final

import jax
import optax

from ._checks import check_instance, shorten
from ._coordinates import Coordinates, as_support, coordinates_of, refuse_support
from ._custom_types import AnyCallable, Context, Key, Params, PyTree, Structure
from ._data_info import DataInfo, as_context, check_context, describe
from ._denoiser.base import AbstractDenoiser, as_denoiser
from ._fit import Fit
from ._forward.base import AbstractForwardModel, as_forward_model
from ._frozen import count_trained
from ._instrument import under_instrument
from ._noise import AbstractNoise, as_noise
from ._objective.base import AbstractObjective
from ._objective.default import as_objective
from ._pairs import Pairs
from ._posterior import Posterior
from ._problem_base import AbstractProblem
from ._sampler.base import AbstractSampler, Sample
from ._sampling import sample, sample_many
from ._save import save
from ._schedule import AbstractNoiseSchedule, CosineSchedule, as_schedule
from ._simulated import Simulated
from ._space import AbstractSpace, as_space, choose_space
from ._tracker import Tracker
from ._training.checks import default_validation, refuse_rounds
from ._training.ema import AbstractEMA, PowerEMA
from ._training.history import Progress
from ._training.layout import as_layout, on_mesh
from ._training.loop import Options, train
from ._training.plan import BATCH_SIZE
from ._training.signals import train_signals
from ._view import Example, RandomViews, View, as_signal


@final
class StochasticInverseProblem(AbstractProblem):
    """Signals that are never observed, measured by a known forward model.

    **Arguments:**

    - `forward`: the forward model `f(s, φ)`: an [`stochinv.AbstractForwardModel`][] or any callable
        `(signal, params) -> observation`.
    - `denoiser`: an [`stochinv.AbstractDenoiser`][] or a callable of its signature; `None` to have one made from the
        data by `fit`.
    - `schedule`: the noise schedule.
    - `objective`: what training minimises. `None` is [`stochinv.ProperScore`][]`()`, which is right for every forward
        model; [`stochinv.SquaredError`][] is cheaper, and right under conditions.
    - `space`: what is noised: [`stochinv.SignalSpace`][]`()` or [`stochinv.MeasurementSpace`][]`()`. `None` leaves the
        choice to the data of `fit`: signal space for records of views, measurement space for views whose roles are
        dealt, and for records with roles.
    - `noise`: the noise of every measurement, in raw units: an [`stochinv.AbstractNoise`][]; a number or a PyTree of
        numbers like an observation, the standard deviations of [`stochinv.GaussianNoise`][], 0 for none; or a callable
        from a noise-free measurement to NumPyro distributions, for [`stochinv.NoiseLaw`][].
    - `signal`: the shape of the signal, such as `(28, 28, 1)`; a PyTree of shapes such as `{"rate": (), "scale": 3}`
        or of `jax.ShapeDtypeStruct`; needed where neither `forward` nor a fit tells it.
    - `support`: in signal space, where signals are: a NumPyro constraint such as `constraints.positive`,
        `constraints.interval(0.0, 1.0)` or `constraints.simplex`, or a PyTree of such, a prefix of the signal. What is
        drawn lies there; it is noised in coordinates without bounds.
    - `data_info`: structures and units of the data; set by `fit`.

    **Raises:**

    `ValueError` if an argument is not of its kind.
    """

    forward: AbstractForwardModel
    denoiser: AbstractDenoiser | AnyCallable | None
    schedule: AbstractNoiseSchedule
    objective: AbstractObjective
    noise: AbstractNoise
    signal: Structure | None
    support: PyTree
    data_info: DataInfo | None
    space: AbstractSpace | None

    def __init__(
        self,
        forward: AbstractForwardModel | AnyCallable,
        denoiser: AbstractDenoiser | AnyCallable | None = None,
        *,
        schedule: AbstractNoiseSchedule = CosineSchedule(),
        objective: AbstractObjective | None = None,
        noise: AbstractNoise | AnyCallable | PyTree = 0.0,
        space: AbstractSpace | None = None,
        signal: PyTree = None,
        support: PyTree = None,
        data_info: DataInfo | None = None,
    ) -> None:
        self.forward = as_forward_model(forward)
        self.denoiser = as_denoiser(denoiser)
        self.schedule = as_schedule(schedule)
        self.objective = as_objective(objective)
        self.noise = as_noise(noise)
        self.space = as_space(space)
        self.signal = as_signal(signal)
        self.support = as_support(support)
        if data_info is not None:
            check_instance("`data_info`", data_info, DataInfo, "what a `fit` found out, or None")
        self.data_info = data_info

    def __check_init__(self) -> None:
        if self.signal is not None:
            coordinates_of(self.signal, self.support)

    def __repr__(self) -> str:
        trained = "made by fit" if self.denoiser is None else f"{count_trained(self.denoiser):,} parameters"
        kind = "None" if self.denoiser is None else type(self.denoiser).__name__
        rows = {
            "forward": short(self.forward),
            "space": "chosen by fit" if self.space is None else short(self.space),
            "signal": "not known yet" if self.signal is None else describe(self.signal),
            **({} if self.support is None else {"support": short(self.support)}),
            "noise": short(self.noise),
            "denoiser": f"{kind} ({trained})",
            "schedule": short(self.schedule),
            "objective": short(self.noised.objective),
            "units": "not known yet" if self.data_info is None else short(self.units),
        }
        return "\n".join(["StochasticInverseProblem(", *(f"  {name}: {row}" for name, row in rows.items()), ")"])

    @property
    def noised(self) -> AbstractProblem:
        return self if self.space is None else self.space.problem(self)

    @property
    def coordinates(self) -> Coordinates:
        return coordinates_of(self.signal, self.support)

    @property
    def likelihood_known(self) -> bool:
        return False

    def as_context(self, context: Context) -> Context:
        check_context(self.data_info, context)
        return as_context(context)

    def fit(
        self,
        data: View | Pairs | Simulated | Example | Iterable[Any],
        *,
        key: Key,
        known: Pairs | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        batch_size: int | None = None,
        roles: RandomViews | None = None,
        rounds: int | None = None,
        start: AnyCallable | None = None,
        optimizer: optax.GradientTransformation | None = None,
        gradient_clip: float | None = 1.0,
        ema: AbstractEMA | None = PowerEMA(),
        standardise: bool = True,
        validation: Example | View | None = None,
        validation_every: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1000,
        resume: bool = True,
        callbacks: Sequence[Callable[[Progress], Any]] = (),
        log_every: int = 50,
        tracker: Tracker | None = None,
        profile: tuple[int, int] | None = None,
        progress: bool | None = None,
        sharding: Literal["data", "fsdp"] | jax.sharding.Mesh | jax.sharding.NamedSharding | None = None,
        precision: Literal["float32", "bf16"] = "float32",
        accumulate: int = 1,
    ) -> Fit:
        """Trains the denoiser from measurements alone.

        All checks of shapes, finiteness and differentiability are done before the first step. Ctrl-C and SIGTERM end
        training between two steps and keep what was trained. A run with a `checkpoint` folder goes on from the last
        checkpoint in it, to the same result, bit for bit, as one that was never interrupted.

        **Arguments:**

        - `data`: in signal space a [`stochinv.View`][] with leading (record, views) axes, one view each or more; or
            [`stochinv.Pairs`][], whose signals are known; or a simulator with a prior, [`stochinv.data.Simulated`][].
            In measurement space an [`stochinv.Example`][] whose arrays have a leading record axis; or a `View` and
            `roles`; or any iterable of batches of either kind and of equal shapes, such as a grain dataset. Units are
            taken from all arrays in memory, or from the first batch of an iterable.
        - `key`: a PRNG key.
        - `known`: in signal space, further records like those of `data`, whose signals are known.
        - `steps`: the number of optimiser steps, at least 1. By default 10,000 in measurement space; in signal space
            training ends where rounds no longer improve the predictions of measurements of one record in twenty,
            which are held out for that. Where all signals are known 12,000, or 2,000 for signals of more than 256
            entries, and no more than learn 300 times from each.
        - `seconds`: in signal space, how long training may take; the last round has as many steps as there is time for.
        - `batch_size`: records per step, for arrays in memory; by default 64, and 256 for signals of up to 256 entries
            in signal space, but no more than an eighth of the records.
        - `roles`: in measurement space, how the views of a record are dealt, anew at each step.
        - `rounds`: in signal space, how often the training's signals are drawn where they are unknown, the first time
            included. The last round has half of `steps`, and the others share the rest. By default the short ones have
            500 steps each, or 250 for signals of more than 256 entries, and the last is as long as 8, or 4, of them.
        - `start`: in signal space, a law of signals to start from: a NumPyro distribution, or a callable from a key to
            a signal. By default it is the best Gaussian, or mixture of Gaussians, where the forward model is affine and
            the noise Gaussian, and elsewhere the standard normal, whose posterior Laplace's approximation gives.
        - `optimizer`: an optax transformation; by default Adam with a warm-up to 1e-3 and a cosine decay over `steps`,
            in signal space over each round, unless all signals are known; to 3e-3 for signals of more than 256 entries.
        - `gradient_clip`: the largest global norm of the gradient, positive; `None` does not clip.
        - `ema`: how the parameters are averaged over training; `None` does not average.
        - `standardise`: whether measurements are brought to mean 0 and standard deviation 1 (one of each per leaf).
        - `validation`: held-out records, like `data` in memory; their loss is taken with fixed noise.
        - `validation_every`: the number of steps between validations; a tenth of `steps` by default.
        - `checkpoint`: a folder for checkpoints. Nothing else in it is touched.
        - `checkpoint_every`: the number of steps between checkpoints.
        - `resume`: whether to go on from the last checkpoint; otherwise old checkpoints in the folder are deleted.
        - `callbacks`: called with a [`stochinv.Progress`][] every `log_every` steps; one that returns `True` ends
            training.
        - `log_every`: the number of steps between looks at the loss (each waits for the device).
        - `tracker`: a [`stochinv.trackers.Tracker`][], which is told the configuration; every `log_every` steps the
            loss, its parts and the speed; and what validation and rounds find. One that fails is left alone, after a
            warning.
        - `profile`: a pair `(start, steps)`: after `start` steps JAX's profiler traces so many, into the folder
            `profile` in that of `checkpoint`, for TensorBoard's profile plug-in or XProf.
        - `progress`: whether to show a progress bar; by default in terminals and notebooks, with a line on standard
            error every half minute elsewhere.
        - `sharding`: over which devices training is laid out: `"data"` deals batches, and all that is drawn, to all
            devices; `"fsdp"` also parameters, their averages and the optimiser's state, where they have more than 4 MB.
            Or a mesh, over all of whose axes batches are dealt and over whose axis `"fsdp"`, if it has one, parameters;
            over an axis `"draws"` the draws of a score are instead of batches.
            Or a `NamedSharding` of batches. Each process of several feeds its own part of a batch of an iterable.
        - `precision`: `"bf16"` computes networks in bfloat16. Parameters, averages, the optimiser's state, likelihoods,
            noise levels and sums stay in single precision, and so do draws.
        - `accumulate`: in how many parts a batch is worked on, one after the other: of `k`, memory for activations is
            that of a `k`-th of the batch.

        **Returns:**

        A [`stochinv.Fit`][].

        **Raises:**

        `ValueError` for arguments out of their ranges, and for data, forward model and denoiser that do not fit
        together; `FloatingPointError` when a loss or a gradient stops being finite, with the step, the likely cause and
        the last good checkpoint. Exceptions of callbacks, iterables and forward models are passed on, after what was
        trained is kept.
        """
        options = Options(
            steps=10_000 if steps is None else steps,
            seconds=seconds,
            batch_size=batch_size,
            roles=roles,
            validation=validation,
            validation_every=default_validation(steps) if validation_every is None else validation_every,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            callbacks=callbacks,
            log_every=log_every,
            tracker=tracker,
            profile=profile,
            progress=progress,
            layout=as_layout(sharding),
            precision=precision,
            accumulate=accumulate,
        )
        given = {"optimizer": optimizer, "gradient_clip": gradient_clip, "ema": ema, "standardise": standardise}
        space = choose_space(self.space, data, known, roles)
        problem = dataclasses.replace(self, space=space)
        with on_mesh(options.layout):
            if space.of_signals:
                given |= {"known": known, "steps": steps, "rounds": rounds, "start": start}
                return Fit(*train_signals(problem, cast(Any, data), key=key, options=options, **given))
            refuse_rounds(seconds=seconds, rounds=rounds, start=start)
            refuse_support(self.support)
            options = options if batch_size is not None else dataclasses.replace(options, batch_size=BATCH_SIZE)
            return Fit(*train(problem, cast(Any, data), key=key, options=options, **given))

    def posterior(
        self,
        context: Context = None,
        params: Params = None,
        *,
        forward: AbstractForwardModel | AnyCallable | None = None,
        noise: AbstractNoise | AnyCallable | PyTree = None,
        sampler: AbstractSampler | AnyCallable | None = None,
    ) -> Posterior:
        """The posterior of the signal given a context, as an object.

        **Arguments:**

        - `context`: the context in raw units, structured as in training.
        - `params`: the parameters `φ` of the target measurement. Where context and target determine the signal, any
            choice gives the same law.
        - `forward`, `noise`: in signal space, those of the context's measurements, where another instrument took them
            than those of training. Signals of up to 16 entries are weighted for it; `effective_sample_size` tells how
            many are left. Larger ones are guided by it if it is affine and Gaussian, see [`stochinv.Guidance`][].
        - `sampler`: as in `sample`; not together with `forward` or `noise`.

        **Returns:**

        A [`stochinv.Posterior`][].

        **Raises:**

        `ValueError` if the arguments are not like those of training, or not of the new instrument.
        """
        if forward is not None or noise is not None:
            if sampler is not None or params is not None:
                raise ValueError(
                    "`sampler` and `params` are for the instrument of training, but `forward` or `noise` is another; "
                    "leave them out."
                )
            problem, context, instrument = under_instrument(self, context, forward, noise)
            return Posterior(problem, context, instrument=instrument)
        return Posterior(self, context, params, sampler)

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

        - `context`, `params`: as in `posterior`.
        - `key`: a PRNG key.
        - `sampler`: the sampler; by default, in signal space `ImportanceSampling()` for signals of up to 16 entries
            given measurements with noise, `Ancestral(12, order=2)` for those of more than 256, and
            `ExponentialAdams()` for others; in measurement space `Ancestral()` for a stochastic objective,
            `Ancestral(1)` if the noise is not Gaussian, and `ExponentialAdams()` for others.
        - `num_samples`: how many; `None` draws one, without a leading axis.
        - `chunk_size`: how many are drawn at once; memory grows with it and not with `num_samples`.

        **Returns:**

        A [`stochinv.Sample`][] in raw units, its leaves with a leading axis of `num_samples`.

        **Raises:**

        `ValueError` if the problem is not trained, or if the context or the parameters are not as in training.
        """
        options = {"sampler": sampler, "num_samples": num_samples, "chunk_size": chunk_size}
        return sample(self, context, params, key=key, **options)

    def sample_many(
        self,
        contexts: Context,
        params: Params = None,
        *,
        key: Key,
        num_samples: int,
        sampler: AbstractSampler | AnyCallable | None = None,
        chunk_size: int = 1024,
    ) -> Sample:
        """Draws signals given each of many contexts, in one compiled program.

        The draws given context `i` are those of `posterior(contexts[i]).sample(jax.random.split(key, number)[i], ...)`.

        **Arguments:**

        - `contexts`: contexts in raw units, like those of `sample`, with a leading contexts axis. Numbers of views that
            vary need a `mask`.
        - `params`: in measurement space the parameters of the target of each, with a leading contexts axis.
        - `key`: a PRNG key.
        - `num_samples`: how many signals are drawn given each context.
        - `sampler`: as in `sample`.
        - `chunk_size`: how many signals are drawn at once, those of several contexts where these have fewer.

        **Returns:**

        A [`stochinv.Sample`][] in raw units, its leaves with leading axes `(contexts, num_samples)`.

        **Raises:**

        `ValueError` if the problem is not trained, or if contexts or parameters are not as in training.
        """
        options = {"sampler": sampler, "num_samples": num_samples, "chunk_size": chunk_size}
        return sample_many(self, contexts, params, key=key, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file from which [`stochinv.load`][] makes the problem again.

        It holds the denoiser's arrays, the units, and schedule, objective and noise as data. The forward model is code,
        and not stored.

        **Arguments:**

        - `path`: the file; an existing one is replaced in one step.
        """
        save(self, path)


def short(x: Any) -> str:
    """A representation in one line."""
    return shorten(repr(x), 90)
