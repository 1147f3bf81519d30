"""What is known of a candidate that was built and scored: its value, its metrics and what they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Report
from evomerge.searching.objective import Objective

PHASES = ("merge", "operators", "scoring")  # the phases of an evaluation, which are the keys of `Score.seconds`


@dataclass(frozen=True)
class Score:
    """What is known of an evaluated candidate.

    Attributes:
        value: the objective's value, from the climbed metrics.
        measured: the reported and the climbed metric of each entry.
        report: the results on each document of each task.
        groups: entry of the fitness -> the tasks of the report that it stands for.
        seconds: phase, see `PHASES` -> the seconds spent in it.
        weights_sha256: the hash of the merged weights, see `files.hashing.sha256`; None if it was not asked for.
        training_records: name of a training operator -> its record of the training.
    """

    value: float
    measured: Measured
    report: Report
    groups: dict[str, tuple[str, ...]]
    seconds: dict[str, float]
    weights_sha256: str | None = None
    training_records: dict[str, Any] = field(default_factory=dict)


def objective_of(entries: Sequence[Entry], sizes: Mapping[str, int]) -> Objective:
    """The objective that entries of a fitness make up.

    Args:
        sizes: entry -> the number of its documents.
    """
    return Objective(
        {entry.task: sizes[entry.task] for entry in entries}, {entry.task: entry.weight for entry in entries}
    )
