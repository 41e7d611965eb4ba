import os
import stat
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

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


def small(dtype=jnp.float32, size=2, fill=0.25):
    denoiser = Denoiser(jnp.full((2, size), fill, dtype), si.Frozen(jnp.ones(size)))
    return si.StochasticInverseProblem(lambda s, p: s[:2], denoiser)


def structures(observation, params, context):
    return tuple(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x) for x in (observation, params, context)
    )


def with_info(problem, params=None, context=None):
    observation = jnp.zeros(2)
    info = si.DataInfo(*structures(observation, params, context), si.Units(jnp.asarray(1.5), jnp.asarray(2.5)), True)
    return eqx.tree_at(lambda p: p.data_info, problem, info, is_leaf=lambda x: x is None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "problem.si"


def test_arrays_and_samples_come_back(path):
    trained = training.fit(training.problem(), training.views(), roles=training.ROLES).problem
    trained.save(path)
    loaded = training.problem().load(path)
    training.assert_equal(training.arrays(loaded), training.arrays(trained))
    assert np.any(loaded.denoiser.target != training.problem().denoiser.target)
    data = training.views()
    context = si.View(data.observation[0, :1], data.params[0, :1])
    draw = lambda p: p.sample(context, data.params[0, 1], key=jr.key(0), num_samples=2, sampler=si.Ancestral(4))
    training.assert_equal(draw(loaded), draw(trained))
    # Units and structures too, so that wrong input is refused as before.
    with pytest.raises(ValueError, match="`context` is"):
        loaded.posterior(None, data.params[0, 1])


@pytest.mark.parametrize(
    "objective", [pytest.param(si.SquaredError(), marks=pytest.mark.slow), si.ProperScore(num_draws=2)]
)
def test_the_default_network_is_made_again(path, objective):
    untrained = training.problem(denoiser=None, objective=objective)
    trained = training.fit(untrained, training.examples(), steps=2, batch_size=4).problem
    trained.save(path)
    loaded = training.problem(denoiser=None, objective=objective).load(path)
    training.assert_equal(training.arrays(loaded), training.arrays(trained))
    assert jax.tree.structure(loaded.denoiser) == jax.tree.structure(trained.denoiser)
    unknown = si.StochasticInverseProblem(training.measure).load(path)
    assert unknown.signal == training.SIGNAL


def test_number_formats_that_numpy_lacks(path):
    small(jnp.bfloat16, fill=0.3).save(path)
    loaded = small(jnp.bfloat16).load(path)
    assert loaded.denoiser.weight.dtype == jnp.bfloat16
    training.assert_equal(loaded.denoiser.weight, jnp.full((2, 2), 0.3, jnp.bfloat16))


@pytest.mark.parametrize(
    "tree",
    [
        {"a": jnp.zeros(3), "b": [jnp.zeros((), jnp.int32), (jnp.zeros(2, jnp.bfloat16), None)]},
        Pose(jnp.zeros(3), jnp.zeros(2)),
        Camera(jnp.zeros((2, 2))),
        {"camera": Camera(jnp.zeros((2, 2)), 3.0), "poses": [Pose(jnp.zeros(1), None)]},
        si.View(jnp.zeros((4, 2)), Pose(jnp.zeros(4), jnp.zeros(4)), jnp.ones(4, bool)),
    ],
    ids=["containers", "namedtuple", "module", "nested", "view"],
)
def test_structures_of_any_tree_come_back(path, tree):
    problem = with_info(small(), params=tree, context=tree)
    problem.save(path)
    info = small().load(path).data_info
    assert jax.tree.structure(info.params) == jax.tree.structure(problem.data_info.params)
    assert jax.tree.leaves(info.params) == jax.tree.leaves(problem.data_info.params)
    assert jax.tree.structure(info.context) == jax.tree.structure(problem.data_info.context)
    assert (float(info.mean), float(info.std), info.affine) == (1.5, 2.5, True)


def test_a_structure_that_is_no_known_container_is_refused(path):
    @jax.tree_util.register_pytree_node_class
    class Odd:
        def tree_flatten(self):
            return (), None

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls()

    with pytest.raises(ValueError, match="of type .*Odd cannot be saved; build it from dicts"):
        with_info(small(), params=Odd()).save(path)


def test_scalar_signals(path):
    problem = si.StochasticInverseProblem(lambda s, p: s, Denoiser(jnp.ones(2), si.Frozen(jnp.zeros(()))))
    problem = eqx.tree_at(
        lambda p: p.signal, problem, jax.ShapeDtypeStruct((), jnp.float32), is_leaf=lambda x: x is None
    )
    problem.save(path)
    assert problem.load(path).signal.shape == ()


def test_frozen_parts_are_not_stored(path):
    small().save(path)
    other = small()
    other = eqx.tree_at(lambda p: p.denoiser.frozen.value, other, jnp.full(2, 7.0))
    np.testing.assert_array_equal(other.load(path).denoiser.frozen.value, 7.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95, "flip", "text"])
def test_a_damaged_file_is_refused(path, share):
    with_info(small()).save(path)
    content = bytearray(path.read_bytes())
    if share == "flip":
        start = content.index(b"\x93NUMPY")
        content[start + 140] ^= 0xFF
    elif share == "text":
        content = b"hello"
    else:
        content = content[: int(share * len(content))]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a saved problem, or is damaged .*use another copy"):
        small().load(path)


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="`path`: there is no file .*problem.si"):
        small().load(path)


def test_other_shapes_are_refused(path):
    small().save(path)
    with pytest.raises(
        ValueError, match=r"has shape \(2, 2\) for denoiser.weight, where this problem has shape \(2, 5\)"
    ):
        small(size=5).load(path)
    with pytest.raises(ValueError, match="has nothing for denoiser.target"):
        training.problem().load(path)


def test_an_untrained_problem_has_nothing_to_save(path):
    with pytest.raises(ValueError, match="not trained"):
        training.problem(denoiser=None).save(path)


def test_a_file_is_replaced_in_one_step(path, monkeypatch):
    small(fill=1.0).save(path)

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="disk is full"):
        small(fill=2.0).save(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(small().load(path).denoiser.weight, 1.0)
    small(fill=2.0).save(path)
    np.testing.assert_array_equal(small().load(path).denoiser.weight, 2.0)
    assert os.listdir(path.parent) == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
