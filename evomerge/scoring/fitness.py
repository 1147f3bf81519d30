"""The fitness file: which lm-eval tasks a search climbs, and which it never sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from evomerge.files.hashing import digest_of_json
from evomerge.files.schema import Strict
from evomerge.scoring.reports import TaskSpec


class Entry(Strict):
    """One task of a fitness file.

    Attributes:
        task: lm-eval's name of it.
        metric: what is reported.
        climb: what the search climbs; the metric by default. Smooth metrics need far fewer documents than an
            accuracy for the same certainty: `probability`, `loglikelihood` and `margin` of multiple choice,
            `loglikelihood` of a generation task's reference answer, and `loglikelihood_per_byte` or `_per_word` of
            running text.
        weight: its share in the objective.
        num_fewshot, limit: as in lm-eval; the file's by default.
    """

    task: str
    metric: str = "acc"
    climb: str | None = None
    weight: float = Field(default=1.0, gt=0.0)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)

    @property
    def climbs(self) -> str:
        """The metric that the search climbs."""
        return self.climb or self.metric


class Fitness(Strict):
    """A fitness file. See `fitness/` for examples.

    Attributes:
        objective: `mean` climbs the weighted mean of the search entries' climbed metrics; with `pareto` each
            entry's climbed metric is an objective of its own, and the mean only ranks trials in tables.
    """

    include: str | None = None
    search: tuple[Entry, ...] = Field(min_length=1)
    holdout: tuple[Entry, ...] = ()
    objective: Literal["mean", "pareto"] = "mean"
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    apply_chat_template: bool = False

    @model_validator(mode="after")
    def _distinct(self) -> Fitness:
        searched = [entry.task for entry in self.search]
        held_out = [entry.task for entry in self.holdout]
        faults = [f"search: {task} stands twice" for task in sorted(set(searched)) if searched.count(task) > 1]
        faults += [f"holdout: {task} stands twice" for task in sorted(set(held_out)) if held_out.count(task) > 1]
        faults += [
            f"holdout: {task} is a search task as well; hold-out documents must never be searched on"
            for task in sorted(set(searched) & set(held_out))
        ]
        if self.objective == "pareto" and len(self.search) < 2:
            faults.append("objective: pareto needs at least two search entries; add one, or take mean")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def digest(self) -> str:
        """A hash of all that decides a candidate's value: the searched entries and how they are prompted."""
        content = self.model_dump(mode="json", exclude={"include", "holdout"})
        return digest_of_json(content)[:16]

    def specs(self, entries: Sequence[Entry]) -> tuple[TaskSpec, ...]:
        """The tasks of some of this file's entries, with the file's defaults filled in."""
        return tuple(
            TaskSpec(
                task=entry.task,
                metric=entry.metric,
                climbs=entry.climb,
                num_fewshot=self.num_fewshot if entry.num_fewshot is None else entry.num_fewshot,
                limit=self.limit if entry.limit is None else entry.limit,
                reference="loglikelihood" in (entry.metric, entry.climbs),
            )
            for entry in entries
        )
