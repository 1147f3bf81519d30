"""A finished trial, and which of many is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from evomerge.searching.host import Line

_NOT_KEPT = ("evaluation", "objectives")  # in the log: the first is large, the second follows from `climbed`
_EARLIER = {"whole", "known", "course", "of", "left"}  # names of fields before they were renamed


class EarlierVersionError(Exception):
    """A log has the fields of an earlier version."""


@dataclass(frozen=True, kw_only=True)
class Trial(Line):
    """A finished candidate, as the journal keeps it: the search's line, and what a study adds to it.

    Attributes:
        number: its place in the log.
        recipe, fitness: hashes of what was built, and of what it was scored by.
        tasks, climbed: entry -> reported metric, entry -> climbed metric.
        seconds: seconds spent in merge, operators and scoring; empty for a repeated recipe.
        documents: document evaluations of this trial; 0 for a repeated recipe.
        tokens: tokens forwarded for it.
        truncated: answers that were cut off at their greatest length.
        elapsed: seconds that the study had been running for, all sessions together.
        search_digest: a hash of the sampler and of how it was given documents.
        parent: which model a parent or a control is made of: the name of an expert, or `base`.
        training_records: training operator -> its record of what it did and took.
    """

    number: int
    recipe: str
    fitness: str
    tasks: dict[str, float] = field(default_factory=dict)
    climbed: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    elapsed: float = 0.0
    weights_sha256: str | None = None
    search_digest: str = ""
    parent: str = ""
    training_records: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.climbed.values()))

    @property
    def searched(self) -> bool:
        """Whether it is of the search itself, not of the second phase."""
        return self.role in ("search", "select", "final")

    @property
    def mean(self) -> float | None:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks) if self.tasks else None

    def record(self) -> dict[str, Any]:
        """The trial as the log keeps it, in JSON's types."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NOT_KEPT}
        return {**values, "blocks": list(self.blocks)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The trial that a record of the log holds.

        Raises:
            EarlierVersionError: an earlier version of evomerge wrote it.
            TypeError: it lacks a field, or has one that is unknown.
        """
        if _EARLIER & set(record):
            raise EarlierVersionError(
                "was written by an earlier version of evomerge, with other fields; go on with that version, "
                "or start a new study"
            )
        return cls(**{**record, "blocks": tuple(record.get("blocks", ()))})


def ranked_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Trials of the search whose values compare, the best first, each recipe once: the incumbents, where any were
    chosen; else those scored on all documents; else all. Failed trials are left out."""
    finished = [trial for trial in trials if trial.value is not None and trial.searched]
    if incumbents := [trial for trial in finished if trial.incumbent]:
        ranked = incumbents[::-1]
    else:
        pool = [trial for trial in finished if trial.all_documents] or finished
        ranked = sorted(pool, key=lambda trial: (-(trial.value or 0.0), trial.number))
    return list({trial.recipe: trial for trial in reversed(ranked)}.values())[::-1]


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The best of those trained, where there are any; else the best of the search. None if all failed.

    The best of a search is the last incumbent; where none was chosen, the trial of highest value, the earliest of
    equals. A trial that was scored on some documents only is not chosen where others were scored on all: luck in
    its documents would choose it.
    """
    trained = [trial for trial in trials if trial.role == "trained" and trial.value is not None]
    if trained:
        return max(trained, key=lambda trial: trial.value or 0.0)
    return next(iter(ranked_trials(trials)), None)


def elite_trials(trials: Sequence[Trial], top: float, least: int) -> list[Trial]:
    """The best trials of the search: a share of those whose values compare, and at least so many."""
    pool = ranked_trials(trials)
    return pool[: max(math.ceil(top * len(pool)), least)]
