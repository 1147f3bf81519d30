"""What a report comes to: the scores of a fitness's entries, of each document, and the terms of a gradient.

A result that is not a number makes the candidate a failure, never a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import CandidateError
from evomerge.scoring.fitness import Entry
from evomerge.scoring.reports import Report, TaskScore

if TYPE_CHECKING:  # which imports torch
    from evomerge.scoring.backward import Backward

Groups = Mapping[str, Sequence[str]]  # entry of the fitness -> the tasks that it stands for; several for a group


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


def measure(entries: Sequence[Entry], report: Report, groups: Groups) -> Measured:
    """The scores that a report gives for the entries, of those that it has documents of.

    lm-eval aggregates a metric over a task's documents; over the tasks of a group their mean counts, weighted by
    their numbers of documents.

    Raises:
        CandidateError: one of them is not a finite number.
    """

    def aggregate(task: str, metric: str) -> float:
        members = [report.tasks[name] for name in groups[task] if name in report.tasks]
        documents = sum(len(member.documents) for member in members)
        value = math.fsum(member.aggregates[metric] * len(member.documents) for member in members) / documents
        if not math.isfinite(value):
            raise CandidateError(f"{task}: {metric} is {value}, which is no score")
        return value

    present = [entry for entry in entries if any(name in report.tasks for name in groups[entry.task])]
    return Measured(
        tasks={entry.task: aggregate(entry.task, entry.metric) for entry in present},
        climbed={entry.task: aggregate(entry.task, entry.climbs) for entry in present},
    )


def document_scores(
    entries: Sequence[Entry], report: Report, groups: Groups, *, reported: bool = False
) -> dict[str, np.ndarray]:
    """Entry -> the climbed metric of each document, float64 (documents,), a group's tasks behind each other.

    A report with a single metric of a task has the metric that was climbed in the place of all others.

    Args:
        reported: the reported metric of each document instead.
    """
    scores = {}
    for entry in entries:
        metric = entry.metric if reported else entry.climbs
        members = [report.tasks[name].metrics for name in groups[entry.task] if name in report.tasks]
        if members:
            scores[entry.task] = np.concatenate([own.get(metric, next(iter(own.values()))) for own in members])
    return scores


# --- documents of entries and of tasks ---------------------------------------------------------------------


def entry_sizes(groups: Groups, sizes: Mapping[str, int]) -> dict[str, int]:
    """Entry -> the number of its documents, from task -> the number of its documents."""
    return {entry: sum(sizes[name] for name in names) for entry, names in groups.items()}


def ids_by_task(
    groups: Groups, sizes: Mapping[str, int], documents: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Task -> ids of documents in the task, from entry -> ids in the entry, where a group's tasks lie behind each
    other. sizes: task -> the number of its documents."""
    by_task: dict[str, list[int]] = {}
    for entry, ids in documents.items():
        start = 0
        for name in groups[entry]:
            end = start + sizes[name]
            if own := [id_ - start for id_ in ids if start <= id_ < end]:
                by_task[name] = own
            start = end
    return by_task


# --- gradients ---------------------------------------------------------------------------------------------


def gradient_terms(
    entries: Sequence[Entry],
    groups: Groups,
    documents: Mapping[str, Sequence[int]],
    shares: Callable[[Collection[str]], Mapping[str, float]],
) -> dict[str, tuple[str, float]]:
    """Task -> (climbed metric, the task's share of the value). A group's documents are pooled.

    Args:
        documents: task -> ids of the documents that are climbed.
        shares: entries that have documents -> the share of each in the value.
    """
    counts = {name: len(set(ids)) for name, ids in documents.items()}
    members = {entry: [name for name in groups[entry.task] if name in counts] for entry in entries}
    share = shares([entry.task for entry, names in members.items() if names])
    return {
        name: (entry.climbs, share[entry.task] * counts[name] / sum(counts[one] for one in names))
        for entry, names in members.items()
        for name in names
    }


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
