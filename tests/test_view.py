"""Measurements and the roles they are dealt."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st

import stochinv as si


def stack(number):
    """Views that can be told apart, the same number in the observation and in the parameters."""
    index = jnp.arange(number, dtype=jnp.float32)
    return si.View({"o": jnp.broadcast_to(index[:, None], (number, 3))}, index)


def dealt(view):
    ids = np.atleast_1d(view.params)
    np.testing.assert_array_equal(np.atleast_2d(view.observation["o"])[:, 0], ids)
    return ids if view.mask is None else ids[np.asarray(view.mask)]


@given(seed=st.integers(0, 2**16))
def test_roles_are_disjoint(seed):
    example = si.RandomViews(context=2, target=1, novel=2)(stack(6), key=jr.key(seed))
    assert example.context.observation["o"].shape == (2, 3)
    assert example.target.observation["o"].shape == (3,) and example.target.params.shape == ()
    ids = np.concatenate([dealt(v) for v in (example.context, example.target, example.novel)])
    assert len(set(ids)) == 5


def test_every_view_takes_every_role_equally_often():
    number = 3000
    roles = si.RandomViews(context=1, target=1, novel=1)
    examples = jax.vmap(lambda key: roles(stack(4), key=key))(jr.split(jr.key(0), number))
    for view in (examples.context, examples.target, examples.novel):
        share = np.bincount(np.asarray(view.params).ravel().astype(int), minlength=4) / number
        assert np.all(np.abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / number))


def test_a_random_number_of_context_views_is_masked():
    number = 3000
    roles = si.RandomViews(context=(0, 2), target=1)
    examples = jax.vmap(lambda key: roles(stack(4), key=key))(jr.split(jr.key(0), number))
    assert examples.context.mask.shape == (number, 2) and examples.novel is None
    share = np.bincount(np.asarray(examples.context.mask.sum(1)), minlength=3) / number
    assert np.all(np.abs(share - 1 / 3) < 5 * np.sqrt(2 / 9 / number))
    assert np.all(examples.context.mask[:, 0] >= examples.context.mask[:, 1])


def test_no_context_and_several_targets():
    example = si.RandomViews(context=0, target=2)(stack(3), key=jr.key(0))
    assert example.context is None and example.target.observation["o"].shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"context": -1}, "context"),
        ({"context": (2, 1)}, "context"),
        ({"target": 0}, "target"),
        ({"novel": -1}, "novel"),
    ],
)
def test_impossible_roles(settings, word):
    with pytest.raises(ValueError, match=f"`{word}`"):
        si.RandomViews(**settings)


def test_too_few_views_and_masked_stacks():
    with pytest.raises(ValueError, match="3 views are needed"):
        si.RandomViews(context=1, target=1, novel=1)(stack(2), key=jr.key(0))
    masked = si.View(stack(3).observation, stack(3).params, jnp.ones(3, bool))
    with pytest.raises(ValueError, match="mask"):
        si.RandomViews()(masked, key=jr.key(0))


def test_counts_are_measurements():
    """Integers become floating-point, as arrays of NumPy and of JAX; parameters stay what they are."""
    view = si.View({"counts": np.arange(4, dtype=np.uint16), "rate": np.ones(4, np.float32)}, np.arange(4))
    assert view.observation["counts"].dtype == np.float32 and view.observation["rate"].dtype == np.float32
    np.testing.assert_array_equal(view.observation["counts"], [0, 1, 2, 3])
    assert view.params.dtype == np.int64
    assert si.View(jnp.arange(3)).observation.dtype == jnp.float32


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        ((28, 28, 1), [(28, 28, 1)]),
        (3, [(3,)]),
        ((), [()]),
        ({"rate": (), "scale": 3, "image": (4, 4, 1)}, [(4, 4, 1), (), (3,)]),
        ([2, jax.ShapeDtypeStruct((5,), jnp.complex64)], [(2,), (5,)]),
    ],
)
def test_signals_are_told_by_shapes(given, shapes):
    problem = si.StochasticInverseProblem(lambda signal, params: signal, signal=given)
    leaves = jax.tree.leaves(problem.signal)
    assert [x.shape for x in leaves] == shapes
    assert all(x.dtype in (jnp.float32, jnp.complex64) for x in leaves)
