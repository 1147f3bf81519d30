"""The task vectors δk = θk − θ0 as numpy arrays, a block of elements at a time. Knows no kind of table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 18  # elements that sums are taken over at a time: fixed, so that no thread count changes a bit


def blocks(base: Tensor, experts: Sequence[Tensor], step: int = BLOCK) -> Iterator[list[np.ndarray]]:
    """The task vectors δk = θk − θ0, flat, float32, `step` elements at a time; a block overwrites the last one.

    Raises:
        ValueError: a value is not finite.
    """
    reference, *others = (tensor.reshape(-1) for tensor in (base, *experts))
    # One buffer for all blocks: memory that many threads allocate and free is not given back to the system.
    memory = torch.empty(len(others) + 1, min(step, base.numel()))
    for start in range(0, base.numel(), step):
        part = slice(start, start + step)
        buffer = memory[:, : reference[part].numel()]
        buffer[-1].copy_(reference[part])
        for k, other in enumerate(others):
            buffer[k].copy_(other[part]).sub_(buffer[-1])
        deltas = [one.numpy() for one in buffer[:-1]]
        if not all(np.isfinite(delta).all() for delta in deltas):
            raise ValueError("has values that are not finite")
        yield deltas


def whole(base: Tensor, experts: Sequence[Tensor]) -> list[np.ndarray]:
    """The task vectors of a small tensor in one block, flat, float32; empty arrays where it has no element."""
    empty = [np.zeros(0, np.float32)] * len(experts)
    return next(blocks(base, experts, max(base.numel(), 1)), empty)


def finite(array: np.ndarray) -> np.ndarray:
    """The array as it is.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(array).all():
        raise ValueError("has values that are not finite")
    return array
