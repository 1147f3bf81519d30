"""The log of a study under way: checked when it is opened, appended to trial by trial."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from evomerge.errors import StudyError
from evomerge.studies.candidates.score import Score
from evomerge.studies.folder import EXPERIMENT
from evomerge.studies.journal import Journal
from evomerge.studies.plan import Plan, recipe_of
from evomerge.studies.trials import Trial


class Log:
    """The trials of a study under way, on disk and in memory.

    Attributes:
        fitness: the hash of the fitness.
        trials: all trials, in order.
        searched: the trials of the search itself, without the second phase.
        scored: the sha256 of each recipe that was scored on all search documents.

    Raises:
        StudyError: the log is damaged, or was not written by this experiment.
        CheckpointError: a recipe in the log is no longer what it was, because a checkpoint has changed.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        fitness = plan.experiment.fitness
        self.fitness, self._search_digest = fitness.digest(), plan.experiment.search_digest()
        objectives = [entry.task for entry in fitness.search] if fitness.objective == "pareto" else []
        self._journal = Journal(plan.folder, plan.coordinates, objectives)
        self.trials: list[Trial] = self._journal.trials()
        for trial in self.trials:
            self._check(trial)
        self.searched = [trial for trial in self.trials if trial.searched]
        # Failed recipes are left out, so that they are tried again: the machine may have been the cause.
        self.scored = {trial.recipe for trial in self.trials if trial.value is not None and trial.all_documents}
        self._elapsed = max((trial.elapsed for trial in self.trials), default=0.0)
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds that the study has been running for, all sessions together."""
        return self._elapsed + time.monotonic() - self._start

    @property
    def documents(self) -> int:
        """How many document evaluations the search took."""
        return sum(trial.documents for trial in self.searched)

    def new(self, **fields: Any) -> Trial:
        """Makes the next trial of the log, without adding it.

        Args:
            fields: the other fields of the trial.
        """
        return Trial(
            number=len(self.trials),
            fitness=self.fitness,
            elapsed=self.elapsed,
            search_digest=self._search_digest,
            **fields,
        )

    def add(self, trial: Trial) -> None:
        """Appends a trial to the log.

        Raises:
            StudyError: the disk or the database does not take it.
        """
        self._journal.add(trial)
        self.trials.append(trial)
        if trial.searched:
            self.searched.append(trial)
        if trial.value is not None and trial.all_documents:
            self.scored.add(trial.recipe)

    def repeats(self, trial: Trial) -> bool:
        """Whether the log has the trial's recipe on the same documents already, so that the trial cost nothing."""
        if trial.all_documents:
            return trial.recipe in self.scored
        here = (trial.generation, trial.role, trial.recipe)
        return any((t.generation, t.role, t.recipe) == here and t.value is not None for t in self.trials)

    def _check(self, trial: Trial) -> None:
        """Checks that this experiment made a trial of the log."""
        recipe_of(self._plan, trial)
        if trial.fitness != self.fitness:
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was scored with another fitness than "
                f"{EXPERIMENT} has now; put it back, or start a new study"
            )
        if trial.search_digest != self._search_digest:
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was searched with another sampler, fidelity "
                f"or mode than {EXPERIMENT} has now; put them back, or start a new study"
            )


def with_score(trial: Trial, score: Score) -> Trial:
    """The trial with the results that a score holds filled in."""
    return replace(
        trial,
        tasks=score.measured.tasks,
        climbed=score.measured.climbed,
        truncated=sum(score.report.truncated.values()),
        weights_sha256=score.weights_sha256,
    )
