"""What a method may know of a whole tensor: order statistics, angles, row profiles. The maths; no files.

A candidate needs no sort and no reduction of its own: what does not depend on its coefficients is here, made once
per study and kept beside it by `merging.table_store`. Each kind of table is a frozen dataclass of numpy arrays with
`of(base, experts)`, which computes it from float tensors of one shape; δk = θk − θ0 is taken in float32 throughout,
as the pass takes it, so that a threshold means the same number in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.histogram import Histogram

EXACT = 1 << 16  # elements up to which a tensor's order statistics are kept whole


GRID = 1 << 12  # intervals between the ranks kept of larger tensors: a kept fraction is off by 1/GRID at most


POINTS = 65  # order statistics kept of each row, where rows are ranked


_BLOCK = 1 << 18  # elements that sums are taken over at a time: fixed, so that no thread count changes a bit


class Table(Protocol):
    """A kind of table. Its fields are numpy arrays, which is all that is stored of it."""

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Any:
        """The table of one tensor: θ0 and the experts' θk, of equal shape.

        Raises:
            ValueError: a value is not finite.
        """


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a tensor: its last dimension is a row; a vector, or a number, is one row.

    >>> rows_of((8, 4, 16)), rows_of((16,)), rows_of(())
    ((32, 16), (1, 16), (1, 1))
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return math.prod(shape[:-1]), shape[-1]


def blocks(base: Tensor, experts: Sequence[Tensor], step: int = _BLOCK) -> Iterator[list[np.ndarray]]:
    """The task vectors δk = θk − θ0, flat, in float32, a block of elements at a time. The next block overwrites it.

    Raises:
        ValueError: a value is not finite.
    """
    reference, *others = (tensor.reshape(-1) for tensor in (base, *experts))
    # The same memory again and again: what many threads allocate and free they do not give back.
    kept = torch.empty(len(others) + 1, min(step, base.numel()))
    for start in range(0, base.numel(), step):
        part = slice(start, start + step)
        buffer = kept[:, : reference[part].numel()]
        buffer[-1].copy_(reference[part])
        for k, other in enumerate(others):
            buffer[k].copy_(other[part]).sub_(buffer[-1])
        deltas = [one.numpy() for one in buffer[:-1]]
        if not all(np.isfinite(delta).all() for delta in deltas):
            raise ValueError("has values that are not finite")
        yield deltas


def _whole(base: Tensor, experts: Sequence[Tensor]) -> list[np.ndarray]:
    """The task vectors whole, of a small tensor."""
    empty = [np.zeros(0, np.float32)] * len(experts)
    return next(blocks(base, experts, max(base.numel(), 1)), empty)


def _ranks(size: int) -> np.ndarray:
    """The ranks that are kept of `size` sorted numbers: all, or GRID + 1 evenly spaced ones."""
    if size <= EXACT:
        return np.arange(size)
    return np.linspace(0, size - 1, GRID + 1).round().astype(np.int64)


def _at(values: np.ndarray, rank: int, size: int) -> float:
    """The value at a rank of `size`, between two kept ranks by interpolation."""
    if len(values) == size:
        return float(values[rank])
    position = rank / (size - 1) * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    share = position - left
    return (1.0 - share) * float(values[left]) + share * float(values[left + 1])


def _running(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Σ of the values before each, float64, and Σ of all."""
    upto = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return upto[:-1], float(upto[-1])


@dataclass(frozen=True)
class Magnitudes:
    """Order statistics of |δ|.

    Attributes:
        values: float32 (m,), ascending: |δ| at each kept rank.
        mass: float64 (m,), Σ|δ| over the ranks below each kept one.
        size: int64 (1,), the tensor's number of elements.
        total: float64 (1,), Σ|δ|.
    """

    values: np.ndarray
    mass: np.ndarray
    size: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Magnitudes:
        """Of one expert."""
        size = base.numel()
        if size <= EXACT:
            sizes = np.sort(np.abs(_whole(base, experts)[0]))
            mass, total = _running(sizes)
            return cls(sizes, mass, np.array([size]), np.array([total]))
        counted = Histogram()
        for (delta,) in blocks(base, experts):
            counted.add(np.abs(delta, out=delta))
        mass = counted.below(np.append(_ranks(size), size))
        return cls(counted.values(_ranks(size)), mass[:-1], np.array([size]), mass[-1:])

    def largest(self, density: float) -> tuple[float, float]:
        """The threshold that the largest `density` of the elements reach, and how much of Σ|δ| they are.

        max(1, ⌊density·n⌋) elements are kept, and all that tie with the last of them. Exact up to EXACT elements;
        beyond, the kept fraction is within 1/GRID of the density.
        """
        low, _, share = self.band(density, 0.0, fewest=1)
        return low, share

    def band(self, density: float, gamma: float, fewest: int = 0) -> tuple[float, float, float]:
        """(low, high, share): the magnitudes between which ⌊density·n⌋ elements lie once the largest ⌊gamma·n⌋ are
        left out (fewer of them where the density asks for it), and how much of Σ|δ| these are.

        Magnitudes are float32 numbers; high is infinite where nothing is left out at the top.
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
class Gram:
    """Dot products between θ0 and the task vectors.

    Attributes:
        dots: float64 (1 + K, 1 + K), over θ0, δ1, ..., δK.
    """

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Gram:
        """Summed in float64, in blocks of fixed size and these exactly."""
        count = 1 + len(experts)
        sums: dict[tuple[int, int], list[float]] = {(i, j): [] for i in range(count) for j in range(i, count)}
        for start in range(0, base.numel(), _BLOCK):
            block = _vectors(base, experts, start, start + _BLOCK)
            for (i, j), parts in sums.items():
                with np.errstate(invalid="ignore"):  # refused below
                    parts.append(float((block[i] * block[j]).sum()))
        dots = np.zeros((count, count))
        for (i, j), parts in sums.items():
            dots[i, j] = dots[j, i] = math.fsum(parts)
        return cls(_finite(dots))


@dataclass(frozen=True)
class RowGram:
    """`Gram` of every row. dots: float64 (rows, 1 + K, 1 + K)."""

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> RowGram:
        """A vector is one row."""
        rows, columns = rows_of(base.shape)
        return cls(_grams(base.reshape(rows, columns), [expert.reshape(rows, columns) for expert in experts]))


@dataclass(frozen=True)
class ColumnGram:
    """`Gram` along the first dimension. dots: float64 (columns, 1 + K, 1 + K), columns = elements / first size."""

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> ColumnGram:
        """A vector is one column."""

        def turned(tensor: Tensor) -> Tensor:
            return tensor.reshape(tensor.shape[0], -1).t() if tensor.dim() > 1 else tensor.reshape(1, -1)

        return cls(_grams(turned(base), [turned(expert) for expert in experts]))


def _vectors(base: Tensor, experts: Sequence[Tensor], start: int, stop: int) -> list[np.ndarray]:
    """θ0 and the task vectors from element `start` to `stop`, float64."""
    reference = base.reshape(-1)[start:stop].float()
    deltas = [expert.reshape(-1)[start:stop].float() - reference for expert in experts]
    return [part.double().numpy() for part in (reference, *deltas)]


def _grams(base: Tensor, experts: Sequence[Tensor]) -> np.ndarray:
    """float64 (rows, 1 + K, 1 + K) from matrices (rows, columns), some rows at a time."""
    rows, columns = base.shape
    step = max(1, _BLOCK // max(columns, 1))
    parts = [np.zeros((0, 1 + len(experts), 1 + len(experts)))]
    for start in range(0, rows, step):
        reference = base[start : start + step].float()
        deltas = [expert[start : start + step].float() - reference for expert in experts]
        block = torch.stack([reference, *deltas]).double().numpy()
        parts.append(np.einsum("irc,jrc->rij", block, block))
    return _finite(np.concatenate(parts))


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("has values that are not finite")
    return array


def dots_of(gram: np.ndarray, *, task_vectors: bool) -> np.ndarray:
    """Dot products between the experts' task vectors, or between their weights: (..., K, K).

    gram: (..., 1 + K, 1 + K), over θ0 and the task vectors.
    """
    deltas: np.ndarray = gram[..., 1:, 1:]
    if task_vectors:
        return deltas
    base, cross = gram[..., :1, :1], gram[..., :1, 1:]
    weights: np.ndarray = deltas + cross + np.swapaxes(cross, -1, -2) + base
    return weights


@dataclass(frozen=True)
class RowRanks:
    """Order statistics of |δ| in every row.

    Attributes:
        values: float32 (rows, points), ascending: |δ| at evenly spaced ranks of the row, all of them for rows of up
            to POINTS elements.
        lean: float64 (1,), Σ r·|δ| / Σ|δ|, where r in [0, 1] is an element's rank in its row over the last rank:
            how far the tensor's mass leans to its large elements.
        columns: int64 (1,), the length of a row.
    """

    values: np.ndarray
    lean: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> RowRanks:
        """Of one expert."""
        rows, columns = rows_of(base.shape)
        points = max(1, min(columns, POINTS))
        values, by_rank = np.zeros((rows, points), np.float32), np.zeros(columns)
        step = max(1, _BLOCK // max(columns, 1))
        for number, (delta,) in enumerate(blocks(base, experts, step * max(columns, 1))):
            sizes = np.sort(np.abs(delta).reshape(-1, columns), axis=1)
            start = number * step
            values[start : start + step] = sizes[:, np.linspace(0, columns - 1, points).round().astype(np.int64)]
            by_rank += sizes.sum(axis=0, dtype=np.float64)
        rank = np.arange(columns) / (columns - 1) if columns > 1 else np.full(columns, 0.5)
        total = float(by_rank.sum())
        lean = float((by_rank * rank).sum()) / total if total else 0.5
        return cls(values, np.array([lean]), np.array([columns]))


@dataclass(frozen=True)
class Variances:
    """Order statistics of the experts' variance at each element, largest first.

    Attributes:
        values: float32 (m,), descending: Var_k δk at each kept rank.
        squares: float64 (m, K): Σ δk² over the elements of greater variance.
        total: float64 (K,): Σ δk² over all elements.
        size: int64 (2,): the number of elements, and of those whose variance is not 0.
    """

    values: np.ndarray
    squares: np.ndarray
    total: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Variances:
        """Of any number of experts."""
        size = base.numel()
        if size <= EXACT:
            deltas = _whole(base, experts)
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
        # Ranks count from the largest here, and what lies above a rank is what does not lie below.
        from_below = size - _ranks(size)
        totals = counted.sums.sum(axis=1)
        above = [total - counted.below(from_below, sums) for total, sums in zip(totals, counted.sums, strict=True)]
        values = counted.values(from_below - 1)
        return cls(values, np.stack(above, axis=1), totals, np.array([size, nonzero]))

    def most(self, fraction: float) -> tuple[float, list[float]]:
        """The variance that the ⌊fraction·nonzero⌋ elements of greatest variance reach (infinite if these are none,
        0 if fraction is 1), and Σ δk² over them, for each expert."""
        n, nonzero = int(self.size[0]), int(self.size[1])
        if fraction >= 1.0:
            return 0.0, [float(total) for total in self.total]
        kept = int(nonzero * fraction)
        if kept == 0:
            return math.inf, [0.0] * len(self.total)
        threshold = float(np.float32(_at(self.values, kept - 1, n)))
        return threshold, [_at(self.squares[:, k], kept, n) for k in range(len(self.total))]


def variance(deltas: Sequence[Tensor]) -> Tensor:
    """Var_k δk (population), elementwise, in the operations' own order: the same bits in a table and in a pass."""
    mean = deltas[0]
    for delta in deltas[1:]:
        mean = mean + delta
    mean = mean / len(deltas)
    spread = (deltas[0] - mean) * (deltas[0] - mean)
    for delta in deltas[1:]:
        spread = spread + (delta - mean) * (delta - mean)
    return spread / len(deltas)


@dataclass(frozen=True)
class Importance:
    """How much each row's softmax moves, and where an element's importance |δ|·D(row) stands out.

    Attributes:
        divergence: float32 (rows,), D = KL(softmax(θ1 row) ‖ softmax(θ0 row)).
        threshold: float32 (1,), the median of the importances and 1.5 times their interquartile range.
    """

    divergence: np.ndarray
    threshold: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Importance:
        """Of one expert."""
        (expert,) = experts
        rows, columns = rows_of(base.shape)
        divergence = np.zeros(rows, np.float32)
        if not base.numel():
            return cls(divergence, np.zeros(1, np.float32))
        step = max(1, _BLOCK // max(columns, 1))
        parts: list[np.ndarray] = []
        counted = Histogram()
        for number, (delta,) in enumerate(blocks(base, experts, step * max(columns, 1))):
            part = slice(number * step, (number + 1) * step)
            p, q = (
                torch.softmax(tensor.reshape(rows, columns)[part].double(), dim=1) + _TINY
                for tensor in (expert, base)
            )
            divergence[part] = (p * (p / q).log()).sum(dim=1).float().clamp(min=0.0).numpy()
            scores = (np.abs(delta).reshape(-1, columns) * divergence[part, None]).reshape(-1)
            if base.numel() <= EXACT:
                parts.append(scores)
            else:
                counted.add(scores)
        cuts = np.array([int(share * (base.numel() - 1)) for share in (0.25, 0.5, 0.75)])
        low, middle, high = np.sort(np.concatenate(parts))[cuts] if parts else counted.values(cuts)
        return cls(divergence, np.array([middle + np.float32(1.5) * (high - low)], np.float32))


_TINY = 1e-8  # added to each probability

KINDS: dict[str, type[Any]] = {
    "magnitude": Magnitudes,
    "gram": Gram,
    "row_gram": RowGram,
    "column_gram": ColumnGram,
    "row_ranks": RowRanks,
    "variance": Variances,
    "importance": Importance,
}
