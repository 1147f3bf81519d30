"""Runs a search: open or resume, ask, dispatch, tell, keep.

Everything but the log of finished trials is recomputed. A study is resumed by asking the sampler again from the
start and telling it what the log says, so a killed study goes on as if it had never stopped: at any moment, on
any number of workers, the log that results is the same.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

from evomerge.errors import StudyError
from evomerge.files import writing
from evomerge.models.survey import Progress
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.objective import document_scores
from evomerge.searching.documents import Entry
from evomerge.searching.samplers import Problem
from evomerge.searching.search import Answer, Line, Search, Task
from evomerge.searching.spaces.decoding import decode, pull_back, representatives
from evomerge.studies import scores, second_phase
from evomerge.studies.candidates import operating, workbench
from evomerge.studies.candidates.workbench import Score
from evomerge.studies.experiment import load_experiment
from evomerge.studies.folder import EXPERIMENT
from evomerge.studies.journal import Journal
from evomerge.studies.life import keep_experiment
from evomerge.studies.plan import Plan, check_training, recipe_of, starting_points
from evomerge.studies.second_phase import Member
from evomerge.studies.trials import Trial, best_trial
from evomerge.studies.workers.jobs import Job, Outcome, Pool
from evomerge.studies.workers.opening import open_pool


class Observer(Protocol):
    """Is told of a study's progress."""

    def generation(self, number: int, size: int) -> None:
        """A generation of so many candidates begins."""

    def trial(self, trial: Trial) -> None:
        """A trial is in the log."""


def search(plan: Plan, observer: Observer, progress: Progress = lambda text: None) -> list[Trial]:
    """Runs a created or interrupted study to the end of its budget, on workers of its own.

    Returns:
        All trials of the study.

    Raises:
        EvomergeError: workers cannot be set up, or the study cannot go on; what is finished is kept.
    """
    with writing.lock(plan.folder):
        if load_experiment(plan.folder / EXPERIMENT).budget != plan.experiment.budget:
            keep_experiment(plan.experiment, plan.folder)
        workbench.prepare(
            plan.setup(), representatives(plan.experiment.space, plan.frame), plan.survey.names, progress
        )
        starting_points(plan, progress)  # measures what there is to measure: later it is found on disk
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
    if study.trials and best_trial(study.trials) is None:
        raise StudyError(_all_failed(study.trials, f"all {len(study.trials)} candidates"))
    return study.trials


@contextmanager
def _noticing_ctrl_c() -> Iterator[threading.Event]:
    """Notes that Ctrl-C was pressed, beside raising KeyboardInterrupt.

    Native code may turn that into another error, which would be taken for the candidate's.
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


def _all_failed(trials: Sequence[Trial], which: str) -> str:
    reasons = sorted({trial.reason or "" for trial in trials})
    return f"{which} failed:\n" + "\n".join(f"  {reason}" for reason in reasons[:3])


class Study:
    """A search under way: the host of a `search.Search` that merges, scores and logs.

    Args:
        plan: the experiment, laid over its models.
        pool: who evaluates.
        observer: is told of each step.
        stopped: set when the person wants it to stop.
    """

    def __init__(self, plan: Plan, pool: Pool, observer: Observer, stopped: threading.Event | None = None) -> None:
        self._stopped = stopped or threading.Event()
        self._plan = plan
        self._pool = pool
        self._observer = observer
        experiment = plan.experiment
        self._fitness = experiment.fitness.digest()
        self._course = experiment.course()
        self._entries = experiment.fitness.search
        objectives = [entry.task for entry in self._entries] if experiment.fitness.objective == "pareto" else []
        self._journal = Journal(plan.folder, plan.coordinates, objectives)
        self.trials: list[Trial] = self._journal.trials()
        self._lines = [line for trial in self.trials if (line := self._checked(trial)) is not None]
        # A failed recipe is tried again: its failure may have been the machine's.
        self._scored = {trial.recipe for trial in self.trials if trial.value is not None and trial.whole}
        self._costs: dict[str, _Cost] = {}  # of recipes that are not in the log yet
        self._elapsed = max((trial.elapsed for trial in self.trials), default=0.0)
        self._start = time.monotonic()
        self._search = self._open()

    def _open(self) -> Search:
        experiment, plan = self._plan.experiment, self._plan
        module = experiment.sampler.module
        total = sum(entry.weight for entry in self._entries)
        problem = Problem(
            coordinates=plan.coordinates,
            seed=experiment.seed,
            starts=starting_points(plan),
            objectives=len(self._entries) if experiment.fitness.objective == "pareto" else 1,
        )
        sampler = module.make(problem, module.Options.model_validate(experiment.sampler.options))
        entries = [
            Entry(entry.task, self._pool.documents[entry.task], entry.weight / total) for entry in self._entries
        ]
        many = problem.objectives > 1
        return Search(module, sampler, entries, experiment.seed, experiment.fidelity, self, many=many)

    def run(self) -> None:
        """Goes on until the budget is spent.

        Raises:
            StudyError: every candidate of a generation failed, or the log cannot be written, or does not belong to
                this experiment.
        """
        if self._plan.experiment.mode == "async":
            self._search.run_async()
        else:
            self._search.run()
        if self._plan.training and best_trial(self.trials) is not None:
            self._train()

    # --- what a search asks of its host ---

    def log(self) -> Sequence[Line]:
        """The trials, as a search sees them."""
        return self._lines

    def room(self, wanted: int, *, begun: bool, reserve: int) -> int:
        """How many candidates the budget still has room for."""
        budget = self._plan.experiment.budget
        room = wanted
        if budget.candidates is not None:
            room = min(room, budget.candidates - len(self._lines))
        if begun:  # the other limits end a search between generations, so that a resumed one ends at the same place
            return max(room, 0)
        if budget.documents is not None and self._spent() + reserve >= budget.documents:
            room = 0
        if budget.hours is not None and self._seconds() >= 3600 * budget.hours:
            room = 0
        return max(room, 0)

    def _spent(self) -> int:
        return sum(line.documents for line in self._lines)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._start

    def begin(self, generation: int, size: int) -> None:
        """A generation begins."""
        self._observer.generation(generation, size)

    def evaluate(self, tasks: Iterable[Task | None]) -> Iterator[tuple[int, Answer]]:
        """Evaluates tasks on the pool. Equal recipes on the same documents are one: what is known is not asked."""
        asked: dict[int, tuple[Task, Recipe]] = {}
        alike: dict[str, list[int]] = {}
        on_disk: set[int] = set()

        def jobs() -> Iterator[Job | Outcome | None]:
            for task in tasks:
                if task is None:
                    yield None
                    continue
                recipe = decode(self._plan.experiment.space, self._plan.frame, task.genome)
                asked[task.key] = task, recipe
                twins = alike.setdefault(_identity(task, recipe), [])
                twins.append(task.key)
                if len(twins) == 1:
                    known = self._known(task, recipe)
                    if known is not None:
                        on_disk.add(task.key)
                    yield known or Job(task.key, recipe, task.documents, task.gradient)

        for outcome in self._pool.run(jobs()):
            if self._stopped.is_set():
                raise KeyboardInterrupt
            task, recipe = asked[outcome.key]
            self._count(recipe, outcome)
            new = task.documents is None and not task.gradient and outcome.key not in on_disk
            if outcome.score is not None and new:
                scores.write_score(self._plan.folder, recipe.sha256, self._fitness, outcome.score)
            for key in alike.pop(_identity(task, recipe)):
                yield key, self._answer(asked.pop(key)[0], outcome)

    def _known(self, task: Task, recipe: Recipe) -> Outcome | None:
        """The outcome of a task on all documents, where the recipe was scored before. A trained one is built again:
        only then its record is known, and what it was trained to is there already."""
        trained = any(map(operating.trains, recipe.operators))
        if task.documents is not None or task.gradient or trained:
            return None
        score = scores.read_score(self._plan.folder, recipe.sha256, self._fitness)
        return None if score is None else Outcome(task.key, score)

    def _count(self, recipe: Recipe, outcome: Outcome) -> None:
        """A candidate may be scored in several steps: its trial tells what all of them took."""
        if outcome.score is not None:
            cost = self._costs.setdefault(recipe.sha256, _Cost())
            cost.tokens += outcome.score.report.tokens
            for phase, seconds in outcome.score.seconds.items():
                cost.seconds[phase] = cost.seconds.get(phase, 0.0) + seconds

    def _answer(self, task: Task, outcome: Outcome) -> Answer:
        score = outcome.score
        if score is None:
            return Answer(reason=outcome.reason)
        answer = Answer(
            document_scores(self._entries, score.report, score.groups), score.measured.value, source=score
        )
        if outcome.slope is None:
            return answer
        slope = pull_back(self._plan.experiment.space, self._plan.frame, task.genome, outcome.slope)
        return replace(answer, gradient=slope)

    def keep(self, line: Line) -> Line:
        """Logs a line. The answer is not kept: it holds the scores of every document."""
        trial = self._trial(line)
        self._log(trial)
        self._lines.append(self._line(trial))
        self._observer.trial(trial)
        return replace(self._lines[-1], answer=line.answer)

    # --- the second phase ---

    def _train(self) -> None:
        """Trains the elites and the control, each once, whatever of them the log has already."""
        operators = self._plan.training
        self._evaluate_members(second_phase.untrained(self._plan.frame, operators, self.trials))
        self._evaluate_members(second_phase.trained(self._plan.frame, operators, self.trials))

    def _evaluate_members(self, members: Sequence[Member]) -> None:
        """Evaluates what of the second phase is not in the log yet, and logs it in its order."""
        slots = [
            slot for slot, member in enumerate(members) if not any(member.same(trial) for trial in self.trials)
        ]
        if not slots:
            return
        generation = 1 + max(line.generation for line in self._lines)
        self._observer.generation(generation, len(slots))
        plan = self._plan
        space, frame = plan.experiment.space, plan.frame
        recipes = {slot: second_phase.recipe(space, frame, plan.training, members[slot]) for slot in slots}
        known = {
            slot: self._known(Task(slot, members[slot].genome, None), recipe) for slot, recipe in recipes.items()
        }
        ready: dict[int, Outcome] = {}
        waiting = list(slots)
        for outcome in self._pool.run(known[slot] or Job(slot, recipes[slot]) for slot in slots):
            if self._stopped.is_set():
                raise KeyboardInterrupt
            ready[outcome.key] = outcome
            if outcome.score is not None and known[outcome.key] is None:
                scores.write_score(plan.folder, recipes[outcome.key].sha256, self._fitness, outcome.score)
            while waiting and waiting[0] in ready:
                slot = waiting.pop(0)
                self._keep_member(members[slot], recipes[slot], generation, slot, ready.pop(slot))

    def _keep_member(self, member: Member, recipe: Recipe, generation: int, slot: int, outcome: Outcome) -> None:
        score = outcome.score
        trial = self._new(
            generation=generation,
            slot=slot,
            genome=member.genome,
            recipe=recipe.sha256,
            value=None if score is None else score.measured.value,
            reason=outcome.reason,
            role=member.role,
            of=member.of,
        )
        if score is not None:
            repeated = recipe.sha256 in self._scored
            whole = sum(len(task.documents) for task in score.report.tasks.values())
            trial = replace(
                _scored(trial, score),
                seconds={} if repeated else score.seconds,
                tokens=0 if repeated else score.report.tokens,
                documents=0 if repeated else whole,
                left=score.left,
            )
        self._log(trial)
        self._observer.trial(trial)

    # --- trials and lines ---

    def _new(self, **known: Any) -> Trial:
        """The next trial of the log."""
        return Trial(
            number=len(self.trials),
            fitness=self._fitness,
            elapsed=self._seconds(),
            course=self._course,
            **known,
        )

    def _log(self, trial: Trial) -> None:
        self._journal.add(trial)
        self.trials.append(trial)
        if trial.value is not None and trial.whole:
            self._scored.add(trial.recipe)

    def _trial(self, line: Line) -> Trial:
        recipe = decode(self._plan.experiment.space, self._plan.frame, line.genome)
        answer = line.answer
        assert answer is not None
        blank = self._new(
            generation=line.generation,
            slot=line.slot,
            genome=line.genome,
            recipe=recipe.sha256,
            value=line.value,
            documents=line.documents,
            reason=line.reason,
            role=line.role,
            blocks=line.blocks,
            whole=line.whole,
            incumbent=line.incumbent,
            known=line.known,
            gradient=None if line.gradient is None else dict(line.gradient),
        )
        if line.reason is not None:
            return replace(blank, documents=0)
        scored = _scored(blank, answer.source)
        cost = self._costs.pop(recipe.sha256, _Cost())
        if self._repeats(line, recipe):
            return replace(scored, documents=0)
        return replace(scored, seconds=cost.seconds, tokens=cost.tokens)

    def _repeats(self, line: Line, recipe: Recipe) -> bool:
        """Whether the log has this recipe on the same documents: then it cost nothing."""
        if line.whole:
            return recipe.sha256 in self._scored
        here = (line.generation, line.role, recipe.sha256)
        return any((t.generation, t.role, t.recipe) == here and t.value is not None for t in self.trials)

    def _checked(self, trial: Trial) -> Line | None:
        """A trial of the log, checked to be of this experiment, as the search sees it; None of the second phase."""
        recipe_of(self._plan, trial)
        if trial.fitness != self._fitness:
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was scored with another fitness than "
                f"{EXPERIMENT} has now; put it back, or start a new study"
            )
        if trial.course not in ("", self._course):
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was searched with another sampler, fidelity "
                f"or mode than {EXPERIMENT} has now; put them back, or start a new study"
            )
        return self._line(trial) if trial.searched else None

    def _line(self, trial: Trial) -> Line:
        return Line(
            generation=trial.generation,
            slot=trial.slot,
            genome=trial.genome,
            value=trial.value,
            role=trial.role,  # type: ignore[arg-type]
            objectives=tuple(trial.climbed[e.task] for e in self._entries if e.task in trial.climbed),
            blocks=trial.blocks,
            whole=trial.whole,
            incumbent=trial.incumbent,
            known=trial.known,
            gradient=trial.gradient,
            documents=trial.documents,
            reason=trial.reason,
        )


def _scored(trial: Trial, score: Score) -> Trial:
    """A trial with what a score says of it."""
    return replace(
        trial,
        tasks=score.measured.tasks,
        climbed=score.measured.climbed,
        truncated=sum(score.report.truncated.values()),
        weights_sha256=score.weights_sha256,
    )


@dataclass
class _Cost:
    """What it took to score a candidate: tokens forwarded, seconds by phase."""

    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def _identity(task: Task, recipe: Recipe) -> str:
    """What two tasks have in common that have one answer."""
    return f"{recipe.sha256} {task.gradient} {sorted((task.documents or {}).items())}"
