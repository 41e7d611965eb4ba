import os
import subprocess
import sys
import textwrap

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import stochinv as si
import training

SGD = optax.sgd(0.05)


@eqx.filter_jit
def average_loss(problem):
    """The loss over all records, each with the same 20 noises."""
    records = training.examples()
    losses = lambda key: jax.vmap(lambda e: problem.loss(e, key=key)[0])(records)
    return jnp.mean(jax.vmap(losses)(jr.split(jr.key(7), 20)))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["example", "views", "random_number_of_views", "list", "generator", "grain"])
def test_loss_falls_for_every_kind_of_data(kind):
    data, options = training.examples(), {"optimizer": optax.adam(0.05), "steps": 60}
    if kind in ("views", "random_number_of_views"):
        data = training.views()
        options["roles"] = si.RandomViews(1 if kind == "views" else (0, 2), 1, 1)
    cut = lambda start: jax.tree.map(lambda x: np.asarray(x[start : start + 8]), training.examples())
    if kind == "list":
        data = [cut(start) for start in (0, 8, 16)]
    if kind == "generator":
        data = (cut(8 * (step % 3)) for step in range(1000))
    if kind == "grain":
        records = training.examples()
        one = lambda index: jax.tree.map(lambda x: np.asarray(x[index]), records)
        data = grain.MapDataset.source(range(24)).shuffle(seed=0).map(one).repeat().batch(8).to_iter_dataset()
    result = training.fit(training.problem(), data, **options)
    assert len(result.history.loss) == 60
    untrained = eqx.tree_at(lambda p: p.denoiser, result.problem, training.problem().denoiser)
    assert average_loss(result.problem) < 0.8 * average_loss(untrained)
    expected = (2, 2) if kind == "random_number_of_views" else (1, 2)
    assert result.problem.data_info.context.observation.shape == expected
    assert (result.problem.data_info.context.mask is None) == (kind != "random_number_of_views")


def test_an_exhausted_iterator_ends_training_with_a_warning():
    with pytest.warns(UserWarning, match="`data` ended after 2 of 6 steps"):
        result = training.fit(training.problem(), iter([training.examples(8), training.examples(8, seed=1)]))
    assert len(result.history.loss) == 2


def test_batches_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="`data` gave .* for step 2, .*drop an incomplete last one"):
        training.fit(training.problem(), [training.examples(8), training.examples(5)])


def trajectory(ema, steps=5):
    """The parameters after each step of plain training, and the average that `fit` returns."""
    seen = []
    callback = lambda progress: seen.append(progress.current_problem().denoiser.target)
    options = {"optimizer": SGD, "steps": steps, "log_every": 1}
    training.fit(training.problem(), training.examples(), ema=None, callbacks=[callback], **options)
    averaged = training.fit(training.problem(), training.examples(), ema=ema, **options)
    return np.stack(seen), np.asarray(averaged.problem.denoiser.target)


@pytest.mark.thorough
def test_power_ema():
    seen, averaged = trajectory(si.PowerEMA(2.0))
    expected = np.zeros_like(seen[0])
    for index, params in enumerate(seen, start=1):
        keep = (1 - 1 / index) ** 3
        expected = keep * expected + (1 - keep) * params
    np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(averaged - seen[-1]).max() > 1e-4


def test_exponential_ema_is_the_normalised_exponential_average():
    seen, averaged = trajectory(si.ExponentialEMA(0.7))
    weights = 0.7 ** np.arange(len(seen))[::-1]
    np.testing.assert_allclose(averaged, np.tensordot(weights / weights.sum(), seen, 1), rtol=1e-5, atol=1e-6)


def test_without_ema_the_last_parameters_are_returned():
    seen, last = trajectory(None)
    np.testing.assert_array_equal(last, seen[-1])


def test_gradients_are_clipped():
    def step_length(clip):
        start = training.problem().denoiser
        options = {"optimizer": optax.sgd(1.0), "steps": 1, "gradient_clip": clip, "ema": None}
        end = training.fit(training.problem(), training.examples(), **options).problem.denoiser
        return float(optax.global_norm(jax.tree.map(jnp.subtract, start, end)))

    free = step_length(None)
    assert free > 1e-2
    np.testing.assert_allclose(step_length(free / 4), free / 4, rtol=1e-4)


def test_data_info_is_mean_and_std_of_the_targets_measurements():
    data = training.views()
    info = training.fit(training.problem(), data, roles=training.ROLES, steps=1).problem.data_info
    np.testing.assert_allclose(info.units.mean, np.mean(data.observation), rtol=1e-5)
    np.testing.assert_allclose(info.units.std, np.std(data.observation), rtol=1e-5)
    raw = training.fit(training.problem(), data, roles=training.ROLES, steps=1, standardise=False).problem.data_info
    assert (float(raw.units.mean), float(raw.units.std)) == (0.0, 1.0)


class Shifted(eqx.Module):
    """Exact for `f(s) = s`, `s ~ N(3000, 1000²)` at the weight 1, if it is given a standardised target."""

    weight: jax.Array

    def __call__(self, noisy, level, context, params, *, key=None):
        return 3000.0 + 1000.0 * self.weight * noisy * level.alpha / (level.alpha**2 + level.sigma**2)


@pytest.mark.thorough
def test_samples_are_in_raw_units():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(64, 2))
    raw = jnp.asarray(3000 + 1000 * (raw - raw.mean()) / raw.std(), jnp.float32)
    problem = si.StochasticInverseProblem(lambda s, p: s, Shifted(jnp.ones(())), objective=si.SquaredError())
    options = {"steps": 1, "optimizer": optax.sgd(0.0)}
    fitted = training.fit(problem, si.Example(None, si.View(raw)), **options).problem
    samples = fitted.sample(None, None, key=jr.key(1), num_samples=400)
    np.testing.assert_allclose(samples.observation, samples.signal)
    # Five standard errors of 800 numbers.
    np.testing.assert_allclose(np.mean(samples.signal), 3000, atol=177)
    assert 800 < np.std(samples.signal) < 1200


@pytest.mark.slow
def test_validation_losses():
    held_out = training.examples(10, seed=9)
    options = {"optimizer": SGD, "steps": 7, "validation": held_out, "validation_every": 3}
    history = training.fit(training.problem(), training.examples(), **options).history
    assert history.validation_steps == [3, 6, 7]
    assert len(history.validation_loss) == 3 and np.all(np.isfinite(history.validation_loss))
    # The noise of validation is fixed: a problem that does not move has one validation loss.
    still = training.fit(training.problem(), training.examples(), **{**options, "optimizer": optax.sgd(0.0)}).history
    assert len(set(still.validation_loss)) == 1
    # Records in chunks give the loss of all at once.
    one_chunk = {**options, "optimizer": optax.sgd(0.0), "steps": 1}
    losses = [
        training.fit(training.problem(), training.examples(), **one_chunk, batch_size=size).history.validation_loss[0]
        for size in (4, 16)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_callbacks_see_progress_and_stop_training():
    seen = []

    def callback(progress):
        seen.append((progress.step, progress.loss, progress.metrics, progress.current_problem()))
        return progress.step == 4

    result = training.fit(training.problem(), training.examples(), steps=50, log_every=2, callbacks=[callback])
    assert [x[0] for x in seen] == [2, 4]
    assert len(result.history.loss) == 4
    np.testing.assert_allclose(seen[1][1], np.mean(result.history.loss[2:]))
    assert set(seen[0][2]) == {"target", "novel"}
    training.assert_equal(training.arrays(seen[1][3]), training.arrays(result.problem))
    assert result.history.seconds > 0


def test_no_progress_bar_off_a_terminal(capsys):
    training.fit(training.problem(), training.examples(), progress=None)
    assert capsys.readouterr().err == ""
    training.fit(training.problem(), training.examples(), progress=True)
    assert "6/6" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_step_is_traced_once():
    traces = []

    def forward(signal, params):
        traces.append(None)
        return params @ signal

    def count(steps):
        traces.clear()
        problem = si.StochasticInverseProblem(forward, training.LinearDenoiser(jr.key(0)), objective=si.SquaredError())
        training.fit(problem, training.views(), roles=si.RandomViews((0, 2), 1, 1), steps=steps)
        return len(traces)

    assert count(1) == count(9)


def test_forward_and_frozen_parts_are_not_trained():
    class Forward(si.AbstractForwardModel):
        matrix: jax.Array

        def __call__(self, signal, params):
            return params @ (self.matrix * signal)

    class Denoiser(eqx.Module):
        inner: training.LinearDenoiser
        frozen: si.Frozen

        def __call__(self, *args, key=None):
            return self.inner(*args) + self.frozen.value

    frozen = si.Frozen(jnp.asarray([0.5, 1.0, 2.0]))
    problem = si.StochasticInverseProblem(
        Forward(jnp.asarray([1.0, 2.0, 3.0])),
        Denoiser(training.LinearDenoiser(jr.key(0)), frozen),
        noise=0.1,
        objective=si.SquaredError(),
    )
    trained = training.fit(problem, training.examples(), optimizer=optax.adamw(0.1, weight_decay=0.5)).problem
    np.testing.assert_array_equal(trained.forward.matrix, problem.forward.matrix)
    np.testing.assert_array_equal(trained.denoiser.frozen.value, frozen.value)
    np.testing.assert_array_equal(trained.noise, problem.noise)
    assert np.abs(trained.denoiser.inner.target - problem.denoiser.inner.target).max() > 0.01


@pytest.mark.thorough
def test_the_given_problem_survives_donation():
    problem = training.problem()
    before = np.array(problem.denoiser.target)
    first = training.fit(problem, training.examples())
    np.testing.assert_array_equal(problem.denoiser.target, before)
    second = training.fit(first.problem, training.examples(), steps=2)
    assert np.all(np.isfinite(first.problem.denoiser.target))
    np.testing.assert_array_equal(first.problem.data_info.units.mean, second.problem.data_info.units.mean)


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one():
    script = """
        import jax, jax.random as jr, numpy as np, training
        assert jax.device_count() == 2
        mesh = jax.make_mesh((2,), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        for roles, data in ((training.ROLES, training.views()), (None, [training.examples(8)])):
            one = training.fit(training.problem(), data, roles=roles)
            two = training.fit(training.problem(), data, roles=roles, sharding=sharding)
            np.testing.assert_allclose(one.history.loss, two.history.loss, rtol=1e-5)
            assert len(two.problem.denoiser.target.sharding.device_set) == 2
        print("done")
    """
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.path.dirname(__file__),
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 and "done" in run.stdout, run.stderr
