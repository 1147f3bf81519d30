"""A pool that evaluates in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from evomerge.errors import StudyError
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.workers.jobs import Job, Outcome, evaluate


class InlinePool:
    """Evaluates in this process, one candidate at a time. See `jobs.Pool`."""

    size = 1

    def __init__(self, setup: Setup) -> None:
        self.workbench = Workbench(setup)
        self.note = self.workbench.note
        self.objective = self.workbench.objective

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs in their order.

        Raises:
            StudyError: a job is None, for which nobody could wait here.
        """
        for job in jobs:
            if job is None:
                raise StudyError("the sampler waits, but nothing is under way")
            yield job if isinstance(job, Outcome) else evaluate(self.workbench, job)

    def close(self) -> None:
        """Does nothing: there are no workers to end."""
