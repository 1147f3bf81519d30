"""Order statistics of the magnitudes in every row of a task vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from evomerge.merging.kernels.layouts import rows_of
from evomerge.merging.kernels.task_vectors import BLOCK, blocks

POINTS = 65  # order statistics kept of each row


@dataclass(frozen=True)
class RowRanks:
    """Order statistics of one expert's |δ| in every row.

    Attributes:
        values: float32 (rows, points), |δ| at evenly spaced ranks of the row, ascending. A row of up to POINTS
            elements has all its ranks here.
        lean: float64 (1,), Σ r·|δ| / Σ|δ|, where r in [0, 1] is an element's rank in its row over the last rank.
            It says how far the tensor's mass leans to its large elements.
        columns: int64 (1,), the length of a row.
    """

    values: np.ndarray
    lean: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> RowRanks:
        """The table of exactly one expert."""
        rows, columns = rows_of(base.shape)
        points = max(1, min(columns, POINTS))
        values, by_rank = np.zeros((rows, points), np.float32), np.zeros(columns)
        step = max(1, BLOCK // max(columns, 1))
        for number, (delta,) in enumerate(blocks(base, experts, step * max(columns, 1))):
            sizes = np.sort(np.abs(delta).reshape(-1, columns), axis=1)
            start = number * step
            values[start : start + step] = sizes[:, np.linspace(0, columns - 1, points).round().astype(np.int64)]
            by_rank += sizes.sum(axis=0, dtype=np.float64)
        rank = np.arange(columns) / (columns - 1) if columns > 1 else np.full(columns, 0.5)
        total = float(by_rank.sum())
        lean = float((by_rank * rank).sum()) / total if total else 0.5
        return cls(values, np.array([lean]), np.array([columns]))

    @property
    def complete(self) -> bool:
        """Whether every rank of a row is among its points."""
        return int(self.columns[0]) <= POINTS
