"""Jobs for workers, their outcomes, and the pool of workers as a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from evomerge.errors import CandidateError, named_first_line
from evomerge.merging.gradients import Tables
from evomerge.recipes.recipe import Recipe
from evomerge.searching.documents import Chosen
from evomerge.searching.objective import Objective
from evomerge.studies.candidates.score import Score
from evomerge.studies.candidates.workbench import Workbench


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate.

    Attributes:
        key: comes back with the outcome.
        documents: the documents to score; None for all.
        gradient: whether the slope in the recipe's coefficients is wanted.
    """

    key: int
    recipe: Recipe
    documents: Chosen | None = None
    gradient: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a score, or the reason why there is none.

    Attributes:
        key: the job's key.
        score: the score; None if the candidate failed.
        reason: why the candidate failed; None if it did not.
        slope: the slope, if it was wanted, see `merging.gradients.Gradient.tables`.
        from_disk: whether the score was read from disk, and no worker was asked.
    """

    key: int
    score: Score | None = None
    reason: str | None = None
    slope: Tables | None = None
    from_disk: bool = False


class Pool(Protocol):
    """Evaluates jobs.

    Attributes:
        size: how many jobs it evaluates at once.
        note: what people should know of how candidates are scored; None where there is nothing to tell.
        objective: the value to climb, bound to the documents of the entries that are scored.
    """

    size: int
    note: str | None
    objective: Objective

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates jobs, at most `size` at once. Outcomes come as they are ready, in any order.

        Args:
            jobs: the next one is taken when a worker is free for it. None says that there is no other before some
                outcome is known. An outcome among them comes back as it is.
        """

    def close(self) -> None:
        """Ends the workers."""


def evaluate(workbench: Workbench, job: Job) -> Outcome:
    """Does a job on a workbench. No error of a candidate gets out of here: it becomes an outcome with a reason."""
    try:
        if job.gradient:
            score, slope = workbench.gradient(job.recipe, job.documents)
            return Outcome(job.key, score, slope=slope)
        return Outcome(job.key, workbench.evaluate(job.recipe, job.documents))
    except CandidateError as error:
        return Outcome(job.key, reason=str(error))
    except Exception as error:  # a fault of ours, or of a task's code, is the candidate's: the study goes on
        return Outcome(job.key, reason=named_first_line(error))
