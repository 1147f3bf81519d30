"""What a report comes to: the value of a candidate, of each of its documents, and the terms of its gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import CandidateError, ConfigError, suggest
from evomerge.scoring.backward import Backward
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.reports import Report, TaskScore
from evomerge.scoring.scorer import Scorer


def open_scorer(
    model: Any, tokenizer: Any, fitness: Fitness | None, entries: Sequence[Entry], max_length: int | None = None
) -> Scorer | None:
    """The scorer of some of a fitness's entries on a live model; None if there are none.

    Args:
        max_length: tokens of the longest prompt with its answer, see `Scorer`.

    Raises:
        ConfigError: a task cannot be built, or has no such metric.
    """
    if fitness is None or not entries:
        return None
    scorer = Scorer(
        model,
        tokenizer,
        fitness.specs(entries),
        include=Path(fitness.include) if fitness.include else None,
        apply_chat_template=fitness.apply_chat_template,
        max_length=max_length,
    )
    check_metrics(entries, scorer)
    return scorer


def gradient_terms(
    entries: Sequence[Entry], expanded: Mapping[str, Sequence[str]], documents: Mapping[str, Sequence[int]]
) -> dict[str, tuple[str, float]]:
    """Task -> (climbed metric, its share of the value), as `fitness.measure` weighs them: a group's documents are
    pooled."""
    counts = {name: len(set(ids)) for name, ids in documents.items()}
    members = {entry: [name for name in expanded[entry.task] if name in counts] for entry in entries}
    total = sum(entry.weight for entry, names in members.items() if names)
    return {
        name: (entry.climbs, entry.weight / total * counts[name] / sum(counts[one] for one in names))
        for entry, names in members.items()
        for name in names
    }


def climbed_report(found: Backward, documents: Mapping[str, Sequence[int]]) -> Report:
    """What a backward pass found, as a report: of each task the climbed metric alone."""
    tasks = {
        name: TaskScore(
            np.array(sorted(set(documents[name])), dtype=np.int64),
            {found.climbed[name]: values},
            {found.climbed[name]: float(values.mean())},
        )
        for name, values in found.values.items()
    }
    return Report(tasks, found.tokens, padding=0, truncated=dict.fromkeys(tasks, 0), cut_prompts={})


def measured_from_documents(entries: Sequence[Entry], scores: Mapping[str, np.ndarray]) -> Measured:
    """The value that was climbed, from entry -> the score of each document."""
    climbed = {name: float(values.mean()) for name, values in scores.items()}
    weights = {entry.task: entry.weight for entry in entries if entry.task in climbed}
    value = math.fsum(weight * climbed[name] for name, weight in weights.items()) / sum(weights.values())
    return Measured(value, dict(climbed), climbed)


@dataclass(frozen=True)
class Measured:
    """A candidate's scores.

    Attributes:
        value: what the sampler climbs: the weighted mean of the tasks' climbed metrics.
        tasks: task -> its reported metric.
        climbed: task -> its climbed metric.
    """

    value: float
    tasks: dict[str, float]
    climbed: dict[str, float]

    @property
    def mean(self) -> float:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks)


def measure(entries: Sequence[Entry], report: Report, expanded: Mapping[str, Sequence[str]]) -> Measured:
    """The scores that a report gives for the entries, of those that it has documents of.

    Args:
        expanded: entry -> the tasks it stands for; several for a group, whose score is their mean weighted by
            their numbers of documents.

    Raises:
        CandidateError: one of them is not a finite number.
    """

    def aggregate(task: str, metric: str) -> float:
        members = [report.tasks[name] for name in expanded[task] if name in report.tasks]
        documents = sum(len(member.documents) for member in members)
        value = math.fsum(member.aggregates[metric] * len(member.documents) for member in members) / documents
        if not math.isfinite(value):
            raise CandidateError(f"{task}: {metric} is {value}, which is no score")
        return value

    entries = [entry for entry in entries if any(name in report.tasks for name in expanded[entry.task])]
    tasks = {entry.task: aggregate(entry.task, entry.metric) for entry in entries}
    climbed = {entry.task: aggregate(entry.task, entry.climbs) for entry in entries}
    total = sum(entry.weight for entry in entries)
    value = math.fsum(entry.weight * climbed[entry.task] for entry in entries) / total
    return Measured(value, tasks, climbed)


def document_scores(
    entries: Sequence[Entry], report: Report, expanded: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Entry -> the climbed metric of each document, float64 (documents,), a group's tasks behind each other.

    A report that has one metric of a task only has what was climbed in its place.
    """
    found = {}
    for entry in entries:
        members = [report.tasks[name] for name in expanded[entry.task] if name in report.tasks]
        values = [m.metrics[entry.climbs if entry.climbs in m.metrics else next(iter(m.metrics))] for m in members]
        if values:
            found[entry.task] = np.concatenate(values)
    return found


def check_metrics(entries: Sequence[Entry], scorer: Scorer, where: str = "fitness") -> None:
    """Checks that every entry's metrics exist.

    Raises:
        ConfigError: with all that do not.
    """
    faults = []
    for entry in entries:
        for task in scorer.expanded[entry.task]:
            known = scorer.metrics(task)
            for key, metric in (("metric", entry.metric), ("climb", entry.climbs)):
                if metric not in known:
                    faults.append(f"{task}: has no {key} {metric!r}.{suggest(metric, known)}")
                elif not scorer.higher_is_better(task, metric):
                    faults.append(f"{task}: less {metric} is better; give a {key} of which more is better")
    if faults:
        raise ConfigError(where, list(dict.fromkeys(faults)))
