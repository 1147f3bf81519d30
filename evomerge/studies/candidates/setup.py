"""What a workbench is made from, and what is made once for all workbenches of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.merging import merger
from evomerge.models import Progress
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.source import Dtype, Source, Vocabulary
from evomerge.recipes.recipe import Compile, Recipe
from evomerge.scoring.fitness import Entry, Fitness


@dataclass(frozen=True)
class Setup:
    """All that a workbench is made from. It can be pickled, because it travels to the workers.

    Attributes:
        base, experts: sources whose sha256 is known.
        dtype: the dtype of merged models.
        cache: the folder of the methods' tables and of converted tensors, see `models.family`.
        device, threads: where the live model lies, as torch names it, and the number of its CPU threads.
        compiled: whether merges are compiled.
        fitness, entries: the fitness, and those of its entries that are scored. Without entries candidates can be
            built but not scored.
        hash_weights: whether each score carries the sha256 of the merged weights.
        vocabulary: what to do where the experts' vocabularies differ.
        answers: the folder of candidates' answers, see `scoring.answers`; None keeps no answers.
        deltas: the folder of the tensors that training operators leave; None is a folder in the cache.
        trained: name of a file in `deltas` -> the sha256 of its tensors when its candidate was scored.
        max_length: the tokens of the longest prompt with its answer, where operators extend the model's context;
            None takes the length that the base's config has.
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
    trained: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None


def inputs_of(setup: Setup) -> Inputs:
    """The base and the experts of a setup.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or does not fit.
    """
    return Inputs(setup.base, setup.experts, setup.vocabulary)


def open_inputs(
    setup: Setup, progress: Progress = lambda text: None, *, whole: bool = False
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Opens the base and the experts of a setup, see `models.family.Inputs.open` for the arguments.

    Returns:
        The base, and name of an expert -> expert.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or does not fit.
    """
    return inputs_of(setup).open(Path(setup.cache), progress, whole=whole)


def prepare(setup: Setup, recipes: Sequence[Recipe], progress: Progress) -> None:
    """Converts tensors where that is needed, and computes the tables that recipes look up, once for all workers."""
    inputs = inputs_of(setup)
    base, experts = inputs.open(Path(setup.cache), progress, whole=True)
    merger.prepare(base, experts, inputs.places, recipes, Path(setup.cache), progress)
