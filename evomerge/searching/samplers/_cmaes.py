"""All private parts of the package `cmaes` that samplers use, in one place.

The package keeps its distribution to itself, and offers no way to draw from a generator of the caller's. Each
attribute has a test of its own in `tests/searching/samplers/test_cmaes_canary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cmaes import CMA, CatCMAwM


def mean(engine: CMA | CatCMAwM) -> np.ndarray:
    """The mean of the normal distribution: float64 (dimensions,)."""
    return np.asarray(engine._mean)


def clip_mean(engine: CMA) -> None:
    """Moves the mean to the nearest point of the unit cube."""
    engine._mean = np.clip(engine._mean, 0.0, 1.0)


def deviate(engine: CMA, normal: np.ndarray) -> np.ndarray:
    """The points m + σ B D z of standard normal deviates z, (points, dimensions); C = B D² Bᵀ."""
    basis, widths = engine._eigen_decomposition()
    return np.asarray(engine._mean + engine._sigma * (normal * widths) @ basis.T)


def limit_step(engine: CMA, largest: float) -> None:
    """Shrinks the step size σ to at most `largest`."""
    engine._sigma = min(engine._sigma, largest)


def limit_deviations(engine: CatCMAwM, largest: np.ndarray) -> None:
    """Shrinks the step size σ until no coordinate's deviation σ √C_ii exceeds its `largest`: (dimensions,)."""
    engine._sigma /= max(1.0, float(np.max(deviations(engine) / largest)))


def deviations(engine: CatCMAwM) -> np.ndarray:
    """Each coordinate's standard deviation σ √C_ii: float64 (dimensions,)."""
    return np.asarray(engine._sigma * np.sqrt(np.diag(engine._C)))


def draw_from(engine: CatCMAwM, random: np.random.RandomState) -> None:
    """Gives the engine the generator that it draws its next candidates from."""
    engine._rng = random


def category_shares(engine: CatCMAwM) -> np.ndarray:
    """The probability of each category: float64 (choices, most categories), padded with zeros."""
    return np.asarray(engine._q)


def begin_spread(engine: CatCMAwM, spread: float) -> None:
    """Sets the spread of the values, by which CatCMAwM measures penalties until a generation has shown one."""
    engine._iqhist_values = [spread]
