"""Builds a candidate and scores it: merge in place, operators, tasks. Search and export use the same code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evomerge import operators
from evomerge.errors import CandidateError, first_line
from evomerge.merging.gradients import Tables
from evomerge.merging.merger import Merger
from evomerge.models.family import Inputs
from evomerge.models.loading import load_model, quiet
from evomerge.operators import Context, Watch, unwatched
from evomerge.recipes.recipe import OperatorStep, Recipe, parent_recipe
from evomerge.scoring.answers import Answers
from evomerge.scoring.measured import Measured, climbed_report, document_scores, gradient_terms
from evomerge.scoring.opening import open_scorer
from evomerge.scoring.scorer import Scorer
from evomerge.searching.documents import Chosen
from evomerge.searching.objective import Objective
from evomerge.studies.candidates.operating import delta_file, recipe_until, trains
from evomerge.studies.candidates.score import Score, measure, objective_of
from evomerge.studies.candidates.setup import Setup

_DELTAS = "deltas"  # the folder in the cache for the tensors that training operators leave, if there is no other


@dataclass(frozen=True)
class Built:
    """A candidate as a live model.

    Attributes:
        model: the live transformers model.
        recipe: its recipe, in which each training operator names the tensors that it left by their sha256.
        files: sha256 of such tensors -> the file that has them.
        training_records: name of a training operator -> its record of the training.
    """

    model: Any
    recipe: Recipe
    files: Mapping[str, Path]
    training_records: Mapping[str, Any]


class Workbench:
    """One live model that candidates are merged into, and the tasks that score it.

    Attributes:
        setup: what it was made from.
        folder: the base's folder.
        added: the tokens that the tokenizer has besides the base's own -> their ids.
        model, tokenizer, merger, scorer: its parts; `scorer` is None where there is no task.
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
        inputs = Inputs(setup.base, setup.experts, setup.vocabulary)
        self._opened = inputs.open(Path(setup.cache))
        self.folder, self.added, self._rows = inputs.folder, inputs.added, inputs.rows
        self.model = self._base()
        self.tokenizer = inputs.tokenizer()
        self._inputs = inputs
        self.merger = self._merger(self.model)
        self.scorer = open_scorer(self.model, self.tokenizer, setup.fitness, setup.entries, setup.max_length)
        self.note = None if self.scorer is None else self.scorer.note

    @property
    def objective(self) -> Objective:
        """The objective of the setup's entries, bound to the documents that their tasks have."""
        if self.scorer is None:
            return Objective({})
        return objective_of(self.setup.entries, self.scorer.groups, self.scorer.documents)

    def evaluate(self, recipe: Recipe, documents: Chosen | None = None) -> Score:
        """Builds the candidate in the live model and scores it. Answers that are kept are not computed again.

        Args:
            documents: the documents to score; all by default.

        Raises:
            CandidateError: the candidate could not be built or scored.
        """
        scorer, seconds = self._scorer(), dict[str, float]()
        with self._in_memory(), ExitStack() as undo:
            with _timed(seconds, "merge"):
                self.merger.apply(recipe)
            with _timed(seconds, "operators"):
                records = self._operate(recipe, undo)
            with _timed(seconds, "scoring"):
                report = scorer.score(documents, self._answers(recipe))
                shares = None if documents is None else documents.shares
                measured = measure(self.objective, report, scorer.groups, shares)
            digest = self._digest()
        value = self.objective.of_entries(measured.climbed)
        return Score(value, measured, report, scorer.groups, seconds, digest, records)

    def gradient(self, recipe: Recipe, documents: Chosen | None = None) -> tuple[Score, Tables]:
        """Builds the candidate, and finds the slope of its value in all its coefficients by one backward pass.

        Args:
            documents: the documents to climb; all by default.

        Returns:
            The score, and the slope as `merging.gradients.Gradient.tables` gives it. The score has climbed metrics
            only, also in the place of the reported ones. A metric that has no slope is replaced by a smooth
            stand-in, see `scoring.backward`.

        Raises:
            CandidateError: the candidate could not be built or scored, has operators, or has a method without
                derivatives.
            ConfigError: a climbed metric has no slope and no stand-in.
        """
        scorer, seconds, objective = self._scorer(), dict[str, float](), self.objective
        if recipe.operators:
            names = ", ".join(step.name for step in recipe.operators)
            raise CandidateError(f"the gradient does not pass through operators, but the recipe has {names}")
        every = {name: [*range(count)] for name, count in scorer.documents.items()}
        chosen = documents or Chosen(every, objective.shares)
        with self._in_memory():
            with _timed(seconds, "merge"):
                self.merger.apply(recipe)
            with _timed(seconds, "scoring"):
                with self.merger.gradient(recipe) as gradient:
                    terms = gradient_terms(scorer.groups, chosen.shares)
                    climbed = scorer.backward(chosen, terms, gradient.attempt)
                tables = gradient.tables()
            digest = self._digest()
        report = climbed_report(climbed, chosen)
        means = {name: float(values.mean()) for name, values in document_scores(report, scorer.groups).items()}
        found = objective.entries(means, chosen.shares)
        value = objective.of_entries(found)
        return Score(value, Measured(found, found), report, scorer.groups, seconds, digest), tables

    def _scorer(self) -> Scorer:
        """The scorer; refuses a candidate where there is none."""
        if self.scorer is None:
            raise CandidateError("there is no task to score it on")
        return self.scorer

    def _digest(self) -> str | None:
        """The hash of the merged weights, if the setup asks for it."""
        return self.merger.sha256() if self.setup.hash_weights else None

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        """Turns the error of a model or batch that does not fit in memory into a failure of the candidate."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory on {self.setup.device}: {first_line(error)}") from error

    def build(self, recipe: Recipe, watch: Watch = unwatched) -> Built:
        """Builds the candidate as a live transformers model, for export.

        Its operators are not undone, so the workbench can build no other candidate afterwards.

        Args:
            watch: is told of the steps of training.

        Raises:
            CandidateError: the candidate cannot be built.
        """
        self.merger.apply(recipe)
        records = self._operate(recipe, ExitStack(), watch)
        steps = [
            step.model_copy(update={"delta": records[step.name]["sha256"]}) if step.name in records else step
            for step in recipe.operators
        ]
        files = {
            str(step.delta): self._delta(recipe, position) for position, step in enumerate(steps) if trains(step)
        }
        return Built(self.model, recipe.model_copy(update={"operators": tuple(steps)}), files, records)

    def _answers(self, recipe: Recipe) -> Answers | None:
        """The candidate's answers that are kept; None if the setup keeps none.

        A GPU rounds differently from a CPU, so the answers of each are kept apart.
        """
        if self.setup.answers is None:
            return None
        device = torch.device(self.setup.device).type
        return Answers(Path(self.setup.answers), recipe.sha256 + ("" if device == "cpu" else f"-{device}"))

    def _operate(self, recipe: Recipe, undo: ExitStack, watch: Watch = unwatched) -> dict[str, Any]:
        """Applies the recipe's operators in their order.

        Args:
            undo: is given what puts back the changes of the operators.
            watch: is told of the steps of training.

        Returns:
            Name of a training operator -> its record of the training.

        Raises:
            CandidateError: an operator cannot work on this candidate, or the file that it left before is missing or
                has changed.
        """
        records = {}
        models = {**recipe.experts, "base": recipe.base}
        for position, step in enumerate(recipe.operators):
            operator = operators.load(step.name)
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
                records[step.name] = dict(applied.record)
                self._check_trained(step, context.kept, applied.record["sha256"])
        return records

    def _check_trained(self, step: OperatorStep, kept: Path, sha256: str) -> None:
        """Checks that training left the same tensors as when the candidate was scored."""
        if step.delta not in (None, sha256):
            raise CandidateError(f"{kept} is not what training left; copy it again")
        if self.setup.trained.get(kept.name, sha256) != sha256:
            kept.unlink()
            raise CandidateError(
                f"{step.name} was trained again, because {kept} was lost, and came to something else than when the "
                "candidate was scored: bring that file back (training that `seconds` end, or other versions, "
                "threads or devices, cannot be repeated)"
            )

    def _delta(self, recipe: Recipe, position: int) -> Path:
        """The file that the training operator at a position of the recipe leaves."""
        return Path(self.setup.deltas or Path(self.setup.cache) / _DELTAS) / delta_file(recipe, position)

    def _parent(self, recipe: Recipe, name: str) -> Any:
        """A new live model: the base or expert of that name, as the recipe merges it, before any operator."""
        model = self._base()
        self._merger(model).apply(parent_recipe(recipe, name))
        return model

    def _base(self) -> Any:
        """A new live model that holds the base."""
        setup = self.setup
        return load_model(self.folder, setup.dtype, setup.device, self._rows, trust=setup.base.trusted)

    def _merger(self, model: Any) -> Merger:
        """Writes candidates into a live model that holds the base."""
        base, experts = self._opened
        weights = self._inputs.live_weights(model, base, self.setup.dtype)
        return Merger(weights, base, experts, Path(self.setup.cache), self.setup.compiled)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Notes in `seconds` how long a phase takes."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
