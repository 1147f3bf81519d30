"""What a method's `scalars` returns about one tensor: numbers, and arrays by row or by column. No torch here."""

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


# A scalar's name -> its numbers. A list of floats reaches a pass as float32, a list of ints as int32, (len,).
Scalars = dict[str, list[float] | list[int] | ByRow | ByColumn]
