"""What `fit` tells a tracker, and what trackers make of it."""

import csv
import gzip
import json
import struct
import sys
import warnings

import jax
import jax.random as jr
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import stochinv as si
import training
from refusals import refuse
from stochinv._training import plan, signals, watch
from stochinv._training.tracking import Tracking

matplotlib.use("Agg")


class Recorder:
    """A tracker that keeps what it is told, and raises where a method `fails`."""

    def __init__(self, fails=None, error=OSError("the disk is full\nindeed")):
        self.told, self._fails, self._error = [], fails, error

    def _keep(self, method, *args):
        self.told.append((method, *args))
        if method == self._fails:
            raise self._error

    def log_params(self, params):
        self._keep("params", dict(params))

    def log_metrics(self, metrics, step):
        self._keep("metrics", dict(metrics), step)

    def log_figure(self, name, figure, step):
        self._keep("figure", name, step)

    @property
    def params(self):
        method, params = self.told[0]
        assert method == "params"
        return params

    def values(self, name):
        """The steps and values of a metric."""
        metrics = [told[1:] for told in self.told if told[0] == "metrics"]
        return [(step, found[name]) for found, step in metrics if name in found]

    def steps(self, name):
        return [step for step, _ in self.values(name)]


def fit(tracker=None, **options):
    return training.fit(training.problem(), training.examples(), **{"tracker": tracker, "log_every": 2, **options})


def measure(signal, direction):
    return direction @ signal


def projections(number=400, views=2):
    """Noisy projections of a Gaussian signal of two entries; by NumPy."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(number, views, 2))
    clean = np.einsum("nvj,nj->nv", directions, rng.normal(size=(number, 2)))
    return si.View(np.float32(clean + rng.normal(size=clean.shape)), np.float32(directions))


def fit_signals(tracker, **options):
    signal = jax.ShapeDtypeStruct((2,), np.float32)
    problem = si.StochasticInverseProblem(measure, noise=1.0, signal=signal)
    settings = {"key": jr.key(0), "batch_size": 32, "progress": False, "log_every": 8, "tracker": tracker}
    return problem.fit(projections(), **settings | options)


@pytest.fixture
def short_rounds(monkeypatch):
    """Rounds of 6 steps, which held-out records end."""
    monkeypatch.setattr(plan, "LENGTH", 6)
    monkeypatch.setattr(plan, "LAST", 2)
    monkeypatch.setattr(plan, "MOST_ROUNDS", 3)
    monkeypatch.setattr(signals, "MOST_ROUNDS", 3)
    # Nothing so short comes near the data.
    monkeypatch.setattr(signals, "warn_never_close", lambda residual: None)
    monkeypatch.setattr(watch, "FAR", np.inf)


@pytest.mark.thorough
def test_a_run_in_measurement_space():
    tracker = Recorder()
    held_out = training.examples(8, seed=9)
    history = fit(tracker, steps=7, validation=held_out, validation_every=3).history
    assert isinstance(tracker, si.trackers.Tracker)
    assert [told[0] for told in tracker.told].count("params") == 1
    for name in ("forward", "noise", "schedule", "objective", "denoiser", "optimizer"):
        assert type(tracker.params[name]) is str
    expected = {"denoiser": "LinearDenoiser", "parameters": 12, "steps": 7, "batch_size": 8, "key": "0 0"}
    assert tracker.params | expected == tracker.params
    assert tracker.params["optimizer"] == "ScaleByAdam, ScaleBySchedule" and "measure" in tracker.params["forward"]
    assert all(type(value) in (str, int, float, bool) for value in tracker.params.values())
    assert tracker.steps("loss") == tracker.steps("target") == tracker.steps("novel") == [2, 4, 6, 7]
    np.testing.assert_allclose(tracker.values("loss")[1][1], np.mean(history.loss[2:4]))
    assert tracker.steps("steps_per_second") == [2, 4, 6, 7] and min(tracker.values("steps_per_second"))[1] > 0
    assert tracker.values("validation_loss") == list(
        zip(history.validation_steps, history.validation_loss, strict=True)
    )
    assert tracker.told[-1] == ("metrics", {"seconds": history.seconds}, 7)
    steps = [told[2] for told in tracker.told[1:]]
    assert steps == sorted(steps)


def test_the_batch_size_of_an_iterable_is_that_of_its_batches():
    tracker = Recorder()
    batch = jax.tree.map(np.asarray, training.examples(5))
    training.fit(training.problem(), [batch], tracker=tracker, steps=2)
    assert tracker.params["batch_size"] == 5


@pytest.mark.slow
def test_a_run_in_signal_space_that_goes_on(short_rounds, tmp_path):
    tracker = Recorder()
    fit_signals(tracker, checkpoint=tmp_path, callbacks=[lambda progress: progress.step == 8])
    assert tracker.steps("seconds") == [8] and tracker.steps("residual") == [6]
    history = fit_signals(tracker, checkpoint=tmp_path).history
    assert tracker.params["space"] == "SignalSpace()" and tracker.params["parameters"] > 0
    # Three rounds of 6 steps and one of 12, unless held-out records end them before.
    assert tracker.params["steps"] == 30
    rounds = [6 * (i + 1) for i in range(len(history.residual))]
    assert tracker.values("residual") == list(zip(rounds, history.residual, strict=True)) != []
    assert [value for _, value in tracker.values("score")] == history.score != []
    assert [value for _, value in tracker.values("coverage_80")] == [shares[1] for shares in history.coverage]
    assert tracker.steps("score")[: len(rounds)] == rounds
    assert tracker.steps("loss")[:2] == [8, 16]
    assert tracker.told[-1] == ("metrics", {"seconds": history.seconds}, len(history.loss))


def test_coverage_of_rounds_is_told():
    tracker, history = Recorder(), si.History()
    tracking = Tracking(tracker, dict, history, 0)
    history.coverage.append([0.5, 0.75, 0.875])
    history.score.append(0.25)
    tracking.round(6)
    tracking.round(9)
    told = {"score": 0.25, "coverage_50": 0.5, "coverage_80": 0.75, "coverage_90": 0.875}
    assert tracker.told[1:] == [("metrics", told, 6)]


@pytest.mark.parametrize("fails", ["params", "metrics"])
def test_a_tracker_that_raises_is_left_alone(fails):
    tracker = Recorder(fails)
    with pytest.warns(UserWarning) as caught:
        result = fit(tracker)
    (warning,) = caught
    assert "Recorder failed (OSError: the disk is full); training goes on" in str(warning.message)
    assert len(result.history.loss) == 6
    assert len(tracker.told) == (1 if fails == "params" else 2)
    training.assert_equal(training.arrays(result.problem), training.arrays(fit().problem))


def test_an_interrupt_within_a_tracker_is_passed_on():
    with pytest.raises(KeyboardInterrupt):
        fit(Recorder("metrics", KeyboardInterrupt()))


def test_callbacks_end_training_all_the_same():
    tracker, seen = Recorder(), []
    fit(tracker, callbacks=[lambda progress: seen.append(progress.step) or progress.step == 4])
    assert seen == tracker.steps("loss") == [2, 4]
    assert tracker.steps("seconds") == [4]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_a_resumed_run(tmp_path):
    path = tmp_path / "runs" / "first.csv"
    options = {"checkpoint": tmp_path / "checkpoints", "log_every": 1, "optimizer": optax.sgd(0.05)}
    half = fit(si.trackers.CSVTracker(path), steps=3, **options)
    assert path.read_text().splitlines()[0] == "step,name,value"
    whole = fit(si.trackers.CSVTracker(path), steps=6, **options)
    found = [(int(row["step"]), float(row["value"])) for row in rows(path) if row["name"] == "loss"]
    assert found == [(i + 1, loss) for i, loss in enumerate(whole.history.loss)]
    ends = [(int(row["step"]), float(row["value"])) for row in rows(path) if row["name"] == "seconds"]
    assert ends == [(3, half.history.seconds), (6, whole.history.seconds)]
    params = json.loads((tmp_path / "runs" / "first.json").read_text())
    assert params["steps"] == 6 and params["denoiser"] == "LinearDenoiser"
    figure = Figure()
    si.trackers.CSVTracker(path).log_figure("draws/all", figure, 6)
    assert (tmp_path / "runs" / "first-draws-all-6.png").read_bytes()[1:4] == b"PNG"


def test_bad_paths_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for path, message in ((3, "must be a path"), ("run.json", "must end in .csv"), (tmp_path / "other.csv", "'a,b'")):
        refuse(lambda path=path: si.trackers.CSVTracker(path), message)
    refuse(lambda: si.trackers.TensorBoardTracker(3), "`folder` must be a path")
    refuse(lambda: si.trackers.WandbTracker(object(), project="a"), "`run` is given, and so are .*project.*give")
    refuse(lambda: si.trackers.MLflowTracker(object(), run_name="a"), "`run` is given, and so are .*run_name.*give")


ADAPTERS = {"TensorBoardTracker": "tensorboardX", "WandbTracker": "wandb", "MLflowTracker": "mlflow"}


@pytest.mark.parametrize("name, module", ADAPTERS.items())
def test_a_missing_package_is_named(name, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    args = [tmp_path / "board"] if name == "TensorBoardTracker" else []
    with pytest.raises(ImportError, match=rf"{name} needs {module}: `pip install 'stochinv\[\w+\]'`"):
        getattr(si.trackers, name)(*args)


def events(folder):
    """The events in the files of TensorBoard: a length of 8 bytes, 4 of a checksum, the event, another checksum."""
    pb = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield pb.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = si.trackers.TensorBoardTracker(tmp_path / "board")
    history = fit(tracker, log_every=3).history
    tracker.log_figure("draws", Figure(), 6)
    found = [(event.step, value) for event in events(tmp_path / "board") for value in event.summary.value]
    losses = [(step, value.simple_value) for step, value in found if value.tag == "loss"]
    assert [step for step, _ in losses] == [3, 6]
    np.testing.assert_allclose(losses[0][1], np.mean(history.loss[:3]), rtol=1e-6)
    texts = [value.tensor.string_val[0] for _, value in found if value.tag.startswith("configuration")]
    assert b"| parameters | `12` |" in texts[0]
    assert [step for step, value in found if value.tag == "draws" and value.image.encoded_image_string] == [6]


class FakeRun:
    """What `WandbTracker` uses of a run of W&B."""

    def __init__(self):
        self.config, self.logged = self, []

    def update(self, params, allow_val_change):
        self.params = params

    def log(self, metrics, step):
        self.logged.append((step, metrics))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B and MLflow write to files, and say nothing."""
    monkeypatch.chdir(tmp_path)
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    for name, value in (settings | {"MLFLOW_ALLOW_FILE_STORE": "true"}).items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_wandb_given_a_run(monkeypatch):
    wandb = type(sys)("wandb")
    wandb.Image = lambda figure: ("image", figure)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run, figure = FakeRun(), Figure()
    tracker = si.trackers.WandbTracker(run)
    fit(tracker, log_every=3)
    tracker.log_figure("draws", figure, 6)
    assert run.params["parameters"] == 12
    assert [(step, "loss" in metrics) for step, metrics in run.logged[:2]] == [(3, True), (6, True)]
    assert run.logged[-1] == (6, {"draws": ("image", figure)})


def test_wandb_begins_a_run(offline, tmp_path):
    wandb = pytest.importorskip("wandb")
    tracker = si.trackers.WandbTracker(project="tests", name="first")
    history = fit(tracker, log_every=3).history
    tracker.log_figure("draws", Figure(), 6)
    assert tracker.run.config["parameters"] == 12 and tracker.run.step == 6
    # The row of the last step is open until the run ends.
    np.testing.assert_allclose(tracker.run.summary["loss"], np.mean(history.loss[:3]))
    tracker.run.finish()
    assert wandb.run is None and list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


class FakeMLflow(type(sys)):
    """What `MLflowTracker` uses of MLflow, with one run."""

    def __init__(self):
        self.params, self.logged, self.figures = {"steps": "3"}, [], []
        self.info = self.data = self
        self.run_id = "the run"

    def start_run(self, **options):
        self.options = options
        return self

    def get_run(self, run_id):
        return self

    def log_params(self, params, run_id):
        assert not set(params) & set(self.params)
        self.params |= params

    def log_metrics(self, metrics, step, run_id):
        self.logged.append((run_id, step, metrics))

    def MlflowClient(self):
        return self

    def log_figure(self, run_id, figure, file):
        self.figures.append((run_id, file))


def test_mlflow_by_a_stand_in(monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    tracker = si.trackers.MLflowTracker(run_name="first")
    fit(tracker, log_every=3)
    tracker.log_figure("draws", Figure(), 6)
    assert mlflow.options == {"run_name": "first"} and mlflow.params["parameters"] == 12
    # MLflow lets no parameter change.
    assert mlflow.params["steps"] == "3"
    assert [(run_id, step, "loss" in metrics) for run_id, step, metrics in mlflow.logged[:2]] == [
        ("the run", 3, True),
        ("the run", 6, True),
    ]
    assert mlflow.figures == [("the run", "draws-6.png")]


def test_mlflow(offline, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        tracker = si.trackers.MLflowTracker(run)
        history = fit(tracker, log_every=3, steps=3).history
        tracker.log_figure("draws", Figure(), 3)
        # What goes on in the same run may have more steps.
        fit(si.trackers.MLflowTracker(run), log_every=3)
    client = mlflow.MlflowClient()
    assert client.get_run(run.info.run_id).data.params["steps"] == "3"
    losses = [(x.step, x.value) for x in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted({step for step, _ in losses}) == [3, 6]
    np.testing.assert_allclose(losses[0][1], np.mean(history.loss))
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["draws-3.png"]


def traces(folder):
    return sorted(folder.glob("profile/plugins/profile/*/*.trace.json.gz"))


def test_some_steps_are_profiled(tmp_path):
    profiled = fit(checkpoint=tmp_path, profile=(2, 3))
    (trace,) = traces(tmp_path)
    with gzip.open(trace) as file:
        names = [event.get("args", {}).get("step_num") for event in json.load(file)["traceEvents"]]
    assert sorted({int(name) for name in names if name is not None}) == [2, 3, 4]
    training.assert_equal(training.arrays(profiled.problem), training.arrays(fit().problem))
    # A finished run is read from its checkpoint, and nothing is traced.
    fit(checkpoint=tmp_path, profile=(2, 3))
    assert len(traces(tmp_path)) == 1


def test_a_profile_ends_with_training(tmp_path):
    fit(checkpoint=tmp_path, profile=(4, 100))
    assert len(traces(tmp_path)) == 1
    with pytest.warns(UserWarning, match="Nothing was profiled: `profile` starts after 50 steps"):
        fit(checkpoint=tmp_path / "other", profile=(50, 1))


@pytest.mark.thorough
def test_a_profile_that_fails_does_not_end_training(tmp_path):
    with jax.profiler.trace(str(tmp_path / "another")):
        with pytest.warns(UserWarning, match="The profile in .* failed .*; training goes on without it"):
            result = fit(checkpoint=tmp_path, profile=(1, 2))
    assert len(result.history.loss) == 6
