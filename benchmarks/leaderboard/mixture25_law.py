"""Twenty-five Gaussians of unit covariance on a grid, their posteriors given linear measurements in closed form, and
how draws are compared with them; NumPy alone.

The three measurements are those of the benchmark of MCGDiff's authors,
github.com/gabrielvc/benchopts_inverse_problem_diffusion_prior at 59559eb, whose generator of random numbers starts from
27: so many rows of singular values below 1, and noise smaller than the largest of them. Its numbers are kept here, as
they depend on PyTorch's generator. The posterior of a mixture given `y = A x + σ ε` is the mixture of what each of its
Gaussians becomes, with weights in proportion to `w_k N(y; A m_k, A Aᵀ + σ²)`.
"""

from dataclasses import dataclass

import numpy as np

SIZE = 8


@dataclass(frozen=True)
class Measurement:
    matrix: np.ndarray
    noise: float
    observed: np.ndarray


def means() -> np.ndarray:
    """`(16, 16), (16, 8), …, (-16, -16)`, repeated to eight entries."""
    axis = np.array([16.0, 8.0, 0.0, -8.0, -16.0])
    pairs = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return np.tile(pairs, SIZE // 2)


WEIGHTS = np.array(
    [
        *(0.1335942596, 0.0001889310515, 0.0002136631520, 0.001198763028, 0.007806380745),
        *(0.09655908495, 0.002979425248, 0.04470519349, 0.2248138040, 0.006096180063),
        *(0.01616783254, 0.01517070364, 0.03193386272, 0.03879303113, 0.03626111895),
        *(0.02471925318, 0.001834018156, 0.01924470626, 0.1051885188, 0.02795352601),
        *(0.1102808043, 0.001233759453, 4.069213173e-05, 8.078724932e-05, 0.05294165388),
    ]
)
WEIGHTS /= WEIGHTS.sum()

# By how many rows there are.
MEASUREMENTS = {
    1: Measurement(
        np.array(
            [
                [-0.01623352244, -0.01126893889, -0.05246195942, -0.01804654673]
                + [0.003448647913, -0.02682707818, 0.05886656046, 0.0361273028]
            ]
        ),
        0.00477686245,
        np.array([-0.2945571244]),
    ),
    2: Measurement(
        np.array(
            [
                [-0.04019922391, -0.03918902576, 0.04038352519, -0.06995202601]
                + [0.05608043075, -0.0856641382, 0.04040700943, -0.02073790878],
                [-0.06493778527, 0.0267361011, -0.06445705146, 0.1908389479]
                + [-0.3087002933, 0.2492927164, 0.06499550492, 0.068718642],
            ]
        ),
        0.3997696936,
        np.array([-1.378909349, 2.499481201]),
    ),
    4: Measurement(
        np.array(
            [
                [-0.1354859471, -0.120324865, 0.08492185175, -0.09289674461]
                + [0.03696301207, -0.115820035, 0.1430050433, 0.003177385777],
                [-0.08203051239, 0.01576007344, -0.04884225130, 0.1820366234]
                + [-0.3170890808, 0.2311662883, 0.08457508683, 0.06285060942],
                [-0.0827216208, 0.04474456981, -0.3625237048, -0.1736910939]
                + [0.3039855063, 0.3024978340, -0.07968305051, 0.09770146757],
                [-0.05642201379, -0.2547778487, 0.1046116203, 0.1216516887]
                + [0.05714074895, 0.01378817949, 0.1348469555, 0.2258495837],
            ]
        ),
        0.2739118934,
        np.array([-4.104228020, 6.036892891, 2.433296680, 3.769961357]),
    ),
}


def draw(rng: np.random.Generator, number: int) -> np.ndarray:
    """Signals of the prior."""
    return means()[rng.choice(len(WEIGHTS), number, p=WEIGHTS)] + rng.normal(size=(number, SIZE))


def posterior(given: Measurement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights and means of the posterior's Gaussians, and the covariance that they share."""
    matrix, centres = given.matrix, means()
    spread = matrix @ matrix.T + given.noise**2 * np.eye(len(matrix))
    gain = np.linalg.solve(spread, matrix).T
    apart = given.observed - centres @ matrix.T
    logs = np.log(WEIGHTS) - 0.5 * np.einsum("ki,ij,kj->k", apart, np.linalg.inv(spread), apart)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum(), centres + apart @ gain.T, np.eye(matrix.shape[1]) - gain @ matrix


def draw_posterior(rng: np.random.Generator, number: int, given: Measurement) -> np.ndarray:
    weights, centres, covariance = posterior(given)
    eigenvalues, basis = np.linalg.eigh(covariance)
    root = basis * np.sqrt(np.maximum(eigenvalues, 0))
    white = rng.normal(size=(number, centres.shape[1]))
    return centres[rng.choice(len(weights), number, p=weights)] + white @ root.T


def largest_sliced(rng: np.random.Generator, rows: np.ndarray, reference: np.ndarray, projections: int = 100) -> float:
    """The largest W2 of so many random projections; there is a whole number of reference points for each row."""
    directions = rng.normal(size=(projections, rows.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    first, second = np.sort(rows @ directions.T, 0), np.sort(reference @ directions.T, 0)
    apart = np.repeat(first, len(second) // len(first), axis=0) - second
    return float(np.sqrt(np.max(np.mean(apart**2, 0))))
