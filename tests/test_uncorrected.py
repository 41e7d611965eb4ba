"""Expectation maximisation with a network that is told what was measured and no more, in a small tomography."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.datasets import load_digits

import stochinv as si

SIZE, VIEWS, GIVEN, HELD_OUT, DRAWS = 8, 4, 3, 100, 32
SIGNAL = jax.ShapeDtypeStruct((SIZE, SIZE, 1), jnp.float32)


def project(image, angle):
    """Sums along 8 rays, by interpolation."""
    grid = jnp.arange(SIZE) - (SIZE - 1) / 2
    along, across = jnp.meshgrid(grid, grid, indexing="ij")
    x = along * jnp.cos(angle) - across * jnp.sin(angle) - grid[0]
    y = along * jnp.sin(angle) + across * jnp.cos(angle) - grid[0]
    return jax.scipy.ndimage.map_coordinates(image[..., 0], [x, y], order=1).sum(-1)


class Told(eqx.Module):
    """Velocities from the mean of back-projections."""

    mlp: si.nn.MLP
    embedding: si.nn.NoiseEmbedding

    def __init__(self, key):
        keys = jr.split(key)
        self.mlp = si.nn.MLP(3 * SIZE**2 + 1, SIZE**2, embedding_size=32, width=512, key=keys[0])
        self.embedding = si.nn.NoiseEmbedding(32, key=keys[1])

    def __call__(self, noisy, level, context, params, *, key):
        counts = context.mask.astype(noisy.dtype)
        back = lambda o, p: jax.linear_transpose(lambda s: project(s, p), jnp.zeros(SIGNAL.shape))(o)[0].ravel()
        mean = lambda x: counts @ x / jnp.maximum(jnp.sum(counts), 1)
        seen = mean(jax.vmap(back)(context.observation, context.params))
        rays = mean(jax.vmap(lambda p: back(jnp.ones(SIZE), p))(context.params))
        size = jnp.sqrt(level.alpha**2 + level.sigma**2)
        told = jnp.concatenate([noisy.ravel() / size, seen, rays, jnp.mean(counts)[None]])
        return self.mlp(told, self.embedding(level.log_snr)).reshape(SIGNAL.shape)


@pytest.fixture(scope="module")
def scans():
    """Digits of 8×8 pixels that people wrote, and noisy projections of each, by a matrix for each of 180 angles."""
    digits = np.random.default_rng(0).permutation(load_digits().data / 16)
    angles = np.float32(np.pi * np.arange(180) / 180)
    matrices = np.stack([jax.jacobian(lambda s, a=a: project(s, a))(jnp.zeros(SIGNAL.shape)) for a in angles])
    matrices = matrices.reshape(180, SIZE, SIZE**2)
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, 180, (len(digits), VIEWS))
    clean = np.einsum("nvdp,np->nvd", matrices[chosen], digits)
    noise = 0.05 * clean.std()
    observed = np.float32(clean + noise * rng.normal(size=clean.shape))
    return digits, si.View(observed, angles[chosen]), float(noise)


def coverage(trained, scans):
    """How many of the pixels of held-out digits 90 % intervals hold, given three projections."""
    digits, views, _ = scans
    given = si.View(views.observation[:HELD_OUT, :GIVEN], views.params[:HELD_OUT, :GIVEN])
    draws = trained.sample_many(given, key=jr.key(1), num_samples=DRAWS).signal.reshape(HELD_OUT, DRAWS, -1)
    ranks = si.diagnostics.fractional_ranks(jnp.moveaxis(draws, 1, 0), jnp.float32(digits[:HELD_OUT]), key=jr.key(2))
    ink = digits.std(0) > 0.1
    return float(np.mean(np.abs(2 * np.asarray(ranks)[:, ink] - 1) <= 0.9))


def fit(scans, denoiser, **options):
    _, views, noise = scans
    problem = si.StochasticInverseProblem(project, denoiser, noise=noise, signal=SIGNAL)
    data = jax.tree.map(lambda x: x[HELD_OUT:], views)
    return problem.fit(data, key=jr.key(0), progress=False, **options)


@pytest.mark.slow
def test_uncorrected_rounds_grow_too_sure_and_are_ended(scans):
    denoiser = si.PredictionDenoiser(Told(jr.key(3)), "velocity")
    once = fit(scans, denoiser, steps=500, rounds=1)
    with pytest.warns(UserWarning, match="Training ended after 5 rounds: .* come no nearer"):
        ended = fit(scans, denoiser, steps=10_000, rounds=11)
    assert len(ended.history.loss) == 2500 and min(ended.history.residual) > 3
    first, last = (coverage(x.problem, scans) for x in (once, ended))
    print(f"90 % intervals hold {first:.3f}, then {last:.3f}; residuals {ended.history.residual}")
    assert last < first - 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected = fit(scans, None, steps=3000, rounds=6)
    print(f"corrected: {coverage(corrected.problem, scans):.3f}; residuals {corrected.history.residual}")
    assert max(corrected.history.residual) < 1.2
    assert coverage(corrected.problem, scans) > first
