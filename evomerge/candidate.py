"""Builds a candidate and scores it: merge in place, operators, tasks. Search and export use the same code."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from evomerge import checkpoints, merger, plugins, tensors
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CandidateError, CheckpointError, ConfigError, suggest
from evomerge.fitness import Entry, Fitness, Measured, check_metrics, document_scores, measure
from evomerge.gradients import Tables
from evomerge.inputs import Inputs
from evomerge.loading import first_line, load_model, loading, quiet
from evomerge.merger import Compile, Merger
from evomerge.operators import Context, Watch, unwatched
from evomerge.recipe import Dtype, OperatorStep, Recipe, Source, Vocabulary
from evomerge.scoring import Report, Scorer, TaskScore
from evomerge.scoring.answers import Answers
from evomerge.scoring.ascent import Backward

Progress = Callable[[str], None]

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


@dataclass(frozen=True)
class Survey:
    """What the checkpoints are, found without loading a model.

    Attributes:
        base, experts: the sources, with the sha256 of their weights.
        layers: the model's number of layers.
        parameters: its number of parameters, tied ones once.
        largest: the number of elements of its largest parameter.
        nbytes: bytes of all checkpoints together.
        plain: whether all are merged as their files have them: no adapter, and no tensor converted.
    """

    base: Source
    experts: dict[str, Source]
    dtype: Dtype
    layers: int
    parameters: int
    largest: int
    nbytes: int
    plain: bool
    names: list[str] = field(repr=False)


def survey(
    base: Source,
    experts: Mapping[str, Source],
    dtype: str,
    progress: Progress = lambda text: None,
    vocabulary: Vocabulary | None = None,
) -> Survey:
    """Opens the checkpoints, checks that they fit together and are finite, and hashes their weights.

    Args:
        dtype: `auto` takes the base's.
        vocabulary: what to do where vocabularies differ; None refuses it.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or does not fit.
    """
    found = Inputs(base, experts, vocabulary)
    if found.added:
        found.tokenizer()  # refuses ids that it cannot give
    hashed = {}
    for name, source in (("", base), *experts.items()):
        where = f"experts.{name}" if name else "base"
        progress(f"reading {source}")
        found.check_contents(name)
        if source.sha256 not in (None, found.sha256(name)):
            raise CheckpointError(
                f"{where}: {source} does not hold the weights that its sha256 stands for; they have changed since"
            )
        hashed[name] = source.model_copy(update={"sha256": found.sha256(name)})
    chosen = found.dtype if dtype == "auto" else dtype
    if chosen not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"base: {base} is {chosen}; give dtype: float32, bfloat16 or float16")
    return Survey(
        base=hashed[""],
        experts={name: hashed[name] for name in experts},
        dtype=chosen,  # type: ignore[arg-type]
        layers=tensors.layer_count(tensors.places(found.shapes)),
        parameters=sum(math.prod(shape) for shape in found.shapes.values()),
        largest=max(math.prod(shape) for shape in found.shapes.values()),
        nbytes=found.nbytes,
        plain=found.plain,
        names=list(found.shapes),
    )


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


def open_scorer(
    model: Any, tokenizer: Any, fitness: Fitness | None, entries: Sequence[Entry], max_length: int | None = None
) -> Scorer | None:
    """The scorer of some of a fitness's entries on a live model; None if there are none.

    Args:
        max_length: tokens of the longest prompt with its answer, see `Scorer`.

    Raises:
        ConfigError: a task cannot be built, or has no such metric.
    """
    if fitness is None or not entries:
        return None
    scorer = Scorer(
        model,
        tokenizer,
        fitness.specs(entries),
        include=Path(fitness.include) if fitness.include else None,
        apply_chat_template=fitness.apply_chat_template,
        max_length=max_length,
    )
    check_metrics(entries, scorer)
    return scorer


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
                terms = _terms(self.setup.entries, self.scorer.expanded, chosen)
                found = self.scorer.backward(chosen, terms, gradient.attempt)
            tables = gradient.tables()
            seconds["scoring"] = time.perf_counter() - start
            digest = self.merger.sha256() if self.setup.hash_weights else None
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory on {self.setup.device}: {first_line(error)}") from error
        report = _climbed(found, chosen)
        measured = _measured(self.setup.entries, document_scores(self.setup.entries, report, self.scorer.expanded))
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
                seed=int(_until(recipe, position).sha256[:12], 16) + position,
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


def _terms(
    entries: Sequence[Entry], expanded: Mapping[str, Sequence[str]], documents: Mapping[str, Sequence[int]]
) -> dict[str, tuple[str, float]]:
    """Task -> (climbed metric, its share of the value), as `fitness.measure` weighs them: a group's documents are
    pooled."""
    counts = {name: len(set(ids)) for name, ids in documents.items()}
    members = {entry: [name for name in expanded[entry.task] if name in counts] for entry in entries}
    total = sum(entry.weight for entry, names in members.items() if names)
    return {
        name: (entry.climbs, entry.weight / total * counts[name] / sum(counts[one] for one in names))
        for entry, names in members.items()
        for name in names
    }


def _climbed(found: Backward, documents: Mapping[str, Sequence[int]]) -> Report:
    """What a backward pass found, as a report: of each task the climbed metric alone."""
    tasks = {
        name: TaskScore(
            np.array(sorted(set(documents[name])), dtype=np.int64),
            {found.climbed[name]: values},
            {found.climbed[name]: float(values.mean())},
        )
        for name, values in found.values.items()
    }
    return Report(tasks, found.tokens, padding=0, truncated=dict.fromkeys(tasks, 0), cut_prompts={})


def _measured(entries: Sequence[Entry], scores: Mapping[str, np.ndarray]) -> Measured:
    """The value that was climbed, from entry -> the score of each document."""
    climbed = {name: float(values.mean()) for name, values in scores.items()}
    weights = {entry.task: entry.weight for entry in entries if entry.task in climbed}
    value = math.fsum(weight * climbed[name] for name, weight in weights.items()) / sum(weights.values())
    return Measured(value, dict(climbed), climbed)


# --- operators ---------------------------------------------------------------------------------------------


def check_operators(base: Source, experts: Iterable[str], steps: Sequence[OperatorStep]) -> None:
    """Refuses operators that cannot act on a model.

    Raises:
        ConfigError: with all their faults.
    """
    faults: list[str] = []
    models, sound = ["base", *experts], list[OperatorStep]()
    config = _config(base) if steps else None
    for step in sorted(steps, key=trains):
        operator = plugins.load("operators", step.name)
        options = operator.Options.model_validate(step.options)
        if operator.TRAINING:
            wrong = list(operator.check(options, _extended(config, longest_text(base, sound))))
            if "base" in models[1:]:
                wrong.append("teachers: base means the base, but an expert is called so; name the expert otherwise")
            wrong += [
                f"teachers: there is no model {name!r}.{suggest(name, models)}"
                for name in sorted(operator.teachers(options) - set(models))
            ]
        else:
            wrong = list(operator.check(options, config))
            sound += [] if wrong else [step]
        faults += [line for line in (f"{step.name}.{one}" for one in wrong) if line not in faults]
    if faults:
        raise ConfigError("operators", faults)


def _extended(config: Any, length: int | None) -> Any:
    """A config as it is after a model's context was extended: what is trained then may read as far."""
    found = copy.deepcopy(config)
    if length is not None:
        found.get_text_config().max_position_embeddings = length
    return found


def longest_text(base: Source, steps: Sequence[OperatorStep]) -> int | None:
    """The longest text, in tokens, that sound operators make a model fit for; None if they change nothing."""
    config = _config(base) if steps else None
    reaches = []
    for step in steps:
        operator = plugins.load("operators", step.name)
        reaches.append(operator.reach(operator.Options.model_validate(step.options), config))
    return max((reach for reach in reaches if reach is not None), default=None)


def _config(base: Source) -> Any:
    folder = checkpoints.locate(base, "base")
    with loading(folder, "base"):
        return AutoConfig.from_pretrained(folder)


def parent_recipe(recipe: Recipe, name: str) -> Recipe:
    """One of the models that a recipe merges as a recipe of its own, without operators: an expert, or `base`.

    Raises:
        CandidateError: it merges no such model.
    """
    models = ["base", *recipe.experts]
    if name not in models:
        raise CandidateError(f"the recipe merges no model {name!r}; there are {', '.join(models)}")
    if name == "base":
        merge: dict[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": 0.0}}
    else:
        weights = {expert: float(expert == name) for expert in recipe.experts}
        merge = {"method": "linear", "parameters": {"weight": weights}}
    return Recipe.model_validate({**{key: getattr(recipe, key) for key in FRAME}, **merge})


FRAME = {"base", "experts", "dtype", "layers", "seed", "vocabulary"}  # of a recipe: what all of a study have alike


def delta_file(recipe: Recipe, position: int) -> str:
    """The name of what the training operator at a position leaves: by its content where that is known, else by all
    that goes into it."""
    return f"{recipe.operators[position].delta or _until(recipe, position).sha256}.safetensors"


def _until(recipe: Recipe, position: int) -> Recipe:
    """The recipe with its operators up to a position, that included."""
    return recipe.model_copy(update={"operators": recipe.operators[: position + 1]})


def trains(step: OperatorStep) -> bool:
    """Whether an operator is one that changes weights by training."""
    return bool(plugins.load("operators", step.name).TRAINING)
