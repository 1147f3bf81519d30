"""Builds a candidate and scores it: merge in place, operators, tasks. Search and export use the same code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge import checkpoints, plugins, statistics, tensors
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CandidateError, CheckpointError
from evomerge.fitness import Entry, Fitness, Measured, check_metrics, measure
from evomerge.merger import Compile, Merger
from evomerge.recipe import Dtype, Recipe, Source
from evomerge.scoring import Report, Scorer

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """All that a workbench is made from. Picklable: it travels to the workers.

    Attributes:
        base, experts: with their sha256 known.
        cache: folder of the methods' tables.
        fitness, entries: the tasks to score: some of the fitness's entries. Without any, candidates can be built
            but not scored.
        hash_weights: whether each score carries the sha256 of the merged weights.
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


@dataclass(frozen=True)
class Score:
    """What is known of an evaluated candidate.

    Attributes:
        measured: the scores that the report comes to.
        report: per-document results of each task.
        groups: fitness entry -> the tasks of the report that it stands for.
        seconds: spent in merge, operators and scoring.
        weights_sha256: of the merged weights, see `tensors.sha256`; None if it was not asked for.
    """

    measured: Measured
    report: Report
    groups: dict[str, tuple[str, ...]]
    seconds: dict[str, float]
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Survey:
    """What the checkpoints are, found without loading a model.

    Attributes:
        base, experts: the sources, with the sha256 of their weights.
        layers: the model's number of layers.
        parameters: its number of parameters, tied ones once.
        nbytes: bytes of all checkpoints together.
    """

    base: Source
    experts: dict[str, Source]
    dtype: Dtype
    layers: int
    parameters: int
    nbytes: int
    names: list[str] = field(repr=False)


def survey(
    base: Source, experts: Mapping[str, Source], dtype: str, progress: Progress = lambda text: None
) -> Survey:
    """Opens the checkpoints, checks that they fit together, and hashes their weights.

    Args:
        dtype: `auto` takes the base's.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or does not fit.
    """
    opened, faults = {}, []
    for name, source in (("", base), *experts.items()):
        where = f"experts.{name}" if name else "base"
        try:
            opened[name] = Checkpoint(checkpoints.locate(source, where), where)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    shapes = skeleton(opened[""].folder)
    checkpoints.check_fit(opened[""], {name: opened[name] for name in experts}, shapes)
    hashed = {}
    for name, source in (("", base), *experts.items()):
        progress(f"reading {source}")
        if source.sha256 not in (None, opened[name].sha256):
            raise CheckpointError(
                f"{opened[name].where}: {source} does not hold the weights that its sha256 stands for; they have "
                "changed since"
            )
        hashed[name] = source.model_copy(update={"sha256": opened[name].sha256})
    found = str(opened[""].dtype).removeprefix("torch.") if dtype == "auto" else dtype
    if found not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"base: {base} is {found}; give dtype: float32, bfloat16 or float16")
    return Survey(
        base=hashed[""],
        experts={name: hashed[name] for name in experts},
        dtype=found,  # type: ignore[arg-type]
        layers=tensors.layer_count(tensors.places(shapes)),
        parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
        nbytes=sum(checkpoint.nbytes for checkpoint in opened.values()),
        names=list(shapes),
    )


def skeleton(folder: Path) -> dict[str, tuple[int, ...]]:
    """The parameters of a model folder, name -> shape, tied ones once. Allocates nothing.

    Raises:
        CheckpointError: transformers does not know the model.
    """
    with _loading(folder), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def prepare(setup: Setup, method: str, names: Sequence[str], progress: Progress) -> None:
    """Computes the tables that a method looks up, once for all workers."""
    kinds = plugins.load("methods", method).TABLES
    if not kinds:
        return
    base = _open(setup.base, "base")
    for name, source in setup.experts.items():
        expert = _open(source, f"experts.{name}")
        for kind in sorted(kinds):
            statistics.load(kind, base, expert, list(names), Path(setup.cache), progress)


def _open(source: Source, where: str) -> Checkpoint:
    return Checkpoint(checkpoints.locate(source, where), where, source.sha256)


def load_model(folder: Path, dtype: str, device: str) -> Any:
    """A model ready to be scored: in evaluation mode, without gradients.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    with _loading(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """A model folder's tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    with _loading(folder):
        return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turns what transformers raises for a folder that it cannot read into one line."""
    try:
        yield
    except Exception as error:  # a damaged config can make transformers raise anything
        raise CheckpointError(f"transformers cannot open {folder}: {_first_line(error)}") from error


def open_scorer(model: Any, tokenizer: Any, fitness: Fitness | None, entries: Sequence[Entry]) -> Scorer | None:
    """The scorer of some of a fitness's entries on a live model; None if there are none.

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
    )
    check_metrics(entries, scorer)
    return scorer


class Workbench:
    """One live model that candidates are merged into, and the tasks that score it.

    Raises:
        CheckpointError: the checkpoints do not fit the model.
        ConfigError: a task cannot be built.
    """

    def __init__(self, setup: Setup) -> None:
        quiet()
        if setup.device == "cpu":
            torch.set_num_threads(setup.threads)
        self.setup = setup
        base = _open(setup.base, "base")
        self.folder = base.folder
        self.model = load_model(base.folder, setup.dtype, setup.device)
        self.tokenizer = load_tokenizer(base.folder)
        self.merger = Merger(
            self.model,
            base,
            {name: _open(source, f"experts.{name}") for name, source in setup.experts.items()},
            Path(setup.cache),
            setup.compiled,
        )
        self.scorer = open_scorer(self.model, self.tokenizer, setup.fitness, setup.entries)

    def evaluate(self, recipe: Recipe, documents: Mapping[str, Sequence[int]] | None = None) -> Score:
        """Builds the candidate in the live model and scores it.

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
                self._operate(recipe, undo)
                seconds["operators"] = time.perf_counter() - start
                start = time.perf_counter()
                report = self.scorer.score(documents)
                measured = measure(self.setup.entries, report, self.scorer.expanded)
                seconds["scoring"] = time.perf_counter() - start
                digest = self.merger.sha256() if self.setup.hash_weights else None
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory on {self.setup.device}: {_first_line(error)}") from error
        return Score(measured, report, self.scorer.expanded, seconds, digest)

    def build(self, recipe: Recipe) -> Any:
        """The candidate as a live transformers model, for export. The next candidate overwrites it."""
        self.merger.apply(recipe)
        self._operate(recipe, ExitStack())
        return self.model

    def _operate(self, recipe: Recipe, undo: ExitStack) -> None:
        for position, step in enumerate(recipe.operators):
            operator = plugins.load("operators", step.name)
            options = operator.Options.model_validate(step.options)
            seed = int(recipe.sha256[:12], 16) + position
            undo.callback(operator.apply(self.model, options, torch.Generator().manual_seed(seed)))


def quiet() -> None:
    """Silences the progress bars and notices of transformers, which would tear a live view."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
