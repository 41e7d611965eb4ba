"""Lévy processes measured with noise: the setting of `levy.py`.

A signal is the cumulative sum of 64 independent jumps of one law. Laws, operators and noise are those of Zach, Haouchat
and Unser, "A statistical benchmark for diffusion posterior sampling algorithms" (ICLR 2026, arXiv:2509.12821), as in
https://github.com/zacmar/dps-benchmark at commit d999e2a.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

# Which entries are seen, of signals and of half-spectra: `indices.pth` of that repository.
SEEN = np.array([int(x) for x in "1001001011001100011101000101010111010011001110011010010101101011"], bool)
# The noise is so many dB below the median over signals of the mean square of what is measured.
DECIBELS = 25
# Below which size a Bernoulli-Laplace jump counts as none, there.
NO_JUMP = 5e-5


@dataclass(frozen=True)
class Law:
    """A law of jumps.

    `kind` is "gauss", "laplace" or "student"; `scale` the standard deviation of the first, and that by which the
    others' standard laws are multiplied; `share` how likely a Laplace jump is not 0; `freedom` the degrees of freedom.
    """

    kind: str
    scale: float = 1.0
    share: float = 1.0
    freedom: float = np.inf

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if self.kind == "gauss":
            return self.scale * rng.normal(size=shape)
        if self.kind == "student":
            return self.scale * rng.standard_t(self.freedom, size=shape)
        jumps = self.scale * rng.laplace(size=shape)
        return np.where(rng.random(shape) < self.share, jumps, 0.0)

    def log_prob(self, jumps: np.ndarray) -> np.ndarray:
        """The log-density up to a constant; of no jump, where these have a probability, its logarithm."""
        x = np.abs(jumps) / self.scale
        if self.kind == "gauss":
            return -0.5 * x**2
        if self.kind == "student":
            return -0.5 * (self.freedom + 1) * np.log1p(x**2 / self.freedom)
        if self.share == 1:
            return -x
        density = np.log(self.share / (2 * self.scale)) - x
        return np.where(np.abs(jumps) < NO_JUMP, np.log1p(-self.share), density)

    def blurred_log_prob(self, jumps: np.ndarray, blur: float) -> np.ndarray:
        """The log-density of Laplace jumps, or none, plus normal noise of the standard deviation `blur`."""
        x, width = jumps / blur, blur / self.scale
        none = -0.5 * x**2 - np.log(blur * np.sqrt(2 * np.pi))
        sides = [sign * width * x + log_ndtr(-sign * x - width) for sign in (-1, 1)]
        some = np.logaddexp(*sides) + 0.5 * width**2 - np.log(2 * self.scale)
        return np.logaddexp(np.log1p(-self.share) + none, np.log(self.share) + some)


LAWS = {
    "gauss": Law("gauss", 0.5),
    "laplace": Law("laplace"),
    "bernoulli_laplace": Law("laplace", share=0.1),
    "student": Law("student", freedom=1.0),
    "student_2": Law("student", freedom=2.0),
    "student_3": Law("student", freedom=3.0),
}


def convolution(size: int, taps: int = 13, std: float = 2.0) -> np.ndarray:
    """The matrix of a circular convolution with a Gaussian kernel."""
    kernel = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / std) ** 2)
    row = np.zeros(size)
    np.add.at(row, (np.arange(taps) - taps // 2) % size, kernel / kernel.sum())
    return np.stack([np.roll(row, i) for i in range(size)])


def fourier(size: int) -> np.ndarray:
    """Some rows of an orthonormal real Fourier transform: five lowest frequencies, and others by `SEEN`."""
    half = size // 2 + 1
    spectrum = np.fft.rfft(np.eye(size), axis=0, norm="ortho")
    weights = np.where(np.isin(np.arange(half), [0, size // 2]), 1, np.sqrt(2))[:, None]
    rows = SEEN[:half] | (np.arange(half) < 5)
    imaginary = rows & ~np.isin(np.arange(half), [0, size // 2])
    return np.concatenate([(weights * spectrum.real)[rows], (weights * spectrum.imag)[imaginary]])


# From the number of a signal's entries, 64 there, to the matrix.
OPERATORS: dict[str, Callable[[int], np.ndarray]] = {
    "identity": np.eye,
    "convolution": convolution,
    "imputation": lambda size: np.eye(size)[SEEN[:size]],
    "fourier": fourier,
}


@dataclass(frozen=True)
class Problem:
    """Signals `(n, size)` and their measurements: those of training, of validation, and of tests."""

    law: Law
    operator: np.ndarray
    noise: float
    signals: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]


def make_problem(law: Law, operator: np.ndarray, numbers: dict[str, int], seed: int = 0) -> Problem:
    """The noise is that of the training signals' median power."""
    rng = np.random.default_rng(seed)
    size = operator.shape[1]
    signals = {part: np.cumsum(law.sample(rng, (number, size)), -1) for part, number in numbers.items()}
    clean = {part: x @ operator.T for part, x in signals.items()}
    power = np.median(np.mean(clean["training"] ** 2, -1))
    noise = float(np.sqrt(power / 10 ** (DECIBELS / 10)))
    measured = {part: x + noise * rng.normal(size=x.shape) for part, x in clean.items()}
    return Problem(law, operator, noise, signals, measured)
