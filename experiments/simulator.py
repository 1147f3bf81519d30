"""A made-up merge search that costs nothing: a known fitness, seen through documents that are right or wrong.

x in [0, 1]^d. f(x) = 1 - (x - x*)' A (x - x*), A of condition 1e3 in a random basis, scaled so that f = 0.4 at the
centre. Document j is answered correctly with probability sigmoid(a_j (f(x) - b_j)), a_j log-normal(0, 0.5), b_j
normal(0.3, 1.5). Whether it is depends on a smooth Gaussian field over x, one for each document, so that neighbours
answer alike. Landscapes:

    base        as above, x* anywhere in the middle four fifths of each side
    saturating  f = 1.9 / (1 + c q) - 0.9: steep near the optimum, flat far from it
    rugged      base, with ripples of height 0.1 along the principal axes
    edges       30 % of the coordinates of x* lie on the bounds
"""

from __future__ import annotations

import numpy as np

LANDSCAPES = ("base", "saturating", "rugged", "edges")
CENTRE = 0.4  # f there
_FEATURES = 512  # random Fourier features of the documents' fields
_REACH = 1.0  # length scale of the fields in 48 dimensions; it grows with the square root of the dimension


class Simulator:
    """One landscape and its documents.

    Args:
        seed: of the landscape and the documents; searches have seeds of their own.
    """

    def __init__(self, landscape: str, dimensions: int, seed: int, documents: int = 1000) -> None:
        random = np.random.default_rng([seed, dimensions, LANDSCAPES.index(landscape)])
        self.landscape, self.dimensions, self.documents = landscape, dimensions, documents
        basis, _ = np.linalg.qr(random.standard_normal((dimensions, dimensions)))
        sizes = 10.0 ** (3 * np.linspace(0, 1, dimensions))
        self.best = random.uniform(0.1, 0.9, dimensions)
        if landscape == "edges":
            edge = random.permutation(dimensions)[: round(0.3 * dimensions)]
            self.best[edge] = random.integers(2, size=len(edge))
        self._axes = (np.sqrt(sizes) * basis).T  # (d, d): q(x) = |axes (x - best)|^2
        self._scale = 1.0
        self._scale = (1.0 - CENTRE) / float(self._q(np.full((1, dimensions), 0.5))[0])
        self._slope = np.exp(0.5 * random.standard_normal(documents))
        self._offset = 0.3 + 1.5 * random.standard_normal(documents)
        reach = _REACH * np.sqrt(dimensions / 48)
        self._waves = random.standard_normal((dimensions, _FEATURES)) / reach
        self._phases = random.uniform(0, 2 * np.pi, _FEATURES)
        self._heights = random.standard_normal((_FEATURES, documents)) * np.sqrt(2 / _FEATURES)

    def _q(self, x: np.ndarray) -> np.ndarray:
        return self._scale * (((x - self.best) @ self._axes.T) ** 2).sum(axis=1)

    def true(self, x: np.ndarray) -> np.ndarray:
        """f of points (n, d): float64 (n,)."""
        q = self._q(x)
        if self.landscape == "saturating":
            slope = 1.9 / (CENTRE + 0.9) - 1.0  # so that f is as high as elsewhere at the centre
            return 1.9 / (1.0 + slope * q / (1.0 - CENTRE)) - 0.9
        if self.landscape == "rugged":
            along = (x - self.best) @ self._axes.T / np.linalg.norm(self._axes, axis=1)
            return 1.0 - q - 0.05 * (1.0 - np.cos(12 * np.pi * along)).mean(axis=1)
        return 1.0 - q

    def answers(self, x: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Whether points (n, d) answer documents (m,) correctly: float64 (n, m), 0 or 1."""
        right = 1.0 / (1.0 + np.exp(-self._slope[documents] * (self.true(x)[:, None] - self._offset[documents])))
        field = np.cos(x @ self._waves + self._phases) @ self._heights[:, documents]
        return (_normal_cdf(field) < right).astype(np.float64)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    """By the logistic approximation of Bowling et al. 2009, good to 1.4e-4."""
    return 1.0 / (1.0 + np.exp(-(1.5976 * x + 0.07056 * x**3)))
