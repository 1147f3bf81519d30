"""What is known of a candidate that was built and scored: its value, its metrics and what they took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import CandidateError
from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import Groups, Measured, task_values
from evomerge.scoring.reports import Member, Report
from evomerge.searching.objective import Objective

PHASES = ("merge", "operators", "scoring")  # the phases of an evaluation, which are the keys of `Score.seconds`


@dataclass(frozen=True)
class Score:
    """What is known of an evaluated candidate.

    Attributes:
        value: the objective's value, from the climbed metrics.
        measured: the reported and the climbed metric of each entry.
        report: the results on each document of each task.
        groups: entry of the fitness -> the tasks that it stands for, and what each is in it.
        seconds: phase, see `PHASES` -> the seconds spent in it.
        weights_sha256: the hash of the merged weights, see `files.hashing.sha256`; None if it was not asked for.
        training_records: name of a training operator -> its record of the training.
    """

    value: float
    measured: Measured
    report: Report
    groups: dict[str, dict[str, Member]]
    seconds: dict[str, float]
    weights_sha256: str | None = None
    training_records: dict[str, Any] = field(default_factory=dict)


def objective_of(entries: Sequence[Entry], groups: Groups, sizes: Mapping[str, int]) -> Objective:
    """The objective that entries of a fitness make up.

    Args:
        groups: entry -> the tasks that it stands for.
        sizes: task -> the number of its documents.
    """
    return Objective(
        {task: sizes[task] for entry in entries for task in groups[entry.task]},
        {entry.task: entry.weight for entry in entries},
        {entry.task: {task: one.share for task, one in groups[entry.task].items()} for entry in entries},
    )


def measure(
    objective: Objective, report: Report, groups: Groups, shares: Mapping[str, float] | None = None
) -> Measured:
    """The scores of an objective's entries, of those that a report has documents of.

    Args:
        shares: task -> its share of the value, where some documents were scored, see `searching.documents.Chosen`.

    Raises:
        CandidateError: one of them is not a finite number, which makes the candidate a failure.
    """
    reported = objective.entries(task_values(report, groups, reported=True), shares)
    climbed = objective.entries(task_values(report, groups), shares)
    for scores, key in ((reported, "metric"), (climbed, "climbs")):
        for entry, value in scores.items():
            if not math.isfinite(value):
                name = getattr(next(iter(groups[entry].values())), key)
                raise CandidateError(f"{entry}: {name} is {value}, which is no score")
    return Measured(reported, climbed)
