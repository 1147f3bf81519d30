"""What is known of a candidate that was built and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Report
from evomerge.searching.objective import Objective

PHASES = ("merge", "operators", "scoring")  # of an evaluation, as `Score.seconds` has them


@dataclass(frozen=True)
class Score:
    """What is known of an evaluated candidate.

    Attributes:
        value: the objective's value of what was climbed.
        measured: the scores that the report comes to.
        report: per-document results of each task.
        groups: entry of the fitness -> the tasks of the report that it stands for.
        seconds: seconds spent in merge, operators and scoring.
        weights_sha256: the hash of the merged weights, see `files.hashing.sha256`; None if it was not asked for.
        training_records: training operator -> its record of what it did and took.
    """

    value: float
    measured: Measured
    report: Report
    groups: dict[str, tuple[str, ...]]
    seconds: dict[str, float]
    weights_sha256: str | None = None
    training_records: dict[str, Any] = field(default_factory=dict)


def objective_of(entries: Sequence[Entry], sizes: Mapping[str, int]) -> Objective:
    """The objective of a fitness's entries.

    sizes: entry -> the number of its documents.
    """
    return Objective(
        {entry.task: sizes[entry.task] for entry in entries}, {entry.task: entry.weight for entry in entries}
    )
