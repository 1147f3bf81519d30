"""The numbers and arrays that a pass takes beside the tensors, brought to the device in one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.scalars import ByRow, Scalars

# Of each scalar: its name, "float", "int", "rows" or "columns", and how many numbers it has (0 for arrays).
Layout = tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Arguments:
    """What a pass over one tensor takes besides the tensors.

    Attributes:
        layout: the names, kinds and lengths of the scalars, in their order in `floats`, `ints` and `arrays`.
        floats, ints: float32 and int32, the numbers one behind the other, on the pass's device. The last of `ints`
            is the number of the block's first element.
        arrays: float32, numbers that vary by row (n, rows, m) or by column (n, 1, columns).
        along: how the tensor is laid out: "flat", or in two dimensions as "rows" or "columns".
    """

    layout: Layout
    floats: Tensor
    ints: Tensor
    arrays: tuple[Tensor, ...]
    along: str


_SLOT = 16  # numbers: each tensor's begin at a multiple of 64 bytes


def arguments(scalars: Sequence[Scalars], device: torch.device) -> list[Arguments]:
    """The arguments of many tensors' passes, brought to the device in one transfer.

    Args:
        scalars: what the methods' `scalars` returned for each tensor.
    """
    floats: list[float] = []
    ints: list[int] = []
    slots: list[tuple[Layout, slice, slice, tuple[Tensor, ...], str]] = []
    for one in scalars:
        layout: list[tuple[str, str, int]] = []
        arrays: list[Tensor] = []
        first_float, first_int, along = len(floats), len(ints), "flat"
        for name, values in one.items():
            if isinstance(values, list):
                kind: str = "int" if type(values[0]) is int else "float"
                layout.append((name, kind, len(values)))
                (ints if kind == "int" else floats).extend(values)  # type: ignore[arg-type]
            else:
                along = "rows" if isinstance(values, ByRow) else "columns"
                layout.append((name, along, 0))
                arrays.append(torch.from_numpy(values.array).to(device, torch.float32))
        ints.append(0)
        own = slice(first_float, len(floats)), slice(first_int, len(ints))
        slots.append((tuple(layout), *own, tuple(arrays), along))
        floats.extend([0.0] * (-len(floats) % _SLOT))
        ints.extend([0] * (-len(ints) % _SLOT))
    all_floats = torch.tensor(floats, dtype=torch.float32, device=device)
    all_ints = torch.tensor(ints, dtype=torch.int32, device=device)
    return [Arguments(layout, all_floats[f], all_ints[i], arrays, along) for layout, f, i, arrays, along in slots]


def named_scalars(layout: Layout, floats: Tensor, ints: Tensor, arrays: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The scalars by name, as views of the arguments that hold them."""
    named = {}
    left = iter(arrays)
    at = {"float": 0, "int": 0}
    for name, kind, count in layout:
        if kind in at:
            named[name] = (floats if kind == "float" else ints)[at[kind] : at[kind] + count]
            at[kind] += count
        else:
            named[name] = next(left)
    return named


def starting_at(ints: Tensor, element: int) -> Tensor:
    """`Arguments.ints` for a block that begins with that element; the number wraps to int32."""
    moved = ints.clone()
    moved[-1] = (element + 2**31) % 2**32 - 2**31
    return moved
