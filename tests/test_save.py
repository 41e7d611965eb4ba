import os
import stat
import threading
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import helpers
import stochinv as si
import training


class Pose(NamedTuple):
    angle: Any
    shift: Any


class Camera(eqx.Module):
    matrix: Any
    focal: float = eqx.field(static=True, default=2.0)


class Denoiser(eqx.Module):
    weight: Any
    frozen: si.Frozen

    def __call__(self, noisy, level, context, params, *, key=None):
        dtype = noisy.dtype
        return noisy @ self.weight.astype(dtype) + self.frozen.value


FORWARD = lambda s, p: s[:2]


def denoiser(dtype=jnp.float32, size=2, fill=0.25):
    return Denoiser(jnp.full((2, size), fill, dtype), si.Frozen(jnp.ones(size)))


def small(*arguments, **options):
    return si.StochasticInverseProblem(FORWARD, denoiser(*arguments, **options), objective=si.SquaredError())


def load(path, *arguments, **options):
    return si.load(path, FORWARD, denoiser(*arguments, **options))


def with_info(problem, params=None, context=None):
    struct = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    units = si.Units(jnp.asarray(1.5), jnp.asarray(2.5))
    info = si.DataInfo(struct(jnp.zeros(2)), struct(params), struct(context), units, True)
    return eqx.tree_at(lambda p: p.data_info, problem, info, is_leaf=lambda x: x is None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "problem.si"


@pytest.fixture(scope="module")
def trained():
    return training.fit(training.problem(), training.views(), roles=training.ROLES).problem


@pytest.mark.thorough
def test_arrays_and_samples_come_back(path, trained):
    trained.save(path)
    loaded = si.load(path, training.measure, training.LinearDenoiser(jr.key(0)))
    training.assert_equal(training.arrays(loaded), training.arrays(trained))
    assert loaded.signal == training.SIGNAL and isinstance(loaded.objective, si.SquaredError)
    data = training.views()
    context = si.View(data.observation[0, :1], data.params[0, :1])
    draw = lambda p: p.sample(context, data.params[0, 1], key=jr.key(0), num_samples=2, sampler=si.Ancestral(4))
    training.assert_equal(draw(loaded), draw(trained))
    # Units and structures too, so that wrong input is refused as before.
    with pytest.raises(ValueError, match="`context` is"):
        loaded.posterior(None, data.params[0, 1])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective", [pytest.param(si.SquaredError(), marks=pytest.mark.slow), si.ProperScore(num_draws=2)]
)
def test_a_problem_comes_back_from_the_file_and_the_forward_model(path, objective):
    noise, schedule = si.GaussianNoise(0.1), si.VariancePreserving(0.2)
    untrained = training.problem(denoiser=None, objective=objective, noise=noise, schedule=schedule)
    trained = training.fit(untrained, training.examples(), steps=2, batch_size=4).problem
    trained.save(path)
    loaded = si.load(path, training.measure)
    training.assert_equal(training.arrays(loaded), training.arrays(trained))
    assert jax.tree.structure(loaded.denoiser) == jax.tree.structure(trained.denoiser)
    assert eqx.tree_equal(loaded.objective, objective)
    assert eqx.tree_equal(loaded.schedule, schedule) and eqx.tree_equal(loaded.noise, noise)
    assert loaded.signal == training.SIGNAL


PARTS = helpers.objectives() | helpers.schedules() | helpers.noises()


@pytest.mark.parametrize("name", PARTS)
def test_every_part_comes_back_or_has_to_be_given(path, name):
    part = PARTS[name]
    kind = next(
        kind
        for kind, base in (
            ("objective", si.AbstractObjective),
            ("schedule", si.AbstractNoiseSchedule),
            ("noise", si.AbstractNoise),
        )
        if isinstance(part, base)
    )
    problem = si.StochasticInverseProblem(FORWARD, denoiser(), **{kind: part})
    problem.save(path)
    given = {}
    if "law" in name or name in ("squared_error_weighted", "proper_score_beta"):
        with pytest.raises(ValueError, match=f"`{kind}` cannot be rebuilt from the file .*; give it yourself"):
            load(path)
        given = {kind: part}
    loaded = si.load(path, FORWARD, denoiser(), **given)
    assert eqx.tree_equal(getattr(loaded, kind), part)


def test_number_formats_that_numpy_lacks(path):
    small(jnp.bfloat16, fill=0.3).save(path)
    loaded = load(path, jnp.bfloat16)
    assert loaded.denoiser.weight.dtype == jnp.bfloat16
    training.assert_equal(loaded.denoiser.weight, jnp.full((2, 2), 0.3, jnp.bfloat16))


TREES = {
    "containers": {"a": jnp.zeros(3), "b": [jnp.zeros((), jnp.int32), (jnp.zeros(2, jnp.bfloat16), None)]},
    "view": si.View(jnp.zeros((4, 2)), {"angle": jnp.zeros(4)}, jnp.ones(4, bool)),
    "namedtuple": Pose(jnp.zeros(3), jnp.zeros(2)),
    "module": Camera(jnp.zeros((2, 2))),
    "nested": {"camera": Camera(jnp.zeros((2, 2)), 3.0), "poses": [Pose(jnp.zeros(1), None)]},
}


@pytest.mark.parametrize("name", TREES)
def test_structures_of_any_tree_come_back(path, name):
    """Containers as they were; what a user defined as its name and its parts, which is enough to compare with."""
    tree = TREES[name]
    problem = with_info(small(), params=tree, context=tree)
    problem.save(path)
    info = load(path).data_info
    if name in ("containers", "view"):
        assert jax.tree.structure(info.params) == jax.tree.structure(problem.data_info.params)
    assert jax.tree.leaves(info.params) == jax.tree.leaves(problem.data_info.params)
    assert (float(info.units.mean), float(info.units.std), info.affine) == (1.5, 2.5, True)
    loaded = si.load(path, FORWARD, denoiser(), signal=jax.ShapeDtypeStruct((2,), jnp.float32))
    loaded.posterior(tree, tree)
    for other in (None, {"a": jnp.zeros(3)}, jax.tree.map(lambda x: x.astype(jnp.float16), tree)):
        with pytest.raises(ValueError, match="`context` is"):
            loaded.posterior(other, tree)


def test_scalar_signals(path):
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    whole = Denoiser(jnp.ones(2), si.Frozen(jnp.zeros(())))
    si.StochasticInverseProblem(lambda s, p: s, whole, signal=scalar).save(path)
    assert si.load(path, lambda s, p: s, whole).signal.shape == ()


def test_frozen_parts_are_not_stored(path):
    small().save(path)
    other = eqx.tree_at(lambda d: d.frozen.value, denoiser(), jnp.full(2, 7.0))
    np.testing.assert_array_equal(si.load(path, FORWARD, other).denoiser.frozen.value, 7.0)


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="`path`: there is no file .*problem.si"):
        load(path)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`forward` measures a fixed signal otherwise", {"forward": lambda s, p: 1.01 * p @ s}),
        ("`schedule.log_snr_max` is 12.5 in the file and 10.0 here", {"schedule": si.CosineSchedule(log_snr_max=10.0)}),
        ("`schedule` is CosineSchedule in the file and RectifiedFlow here", {"schedule": si.RectifiedFlow()}),
        ("`objective` is SquaredError in the file and ProperScore here", {"objective": si.ProperScore()}),
        ("`objective.novel_weight` is 1.0 in the file and 2.0 here", {"objective": si.SquaredError(novel_weight=2.0)}),
        ("`noise.scale` is 0.0 in the file and 0.5 here", {"noise": 0.5}),
        ("`noise` is GaussianNoise in the file and NoiseLaw here", {"noise": dist.Poisson}),
        (r"`signal` is float32\[3\] in the file and float32\[4\] here", {"signal": jax.ShapeDtypeStruct((4,), "f4")}),
        ("`denoiser` is LinearDenoiser in the file and NetworkDenoiser here", {"denoiser": None}),
        (r"`denoiser.target` is float32\[3, 2\] in the file", {"denoiser": training.LinearDenoiser(jr.key(0), 5)}),
    ],
)
def test_what_differs_is_refused_by_name(path, trained, message, options):
    trained.save(path)
    given = {"forward": training.measure, "denoiser": training.LinearDenoiser(jr.key(0)), **options}
    with pytest.raises(ValueError, match=f"is of another problem: .*{message}"):
        si.load(path, **given)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_parameters_that_are_not_finite_are_not_saved(path, value):
    with pytest.raises(ValueError, match=r"`denoiser` has NaN or infinite parameters \(denoiser.weight\)"):
        small(fill=value).save(path)


@pytest.mark.parametrize("std", [0.0, -1.0, jnp.nan, jnp.inf])
def test_units_out_of_range_are_refused(path, std):
    problem = with_info(small())
    bad = eqx.tree_at(lambda p: p.data_info.units.std, problem, jnp.asarray(std))
    bad.save(path)
    with pytest.raises(ValueError, match="`path`: .* use another copy"):
        load(path)


def test_an_untrained_problem_has_nothing_to_save(path):
    with pytest.raises(ValueError, match="not trained"):
        training.problem(denoiser=None).save(path)


def test_a_file_is_replaced_in_one_step(path, monkeypatch):
    small(fill=1.0).save(path)

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        small(fill=2.0).save(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(load(path).denoiser.weight, 1.0)
    small(fill=2.0).save(path)
    np.testing.assert_array_equal(load(path).denoiser.weight, 2.0)
    assert os.listdir(path.parent) == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_threads_that_save_to_one_path_all_succeed(path):
    errors = []

    def work(fill):
        try:
            for _ in range(5):
                small(fill=fill).save(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(path.parent) == [path.name]
    weight = np.asarray(load(path).denoiser.weight)
    assert np.all(weight == weight[0, 0]) and weight[0, 0] in range(4)
