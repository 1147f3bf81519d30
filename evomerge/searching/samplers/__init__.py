"""Samplers, one a file: each proposes genomes. A new file here is a new sampler.

A sampler's module holds what `SamplerModule` names:

- a docstring: the algorithm and its paper;
- `Options`: its options, a subclass of `SamplerOptions`, whose docstring explains each as `name: what it does`;
- `make(problem, options) -> Sampler`;
- `FRESH_DOCUMENTS`: whether it compares candidates within a generation only, so that each generation may be scored
  on documents of its own. The other samplers remember values, and need the same documents for all candidates;
- `SEVERAL_OBJECTIVES`: whether it takes several objectives;
- `WANTS_DOCUMENT_SCORES`: whether it wants the score of each document;
- `LEARNS`: whether its proposals depend on the scores of earlier candidates, so that it may have too few of them.

The contract that makes resuming exact: what `ask` returns is a pure function of the problem, of the generation's
number and of the generations told before, in their order. A study is resumed by asking and telling its finished
generations again; nothing is pickled. So draw from generators keyed by (seed, generation, candidate), never from
a running one, and hold no clock and no global state.

A sampler's module is loaded to read its flags and to check its options as well. So libraries that take long to
import (optuna, cmaes, cma, scipy) are imported where the sampler is made or asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from evomerge import plugins
from evomerge.files.schema import Strict
from evomerge.searching.spaces.genes import Coordinate, Genome


@dataclass(frozen=True)
class Problem:
    """The search problem that a sampler is made for.

    Attributes:
        coordinates: those of the genome, in its order.
        seed: keys all random draws.
        starts: the known points (see `spaces.known_points`), at least one, which generation 0 proposes. A search
            that begins at one point begins at the first of them, however the others score: measured on real models,
            the best-scoring known point is a lone expert or a sum of all experts, and a short search does not get
            away from it.
        objectives: how many there are; all are maximized.
    """

    coordinates: Sequence[Coordinate]
    seed: int
    starts: Sequence[Genome]
    objectives: int = 1


@dataclass(frozen=True)
class Generation:
    """Genomes to be evaluated together, on the same documents.

    Attributes:
        gradient: whether the sampler wants the derivative of the value in each coordinate as well.
        effort: how many times the usual number of documents to score it on.
        select: whether to score it on all the documents kept apart for selecting, and on no others.
    """

    genomes: Sequence[Genome]
    gradient: bool = False
    effort: int = 1
    select: bool = False


@dataclass(frozen=True)
class Result:
    """The scores of one candidate. All numbers are finite, and more is better.

    Attributes:
        value: the fitness; a failed candidate has the worst value of its generation.
        objectives: one number for each objective; if there is one objective, the value alone.
        documents: the score of each document of its generation, float64 (documents,); None where the sampler does
            not want it, and for a failed candidate.
        gradient: coordinate name -> derivative of the value in the genome's own units; None where the generation
            does not want it, and for a failed candidate. Choices have no derivative.
        failed: whether the candidate could not be scored.
    """

    value: float
    objectives: tuple[float, ...] = ()
    documents: np.ndarray | None = None
    gradient: Mapping[str, float] | None = None
    failed: bool = False


class Sampler(Protocol):
    """Proposes genomes a generation at a time."""

    def ask(self, number: int) -> Generation:
        """Generation `number`. Generations are numbered from 0 in the order of asking.

        A generation may be asked for before earlier ones are told. Some are never told: all their candidates
        failed, or they were lost. An empty generation says that the sampler waits for earlier ones to be told.
        """

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Takes the result of each genome of generation `number`, in the order in which `ask` gave them."""

    def recommend(self) -> Genome | None:
        """The point that the sampler holds to be best, proposed before or not; None if it has no opinion."""


class SamplerOptions(Strict):
    """Base of every sampler's `Options`."""

    @property
    def climbs_gradients(self) -> bool:
        """Whether a search with these options asks for derivatives of the fitness."""
        return False


class SamplerModule(Protocol):
    """The module of a sampler, as the folder's docstring describes it."""

    FRESH_DOCUMENTS: bool
    SEVERAL_OBJECTIVES: bool
    WANTS_DOCUMENT_SCORES: bool
    LEARNS: bool
    Options: type[SamplerOptions]

    def make(self, problem: Problem, options: Any) -> Sampler:
        """A sampler for the problem. options: an instance of the module's `Options`."""


def load(name: str) -> SamplerModule:
    """The module of the sampler of that name.

    Raises:
        ConfigError: there is no such sampler; the message lists those there are.
    """
    return cast(SamplerModule, plugins.load("samplers", name))


def generator(seed: int, *counters: int) -> np.random.Generator:
    """The random generator of a candidate or a generation. It is counter-based, so that it needs no history.

    Args:
        counters: what is drawn for, such as (generation, slot): at most three numbers, each below 2^64.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, *counters, *[0] * (3 - len(counters))]))
