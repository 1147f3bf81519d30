"""How important each element of a task vector is, by how far its row's softmax moves (Arcee Fusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.histogram import Histogram
from evomerge.merging.kernels.layouts import rows_of
from evomerge.merging.kernels.order_statistics import EXACT
from evomerge.merging.kernels.task_vectors import BLOCK, blocks

_TINY = 1e-8  # added to each probability


@dataclass(frozen=True)
class Importance:
    """How far each row's softmax moves, D, and which importance |δ|·D of an element stands out.

    Attributes:
        divergence: float32 (rows,), D = KL(softmax(θ1 row) ‖ softmax(θ0 row)).
        threshold: float32 (1,), the median of the importances plus 1.5 times their interquartile range.
    """

    divergence: np.ndarray
    threshold: np.ndarray

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Importance:
        """The table of exactly one expert."""
        (expert,) = experts
        rows, columns = rows_of(base.shape)
        divergence = np.zeros(rows, np.float32)
        if not base.numel():
            return cls(divergence, np.zeros(1, np.float32))
        step = max(1, BLOCK // max(columns, 1))
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
