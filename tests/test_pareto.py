"""Pareto k, against ArviZ and a proposal whose weights are known."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stochinv._pareto import LARGEST_SHAPE, pareto_k


@pytest.mark.parametrize("number", [64, 1000])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_it_is_that_of_arviz(number, spread):
    log_weights = spread * np.random.default_rng(0).normal(size=number) - 500.0
    _, expected = arviz.psislw(log_weights.copy())
    np.testing.assert_allclose(jax.jit(pareto_k)(jnp.float32(log_weights + 500)), expected, atol=1e-3)


@pytest.mark.parametrize(("width", "right"), [(1.5, True), (0.5, False)])
def test_a_proposal_that_is_too_narrow_is_found(width, right):
    """A standard normal, from a normal of another width: weights have moments up to `1 / (1 − width²)` where narrow."""
    draws = width * np.random.default_rng(1).normal(size=4000)
    log_weights = -0.5 * draws**2 + 0.5 * (draws / width) ** 2
    assert (pareto_k(jnp.float32(log_weights)) < LARGEST_SHAPE) == right


def test_weights_that_tell_nothing():
    assert pareto_k(jnp.zeros(100)) == -jnp.inf
    assert pareto_k(jnp.arange(20.0)) == jnp.inf
