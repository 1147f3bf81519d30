"""Dot products between the base and the task vectors: of a tensor, of each row, of each column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.layouts import rows_of
from evomerge.merging.kernels.task_vectors import BLOCK, finite


@dataclass(frozen=True)
class Gram:
    """Dot products between θ0 and the task vectors, of a whole tensor.

    Attributes:
        dots: float64 (1 + K, 1 + K), over θ0, δ1, ..., δK.
    """

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Gram:
        """The table of one or more experts: each block summed in float64, the blocks' sums added exactly."""
        count = 1 + len(experts)
        sums: dict[tuple[int, int], list[float]] = {(i, j): [] for i in range(count) for j in range(i, count)}
        for start in range(0, base.numel(), BLOCK):
            block = _vectors(base, experts, start, start + BLOCK)
            for (i, j), parts in sums.items():
                with np.errstate(invalid="ignore"):  # what is not finite is refused below
                    parts.append(float((block[i] * block[j]).sum()))
        dots = np.zeros((count, count))
        for (i, j), parts in sums.items():
            dots[i, j] = dots[j, i] = math.fsum(parts)
        return cls(finite(dots))


@dataclass(frozen=True)
class RowGram:
    """Dot products between θ0 and the task vectors in every row.

    Attributes:
        dots: float64 (rows, 1 + K, 1 + K), over θ0, δ1, ..., δK.
    """

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> RowGram:
        """The table of one or more experts. A vector is one row."""
        rows, columns = rows_of(base.shape)
        return cls(_grams(base.reshape(rows, columns), [expert.reshape(rows, columns) for expert in experts]))


@dataclass(frozen=True)
class ColumnGram:
    """Dot products between θ0 and the task vectors in every column, along the first dimension.

    Attributes:
        dots: float64 (elements / first size, 1 + K, 1 + K), over θ0, δ1, ..., δK.
    """

    dots: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> ColumnGram:
        """The table of one or more experts. A vector is one column."""

        def turned(tensor: Tensor) -> Tensor:
            return tensor.reshape(tensor.shape[0], -1).t() if tensor.dim() > 1 else tensor.reshape(1, -1)

        return cls(_grams(turned(base), [turned(expert) for expert in experts]))


def _vectors(base: Tensor, experts: Sequence[Tensor], start: int, stop: int) -> list[np.ndarray]:
    """θ0 and the task vectors from element `start` to `stop`, flat, float64."""
    reference = base.reshape(-1)[start:stop].float()
    deltas = [expert.reshape(-1)[start:stop].float() - reference for expert in experts]
    return [part.double().numpy() for part in (reference, *deltas)]


def _grams(base: Tensor, experts: Sequence[Tensor]) -> np.ndarray:
    """The dot products of every row of matrices (rows, columns): float64 (rows, 1 + K, 1 + K)."""
    rows, columns = base.shape
    step = max(1, BLOCK // max(columns, 1))
    parts = [np.zeros((0, 1 + len(experts), 1 + len(experts)))]
    for start in range(0, rows, step):
        reference = base[start : start + step].float()
        deltas = [expert[start : start + step].float() - reference for expert in experts]
        block = torch.stack([reference, *deltas]).double().numpy()
        parts.append(np.einsum("irc,jrc->rij", block, block))
    return finite(np.concatenate(parts))
