"""What a report says of each task: its reported and climbed metric, as a whole and document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.scoring.reports import Member, Report, TaskScore

if TYPE_CHECKING:  # which imports torch
    from evomerge.scoring.backward import Backward

Groups = Mapping[str, Mapping[str, Member]]  # entry of the fitness -> the tasks that it stands for


@dataclass(frozen=True)
class Measured:
    """A candidate's scores, by entry of the fitness.

    Attributes:
        tasks: entry -> its reported metric.
        climbed: entry -> its climbed metric.
    """

    tasks: dict[str, float]
    climbed: dict[str, float]

    @property
    def mean(self) -> float:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks)


def members_of(groups: Groups) -> dict[str, Member]:
    """Task -> what it is in its entry, in the order of the fitness."""
    return {task: member for own in groups.values() for task, member in own.items()}


def task_values(report: Report, groups: Groups, *, reported: bool = False) -> dict[str, float]:
    """Task -> the climbed metric over its documents, by lm-eval's own aggregation; of those in the report.

    Args:
        reported: the reported metric instead.
    """
    return {
        task: report.tasks[task].aggregates[member.metric if reported else member.climbs]
        for task, member in members_of(groups).items()
        if task in report.tasks
    }


def document_scores(report: Report, groups: Groups, *, reported: bool = False) -> dict[str, np.ndarray]:
    """Task -> the climbed metric of each document, float64 (documents,); of those in the report.

    A report with a single metric of a task has the metric that was climbed in the place of all others.

    Args:
        reported: the reported metric of each document instead.
    """
    scores = {}
    for task, member in members_of(groups).items():
        if task in report.tasks:
            own = report.tasks[task].metrics
            scores[task] = own.get(member.metric if reported else member.climbs, next(iter(own.values())))
    return scores


def gradient_terms(groups: Groups, shares: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Task -> (climbed metric, the task's share of the value), of the tasks that have a share."""
    return {task: (member.climbs, shares[task]) for task, member in members_of(groups).items() if task in shares}


def climbed_report(climbed: Backward, documents: Mapping[str, Sequence[int]]) -> Report:
    """What a backward pass found, as a report that has the climbed metric of each task alone."""
    tasks = {
        name: TaskScore(
            np.array(sorted(set(documents[name])), dtype=np.int64),
            {climbed.climbed[name]: values},
            {climbed.climbed[name]: float(values.mean())},
        )
        for name, values in climbed.values.items()
    }
    return Report(tasks, climbed.tokens, padding=0, truncated=dict.fromkeys(tasks, 0), cut_prompts={})
