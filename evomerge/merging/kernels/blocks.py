"""The pass over one block of elements: `merge` on float32 copies, its result written to the live parameter."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from evomerge.merging.kernels.arguments import Layout, named_scalars
from evomerge.merging.kernels.kernel import Kernel

# Merges one block: (out, base, experts, floats, ints, arrays, lanes) -> None; out is written in place.
Pass = Callable[[Tensor, Tensor, list[Tensor], Tensor, Tensor, tuple[Tensor, ...], Tensor | None], None]

# All of a method's options and their values, in the method's order.
Options = tuple[tuple[str, bool], ...]


def make_pass(method: Kernel, options: Options, layout: Layout) -> Pass:
    """The pass of a method in plain torch, ready to be run eager or to be compiled."""
    chosen = dict(options)

    def merge_pass(
        out: Tensor,
        base: Tensor,
        experts: list[Tensor],
        floats: Tensor,
        ints: Tensor,
        arrays: tuple[Tensor, ...],
        lanes: Tensor | None,
    ) -> None:
        s = named_scalars(layout, floats, ints, arrays)
        if method.NEEDS_ELEMENT_NUMBERS:
            s["element"] = elements(out, ints[-1], lanes)
        merged = method.merge(base.float(), [expert.float() for expert in experts], s, chosen)
        out.copy_(merged)

    return merge_pass


@functools.cache
def eager_pass(method: Kernel, options: Options, layout: Layout) -> Pass:
    """The pass run operation by operation, which needs no compiler."""
    return make_pass(method, options, layout)


def elements(out: Tensor, start: Tensor, lanes: Tensor | None) -> Tensor:
    """The numbers of a block's elements, int32, in its shape.

    Args:
        start: int32, the number of the block's first element.
        lanes: int32 (columns,), 0, 1, 2, ... of a block in two dimensions; None makes the numbers here. On a CPU it
            is faster to load lanes: a compiled pass that makes all numbers takes 1.2 times as long.
    """
    if lanes is None:
        return torch.arange(out.numel(), dtype=torch.int32, device=out.device).view(out.shape) + start
    rows = torch.arange(out.shape[0], dtype=torch.int32, device=out.device) * out.shape[1]
    return (rows + start)[:, None] + lanes[None, :]


FEWEST_LANES, MOST_LANES = 1 << 6, 1 << 14  # the most stay in the first two cache levels


@functools.cache
def all_lanes() -> Tensor:
    """0, 1, 2, ..., MOST_LANES - 1, int32, on the CPU; lanes are the beginning of it."""
    return torch.arange(MOST_LANES, dtype=torch.int32)


@functools.cache
def row_length(size: int) -> int:
    """The longest row of at most `MOST_LANES` elements that divides `size`, so that there are two rows at least."""
    return next(width for width in range(min(MOST_LANES, max(size // 2, 1)), 0, -1) if size % width == 0)
