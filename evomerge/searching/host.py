"""What a search asks of its host, and the lines that the host logs.

A host evaluates genomes and keeps the log. A study is one; `maximize` brings another, for a fitness of one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from evomerge.searching.documents import Chosen
from evomerge.searching.spaces.genes import Genome

# The first three are a search's own. The others are of a study's second phase, which a search does not see.
Role = Literal["search", "select", "final", "elite", "trained", "parent", "control"]


@dataclass(frozen=True)
class Assignment:
    """A genome to evaluate.

    Attributes:
        key: comes back with the evaluation.
        documents: the documents to score; None for all.
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
        scores: entry -> the score of each document, float64 (documents,), in the order of their ids.
        value: the fitness where the host knows it; else it is the objective's value of the scores.
        gradient: coordinate -> derivative of the value.
        reason: why there is no score.
        source: the host's own record of it.
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
        generation, slot: its place in the search.
        value: the fitness that the sampler climbs; None if the candidate failed.
        role: `search`: asked for by the sampler, on the documents of its generation. `select`: compared with the
            incumbent, on documents that no search candidate sees. `final`: the winner, on all documents. The other
            roles are of the second phase, all on all documents: `elite`, one of the best of the search; `trained`,
            the same after the training operators; `parent`; `control`, the best parent after the same training.
        objectives: the climbed mean of each entry, in the order of the fitness.
        blocks: the value on each block of documents, one behind the other; () where all were scored at once.
        all_documents: whether all search documents were scored, so that the value compares with any other's.
        incumbent: whether it was the best known from then on, of those compared.
        log_length_when_asked: how many search candidates the log held when its generation was asked for.
        gradient: coordinate -> derivative of the value; None where it was not asked for.
        documents: how many document evaluations it took.
        reason: why it failed.
        evaluation: what it was made from; None where the line comes from the log.
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
        """Evaluates genomes; (key, evaluation) of each comes in any order. The next assignment is taken when there
        is room for it. None among them says that there is no other before some evaluation is known."""

    def keep(self, line: Line) -> Line:
        """Appends the line and returns it as it reads back from disk, with its evaluation, so that a sampler learns
        the same from a new line as from a replayed one."""

    def room(self, wanted: int, *, begun: bool, reserve: Reserve) -> int:
        """How many of so many candidates of a generation the budget still has room for.

        begun: whether some of the generation are in the log. reserve: what must remain.
        """

    def begin(self, generation: int, size: int) -> None:
        """Is told that a generation of so many candidates begins."""
