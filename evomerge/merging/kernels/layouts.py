"""How a tensor of any shape is laid out for a pass or a table: flat, by row, or by column."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a tensor: its last dimension is a row; a vector, or a number, is one row.

    >>> rows_of((8, 4, 16)), rows_of((16,)), rows_of(())
    ((32, 16), (1, 16), (1, 1))
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return math.prod(shape[:-1]), shape[-1]


def columns_of(shape: Sequence[int]) -> tuple[int, int]:
    """(first size, elements / first size) of a tensor: its first dimension is a column.

    A vector is one column. It lies as (1, n), where an array by column of one column is broadcast over it. So does
    an empty tensor.

    >>> columns_of((8, 4, 16)), columns_of((16,)), columns_of(())
    ((8, 64), (1, 16), (1, 1))
    """
    size = math.prod(shape)
    return (shape[0], size // shape[0]) if len(shape) > 1 and size else (1, size)


def shape_along(shape: Sequence[int], along: str) -> tuple[int, ...]:
    """The shape in which a pass sees a tensor.

    along: "flat", "rows" or "columns", see `merging.kernels.arguments.Arguments.along`.
    """
    if along == "flat":
        return (math.prod(shape),)
    return rows_of(shape) if along == "rows" else columns_of(shape)
