"""Builds a candidate and scores it: merge in place, operators, tasks. Search and export use the same code."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evomerge import plugins
from evomerge.errors import CandidateError, first_line
from evomerge.merging import merger
from evomerge.merging.gradients import Tables
from evomerge.merging.merger import Compile, Merger
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.loading import load_model, quiet
from evomerge.models.source import Dtype, Source, Vocabulary
from evomerge.models.survey import Progress
from evomerge.operators import Context, Watch, unwatched
from evomerge.recipes.recipe import OperatorStep, Recipe, parent_recipe
from evomerge.scoring.answers import Answers
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.objective import (
    Measured,
    climbed_report,
    document_scores,
    gradient_terms,
    measure,
    measured_from_documents,
    open_scorer,
)
from evomerge.scoring.reports import Report
from evomerge.studies.candidates.operating import delta_file, recipe_until, trains

_DELTAS = "deltas"  # the folder of what training operators leave, in the cache


@dataclass(frozen=True)
class Setup:
    """All that a workbench is made from. Picklable: it travels to the workers.

    Attributes:
        base, experts: with their sha256 known.
        cache: folder of the methods' tables and of the tensors that had to be made, see `inputs`.
        fitness, entries: the tasks to score: some of the fitness's entries. Without any, candidates can be built
            but not scored.
        hash_weights: whether each score carries the sha256 of the merged weights.
        vocabulary: what to do where the experts' vocabularies differ.
        answers: folder of what candidates have answered, see `scoring.answers`; None keeps nothing.
        deltas: folder of what training operators leave; None is one in the cache.
        left: name of a file in it -> the sha256 of the tensors that it had when its candidate was scored.
        max_length: tokens of the longest prompt with its answer, where operators extend the model's context; None
            takes what the base's configuration says.
    """

    base: Source
    experts: Mapping[str, Source]
    dtype: Dtype
    cache: str
    device: str = "cpu"
    threads: int = 1
    compiled: Compile = "auto"
    fitness: Fitness | None = None
    entries: tuple[Entry, ...] = ()
    hash_weights: bool = True
    vocabulary: Vocabulary | None = None
    answers: str | None = None
    deltas: str | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None


@dataclass(frozen=True)
class Score:
    """What is known of an evaluated candidate.

    Attributes:
        measured: the scores that the report comes to.
        report: per-document results of each task.
        groups: fitness entry -> the tasks of the report that it stands for.
        seconds: spent in merge, operators and scoring.
        weights_sha256: of the merged weights, see `tensors.sha256`; None if it was not asked for.
        left: training operator -> its record of what it did and took.
    """

    measured: Measured
    report: Report
    groups: dict[str, tuple[str, ...]]
    seconds: dict[str, float]
    weights_sha256: str | None = None
    left: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A candidate as a live model.

    Attributes:
        recipe: its recipe, with what training left by content.
        files: where that lies, by its sha256.
        left: training operator -> its record of what it did and took.
    """

    model: Any
    recipe: Recipe
    files: Mapping[str, Path]
    left: Mapping[str, Any]


def open_inputs(
    setup: Setup, progress: Progress = lambda text: None, *, whole: bool = False
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base and the experts of a setup, see `Inputs.open`.

    Raises:
        CheckpointError: one is missing, damaged, or does not fit.
    """
    return Inputs(setup.base, setup.experts, setup.vocabulary).open(Path(setup.cache), progress, whole=whole)


def prepare(setup: Setup, recipes: Sequence[Recipe], names: Sequence[str], progress: Progress) -> None:
    """Makes the inputs' tensors and computes the tables that recipes look up, once for all workers."""
    base, experts = open_inputs(setup, progress, whole=True)
    merger.prepare(base, experts, names, recipes, Path(setup.cache), progress)


class Workbench:
    """One live model that candidates are merged into, and the tasks that score it.

    Attributes:
        folder: the base's.
        added: the tokens that the tokenizer has besides the base's own -> their ids.
        note: what people should know of how it scores; None where there is nothing to tell.

    Raises:
        CheckpointError: the checkpoints do not fit the model.
        ConfigError: a task cannot be built.
    """

    def __init__(self, setup: Setup) -> None:
        quiet()
        if setup.device == "cpu":
            torch.set_num_threads(setup.threads)
        self.setup = setup
        found = Inputs(setup.base, setup.experts, setup.vocabulary)
        base, experts = self._opened = found.open(Path(setup.cache))
        self.folder, self.added, self._rows = found.folder, found.added, found.rows
        self.model = load_model(found.folder, setup.dtype, setup.device, found.rows)
        self.tokenizer = found.tokenizer()
        self.merger = Merger(self.model, base, experts, Path(setup.cache), setup.compiled)
        self.scorer = open_scorer(self.model, self.tokenizer, setup.fitness, setup.entries, setup.max_length)
        self.note = None if self.scorer is None else self.scorer.note

    @property
    def documents(self) -> dict[str, int]:
        """Entry of the fitness -> the number of its documents, those of a group's tasks behind each other."""
        if self.scorer is None:
            return {}
        counts = self.scorer.documents
        return {entry: sum(counts[name] for name in names) for entry, names in self.scorer.expanded.items()}

    def by_task(self, documents: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Task -> ids in it, from entry -> ids in that: a group's tasks lie behind each other."""
        assert self.scorer is not None
        found: dict[str, list[int]] = {}
        for entry, ids in documents.items():
            start = 0
            for name in self.scorer.expanded[entry]:
                end = start + self.scorer.documents[name]
                if own := [id_ - start for id_ in ids if start <= id_ < end]:
                    found[name] = own
                start = end
        return found

    def evaluate(self, recipe: Recipe, documents: Mapping[str, Sequence[int]] | None = None) -> Score:
        """Builds the candidate in the live model and scores it: forwards what it has not answered before.

        Args:
            documents: task -> ids of the documents to score; all by default.

        Raises:
            CandidateError: it could not be built or scored.
        """
        if self.scorer is None:
            raise CandidateError("there is no task to score it on")
        seconds = {}
        try:
            with ExitStack() as undo:
                start = time.perf_counter()
                self.merger.apply(recipe)
                seconds["merge"] = time.perf_counter() - start
                start = time.perf_counter()
                left = self._operate(recipe, undo)
                seconds["operators"] = time.perf_counter() - start
                start = time.perf_counter()
                report = self.scorer.score(documents, self._answers(recipe))
                measured = measure(self.setup.entries, report, self.scorer.expanded)
                seconds["scoring"] = time.perf_counter() - start
                digest = self.merger.sha256() if self.setup.hash_weights else None
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory on {self.setup.device}: {first_line(error)}") from error
        return Score(measured, report, self.scorer.expanded, seconds, digest, left)

    def gradient(
        self, recipe: Recipe, documents: Mapping[str, Sequence[int]] | None = None
    ) -> tuple[Score, Tables]:
        """Builds the candidate, and finds the slope of its value in all its coefficients by one backward pass.

        Args:
            documents: task -> ids of the documents to climb; all by default. Tasks left out take no part.

        Returns: the score of what was climbed alone: smooth stand-ins for metrics that have no slope, see
            `scoring.ascent`, in the place of reported metrics as well; and `Gradient.tables`.

        Raises:
            CandidateError: it could not be built or scored, has operators, or a method without derivatives.
            ConfigError: a climbed metric has no slope and no stand-in.
        """
        if self.scorer is None:
            raise CandidateError("there is no task to score it on")
        if recipe.operators:
            names = ", ".join(step.name for step in recipe.operators)
            raise CandidateError(f"the gradient does not pass through operators, but the recipe has {names}")
        chosen = (
            {name: range(count) for name, count in self.scorer.documents.items()}
            if documents is None
            else documents
        )
        seconds = {}
        try:
            start = time.perf_counter()
            self.merger.apply(recipe)
            seconds["merge"] = time.perf_counter() - start
            start = time.perf_counter()
            with self.merger.gradient(recipe) as gradient:
                terms = gradient_terms(self.setup.entries, self.scorer.expanded, chosen)
                found = self.scorer.backward(chosen, terms, gradient.attempt)
            tables = gradient.tables()
            seconds["scoring"] = time.perf_counter() - start
            digest = self.merger.sha256() if self.setup.hash_weights else None
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory on {self.setup.device}: {first_line(error)}") from error
        report = climbed_report(found, chosen)
        measured = measured_from_documents(
            self.setup.entries, document_scores(self.setup.entries, report, self.scorer.expanded)
        )
        return Score(measured, report, self.scorer.expanded, seconds, digest), tables

    def build(self, recipe: Recipe, watch: Watch = unwatched) -> Built:
        """The candidate as a live transformers model, for export. Its operators are not undone: the workbench can
        build no other one.

        watch: is told of training.

        Raises:
            CandidateError: it cannot be built.
        """
        self.merger.apply(recipe)
        left = self._operate(recipe, ExitStack(), watch)
        steps = [
            step.model_copy(update={"delta": left[step.name]["sha256"]}) if step.name in left else step
            for step in recipe.operators
        ]
        files = {
            str(step.delta): self._delta(recipe, position) for position, step in enumerate(steps) if trains(step)
        }
        return Built(self.model, recipe.model_copy(update={"operators": tuple(steps)}), files, left)

    def _answers(self, recipe: Recipe) -> Answers | None:
        """What the candidate has answered before. A GPU rounds otherwise than a CPU, so its answers are others."""
        if self.setup.answers is None:
            return None
        device = torch.device(self.setup.device).type
        return Answers(Path(self.setup.answers), recipe.sha256 + ("" if device == "cpu" else f"-{device}"))

    def _operate(self, recipe: Recipe, undo: ExitStack, watch: Watch = unwatched) -> dict[str, Any]:
        """Applies the recipe's operators in their order.

        Returns: training operator -> its record.

        Raises:
            CandidateError: one cannot work on this candidate, or the file that it left is missing or another.
        """
        left = {}
        models = {**recipe.experts, "base": recipe.base}
        for position, step in enumerate(recipe.operators):
            operator = plugins.load("operators", step.name)
            context = Context(
                seed=int(recipe_until(recipe, position).sha256[:12], 16) + position,
                tokenizer=self.tokenizer,
                folder=Path(self.setup.cache),
                kept=self._delta(recipe, position),
                parent=partial(self._parent, recipe),
                identity={name: source.identity() for name, source in models.items()},
                report=watch,
            )
            if step.delta is not None and not context.kept.is_file():
                raise CandidateError(
                    f"{context.kept}, which training left, is not there; copy it beside the recipe"
                )
            applied = operator.apply(self.model, operator.Options.model_validate(step.options), context)
            undo.callback(applied.undo)
            if operator.TRAINING:
                left[step.name] = dict(applied.record)
                self._check_left(step, context.kept, applied.record["sha256"])
        return left

    def _check_left(self, step: OperatorStep, kept: Path, found: str) -> None:
        """Checks that what training left is what it left when the candidate was scored."""
        if step.delta not in (None, found):
            raise CandidateError(f"{kept} is not what training left; copy it again")
        if self.setup.left.get(kept.name, found) != found:
            kept.unlink()
            raise CandidateError(
                f"{step.name} was trained again, because {kept} was lost, and came to something else than when the "
                "candidate was scored: bring that file back (training that `seconds` end, or other versions, "
                "threads or devices, cannot be repeated)"
            )

    def _delta(self, recipe: Recipe, position: int) -> Path:
        """The file that the training operator at a position leaves."""
        return Path(self.setup.deltas or Path(self.setup.cache) / _DELTAS) / delta_file(recipe, position)

    def _parent(self, recipe: Recipe, name: str) -> Any:
        """A model of its own that a recipe merges, as it is before any operator."""
        model = load_model(self.folder, self.setup.dtype, self.setup.device, self._rows)
        cache = Path(self.setup.cache)
        Merger(model, *self._opened, cache, self.setup.compiled).apply(parent_recipe(recipe, name))
        return model
