"""A finished trial, and which of many is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.searching.spaces.genes import Genome

Role = Literal["search", "select", "final", "elite", "trained", "parent", "control"]


@dataclass(frozen=True)
class Trial:
    """A finished candidate, as the journal keeps it.

    Attributes:
        number: its place in the log; generation, slot: its place in the search.
        recipe, fitness: hashes of what was built and of what it was scored by.
        value: what the sampler climbs; None if the candidate failed.
        tasks, climbed: task -> reported metric, task -> climbed metric.
        seconds: spent in merge, operators and scoring; empty for a repeated recipe.
        documents: scored for this trial; 0 for a repeated recipe.
        elapsed: seconds that the study had been running for, all sessions together.
        reason: why it failed.
        role: `search`: asked for by the sampler, on the documents of its generation. `select`: compared with the
            incumbent, on documents that no search trial sees. `final`: the winner, on all documents. The other
            roles are of the second phase, all on all documents: `elite`, one of the best of the search; `trained`,
            the same after the training operators; `parent`; `control`, the best parent after the same training.
        blocks: its value on each block of documents, one behind the other; () where all were scored at once.
        whole: whether it was scored on all search documents, so that its value compares with any other's.
        incumbent: whether it was the best known from then on, of those compared.
        known: how many trials were in the log when its generation was asked for.
        gradient: coordinate -> derivative of the value; None where it was not asked for.
        course: a hash of the sampler and of how it was given documents.
        of: what a parent or a control is made of: the name of an expert, or `base`.
        left: training operator -> its record of what it did and took.
    """

    number: int
    generation: int
    slot: int
    genome: Genome
    recipe: str
    fitness: str
    value: float | None
    tasks: dict[str, float] = field(default_factory=dict)
    climbed: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    documents: int = 0
    truncated: int = 0
    elapsed: float = 0.0
    weights_sha256: str | None = None
    reason: str | None = None
    role: Role = "search"
    blocks: tuple[float, ...] = ()
    whole: bool = True
    incumbent: bool = False
    known: int = 0
    gradient: dict[str, float] | None = None
    course: str = ""
    of: str = ""
    left: dict[str, Any] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether it is of the search itself, not of the second phase."""
        return self.role in ("search", "select", "final")

    @property
    def mean(self) -> float | None:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks) if self.tasks else None


def ranked_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Trials of the search whose values compare, the best first: the incumbents, where any were chosen; else those
    scored on all documents; else all. Failed ones are left out."""
    finished = [trial for trial in trials if trial.value is not None and trial.searched]
    if incumbents := [trial for trial in finished if trial.incumbent]:
        return incumbents[::-1]
    whole = [trial for trial in finished if trial.whole]
    return sorted(whole or finished, key=lambda trial: (-(trial.value or 0.0), trial.number))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The best of those trained, where there are any; else the best of the search.

    That is the last incumbent; where none was chosen, the trial of highest value, the earliest of equals. Of trials
    scored on some documents only, none is chosen where there are others: luck in its documents would choose it.
    None if all failed.
    """
    trained = [trial for trial in trials if trial.role == "trained" and trial.value is not None]
    return (
        max(trained, key=lambda trial: trial.value or 0.0) if trained else next(iter(ranked_trials(trials)), None)
    )


def elite_trials(trials: Sequence[Trial], top: float, least: int) -> list[Trial]:
    """The best of the search, each recipe once: a share of those whose values compare, and at least so many."""
    pool = list({trial.recipe: trial for trial in reversed(ranked_trials(trials))}.values())[::-1]
    return pool[: max(math.ceil(top * len(pool)), least)]
