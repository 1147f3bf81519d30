"""Runs a study: the host of a search that merges, scores and logs.

Only the log of finished trials is kept; everything else is computed again. A resumed study asks the sampler again
from the start and tells it the lines of the log. So a study that is killed at any moment goes on as if it had never
stopped, and its log is the same on any number of workers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from types import FrameType

from evomerge.errors import StudyError
from evomerge.files import writing
from evomerge.models import Progress
from evomerge.searching.asynchronous import run_async
from evomerge.searching.host import Assignment, Evaluation, Line, Reserve
from evomerge.searching.lines import failed_whole
from evomerge.searching.samplers import Problem
from evomerge.searching.search import Search
from evomerge.studies import life
from evomerge.studies.candidates import setup
from evomerge.studies.evaluator import Evaluator
from evomerge.studies.log import Log, with_score
from evomerge.studies.observer import Observer
from evomerge.studies.plan import Plan, check_training, starting_points
from evomerge.studies.training import train
from evomerge.studies.trials import Trial, best_trial
from evomerge.studies.workers.jobs import Pool
from evomerge.studies.workers.opening import open_pool


def search(plan: Plan, observer: Observer, progress: Progress = lambda text: None) -> list[Trial]:
    """Runs a created or interrupted study to the end of its budget, on workers of its own.

    Returns:
        All trials of the study.

    Raises:
        EvomergeError: workers cannot be set up, or the study cannot go on. Finished trials are kept.
        KeyboardInterrupt: the person pressed Ctrl-C. Finished trials are kept.
    """
    with writing.lock(plan.folder):
        life.keep_budget(plan.experiment)
        setup.prepare(plan.setup(), plan.laid.representatives(), progress)
        starting_points(plan, progress)  # leaves its measurements on disk, for `Study`
        check_training(plan)
        progress("starting workers")
        pool = open_pool(plan.experiment.workers, plan.setup())
        if pool.note:
            progress(pool.note)
        try:
            with _noticing_ctrl_c() as pressed:
                study = Study(plan, pool, observer, pressed)
                study.run()
        finally:
            pool.close()
        life.note_end(plan.experiment, len(study.trials))
    if study.trials and best_trial(study.trials) is None:
        raise StudyError(failed_whole(study.trials, f"all {len(study.trials)} candidates"))
    return study.trials


@contextmanager
def _noticing_ctrl_c() -> Iterator[threading.Event]:
    """Yields an event that is set when Ctrl-C is pressed; KeyboardInterrupt is raised as well.

    Native code may turn the KeyboardInterrupt into another error, which would count as a failure of the candidate.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Study:
    """A study under way. It is the `searching.host.Host` of its search.

    Args:
        plan: the experiment, laid over its models.
        pool: the workers that evaluate.
        observer: is told of each generation and trial.
        stopped: is set when the person wants the study to stop.
    """

    def __init__(self, plan: Plan, pool: Pool, observer: Observer, stopped: threading.Event | None = None) -> None:
        self._plan, self._observer = plan, observer
        self._log = Log(plan)
        self._evaluator = Evaluator(plan, pool, self._log.fitness, stopped or threading.Event())
        experiment, coordinates = plan.experiment, plan.coordinates
        entries = experiment.fitness.search
        problem = Problem(
            coordinates=coordinates,
            seed=experiment.seed,
            starts=starting_points(plan),
            objectives=len(entries) if experiment.fitness.objective == "pareto" else 1,
        )
        module = experiment.sampler.module
        sampler = module.make(problem, module.Options.model_validate(experiment.sampler.options))
        self._search = Search(
            module,
            sampler,
            pool.objective,
            experiment.seed,
            experiment.fidelity,
            self,
            several=problem.objectives > 1,
        )

    @property
    def trials(self) -> list[Trial]:
        """All trials of the log."""
        return self._log.trials

    def run(self) -> None:
        """Runs or resumes the search until its budget is spent, and then the second phase if there is one.

        Raises:
            StudyError: every candidate of a generation failed, or the log cannot be written or does not belong to
                this experiment.
        """
        if self._plan.experiment.mode == "async":
            run_async(self._search)
        else:
            self._search.run()
        if self._plan.training and best_trial(self.trials) is not None:
            train(self._plan, self._log, self._evaluator, self._observer)

    # The methods below make up the search's host.

    def log(self) -> Sequence[Line]:
        """The trials of the search, without the second phase. Each trial is a line."""
        return self._log.searched

    def room(self, wanted: int, *, begun: bool, reserve: Reserve) -> int:
        """How many of the wanted candidates the budget still has room for, see `searching.host.Host`."""
        budget = self._plan.experiment.budget
        room = wanted
        if budget.candidates is not None:
            room = min(room, budget.candidates - len(self._log.searched) - reserve.candidates)
        if begun:  # the other limits end a search between generations, so that a resumed one ends at the same place
            return max(room, 0)
        if budget.documents is not None and self._log.documents + reserve.documents >= budget.documents:
            room = 0
        if budget.hours is not None and self._log.elapsed >= 3600 * budget.hours:
            room = 0
        return max(room, 0)

    def begin(self, generation: int, size: int) -> None:
        """Tells the observer that a generation begins."""
        self._observer.generation(generation, size)

    def evaluate(self, assignments: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates genomes on the workers, and yields the key and the evaluation of each, in any order."""
        return self._evaluator.evaluate(assignments)

    def keep(self, line: Line) -> Line:
        """Logs a line as a trial, and returns the trial with the line's evaluation."""
        assert line.evaluation is not None
        recipe, score = line.evaluation.source.recipe, line.evaluation.source.score
        own = {one.name: getattr(line, one.name) for one in fields(Line) if one.name != "evaluation"}
        trial = self._log.new(**{**own, "recipe": recipe.sha256, "gradient": line.gradient and dict(line.gradient)})
        if line.reason is None:
            trial = with_score(trial, score)
            cost = self._evaluator.cost(recipe)
            if self._log.repeats(trial):
                trial = replace(trial, documents=0)
            else:
                trial = replace(trial, seconds=cost.seconds, tokens=cost.tokens)
        else:
            trial = replace(trial, documents=0)
        self._log.add(trial)
        self._observer.trial(trial)
        return replace(trial, evaluation=line.evaluation)
