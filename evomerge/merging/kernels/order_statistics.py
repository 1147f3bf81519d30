"""Order statistics of a whole tensor: of the task vectors' magnitudes, and of the experts' variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.histogram import Histogram
from evomerge.merging.kernels.steps import variance
from evomerge.merging.kernels.task_vectors import blocks, whole

EXACT = 1 << 16  # elements up to which a tensor's order statistics are kept whole

GRID = 1 << 12  # intervals between the ranks kept of larger tensors: a kept fraction is off by 1/GRID at most


def _ranks(size: int) -> np.ndarray:
    """The ranks that a table keeps of `size` sorted numbers: all, or GRID + 1 evenly spaced ones."""
    if size <= EXACT:
        return np.arange(size)
    return np.linspace(0, size - 1, GRID + 1).round().astype(np.int64)


def _at(values: np.ndarray, rank: int, size: int) -> float:
    """The value at one of `size` ranks, interpolated between two kept ones.

    values: those at the kept ranks, see `_ranks`.
    """
    if len(values) == size:
        return float(values[rank])
    position = rank / (size - 1) * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    share = position - left
    return (1.0 - share) * float(values[left]) + share * float(values[left + 1])


def _running(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The sum of the values before each value, float64, and the sum of all values."""
    upto = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return upto[:-1], float(upto[-1])


@dataclass(frozen=True)
class Magnitudes:
    """Order statistics of one expert's |δ|.

    Attributes:
        values: float32 (m,), |δ| at each kept rank, ascending.
        mass: float64 (m,), Σ|δ| over the ranks below each kept rank.
        size: int64 (1,), the tensor's number of elements.
        total: float64 (1,), Σ|δ|.
    """

    values: np.ndarray
    mass: np.ndarray
    size: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Magnitudes:
        """The table of exactly one expert."""
        size = base.numel()
        if size <= EXACT:
            sizes = np.sort(np.abs(whole(base, experts)[0]))
            mass, total = _running(sizes)
            return cls(sizes, mass, np.array([size]), np.array([total]))
        counted = Histogram()
        for (delta,) in blocks(base, experts):
            counted.add(np.abs(delta, out=delta))
        mass = counted.below(np.append(_ranks(size), size))
        return cls(counted.values(_ranks(size)), mass[:-1], np.array([size]), mass[-1:])

    def largest(self, density: float) -> tuple[float, float]:
        """(low, share): the magnitude that the largest `density` of the elements reach, and their share of Σ|δ|.

        These are max(1, ⌊density·n⌋) elements, and all that tie with the last of them. The number is exact for up
        to EXACT elements; for more, the fraction is within 1/GRID of the density.
        """
        low, _, share = self.band(density, 0.0, fewest=1)
        return low, share

    def band(self, density: float, gamma: float, fewest: int = 0) -> tuple[float, float, float]:
        """(low, high, share): the magnitudes between which ⌊density·n⌋ elements lie once the largest ⌊gamma·n⌋ are
        left out, and the share of Σ|δ| of the elements between them.

        Fewer of the largest are left out where the density could not be reached otherwise. low and high are float32
        numbers; high is infinite where no element is left out at the top.

        Args:
            fewest: the number of elements to keep at least.
        """
        n = int(self.size[0])
        if n == 0 or density >= 1.0:
            return 0.0, math.inf, 1.0
        kept = max(fewest, int(density * n))
        if kept == 0:
            return math.inf, math.inf, 0.0
        low = max(0, n - kept - int(gamma * n))
        stop = low + kept
        high = math.inf if stop == n else float(np.float32(_at(self.values, stop - 1, n)))
        above = float(self.total[0]) if stop == n else _at(self.mass, stop, n)
        total = float(self.total[0])
        share = (above - _at(self.mass, low, n)) / total if total else 1.0
        return float(np.float32(_at(self.values, low, n))), high, share


@dataclass(frozen=True)
class Variances:
    """Order statistics of the experts' variance at each element, largest first.

    Attributes:
        values: float32 (m,), Var_k δk at each kept rank, descending.
        squares: float64 (m, K), Σ δk² over the elements of greater variance than at each kept rank.
        total: float64 (K,), Σ δk² over all elements.
        size: int64 (2,), the number of elements, and the number of elements whose variance is not 0.
    """

    values: np.ndarray
    squares: np.ndarray
    total: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Variances:
        """The table of one or more experts."""
        size = base.numel()
        if size <= EXACT:
            deltas = whole(base, experts)
            spread = variance([torch.from_numpy(delta) for delta in deltas]).numpy()
            order = np.argsort(-spread, kind="stable")
            running = [_running(np.square(delta[order])) for delta in deltas]
            nonzero = int(np.count_nonzero(spread))
            return cls(
                spread[order],
                np.stack([squares for squares, _ in running], axis=1),
                np.array([total for _, total in running]),
                np.array([size, nonzero]),
            )
        counted, nonzero = Histogram(len(experts)), 0
        for deltas in blocks(base, experts):
            spread = variance([torch.from_numpy(delta) for delta in deltas]).numpy()
            counted.add(spread, [np.square(delta) for delta in deltas])
            nonzero += int(np.count_nonzero(spread))
        # Ranks count from the largest here: the sum above a rank is the total without the sum below.
        from_below = size - _ranks(size)
        totals = counted.sums.sum(axis=1)
        above = [total - counted.below(from_below, sums) for total, sums in zip(totals, counted.sums, strict=True)]
        values = counted.values(from_below - 1)
        return cls(values, np.stack(above, axis=1), totals, np.array([size, nonzero]))

    def most(self, fraction: float) -> tuple[float, list[float]]:
        """(threshold, squares): the variance that the ⌊fraction·nonzero⌋ elements of greatest variance reach, and
        Σ δk² over these elements for each expert.

        The threshold is infinite where these are no elements, and 0 where the fraction is 1.
        """
        n, nonzero = int(self.size[0]), int(self.size[1])
        if fraction >= 1.0:
            return 0.0, [float(total) for total in self.total]
        kept = int(nonzero * fraction)
        if kept == 0:
            return math.inf, [0.0] * len(self.total)
        threshold = float(np.float32(_at(self.values, kept - 1, n)))
        return threshold, [_at(self.squares[:, k], kept, n) for k in range(len(self.total))]
