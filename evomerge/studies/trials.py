"""A finished trial, and which of many is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from evomerge.searching.host import Line

# Fields that are not written to the log: the first is large, the second follows from `climbed`.
_NOT_KEPT = ("evaluation", "objectives")
_EARLIER = {"whole", "known", "course", "of", "left"}  # names of fields before they were renamed


class EarlierVersionError(Exception):
    """A log has fields of an earlier version of evomerge."""


@dataclass(frozen=True, kw_only=True)
class Trial(Line):
    """A finished candidate, as the log keeps it: the search's line, and what a study adds to it.

    Attributes:
        number: its place in the log, from 0.
        recipe, fitness: the hashes of the recipe that was built and of the fitness that scored it.
        tasks: entry -> its reported metric.
        climbed: entry -> its climbed metric.
        seconds: phase of the evaluation (merge, operators, scoring) -> its seconds; {} for a repeated recipe.
        documents: the document evaluations of this trial; 0 for a repeated recipe.
        tokens: the number of tokens that were forwarded for it.
        truncated: the number of answers that were cut off at their greatest length.
        elapsed: the seconds that the study had been running for, all sessions together.
        weights_sha256: the hash of the merged weights, see `files.hashing.sha256`; None where it was not computed.
        search_digest: `Experiment.search_digest` of the experiment that it belongs to.
        parent: the model that a parent or a control is made of: the name of an expert, or `base`; else empty.
        training_records: name of a training operator -> its record of the training.
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
        """Whether the trial belongs to the search itself, and not to the second phase."""
        return self.role in ("search", "select", "final")

    @property
    def mean(self) -> float | None:
        """The plain mean of the reported metrics; None if there are none."""
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
            TypeError: the record lacks a field, or has one that is unknown.
        """
        if _EARLIER & set(record):
            raise EarlierVersionError(
                "was written by an earlier version of evomerge, with other fields; go on with that version, "
                "or start a new study"
            )
        return cls(**{**record, "blocks": tuple(record.get("blocks", ()))})


def ranked_trials(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the search whose values compare with each other, the best first, each recipe once.

    They are the incumbents, where there are any; else the trials that were scored on all documents; else all.
    Failed trials are left out.
    """
    finished = [trial for trial in trials if trial.value is not None and trial.searched]
    if incumbents := [trial for trial in finished if trial.incumbent]:
        ranked = incumbents[::-1]
    else:
        pool = [trial for trial in finished if trial.all_documents] or finished
        ranked = sorted(pool, key=lambda trial: (-(trial.value or 0.0), trial.number))
    return list({trial.recipe: trial for trial in reversed(ranked)}.values())[::-1]


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The best trained trial, where there is one; else the best trial of the search. None if all failed.

    The best trial of a search is the last incumbent. Without incumbents it is the trial of the highest value, the
    earliest of equals. A trial that was scored on some documents only is not chosen where others were scored on
    all: it might have been lucky in its documents.
    """
    trained = [trial for trial in trials if trial.role == "trained" and trial.value is not None]
    if trained:
        return max(trained, key=lambda trial: trial.value or 0.0)
    return next(iter(ranked_trials(trials)), None)


def elite_trials(trials: Sequence[Trial], top: float, least: int) -> list[Trial]:
    """The best trials of the search.

    Args:
        top: how large a share of the trials whose values compare is taken, in (0, 1].
        least: how many trials are taken at least, if there are so many.
    """
    pool = ranked_trials(trials)
    return pool[: max(math.ceil(top * len(pool)), least)]
