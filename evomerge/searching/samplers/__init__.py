"""Samplers, one a file: what proposes genomes. A new file here is a new sampler.

A sampler's module holds:

- a docstring: the algorithm and its paper;
- `Options`: a pydantic model of its options;
- `make(problem, options) -> Sampler`;
- `FRESH_DOCUMENTS`: whether it compares candidates within a generation only, so that each generation may be scored
  on documents of its own. Others remember values, and need the same documents for all candidates;
- `SEVERAL_OBJECTIVES`: whether it takes several objectives;
- `WANTS_DOCUMENT_SCORES`: whether it wants the score of each document.

The contract that makes resuming exact: what `ask` returns is a pure function of the problem, of the generation's
number and of the generations told before, in their order. A study is resumed by asking and telling its finished
generations again; nothing is pickled. So draw from generators keyed by (seed, generation, candidate), never from
a running one, and hold no clock, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.searching.spaces.genes import Coordinate, Genome


@dataclass(frozen=True)
class Problem:
    """What a sampler searches.

    Attributes:
        coordinates: of the genome.
        starts: known points (`space.known_points`), at least one, to be looked at before all others. A search that
            begins somewhere begins at the first, however others score: measured, the best of them is a lone expert
            or a sum of all that a short search does not get away from.
        objectives: how many; all are maximized.
    """

    coordinates: Sequence[Coordinate]
    seed: int
    starts: Sequence[Genome]
    objectives: int = 1


@dataclass(frozen=True)
class Generation:
    """Genomes to be evaluated together, on the same documents.

    Attributes:
        gradient: whether the derivative of the value in each coordinate is wanted beside it.
        effort: how many times the usual number of documents it deserves.
        select: whether to score it on the documents kept apart for selecting, all of them, instead.
    """

    genomes: Sequence[Genome]
    gradient: bool = False
    effort: int = 1
    select: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a candidate. All numbers are finite, and more is better.

    Attributes:
        value: the fitness; of a failed candidate the worst of its generation.
        objectives: one number each; of one objective, the value alone.
        documents: the score of each document of its generation, float64 (documents,); None where it is not
            wanted, and of a failed candidate.
        gradient: coordinate -> derivative of the value in the genome's own units; None where it is not wanted,
            and of a failed candidate. Choices have none.
    """

    value: float
    objectives: tuple[float, ...] = ()
    documents: np.ndarray | None = None
    gradient: Mapping[str, float] | None = None
    failed: bool = False


class Sampler(Protocol):
    """Proposes genomes a generation at a time."""

    def ask(self, number: int) -> Generation:
        """Generation `number`. They are numbered from 0 in the order of asking.

        It may be asked before earlier ones are told, and some are never told: they failed whole, or were lost. An
        empty one says that it has to wait for them.
        """

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """What became of each genome of a generation that was asked for, in its order."""

    def recommend(self) -> Genome | None:
        """The point that it holds to be best, which need not have been asked for; None if it has no opinion."""


def generator(seed: int, *counters: int) -> np.random.Generator:
    """The random generator of a candidate or generation: counter-based, so that it needs no history.

    counters: at most three, each below 2^64.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, *counters, *[0] * (3 - len(counters))]))
