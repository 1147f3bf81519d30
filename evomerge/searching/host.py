"""What a search asks of its host, and the lines that the host logs.

A host evaluates genomes and keeps the log. A study is a host; `maximize` brings another for a fitness of one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from evomerge.searching.documents import Chosen
from evomerge.searching.spaces.genes import Genome

# The first three are the roles of a search. The others belong to the second phase of a study, which no search sees.
Role = Literal["search", "select", "final", "elite", "trained", "parent", "control"]


@dataclass(frozen=True)
class Assignment:
    """A genome to evaluate.

    Attributes:
        key: comes back with the evaluation.
        documents: the documents to score; None for all documents.
        gradient: whether the derivative of the value is wanted as well.
    """

    key: int
    genome: Genome
    documents: Chosen | None
    gradient: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What became of an assignment.

    Attributes:
        scores: task -> the score of each document, float64 (documents,), in the order of their ids.
        value: the value, which counts where all documents were scored. Where some were, the search computes the
            value from the scores.
        gradient: coordinate -> derivative of the value; None where it was not asked for.
        reason: why there is no score; None if there is one.
        source: the host's own record of the evaluation, which the search hands back with the line.
    """

    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    value: float | None = None
    gradient: Mapping[str, float] | None = None
    reason: str | None = None
    source: Any = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A finished candidate, as far as a search needs to know it.

    Attributes:
        generation, slot: the number of its generation, and its place in the generation.
        value: the fitness that the sampler climbs; None if the candidate failed.
        role: `search`: the sampler asked for it, and it was scored on the documents of its generation. `select`: it
            was compared with the incumbent, on documents that no search candidate sees. `final`: it is the winner,
            scored on all documents. The other roles belong to the second phase, which scores on all documents:
            `elite`, one of the best of the search; `trained`, an elite after the training operators; `parent`, the
            base or an expert; `control`, the best parent after the same training.
        objectives: the climbed score of each entry, in the order of the fitness.
        blocks: the value on each block of documents, in their order; () where all documents were scored at once.
        all_documents: whether all search documents were scored, so that the value compares with any other such one.
        incumbent: whether the search held it to be the best from then on.
        log_length_when_asked: how many search candidates the log held when its generation was asked for.
        gradient: coordinate -> derivative of the value; None where it was not asked for.
        documents: how many document evaluations it took.
        reason: why it failed; None if it did not.
        evaluation: the evaluation that the line was made from; None where the line comes from the log.
    """

    generation: int
    slot: int
    genome: Genome
    value: float | None
    role: Role = "search"
    objectives: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()
    all_documents: bool = True
    incumbent: bool = False
    log_length_when_asked: int = 0
    gradient: Mapping[str, float] | None = None
    documents: int = 0
    reason: str | None = None
    evaluation: Evaluation | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Reserve:
    """What must remain of a budget for the end of a search: candidates and document evaluations."""

    candidates: int = 0
    documents: int = 0


class Host(Protocol):
    """Evaluates genomes, and keeps the log."""

    def log(self) -> Sequence[Line]:
        """All lines of the search in the log, in order."""

    def evaluate(self, assignments: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates genomes, and yields the key and the evaluation of each, in any order.

        Args:
            assignments: the next one is taken when a worker is free for it. None says that there is no other before
                some evaluation is known.
        """

    def keep(self, line: Line) -> Line:
        """Appends the line and returns it as it reads back from disk, with its evaluation, so that a sampler learns
        the same from a new line as from a replayed one."""

    def room(self, wanted: int, *, begun: bool, reserve: Reserve) -> int:
        """How many of the wanted candidates of a generation the budget still has room for, from 0 to `wanted`.

        Args:
            wanted: how many candidates the generation asks for.
            begun: whether candidates of the generation are in the log already.
            reserve: the part of the budget that must remain.
        """

    def begin(self, generation: int, size: int) -> None:
        """Is told that a generation begins, and how many candidates it has."""
