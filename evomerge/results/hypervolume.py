"""The hypervolume of points: how much of the space of objectives they dominate. Exact, in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_CHUNK = 256  # points that are compared with all others at once


def hypervolume(points: Sequence[Sequence[float]] | np.ndarray, reference: Sequence[float]) -> float:
    """The exact volume of all that lies above the reference in every objective and is dominated by some point.

    The WFG algorithm of While, Bradstreet and Barone 2012, IEEE Trans. Evol. Comput. 16(1): the sum of the points'
    exclusive volumes, with one objective sliced off at a time. It ends at three objectives, where a grid over two
    of them holds the greatest height in the third.

    Args:
        points: (points, objectives), in any order. Points that are dominated or below the reference add nothing.
        reference: (objectives,).

    Returns:
        The volume, in units of the objectives' product; 0 without points.
    """
    if len(points) == 0:
        return 0.0
    above = np.asarray(points, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return _volume(above[(above > 0.0).all(axis=1)])


def _volume(points: np.ndarray) -> float:
    """The hypervolume above the origin of positive points, float64 (points, objectives)."""
    if len(points) <= 1:
        return float(points.prod(axis=1).sum())
    objectives = points.shape[1]
    if objectives == 1:
        return float(points.max())
    if objectives == 2:
        return _area(points)
    if objectives == 3:
        return _grid_volume(points)
    points = _undominated(points)
    order = points[np.argsort(-points[:, -1], kind="stable")]
    slices = (point[-1] * exclusive_volume(point[:-1], order[:place, :-1]) for place, point in enumerate(order))
    return math.fsum(slices)


def _area(points: np.ndarray) -> float:
    """The hypervolume of two objectives, by a sweep from the right.

    Each point adds a strip that is as high as the point exceeds those before it.
    """
    order = points[np.argsort(-points[:, 0], kind="stable")]
    heights = np.maximum.accumulate(order[:, 1])
    return float(order[:, 0] @ np.diff(heights, prepend=0.0))


def _grid_volume(points: np.ndarray) -> float:
    """The hypervolume of three objectives, on a grid over the first two.

    The height of each cell is the greatest third coordinate among the points that dominate the cell.
    """
    (xs, column), (ys, row) = (np.unique(points[:, axis], return_inverse=True) for axis in (0, 1))
    heights = np.zeros((len(xs), len(ys)))
    np.maximum.at(heights, (column, row), points[:, 2])
    for axis in (0, 1):
        heights = np.flip(np.maximum.accumulate(np.flip(heights, axis), axis=axis), axis)
    return float(np.diff(xs, prepend=0.0) @ heights @ np.diff(ys, prepend=0.0))


def exclusive_volume(point: np.ndarray, others: np.ndarray) -> float:
    """The volume that a point adds to that of others: its box without the part that they cover.

    Args:
        point: float64 (objectives,), positive: its height above the reference.
        others: float64 (others, objectives), likewise; they need not be positive.
    """
    limited = np.minimum(others, point)
    return float(point.prod()) - _volume(limited[(limited > 0.0).all(axis=1)])


def _undominated(points: np.ndarray) -> np.ndarray:
    """The points that no other point dominates, each once, float64 (undominated, objectives)."""
    points = np.unique(points, axis=0)
    kept = np.ones(len(points), dtype=bool)
    for start in range(0, len(points), _CHUNK):
        some = points[start : start + _CHUNK, None]
        as_good = np.logical_and.reduce([points[:, axis] >= some[..., axis] for axis in range(points.shape[1])])
        kept[start : start + _CHUNK] = as_good.sum(axis=1) == 1  # itself
    return points[kept]
