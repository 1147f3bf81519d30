"""Several objectives: the trials that no other beats in every task, how far they reach, and how to pick one.

Each searched task's climbed metric is an objective; more is better. A trial dominates another if it is at least as
good in every task and better in one. The front is what nothing dominates. Values of different documents do not
compare: of the sampler's candidates those scored on all search documents count alone, where there are any, as in
`records.best`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.studies.trials import Trial

_CHUNK = 256  # points compared with all others at once


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other dominates, in their order; of equals the earliest."""
    found: list[Trial] = []
    for trial in comparable_trials(trials):
        found = _joined(found, trial)
    return found


def comparable_trials(trials: Sequence[Trial]) -> list[Trial]:
    finished = [trial for trial in trials if trial.value is not None]
    searched = [trial for trial in finished if trial.role == "search"] or finished
    return [trial for trial in searched if trial.all_documents] or searched


def _joined(front: list[Trial], trial: Trial) -> list[Trial]:
    """A front with another trial; the same list where one of it is as good or better."""
    if not front:
        return [trial]
    points, point = _points(front), np.array(_point(trial))
    if (points >= point).all(axis=1).any():
        return front
    stay = np.logical_not((points <= point).all(axis=1))
    return [*(one for one, kept in zip(front, stay.tolist(), strict=True) if kept), trial]


def _point(trial: Trial) -> tuple[float, ...]:
    return tuple(trial.climbed.values())


def _points(trials: Sequence[Trial]) -> np.ndarray:
    return np.array([_point(trial) for trial in trials], dtype=np.float64)


# --- hypervolume -------------------------------------------------------------------------------------------


def reference(trials: Sequence[Trial]) -> tuple[float, ...]:
    """The worst value of each objective in the first generation that was scored; () if none was.

    The first generation is the known points, which every search begins with, so hypervolumes of one experiment
    compare between samplers and seeds.
    """
    comparable = comparable_trials(trials)
    if not comparable:
        return ()
    first = [trial for trial in comparable if trial.generation == comparable[0].generation]
    return tuple(float(worst) for worst in _points(first).min(axis=0))


def hypervolume(points: Sequence[Sequence[float]] | np.ndarray, reference: Sequence[float]) -> float:
    """The volume of what is dominated by some point and above the reference in every objective. Exact.

    The WFG algorithm of While, Bradstreet and Barone 2012, IEEE Trans. Evol. Comput. 16(1): the points' exclusive
    volumes, one objective sliced off at a time. It ends at three objectives, where a grid over two of them carries
    the greatest height in the third.

    Args:
        points: (n, objectives), in any order; dominated ones and such that lie below the reference add nothing.
    """
    if len(points) == 0:
        return 0.0
    above = np.asarray(points, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return _volume(above[(above > 0.0).all(axis=1)])


def _volume(points: np.ndarray) -> float:
    """Of positive points, above the origin."""
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
    slices = (point[-1] * _exclusive(point[:-1], order[:place, :-1]) for place, point in enumerate(order))
    return math.fsum(slices)


def _area(points: np.ndarray) -> float:
    """A sweep from the right: each point adds a strip as high as it exceeds those before."""
    order = points[np.argsort(-points[:, 0], kind="stable")]
    heights = np.maximum.accumulate(order[:, 1])
    return float(order[:, 0] @ np.diff(heights, prepend=0.0))


def _grid_volume(points: np.ndarray) -> float:
    """Of each cell between the points' first two coordinates, the greatest third one above it."""
    (xs, column), (ys, row) = (np.unique(points[:, axis], return_inverse=True) for axis in (0, 1))
    heights = np.zeros((len(xs), len(ys)))
    np.maximum.at(heights, (column, row), points[:, 2])
    for axis in (0, 1):
        heights = np.flip(np.maximum.accumulate(np.flip(heights, axis), axis=axis), axis)
    return float(np.diff(xs, prepend=0.0) @ heights @ np.diff(ys, prepend=0.0))


def _exclusive(point: np.ndarray, others: np.ndarray) -> float:
    """The volume that a point adds to others': its box without what they cover of it."""
    limited = np.minimum(others, point)
    return float(point.prod()) - _volume(limited[(limited > 0.0).all(axis=1)])


def _undominated(points: np.ndarray) -> np.ndarray:
    """The points that no other dominates, once each."""
    points = np.unique(points, axis=0)
    kept = np.ones(len(points), dtype=bool)
    for start in range(0, len(points), _CHUNK):
        some = points[start : start + _CHUNK, None]
        as_good = np.logical_and.reduce([points[:, axis] >= some[..., axis] for axis in range(points.shape[1])])
        kept[start : start + _CHUNK] = as_good.sum(axis=1) == 1  # itself
    return points[kept]


def hypervolumes(trials: Sequence[Trial]) -> list[float]:
    """The hypervolume of all trials up to each generation, above `reference`, in units of the metrics' product.

    Each trial that joins the front adds its exclusive volume, so that none is computed anew.
    """
    lowest = np.array(reference(trials))
    volume, best = 0.0, list[Trial]()
    found = []
    for generation in _generations(comparable_trials(trials)):
        for trial in generation:
            joined = _joined(best, trial)
            if joined is best:
                continue
            point = np.array(_point(trial)) - lowest
            if (point > 0.0).all():
                volume += _exclusive(point, _points(best) - lowest if best else np.zeros((0, len(point))))
            best = joined
        found.append(volume)
    return found


def _generations(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """The trials of each generation that has any, in its order."""
    by_number: dict[int, list[Trial]] = {}
    for trial in trials:
        by_number.setdefault(trial.generation, []).append(trial)
    return (by_number[number] for number in sorted(by_number))


# --- picking one -------------------------------------------------------------------------------------------


def knee(front: Sequence[Trial]) -> Trial:
    """The trial of a front that gives up least in all tasks together: from it, a little more of one costs much.

    Each objective is scaled to the front's range. Of two objectives this is the classical knee, the point farthest
    above the straight line through the two extremes (Das 1999, "On characterizing the 'knee' of the Pareto curve",
    Structural Optimization 18). With more, a plane through the trials that are best in one task each need not
    exist, and may be tilted so that losing in a task brings a trial farther from it; so the plane goes through the
    corners that are best in one task and worst in the others. The distance from it grows with the sum of the scaled
    objectives, the utility of equal weights (Branke et al. 2004, "Finding knees in multi-objective optimization").
    Of equals, such as both ends of a straight front, the one of highest fitness; then the earliest.

    Args:
        front: at least one trial.
    """
    points = _points(front)
    lowest, span = points.min(axis=0), np.ptp(points, axis=0)
    distances = ((points - lowest)[:, span > 0] / span[span > 0]).sum(axis=1).round(12)
    ranked = zip(distances, front, strict=True)
    return max(ranked, key=lambda pair: (pair[0], pair[1].value, -pair[1].number))[1]
