import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import stochinv as si
import training

STEPS = 6


def data_of(kind):
    records = training.examples()
    cut = lambda start: jax.tree.map(lambda x: np.asarray(x[start : start + 8]), records)
    if kind == "arrays":
        return records
    if kind == "views":
        return training.views()
    if kind == "iterable":
        return [cut(start) for start in (0, 8, 16, 4)]
    one = lambda index: jax.tree.map(lambda x: np.asarray(x[index]), records)
    return grain.MapDataset.source(range(24)).shuffle(seed=0).map(one).repeat().batch(8).to_iter_dataset()


def train(kind, folder=None, *, problem=None, data=1.0, **options):
    options = {"roles": training.ROLES if kind == "views" else None, "steps": STEPS, "log_every": 1, **options}
    records = data_of(kind)
    if data != 1:
        records = jax.tree.map(lambda x: data * x, records)
    return training.fit(training.problem(**(problem or {})), records, checkpoint=folder, **options)


def stop_at(step, how):
    def callback(progress):
        if progress.step == step:
            if how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if how == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            return how == "callback"

    return callback


def assert_same_run(a, b):
    training.assert_equal(training.arrays(a.problem), training.arrays(b.problem))
    first, second = (
        dataclasses.asdict(x.history) | {"seconds": 0, "compile_seconds": 0, "interrupted": False} for x in (a, b)
    )
    assert first == second


def steps_in(folder):
    """The steps whose checkpoints are in a folder."""
    return sorted(int(x.removeprefix("stochinv_")) for x in os.listdir(folder) if x.startswith("stochinv_"))


def stored(folder):
    """The arrays of the last checkpoint: parameters, optimiser and average."""
    options = ocp.CheckpointManagerOptions(step_prefix="stochinv")
    with ocp.CheckpointManager(folder, options=options) as manager:
        assert manager.latest_step() == STEPS
        return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind, how",
    [
        ("arrays", "callback"),
        ("arrays", "interrupt"),
        pytest.param("views", "callback", marks=pytest.mark.slow),
        pytest.param("iterable", "callback", marks=pytest.mark.slow),
        pytest.param("grain", "interrupt", marks=pytest.mark.slow),
    ],
)
def test_resume_equals_an_uninterrupted_run(kind, how, tmp_path):
    options = {"validation": training.examples(8, seed=3), "validation_every": 2} if kind == "arrays" else {}
    whole = train(kind, tmp_path / "whole", **options)
    half = train(kind, tmp_path / "halves", callbacks=[stop_at(3, how)], **options)
    assert len(half.history.loss) == 3
    rest = train(kind, tmp_path / "halves", **options)
    assert_same_run(whole, rest)
    assert len(whole.history.loss) == STEPS
    training.assert_equal(stored(tmp_path / "whole"), stored(tmp_path / "halves"))
    # A finished run is read, not trained on.
    assert_same_run(whole, train(kind, tmp_path / "halves", **options))


@pytest.mark.thorough
def test_an_iterator_continues_after_the_batches_already_used(tmp_path):
    whole = train("iterable")
    train("iterable", tmp_path, callbacks=[stop_at(3, "callback")])
    used = []

    def batches():
        for batch in data_of("iterable") * 2:
            used.append(None)
            yield batch

    rest = training.fit(training.problem(), batches(), steps=STEPS, log_every=1, checkpoint=tmp_path)
    assert_same_run(whole, rest)
    assert len(used) == STEPS


def test_ctrl_c_keeps_what_was_trained():
    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="Training was interrupted after 3 of 6 steps; what was trained is returned"):
        half = train("arrays", callbacks=[stop_at(3, "interrupt")])
    assert signal.getsignal(signal.SIGINT) is before and half.history.interrupted
    whole = []
    train("arrays", callbacks=[lambda progress: whole.append(progress.current_problem())])
    training.assert_equal(training.arrays(half.problem), training.arrays(whole[2]))


@pytest.mark.thorough
def test_sigterm_is_heard_like_ctrl_c(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.warns(
        UserWarning, match=r"Training was interrupted after 3 of 6 steps; .* checkpoint was written to /"
    ):
        half = train("arrays", tmp_path, callbacks=[stop_at(3, "terminate")])
    assert signal.getsignal(signal.SIGTERM) is before
    assert half.history.interrupted and "interrupted" in repr(half)
    rest = train("arrays", tmp_path)
    assert not rest.history.interrupted
    assert_same_run(train("arrays"), rest)


SCRIPT = """
    import sys, time, training
    step = lambda progress: (print(progress.step, flush=True), time.sleep(0.02))[1]
    training.fit(
        training.problem(), training.examples(), steps=60, log_every=1, checkpoint=sys.argv[1], checkpoint_every=4,
        callbacks=[step],
    )
    print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_at_any_moment_resumes(number, tmp_path):
    """Killed time and again, at random moments of training and of writing, until it gets to the end."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__), "JAX_PLATFORMS": "cpu"}
    rng, done = np.random.default_rng(0), False
    for _ in range(40):
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            first = process.stdout.readline()
            if first.strip() != "done":
                time.sleep(rng.uniform(0.02, 0.8))
                process.send_signal(number)
            done = "done" in first + process.stdout.read()
        if done:
            break
    assert done
    whole = training.fit(training.problem(), training.examples(), steps=60)
    rest = training.fit(training.problem(), training.examples(), steps=60, checkpoint=tmp_path)
    assert_same_run(whole, rest)


class Trouble(Exception):
    """Somebody's own exception."""


@pytest.mark.thorough
@pytest.mark.parametrize("kept", [True, False])
def test_an_exception_of_a_callback_is_passed_on_and_nothing_is_lost(kept, tmp_path):
    def callback(progress):
        if progress.step == 3:
            raise Trouble("the disk of figures is full")

    with pytest.raises(Trouble, match="the disk of figures is full") as caught:
        train("arrays", tmp_path if kept else None, callbacks=[callback])
    (note,) = caught.value.__notes__
    assert "3 of 6 steps were done" in note
    if kept:
        assert "in the checkpoint of step 3" in note and steps_in(tmp_path) == [3]
        assert_same_run(train("arrays"), train("arrays", tmp_path))
    else:
        half = train("arrays", callbacks=[stop_at(3, "callback")])
        training.assert_equal(training.arrays(caught.value.trained_problem), training.arrays(half.problem))


def test_an_exception_of_an_iterator_is_passed_on_and_nothing_is_lost(tmp_path):
    def batches():
        yield from data_of("iterable")[:3]
        raise Trouble("the file server is down")

    with pytest.raises(Trouble, match="file server is down"):
        training.fit(training.problem(), batches(), steps=STEPS, checkpoint=tmp_path)
    assert steps_in(tmp_path) == [3]


def test_other_folders_are_left_alone(tmp_path):
    """A user's own folders with numbers for names, beside the checkpoints and before any of them."""
    for name in ("0", "3", "7", "999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text(name)
    train("arrays", tmp_path, resume=False, checkpoint_every=1)
    train("arrays", tmp_path, resume=False, checkpoint_every=1, key=jr.key(1))
    assert steps_in(tmp_path) == [5, 6]
    assert [(tmp_path / name / "precious.txt").read_text() for name in ("0", "3", "7", "999")] == ["0", "3", "7", "999"]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    train("arrays", tmp_path, checkpoint_every=2)
    assert steps_in(tmp_path) == [4, 6]


@pytest.mark.thorough
def test_without_resume_a_run_starts_anew(tmp_path):
    train("arrays", tmp_path, checkpoint_every=1)
    options = {"resume": False, "steps": 2, "optimizer": optax.sgd(0.1)}
    assert_same_run(train("arrays", **{**options, "resume": True}), train("arrays", tmp_path, **options))
    assert steps_in(tmp_path) == [2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"key": jr.key(1)}, r"`key\[1\]` is 0 in the file and 1 here; .*`resume=False`"),
        ({"ema": None}, "`ema` is PowerEMA in the file and None here"),
        ({"optimizer": optax.rmsprop(1e-3)}, "`optimizer`, `ema` or `denoiser` keep other arrays"),
        ({"batch_size": 4}, r"`data\['batch_size'\]` is 8 in the file and 4 here"),
        (
            {"problem": {"schedule": si.RectifiedFlow()}},
            "`schedule` is CosineSchedule in the file and RectifiedFlow here",
        ),
        ({"problem": {"objective": si.SquaredError(novel_weight=2.0)}}, "`objective.novel_weight` is 1.0 in the file"),
        ({"problem": {"noise": 0.1}}, "`noise.scale` is 0.0 in the file and 0.10"),
        ({"problem": {"forward": lambda s, p: 1.01 * p @ s}}, "`forward` measures a fixed signal otherwise"),
        ({"data": 1.5}, r"`data\['checksum'\]` is "),
        ({"standardise": False}, "`standardise` is True in the file and False here"),
        ({"gradient_clip": 2.0}, "`gradient_clip` is 1.0 in the file and 2.0 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, message, tmp_path):
    train("arrays", tmp_path, callbacks=[stop_at(3, "callback")])
    with pytest.raises(ValueError, match=message):
        train("arrays", tmp_path, **options)


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["state", "record"])
def test_a_damaged_checkpoint_is_refused(part, tmp_path):
    train("arrays", tmp_path, callbacks=[stop_at(3, "callback")], checkpoint_every=2)
    files = [x for x in pathlib.Path(tmp_path, "stochinv_3", part).rglob("*") if x.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"The checkpoint of step 3 in .* cannot be read .*delete the folder"):
        train("arrays", tmp_path)
    # The remedy works.
    shutil.rmtree(tmp_path / "stochinv_3")
    assert_same_run(train("arrays"), train("arrays", tmp_path))


@pytest.mark.thorough
def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    """The loss is finite and its gradient is not: the square root has no slope where the signal is zero."""
    zero = jax.tree.map(jnp.zeros_like, training.LinearDenoiser(jr.key(0)))
    problem = training.problem(denoiser=zero, forward=lambda s, p: p @ jnp.sqrt(jnp.abs(s)))
    for folder in (None, tmp_path):
        with pytest.raises(FloatingPointError, match="The gradient is NaN or infinite at step 1: `forward` may have"):
            training.fit(problem, training.examples(), steps=1, checkpoint=folder)
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("kept", [True, False])
def test_parameters_that_overflow_are_never_returned(kept, tmp_path):
    """Loss and gradient of the last step are finite; the step that the optimiser makes of them is not."""
    options = {"optimizer": optax.sgd(1e38), "gradient_clip": None, "steps": 1}
    with pytest.raises(
        FloatingPointError, match="The parameters are NaN or infinite after step 1: .* lower the learning"
    ):
        training.fit(training.problem(), training.examples(), checkpoint=tmp_path if kept else None, **options)
    assert steps_in(tmp_path) == []


def test_a_step_that_is_not_finite_changes_nothing():
    state = si.init(training.problem(), training.examples(8), key=jr.key(0))
    bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), training.examples(8))
    after, metrics = eqx.filter_jit(si.step)(state, bad)
    assert not metrics["finite"] and int(after.count) == 1
    moved = lambda s: (s.problem.denoiser, s.average, s.optimizer_state)
    training.assert_equal(training.arrays(moved(after)), training.arrays(moved(state)))


def diverging(step):
    """A loss that is not finite from one step on."""
    batches = [training.examples(8) for _ in range(STEPS)]
    bad = batches[step]
    target = si.View(jnp.full_like(bad.target.observation, jnp.nan), bad.target.params)
    batches[step] = si.Example(bad.context, target, bad.novel)
    return batches


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 5: `data` has NaN .* no checkpoint"):
        training.fit(training.problem(), diverging(4), steps=STEPS)
    with pytest.raises(FloatingPointError, match=r"nan at step 5: .* the last good checkpoint is that of step 4 in /"):
        training.fit(training.problem(), diverging(4), steps=STEPS, checkpoint=tmp_path, checkpoint_every=2)
    assert max(steps_in(tmp_path)) == 4
