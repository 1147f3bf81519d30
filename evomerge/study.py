"""Runs a search: open or resume, ask, dispatch, tell, keep.

Everything but the log of finished trials is recomputed. A study is resumed by asking the sampler again from the
start and telling it what the log says, so a killed study goes on as if it had never stopped: at any moment, on
any number of workers, the log that results is the same.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pydantic import ValidationError

from evomerge import candidate, config, elites, plugins, racing, records, warm
from evomerge.candidate import Score, Setup, Survey
from evomerge.config import Experiment
from evomerge.elites import Member
from evomerge.errors import CheckpointError, ConfigError, EvomergeError, StudyError
from evomerge.fitness import document_scores
from evomerge.genes import Coordinate, Genome, initial
from evomerge.mutation import Operator
from evomerge.recipe import OperatorStep, Recipe, faults_of, pattern_faults
from evomerge.records import Journal, Trial
from evomerge.samplers import Problem
from evomerge.scoring import document_texts
from evomerge.search import Answer, Evaluated, Search, Task
from evomerge.space import Frame, coordinates, decode, known_points, pull_back, representatives
from evomerge.training import overlap
from evomerge.training.corpus import documents, file_sha256
from evomerge.workers import Job, Outcome, Pool, open_pool

SMALL_ENOUGH_TO_HASH = 2 << 30  # bytes of a model up to which every candidate's weights are hashed


@dataclass(frozen=True)
class Plan:
    """An experiment laid over its models: what a study needs besides workers.

    Attributes:
        longest: tokens of the longest text that some candidate is meant for; None if that is the base's own length.
    """

    experiment: Experiment
    survey: Survey
    frame: Frame
    coordinates: list[Coordinate]
    folder: Path
    longest: int | None = None

    @property
    def model_bytes(self) -> int:
        """Bytes of the live model."""
        return self.survey.parameters * (4 if self.survey.dtype == "float32" else 2)

    def setup(self, *, holdout: bool = False) -> Setup:
        """What workers are made from: with the search tasks, or with the hold-out tasks."""
        fitness = self.experiment.fitness
        return Setup(
            base=self.survey.base,
            experts=self.survey.experts,
            dtype=self.survey.dtype,
            cache=str(self.folder / records.TABLES),
            compiled=self.experiment.compile,
            fitness=fitness,
            entries=fitness.holdout if holdout else fitness.search,
            hash_weights=self.model_bytes <= SMALL_ENOUGH_TO_HASH,
            vocabulary=self.experiment.vocabulary,
            answers=str(self.folder / records.ANSWERS),
            deltas=str(self.folder / records.DELTAS),
            max_length=self.longest,
        )

    @property
    def training(self) -> list[Operator]:
        """The operators of the second phase."""
        return [operator for operator in self.experiment.operators if operator.training]


def plan(experiment: Experiment, progress: candidate.Progress = lambda text: None) -> Plan:
    """Opens the models of an experiment and lays its search space over them.

    Raises:
        CheckpointError: a model is missing, damaged or does not fit.
        ConfigError: the search space does not fit the model, or a start the search space.
    """
    earlier = _earlier(experiment)
    survey = candidate.survey(
        experiment.base, experiment.experts, experiment.dtype, progress, experiment.vocabulary
    )
    frame = Frame(
        base=survey.base,
        experts=survey.experts,
        layers=survey.layers,
        dtype=survey.dtype,
        seed=experiment.seed,
        operators=tuple(operator for operator in experiment.operators if not operator.training),
        vocabulary=experiment.vocabulary,
    )
    points = coordinates(experiment.space, frame)
    try:
        recipe = decode(experiment.space, frame, initial(points))
    except ValidationError as error:  # values under `fixed`, which only now meet experts and layers
        raise ConfigError("space", faults_of(error)) from error
    if faults := pattern_faults(recipe, survey.names):
        raise ConfigError("space", faults)
    pure = [step for step in _extremes(experiment) if not candidate.trains(step)]
    candidate.check_operators(survey.base, survey.experts, pure)
    # With the hashes of the weights, so that a study notices if they change; and with the starts themselves, which
    # earlier studies may lose.
    starts = warm.resolve(points, experiment.starts, earlier)
    experiment = experiment.model_copy(update={"base": survey.base, "experts": survey.experts, "starts": starts})
    longest = candidate.longest_text(survey.base, pure)
    return Plan(experiment, survey, frame, points, Path(experiment.study), longest)


def create(experiment: Experiment) -> Path:
    """Makes the folder of a new study.

    Raises:
        StudyError: there is a study in it already, or it cannot be written.
    """
    folder = Path(experiment.study)
    if (folder / records.EXPERIMENT).exists():
        raise StudyError(
            f"{folder} holds a study already: continue it with `evomerge resume {folder}`, "
            "or give another folder under `study`"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f"study: {folder} is not an empty folder; give another one")
    with records.saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _keep(experiment, folder)
    return folder


def _keep(experiment: Experiment, folder: Path) -> None:
    with records.saving(folder):
        aside = folder / f"{records.EXPERIMENT}.tmp"
        aside.write_text(config.to_yaml(experiment), encoding="utf-8")
        aside.replace(folder / records.EXPERIMENT)


def abandon(folder: Path) -> None:
    """Removes a study that failed before its first trial, so that its experiment can be put right and run again."""
    try:
        with records.lock(folder):
            if not records.exists(folder) or not records.read_trials(folder):
                shutil.rmtree(folder, ignore_errors=True)
    except StudyError:
        return  # another process runs it, or the disk is full: it stays


def reopen(folder: Path, candidates: int | None = None, documents: int | None = None) -> Experiment:
    """The experiment of a study folder, wherever the folder lies now.

    Args:
        candidates, documents: replace the budget's; for good, once the search goes on.

    Raises:
        StudyError: the folder is no study.
    """
    if not (folder / records.EXPERIMENT).is_file():
        raise StudyError(f"{folder} is no study: it has no {records.EXPERIMENT}; start one with `evomerge run`")
    experiment = config.load(folder / records.EXPERIMENT)
    experiment = experiment.model_copy(update={"study": str(folder.resolve())})
    wanted = {name: value for name, value in (("candidates", candidates), ("documents", documents)) if value}
    budget = experiment.budget.model_copy(update=wanted)
    return experiment.model_copy(update={"budget": budget})


def check_training(plan: Plan) -> None:
    """Checks what is to be trained on: that it is there, unchanged, fits the models, and holds nothing that
    candidates are scored by, in the search or on the hold-out.

    Raises:
        ConfigError: with all faults of one kind.
    """
    if not plan.training:
        return
    candidate.check_operators(plan.survey.base, plan.survey.experts, _extremes(plan.experiment))
    faults = []
    for operator in plan.training:
        for name, corpus in operator.corpora().items():
            if corpus.sha256 not in (None, file_sha256(Path(corpus.path))):
                faults.append(
                    f"{operator.name}.data.{name}: {corpus.path} has changed since the study began; put it back"
                )
    if faults:
        raise ConfigError("operators", faults)
    fitness = plan.experiment.fitness
    include = Path(fitness.include) if fitness.include else None
    reserved = document_texts(fitness.specs((*fitness.search, *fitness.holdout)), include)
    for operator in plan.training:
        for name, corpus in operator.corpora().items():
            shared = overlap.shared(documents(Path(corpus.path)), reserved)
            faults += [f"{operator.name}.data.{name}: {line}" for line in shared]
    if faults:
        raise ConfigError("operators", faults)


class Observer(Protocol):
    """Is told of a study's progress."""

    def generation(self, number: int, size: int) -> None:
        """A generation of so many candidates begins."""

    def trial(self, trial: Trial) -> None:
        """A trial is in the log."""


def search(plan: Plan, observer: Observer, progress: candidate.Progress = lambda text: None) -> list[Trial]:
    """Runs a created or interrupted study to the end of its budget, on workers of its own.

    Returns:
        All trials of the study.

    Raises:
        EvomergeError: workers cannot be set up, or the study cannot go on; what is finished is kept.
    """
    with records.lock(plan.folder):
        if config.load(plan.folder / records.EXPERIMENT).budget != plan.experiment.budget:
            _keep(plan.experiment, plan.folder)
        candidate.prepare(
            plan.setup(), representatives(plan.experiment.space, plan.frame), plan.survey.names, progress
        )
        _starts(plan, progress)  # measures what there is to measure: later it is found on disk
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
    if study.trials and records.best(study.trials) is None:
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


def recipe_of(plan: Plan, trial: Trial) -> Recipe:
    """The recipe of a trial, rebuilt from its genome.

    Raises:
        CheckpointError: it is no longer the recipe that was scored.
    """
    recipe = elites.recipe(plan.experiment.space, plan.frame, plan.training, trial)
    if recipe.sha256 != trial.recipe:
        raise CheckpointError(
            f"{plan.folder}: trial {trial.number} cannot be rebuilt: its recipe was {trial.recipe[:12]} and is now "
            f"{recipe.sha256[:12]}; a checkpoint, or the study's {records.EXPERIMENT}, has changed since the search"
        )
    return recipe


def left(plan: Plan, trials: Iterable[Trial]) -> dict[str, str]:
    """What training left, by the names of its files: see `candidate.Setup.left`."""
    found = {}
    for trial in trials:
        if trial.left:
            recipe = recipe_of(plan, trial)
            for position, step in enumerate(recipe.operators):
                if step.name in trial.left:
                    found[candidate.delta_file(recipe, position)] = str(trial.left[step.name]["sha256"])
    return found


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
        module = plugins.load("samplers", experiment.sampler.name)
        total = sum(entry.weight for entry in self._entries)
        problem = Problem(
            coordinates=plan.coordinates,
            seed=experiment.seed,
            starts=_starts(plan),
            objectives=len(self._entries) if experiment.fitness.objective == "pareto" else 1,
        )
        sampler = module.make(problem, module.Options.model_validate(experiment.sampler.options))
        entries = [
            racing.Entry(entry.task, self._pool.documents[entry.task], entry.weight / total)
            for entry in self._entries
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
        if self._plan.training and records.best(self.trials) is not None:
            self._train()

    # --- what a search asks of its host ---

    def log(self) -> Sequence[Evaluated]:
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
                records.write_score(self._plan.folder, recipe.sha256, self._fitness, outcome.score)
            for key in alike.pop(_identity(task, recipe)):
                yield key, self._answer(asked.pop(key)[0], outcome)

    def _known(self, task: Task, recipe: Recipe) -> Outcome | None:
        """The outcome of a task on all documents, where the recipe was scored before. A trained one is built again:
        only then its record is known, and what it was trained to is there already."""
        trained = any(map(candidate.trains, recipe.operators))
        if task.documents is not None or task.gradient or trained:
            return None
        score = records.read_score(self._plan.folder, recipe.sha256, self._fitness)
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

    def keep(self, line: Evaluated) -> Evaluated:
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
        self._evaluate_members(elites.untrained(self._plan.frame, operators, self.trials))
        self._evaluate_members(elites.trained(self._plan.frame, operators, self.trials))

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
        recipes = {slot: elites.recipe(space, frame, plan.training, members[slot]) for slot in slots}
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
                records.write_score(plan.folder, recipes[outcome.key].sha256, self._fitness, outcome.score)
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

    def _trial(self, line: Evaluated) -> Trial:
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

    def _repeats(self, line: Evaluated, recipe: Recipe) -> bool:
        """Whether the log has this recipe on the same documents: then it cost nothing."""
        if line.whole:
            return recipe.sha256 in self._scored
        here = (line.generation, line.role, recipe.sha256)
        return any((t.generation, t.role, t.recipe) == here and t.value is not None for t in self.trials)

    def _checked(self, trial: Trial) -> Evaluated | None:
        """A trial of the log, checked to be of this experiment, as the search sees it; None of the second phase."""
        recipe_of(self._plan, trial)
        if trial.fitness != self._fitness:
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was scored with another fitness than "
                f"{records.EXPERIMENT} has now; put it back, or start a new study"
            )
        if trial.course not in ("", self._course):
            raise StudyError(
                f"{self._plan.folder}: trial {trial.number} of the log was searched with another sampler, fidelity "
                f"or mode than {records.EXPERIMENT} has now; put them back, or start a new study"
            )
        return self._line(trial) if trial.searched else None

    def _line(self, trial: Trial) -> Evaluated:
        return Evaluated(
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


def _extremes(experiment: Experiment) -> list[OperatorStep]:
    """All its operators, with each of their genes at either end."""
    return [step for operator in experiment.operators for step in operator.extremes()]


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


def _starts(plan: Plan, progress: candidate.Progress = lambda text: None) -> list[Genome]:
    """Points to look at first: those that the experiment names, and those known of any such space."""
    experiment = plan.experiment
    points: list[Genome] = [start for start in experiment.starts if not isinstance(start, str)]
    if experiment.warm_start:
        stock = warm.model_stock(plan.setup(), experiment.space, plan.frame, plan.survey.names, progress)
        points += known_points(experiment.space, plan.frame, [] if stock is None else [stock])
    else:
        points.append(initial(plan.coordinates))
    return [point for number, point in enumerate(points) if point not in points[:number]]


def _earlier(experiment: Experiment) -> dict[str, Genome]:
    """The best points of the earlier studies that an experiment starts from, by their paths.

    Raises:
        ConfigError: there is no study, or nothing finished in it; with all faults.
    """
    found, faults = {}, []
    for path in (start for start in experiment.starts if isinstance(start, str)):
        try:
            winner = records.best(records.read_trials(Path(path)))
        except EvomergeError as error:
            faults.append(f"{error}. Give the folder of an earlier study, or take it off the list")
            continue
        if winner is None:
            faults.append(f"{path} has no finished trial; take it off the list")
        else:
            found[path] = winner.genome
    if faults:
        raise ConfigError("starts", faults)
    return found
