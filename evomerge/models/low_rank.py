"""A low-rank change of a weight, W + s · L R, folded into it with the same bits wherever it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK, _DEVICE_BLOCK = 1 << 17, 1 << 26  # elements summed up at a time; on a CPU they stay in the cache


@torch.no_grad()
def fold(weight: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, *, out: Tensor | None = None) -> Tensor:
    """W + s · L R, rounded once, to W's dtype.

    The rank-1 terms are added in their order, element by element in float32, without BLAS: the bits depend neither
    on the number of threads nor on the machine.

    Args:
        weight: W, (n, m).
        left: L, (n, r), on the device of W.
        right: R, (r, m), on the device of W.
        scale: s.
        out: where the result is put, which may be `weight` itself; None makes a new tensor.
    """
    left, right = left.float(), right.float().contiguous()
    out = torch.empty_like(weight) if out is None else out
    block = _BLOCK if weight.device.type == "cpu" else _DEVICE_BLOCK
    rows = max(1, block // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        columns = left[part].T.contiguous()
        total = torch.zeros((columns.shape[1], weight.shape[1]), device=weight.device)
        term = torch.empty_like(total)
        for k in range(right.shape[0]):
            # In two steps: a fused multiply-add would round otherwise, where there is one.
            torch.mul(columns[k, :, None], right[k], out=term)
            total.add_(term)
        out[part] = total.mul_(scale).add_(weight[part].float())
    return out
