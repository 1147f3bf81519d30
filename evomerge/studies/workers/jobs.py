"""What is asked of a worker, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.errors import CandidateError, named_first_line
from evomerge.merging.gradients import Tables
from evomerge.recipes.recipe import Recipe
from evomerge.studies.candidates.score import Score
from evomerge.studies.candidates.workbench import Workbench


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate. `key` comes back with its outcome.

    Attributes:
        documents: entry of the fitness -> ids of the documents to score; None for all.
        gradient: whether the slope in the recipe's coefficients is wanted.
    """

    key: int
    recipe: Recipe
    documents: Mapping[str, Sequence[int]] | None = None
    gradient: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a score, and the slope if it was wanted; or the reason that there is none.

    Attributes:
        from_disk: whether the score was kept from an earlier time, and no worker was asked.
    """

    key: int
    score: Score | None = None
    reason: str | None = None
    slope: Tables | None = None
    from_disk: bool = False


class Pool(Protocol):
    """Evaluates jobs. Outcomes come as they are ready, in any order.

    Attributes:
        size: how many at once. note: what people should know of how they are evaluated, if anything.
        documents: entry of the fitness -> the number of its documents.
    """

    size: int
    note: str | None
    documents: dict[str, int]

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs, at most `size` at once. The next is taken when a worker is free for it; None says
        that there is none before some outcome is known. An outcome among them comes back as it is."""

    def close(self) -> None:
        """Ends the workers."""


def evaluate(workbench: Workbench, job: Job) -> Outcome:
    """One candidate's outcome. No fault of a candidate gets past this line."""
    try:
        if job.gradient:
            score, slope = workbench.gradient(job.recipe, job.documents)
            return Outcome(job.key, score, slope=slope)
        return Outcome(job.key, workbench.evaluate(job.recipe, job.documents))
    except CandidateError as error:
        return Outcome(job.key, reason=str(error))
    except Exception as error:  # a fault of ours, or of a task's code, is the candidate's: the study goes on
        return Outcome(job.key, reason=named_first_line(error))
