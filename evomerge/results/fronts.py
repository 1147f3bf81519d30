"""Several objectives: the front of a study's trials, its hypervolume, and its knee.

The climbed metric of each searched task is an objective; more is better. A trial dominates another if it is at
least as good in every task and better in one. The front is made up of the trials that no other dominates. Values on
different documents do not compare, so only trials that were scored on all search documents count, where there are
any, as in `studies.trials.ranked_trials`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.results.hypervolume import exclusive_volume
from evomerge.studies.trials import Trial


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other dominates, in their order; the earliest of those that are equal in every task."""
    best: list[Trial] = []
    for trial in comparable_trials(trials):
        best = _joined(best, trial)
    return best


def comparable_trials(trials: Sequence[Trial]) -> list[Trial]:
    """The finished trials that compare with each other.

    They are the trials that the sampler asked for, where there are any; of these the ones that were scored on all
    documents, where there are any.
    """
    finished = [trial for trial in trials if trial.value is not None]
    searched = [trial for trial in finished if trial.role == "search"] or finished
    return [trial for trial in searched if trial.all_documents] or searched


def _joined(front: list[Trial], trial: Trial) -> list[Trial]:
    """The front after another trial has come. It is the same list where a trial on it is as good or better."""
    if not front:
        return [trial]
    points, point = _points(front), np.array(_point(trial))
    if (points >= point).all(axis=1).any():
        return front
    stay = np.logical_not((points <= point).all(axis=1))
    return [*(one for one, kept in zip(front, stay.tolist(), strict=True) if kept), trial]


def _point(trial: Trial) -> tuple[float, ...]:
    """The objectives of a trial."""
    return tuple(trial.climbed.values())


def _points(trials: Sequence[Trial]) -> np.ndarray:
    """The objectives of trials, float64 (trials, objectives)."""
    return np.array([_point(trial) for trial in trials], dtype=np.float64)


def reference(trials: Sequence[Trial]) -> tuple[float, ...]:
    """The point above which hypervolumes are measured: the worst value of each objective in the first generation
    that was scored; () if none was.

    The first generation consists of the known points, with which every search begins. So hypervolumes of one
    experiment compare between samplers and seeds.
    """
    comparable = comparable_trials(trials)
    if not comparable:
        return ()
    first = [trial for trial in comparable if trial.generation == comparable[0].generation]
    return tuple(float(worst) for worst in _points(first).min(axis=0))


def hypervolumes(trials: Sequence[Trial]) -> list[float]:
    """The hypervolume of all trials up to each generation that was scored, above `reference`.

    Each trial that joins the front adds its exclusive volume, so that no hypervolume is computed anew.
    """
    lowest = np.array(reference(trials))
    volume, best = 0.0, list[Trial]()
    volumes = []
    for generation in _generations(comparable_trials(trials)):
        for trial in generation:
            joined = _joined(best, trial)
            if joined is best:
                continue
            point = np.array(_point(trial)) - lowest
            if (point > 0.0).all():
                volume += exclusive_volume(point, _points(best) - lowest if best else np.zeros((0, len(point))))
            best = joined
        volumes.append(volume)
    return volumes


def _generations(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """The trials of each generation that has any, in the order of the generations."""
    by_number: dict[int, list[Trial]] = {}
    for trial in trials:
        by_number.setdefault(trial.generation, []).append(trial)
    return (by_number[number] for number in sorted(by_number))


def knee(front: Sequence[Trial]) -> Trial:
    """The trial of a front that gives up least in all tasks together: a little more of one task would cost much.

    Each objective is scaled to the front's range. Of two objectives this is the classical knee, the point farthest
    above the straight line through the two extremes (Das 1999, "On characterizing the 'knee' of the Pareto curve",
    Structural Optimization 18). With more objectives a plane through the trials that are best in one task each
    need not exist, and may be tilted so that losing in a task brings a trial farther from it. So the plane goes
    through the corners that are best in one task and worst in the others. The distance from it grows with the sum
    of the scaled objectives, the utility of equal weights (Branke et al. 2004, "Finding knees in multi-objective
    optimization"). Among equals, such as both ends of a straight front, it is the trial of the highest fitness;
    then the earliest.

    Args:
        front: at least one trial.
    """
    points = _points(front)
    lowest, span = points.min(axis=0), np.ptp(points, axis=0)
    distances = ((points - lowest)[:, span > 0] / span[span > 0]).sum(axis=1).round(12)
    ranked = zip(distances, front, strict=True)
    return max(ranked, key=lambda pair: (pair[0], pair[1].value, -pair[1].number))[1]
