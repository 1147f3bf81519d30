"""What a method's `scalars` returns about one tensor: numbers, and arrays by row or by column. Does not import
torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ByRow:
    """Numbers that a method takes for each row of a tensor.

    Attributes:
        array: shape (n, rows, m); a pass gets it as float32.
    """

    array: np.ndarray


@dataclass(frozen=True)
class ByColumn:
    """Numbers that a method takes for each column of a tensor.

    Attributes:
        array: shape (n, 1, columns); a pass gets it as float32.
    """

    array: np.ndarray


# Scalar's name -> its numbers. Of a list of floats a pass makes float32, of a list of ints int32, both of shape
# (len,).
Scalars = dict[str, list[float] | list[int] | ByRow | ByColumn]
