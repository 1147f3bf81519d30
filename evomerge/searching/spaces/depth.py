"""How the values of a gene spread over the depth of a model: as groups of layers, or between anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

# For each layer, the points that its value is made of, each with its share of the value.
Stencil = tuple[tuple[tuple[int, float], ...], ...]


@cache
def stencil(points: int, layers: int, *, anchored: bool = False) -> Stencil:
    """The points and shares that make each layer's value.

    Args:
        points: how many values the gene has over the depth; 1 holds for all layers.
        anchored: whether the points are anchors, evenly spread, between which values are interpolated; at least 2
            of them. Otherwise each point has a group of consecutive layers, all groups as equal as can be.
    """
    if not anchored:
        return tuple(((layer * points // layers, 1.0),) for layer in range(layers))
    rows = []
    for layer in range(layers):
        position = layer * (points - 1) / (layers - 1)
        left = min(int(position), points - 2)
        share = position - left
        rows.append(((left, 1.0 - share), (left + 1, share)))
    return tuple(rows)


def spread(values: Sequence[float], rows: Stencil) -> list[float]:
    """The value of each layer, from the values of the points."""
    spread_out = []
    for (first, share), *rest in rows:
        value = values[first] * share
        for point, more in rest:
            value += values[point] * more
        spread_out.append(value)
    return spread_out


def gather(slopes: Sequence[float], rows: Stencil, point: int) -> float:
    """The derivative in one point's value, from those in each layer's value: `spread`, transposed."""
    return math.fsum(
        slope * share for slope, row in zip(slopes, rows, strict=True) for at, share in row if at == point
    )
