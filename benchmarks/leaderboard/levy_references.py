"""Exact posteriors of Lévy processes given linear measurements, by Gibbs sampling, with NumPy alone.

A jump of a Laplace or Student's law is normal with a random variance `w` (Andrews and Mallows 1974). Given all
variances, jumps are normal; given jumps, variances are independent. A Bernoulli-Laplace jump is such a one times 0 or
1; which of the two is drawn with the sizes of all jumps integrated out (Ge, Idier and Le Carpentier 2011). Jumps are
exchangeable, so that neighbours may also change places, which only the likelihood decides: where a large jump is within
a gap of measurements, draws of single variances would hardly ever move it.

All signals are sampled at once; arrays have the signals first.
"""

import numpy as np
from levy_problem import Law

# Once in how many rounds neighbours may change places, every second one each time.
CHANGES = 2


def posterior_draws(
    rng: np.random.Generator,
    law: Law,
    operator: np.ndarray,
    measured: np.ndarray,
    noise: float,
    number: int,
    burn: int = 500,
    thin: int = 2,
) -> np.ndarray:
    """Draws `(signals, number, n)` of signals given measurements `(signals, m)`.

    `burn` rounds come first, and of `thin` rounds one is kept; closed forms need neither.
    """
    matrix = np.cumsum(operator[:, ::-1], 1)[:, ::-1] / noise
    chain = Chain(rng, law, matrix, measured / noise)
    if law.kind == "gauss":
        burn, thin = 0, 1
    draws = np.empty((len(measured), number, operator.shape[1]))
    for index in range(burn + thin * number):
        chain.round()
        if index >= burn and (index - burn) % thin == 0:
            draws[:, (index - burn) // thin] = np.cumsum(chain.jumps, -1)
    return draws


class Chain:
    """The state of Gibbs sampling: jumps `u` with `measured = matrix @ u + noise`, of unit noise, and their variances.

    `active` says which jumps are not 0.
    """

    def __init__(self, rng: np.random.Generator, law: Law, matrix: np.ndarray, measured: np.ndarray):
        self.rng, self.law, self.matrix, self.measured = rng, law, matrix, measured
        shape = (len(measured), matrix.shape[1])
        self.rounds = 0
        self.gram, self.shift = matrix.T @ matrix, measured @ matrix
        self.jumps, self.active = np.zeros(shape), np.ones(shape, bool)
        self.variances = np.full(shape, law.scale**2)
        if law.share < 1:
            self.active = rng.random(shape) < law.share
            self.variances = self._prior_variances(shape)

    def round(self):
        if self.law.share < 1:
            self._flip()
        self._draw_jumps()
        if self.law.kind == "gauss":
            return
        if self.rounds % CHANGES == 0:
            self._change_places(self.rounds // CHANGES % 2)
        self._draw_variances()
        self.rounds += 1

    def _draw_jumps(self):
        """All at once: `P⁻¹ (b + ξ)` with `ξ ~ N(0, P)`, `P` their precision."""
        index, real = self._places()
        noise = self.rng.normal(size=self.measured.shape) @ self.matrix
        root = self.rng.normal(size=self.jumps.shape) / np.sqrt(self.variances)
        right = np.where(real, np.take_along_axis(self.shift + noise + root, index, 1), 0)
        drawn = np.linalg.solve(self._precision(index, real), right[..., None])[..., 0]
        self.jumps = np.zeros_like(self.jumps)
        np.put_along_axis(self.jumps, index, np.where(real, drawn, 0), 1)

    def _places(self):
        """Where jumps are active, `(signals, most)`, and which of these places are more than fill up the array."""
        most = max(1, self.active.sum(1).max())
        index = np.argsort(~self.active, 1, kind="stable")[:, :most]
        return index, np.take_along_axis(self.active, index, 1)

    def _precision(self, index, real):
        """That of the jumps at these places; where none is, the identity's."""
        if real.all() and index.shape[1] == len(self.gram):
            precision = np.repeat(self.gram[None], len(index), 0)
        else:
            both = real[:, :, None] & real[:, None, :]
            precision = np.where(both, self.gram[index[:, :, None], index[:, None, :]], 0)
        places = np.arange(index.shape[1])
        precision[:, places, places] += np.where(real, 1 / np.take_along_axis(self.variances, index, 1), 1)
        return precision

    def _draw_variances(self):
        size, scale = np.abs(self.jumps), self.law.scale
        if self.law.kind == "student":
            freedom = self.law.freedom
            rate = (freedom * scale**2 + size**2) / 2
            self.variances = rate / self.rng.gamma((freedom + 1) / 2, size=size.shape)
            return
        inverse = self.rng.wald(1 / (scale * np.maximum(size, 1e-9)), 1 / scale**2)
        drawn = 1 / np.maximum(inverse, 1e-12)
        self.variances = np.where(self.active, drawn, self._prior_variances(size.shape))

    def _prior_variances(self, shape):
        return 2 * self.law.scale**2 * self.rng.exponential(size=shape)

    def _change_places(self, first: int):
        """Jumps `k` and `k + 1` for every second `k`, one pair after the other."""
        misfit = self.measured - self.jumps @ self.matrix.T
        for k in range(first, self.jumps.shape[1] - 1, 2):
            change = self.jumps[:, k + 1] - self.jumps[:, k]
            column = self.matrix[:, k] - self.matrix[:, k + 1]
            moved = misfit - change[:, None] * column
            gain = 0.5 * (np.sum(misfit**2, 1) - np.sum(moved**2, 1))
            accepted = np.log(self.rng.random(len(gain))) < gain
            misfit = np.where(accepted[:, None], moved, misfit)
            for x in (self.jumps, self.variances, self.active):
                x[accepted, k : k + 2] = x[accepted, k : k + 2][:, ::-1]

    def _flip(self):
        """Which jumps are none, one after the other, with the sizes of all integrated out.

        `C = Mᵀ B⁻¹ M` and `d = Mᵀ B⁻¹ y` are kept, `B` the covariance of what is measured; a flip changes `B` by a
        multiple of `m_k m_kᵀ`, so `C` by one of `c_k c_kᵀ` (Sherman and Morrison).
        """
        prior = np.log(self.law.share) - np.log1p(-self.law.share)
        index, real = self._places()
        # `C = G − G_a P⁻¹ G_aᵀ` with the columns `G_a` of active jumps.
        columns = np.where(real[:, None, :], np.moveaxis(self.gram[:, index], 0, 1), 0)
        gains = columns @ np.linalg.inv(self._precision(index, real))
        shift = np.where(real, np.take_along_axis(self.shift, index, 1), 0)
        told = self.gram - gains @ np.swapaxes(columns, 1, 2)
        drift = self.shift - (gains @ shift[..., None])[..., 0]
        for k in range(self.jumps.shape[1]):
            on, weight = self.active[:, k], self.variances[:, k]
            # Without the jump: `c / (1 − w c)` and `d / (1 − w c)` where it is on.
            without = np.where(on, 1 / (1 - weight * told[:, k, k]), 1)
            power, pull = told[:, k, k] * without, drift[:, k] * without
            odds = prior - 0.5 * np.log1p(weight * power) + 0.5 * weight * pull**2 / (1 + weight * power)
            wanted = np.log(1 / self.rng.random(len(odds)) - 1) < odds
            index = np.flatnonzero(wanted != on)
            sign = np.where(wanted[index], 1.0, -1.0) * weight[index]
            factor = sign / (1 + sign * told[index, k, k])
            column = told[index, :, k]
            drift[index] -= (factor * drift[index, k])[:, None] * column
            told[index] -= factor[:, None, None] * column[:, :, None] * column[:, None, :]
            self.active[:, k] = wanted
