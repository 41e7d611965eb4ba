"""Slices of a brain from four noisy projections each; given three, for `posterior_accuracy.py`.

The brain is the ICBM 152 template that nilearn ships. Slices are cut by SciPy, projections are matrix products.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.ndimage import map_coordinates
from signal_case import Case, Figure, Sizes, records

import stochinv as si

SIZE, VIEWS, GIVEN, ANGLES = 32, 4, 3, 180
# Of the standard deviation of measurements.
NOISE = 0.05
HELD_OUT, DRAWS = 60, 64
# Heights of the slices in the template, in pixels of 2 mm; those held out are at least 4 mm from all others.
LOWEST, HIGHEST, HELD_OUT_FROM, HELD_OUT_TO, GAP = 25, 75, 48, 53, 3
# Pixels whose values vary by less over slices, in standard deviations of all, are air.
AIR = 0.1


def cut(volume, rng, number, heights):
    """Slices turned and shifted at random, `(number, SIZE²)`."""
    half = (SIZE - 1) / 2
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1] * 3.0
    slices = []
    for _ in range(number):
        angle, (up, right) = rng.normal(0, 0.1), rng.normal(0, 3, 2)
        x = 49 + up + np.cos(angle) * rows - np.sin(angle) * columns
        y = 58 + right + np.sin(angle) * rows + np.cos(angle) * columns
        slices.append(map_coordinates(volume, [x, y, np.full_like(x, rng.choice(heights))], order=1))
    return np.reshape(slices, (number, -1))


def projection(angle):
    """The matrix of one projection: sums along 32 rays of bilinear interpolations, over 10."""
    half = (SIZE - 1) / 2
    along, across = np.mgrid[-half : half + 1, -half : half + 1]
    x = half + along * np.cos(angle) - across * np.sin(angle)
    y = half + along * np.sin(angle) + across * np.cos(angle)
    ray = np.repeat(np.arange(SIZE), SIZE)
    matrix = sparse.csr_array((SIZE, SIZE * SIZE))
    for corner_x in (0, 1):
        for corner_y in (0, 1):
            i, j = np.floor(x).ravel() + corner_x, np.floor(y).ravel() + corner_y
            weight = (1 - np.abs(x.ravel() - i)) * (1 - np.abs(y.ravel() - j))
            inside = (i >= 0) & (i < SIZE) & (j >= 0) & (j < SIZE)
            column = (i * SIZE + j).astype(int)
            matrix += sparse.csr_array((weight[inside] / 10, (ray[inside], column[inside])), shape=(SIZE, SIZE * SIZE))
    return matrix.toarray()


def project(image, angle):
    """The same by interpolation, as a user writes it."""
    half = (SIZE - 1) / 2
    along, across = jnp.meshgrid(*2 * [jnp.arange(SIZE) - half], indexing="ij")
    x = half + along * jnp.cos(angle) - across * jnp.sin(angle)
    y = half + along * jnp.sin(angle) + across * jnp.cos(angle)
    return jax.scipy.ndimage.map_coordinates(image[..., 0], [x, y], order=1).sum(-1) / 10


def tomography(sizes: Sizes) -> Case:
    """Tomography of images, three projections given; the RMSE of the mean against the Gaussian of clean slices."""
    # Here, so that the other problems run without it.
    from nilearn.datasets import load_mni152_template

    volume = load_mni152_template(resolution=2).get_fdata()
    rng = np.random.default_rng(sizes.seed)
    heights = np.arange(LOWEST, HIGHEST + 1)
    apart = (heights <= HELD_OUT_FROM - GAP) | (heights >= HELD_OUT_TO + GAP)
    train = cut(volume, rng, sizes(3000, 64), heights[apart])
    truth = cut(volume, np.random.default_rng(7), sizes(HELD_OUT, 8), np.arange(HELD_OUT_FROM, HELD_OUT_TO + 1))
    matrices = np.stack([projection(np.pi * k / ANGLES) for k in range(ANGLES)])

    def scan(slices, rng):
        chosen = rng.integers(0, ANGLES, (len(slices), VIEWS))
        return chosen, np.einsum("nvdp,np->nvd", matrices[chosen], slices)

    chosen, clean = scan(train, rng)
    std = NOISE * clean.std()
    data = records(clean + std * rng.normal(size=clean.shape), np.pi * chosen / ANGLES)
    held = np.random.default_rng(8)
    held_chosen, held_clean = scan(truth, held)
    observed = held_clean + std * held.normal(size=held_clean.shape)
    given = records(observed[:, :GIVEN], np.pi * held_chosen[:, :GIVEN] / ANGLES)
    signal = (SIZE, SIZE, 1)
    problem = si.StochasticInverseProblem(project, noise=float(std), signal=signal)

    def assess(problem):
        drawn = problem.sample_many(given, key=jax.random.key(1), num_samples=sizes(DRAWS, 2), chunk_size=64).signal
        drawn = np.asarray(drawn, np.float64).reshape(len(truth), -1, SIZE * SIZE)
        measured = np.einsum("nvdp,nkp->nkvd", matrices[held_chosen[:, :GIVEN]], drawn)
        residual = np.sqrt(np.mean(((measured - observed[:, None, :GIVEN]) / std) ** 2))
        # A rank among as many draws as there are, whose intervals are exact however few these are.
        rank = (np.sum(drawn < truth[:, None], 1) + held.uniform(size=truth.shape)) / (drawn.shape[1] + 1)
        tissue = train.std(0) > AIR * train.std()
        held_within = np.mean(np.abs(2 * rank - 1)[:, tissue] <= 0.9)
        best = gaussian_mean(train, matrices[held_chosen[:, :GIVEN]], observed[:, :GIVEN], std)
        # Less what the mean of so few draws differs from that of all.
        square = np.mean((drawn.mean(1) - truth) ** 2) - np.mean(drawn.var(1, ddof=1)) / drawn.shape[1]
        return [
            Figure("residual at the given data", float(residual), 1, (0.95, 1.1)),
            Figure("in 90 % intervals", float(held_within), 0.9, (0.85, 0.95)),
            Figure(
                "RMSE / Gaussian's of slices", float(np.sqrt(square / np.mean((best - truth) ** 2))), 1, (0.0, 1.05)
            ),
        ]

    return Case(problem, data, assess, {"steps": 500})


def gaussian_mean(train, matrices, observed, std):
    """The posterior mean under the Gaussian of the clean slices."""
    mean, covariance = train.mean(0), np.cov(train.T) + 1e-6 * train.var() * np.eye(train.shape[1])
    means = []
    for matrix, values in zip(matrices.reshape(len(matrices), -1, train.shape[1]), observed, strict=True):
        across = matrix @ covariance
        gain = np.linalg.solve(across @ matrix.T + std**2 * np.eye(len(matrix)), across)
        means.append(mean + gain.T @ (values.ravel() - matrix @ mean))
    return np.array(means)
