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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

from pydantic import ValidationError

from evomerge import candidate, config, plugins, records
from evomerge.candidate import Setup, Survey
from evomerge.config import Experiment
from evomerge.errors import CheckpointError, ConfigError, StudyError
from evomerge.recipe import Recipe, faults_of, pattern_faults
from evomerge.records import Journal, Trial
from evomerge.space import (
    Coordinate,
    Frame,
    Genome,
    coordinates,
    decode,
    initial,
    known_points,
    representatives,
)
from evomerge.workers import Job, Outcome, Pool, open_pool

SMALL_ENOUGH_TO_HASH = 2 << 30  # bytes of a model up to which every candidate's weights are hashed


@dataclass(frozen=True)
class Plan:
    """An experiment laid over its models: what a study needs besides workers."""

    experiment: Experiment
    survey: Survey
    frame: Frame
    coordinates: list[Coordinate]
    folder: Path

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
        )


def plan(experiment: Experiment, progress: candidate.Progress = lambda text: None) -> Plan:
    """Opens the models of an experiment and lays its search space over them.

    Raises:
        CheckpointError: a model is missing, damaged or does not fit.
        ConfigError: the search space does not fit the model.
    """
    survey = candidate.survey(
        experiment.base, experiment.experts, experiment.dtype, progress, experiment.vocabulary
    )
    frame = Frame(
        base=survey.base,
        experts=survey.experts,
        layers=survey.layers,
        dtype=survey.dtype,
        seed=experiment.seed,
        operators=experiment.operators,
        vocabulary=experiment.vocabulary,
    )
    points = coordinates(experiment.space, frame)
    try:
        recipe = decode(experiment.space, frame, initial(points))
    except ValidationError as error:  # values under `fixed`, which only now meet experts and layers
        raise ConfigError("space", faults_of(error)) from error
    if faults := pattern_faults(recipe, survey.names):
        raise ConfigError("space", faults)
    # With the hashes of the weights, so that a study notices if they change.
    experiment = experiment.model_copy(update={"base": survey.base, "experts": survey.experts})
    return Plan(experiment, survey, frame, points, Path(experiment.study))


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
            if not (folder / records.JOURNAL).exists() or not records.read_trials(folder):
                shutil.rmtree(folder, ignore_errors=True)
    except StudyError:
        return  # another process runs it, or the disk is full: it stays


def reopen(folder: Path, candidates: int | None = None) -> Experiment:
    """The experiment of a study folder, wherever the folder lies now.

    Args:
        candidates: replaces the budget's; for good, once the search goes on.

    Raises:
        StudyError: the folder is no study.
    """
    if not (folder / records.EXPERIMENT).is_file():
        raise StudyError(f"{folder} is no study: it has no {records.EXPERIMENT}; start one with `evomerge run`")
    experiment = config.load(folder / records.EXPERIMENT)
    experiment = experiment.model_copy(update={"study": str(folder.resolve())})
    if candidates is not None and candidates != experiment.budget.candidates:
        budget = experiment.budget.model_copy(update={"candidates": candidates})
        experiment = experiment.model_copy(update={"budget": budget})
    return experiment


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
    recipe = decode(plan.experiment.space, plan.frame, trial.genome)
    if recipe.sha256 != trial.recipe:
        raise CheckpointError(
            f"{plan.folder}: trial {trial.number} cannot be rebuilt: its recipe was {trial.recipe[:12]} and is now "
            f"{recipe.sha256[:12]}; a checkpoint, or the study's {records.EXPERIMENT}, has changed since the search"
        )
    return recipe


def _all_failed(trials: Sequence[Trial], which: str) -> str:
    reasons = sorted({trial.reason or "" for trial in trials})
    return f"{which} failed:\n" + "\n".join(f"  {reason}" for reason in reasons[:3])


class Study:
    """A search under way.

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
        choice = plugins.load("samplers", experiment.sampler.name)
        options = choice.Options.model_validate(experiment.sampler.options)
        starts = known_points(experiment.space, plan.frame)
        self._sampler = choice.make(plan.coordinates, options, experiment.seed, starts)
        self._journal = Journal(plan.folder, plan.coordinates)
        self.trials: list[Trial] = self._journal.trials()
        # A failed recipe is tried again: its failure may have been the machine's.
        self._by_recipe = {trial.recipe: trial for trial in reversed(self.trials) if trial.value is not None}
        self._elapsed = max((trial.elapsed for trial in self.trials), default=0.0)
        self._start = time.monotonic()

    def run(self) -> None:
        """Goes on until the budget is spent.

        Raises:
            StudyError: every candidate of a generation failed, or the log cannot be written, or does not belong to
                this experiment.
        """
        generation = 0
        while True:
            genomes = self._sampler.ask()
            finished = self._generation(generation, genomes)
            if len(finished) < len(genomes):
                return
            values = [trial.value for trial in finished if trial.value is not None]
            if values:
                worst = min(values)
                self._sampler.tell([worst if trial.value is None else trial.value for trial in finished])
            generation += 1

    def _generation(self, number: int, genomes: Sequence[Genome]) -> list[Trial]:
        """The trials of a generation, those of the log and those that are still to be evaluated."""
        logged = [trial for trial in self.trials if trial.generation == number]
        for trial, genome in zip(logged, genomes, strict=False):
            if trial.genome != genome:
                raise StudyError(
                    f"{self._plan.folder}: trial {trial.number} of the log is not what this sampler proposes; "
                    "the study was begun with other versions or another experiment, and cannot go on exactly"
                )
            recipe_of(self._plan, trial)
            if trial.fitness != self._fitness:
                raise StudyError(
                    f"{self._plan.folder}: trial {trial.number} of the log was scored with another fitness than "
                    f"{records.EXPERIMENT} has now; put it back, or start a new study"
                )
        open_slots = range(len(logged), len(logged) + self._room(genomes[len(logged) :], begun=bool(logged)))
        if not open_slots:
            return logged
        self._observer.generation(number, len(logged) + len(open_slots))
        fresh = self._evaluate(number, {slot: genomes[slot] for slot in open_slots})
        trials = [*logged, *fresh]
        if len(trials) == len(genomes) and all(trial.value is None for trial in trials):
            raise StudyError(_all_failed(trials, f"all {len(trials)} candidates of generation {number}"))
        return trials

    def _room(self, genomes: Sequence[Genome], *, begun: bool) -> int:
        """How many of a generation's genomes the budget still has room for."""
        budget = self._plan.experiment.budget
        room = len(genomes)
        if budget.candidates is not None:
            room = min(room, budget.candidates - len(self.trials))
        if begun:  # the other limits end a search between generations, so that a resumed one ends at the same place
            return max(room, 0)
        if budget.documents is not None and sum(t.documents for t in self.trials) >= budget.documents:
            room = 0
        if budget.hours is not None and self._seconds() >= 3600 * budget.hours:
            room = 0
        return max(room, 0)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._start

    def _evaluate(self, generation: int, genomes: dict[int, Genome]) -> list[Trial]:
        """Evaluates genomes by slot and logs them in the order of their slots."""
        recipes = {
            slot: decode(self._plan.experiment.space, self._plan.frame, genome) for slot, genome in genomes.items()
        }
        # Equal recipes are one candidate: the first slot evaluates it, the others repeat its trial.
        first = {recipe.sha256: slot for slot, recipe in sorted(recipes.items(), reverse=True)}
        outcomes: dict[int, Outcome] = {}
        jobs = []
        for recipe, slot in first.items():
            kept = (
                None if recipe in self._by_recipe else records.read_score(self._plan.folder, recipe, self._fitness)
            )
            if kept is not None:
                outcomes[slot] = Outcome(slot, kept)
            elif recipe not in self._by_recipe:
                jobs.append(Job(slot, recipes[slot]))
        jobs.sort(key=lambda job: job.key)
        trials: dict[int, Trial] = {}

        def log() -> None:
            """Logs what is known, up to the first slot that is still being evaluated."""
            for slot, genome in genomes.items():
                recipe = recipes[slot].sha256
                if slot in trials:
                    continue
                earlier = self._by_recipe.get(recipe) or trials.get(first[recipe])
                if earlier is None and slot not in outcomes:
                    return
                trial = self._trial(generation, slot, genome, recipe, earlier or outcomes[slot])
                self._journal.add(trial)
                self.trials.append(trial)
                trials[slot] = trial
                if trial.value is not None:
                    self._by_recipe.setdefault(recipe, trial)
                self._observer.trial(trial)

        log()
        for outcome in self._pool.run(jobs):
            if self._stopped.is_set():
                raise KeyboardInterrupt
            if outcome.score is not None:
                recipe = recipes[outcome.key].sha256
                records.write_score(self._plan.folder, recipe, self._fitness, outcome.score)
            outcomes[outcome.key] = outcome
            log()
        return list(trials.values())

    def _trial(self, generation: int, slot: int, genome: Genome, recipe: str, result: Outcome | Trial) -> Trial:
        blank = Trial(
            number=len(self.trials),
            generation=generation,
            slot=slot,
            genome=genome,
            recipe=recipe,
            fitness=self._fitness,
            value=None,
            tasks={},
            climbed={},
            seconds={},
            elapsed=self._seconds(),
        )
        if isinstance(result, Trial):
            return _repeated(blank, result)
        if result.score is None:
            return replace(blank, reason=result.reason)
        score = result.score
        return replace(
            blank,
            value=score.measured.value,
            tasks=score.measured.tasks,
            climbed=score.measured.climbed,
            seconds=score.seconds,
            tokens=score.report.tokens,
            documents=sum(len(task.documents) for task in score.report.tasks.values()),
            truncated=sum(score.report.truncated.values()),
            weights_sha256=score.weights_sha256,
        )


def _repeated(blank: Trial, earlier: Trial) -> Trial:
    """A trial whose recipe has been evaluated before."""
    return replace(
        blank,
        value=earlier.value,
        tasks=earlier.tasks,
        climbed=earlier.climbed,
        weights_sha256=earlier.weights_sha256,
        truncated=earlier.truncated,
        reason=earlier.reason,
    )
