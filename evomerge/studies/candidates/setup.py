"""What a workbench is made from, and what is made once for all workbenches of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.merging import merger
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.source import Dtype, Source, Vocabulary
from evomerge.models.survey import Progress
from evomerge.recipes.recipe import Compile, Recipe
from evomerge.scoring.fitness import Entry, Fitness


@dataclass(frozen=True)
class Setup:
    """All that a workbench is made from. It can be pickled, for it travels to the workers.

    Attributes:
        base, experts: sources whose sha256 is known.
        cache: folder of the methods' tables and of the tensors that had to be made, see `models.family`.
        fitness, entries: the tasks to score: some of the fitness's entries. Without any, candidates can be built
            but not scored.
        hash_weights: whether each score carries the sha256 of the merged weights.
        vocabulary: what to do where the experts' vocabularies differ.
        answers: folder of what candidates have answered, see `scoring.answers`; None keeps nothing.
        deltas: folder of what training operators leave; None is one in the cache.
        trained: name of a file in it -> the sha256 of the tensors that it had when its candidate was scored.
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
    trained: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None


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
