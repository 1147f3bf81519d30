"""M2N2: genomes compete for documents, and mate with those that know what they do not.

Abrantes, Lange and Tang 2025, "Competition and attraction improve model fusion", arXiv 2508.16204. An archive keeps
N genomes θ with the score s(x_j | θ) of each document x_j. A document is a resource, shared by those who answer it:

    z_j = Σ_k s(x_j | θ_k)                                               what the archive scores on document j
    f(θ_i) = Σ_j C_j s(x_j | θ_i) / (z_j^α + ε)                          fitness: what few others know counts more
    g(θ_A, θ_B) = Σ_j C_j max(s(x_j | θ_B) - s(x_j | θ_A), 0) / (z_j^α + ε)   how B attracts A

The first parent is drawn in proportion to its fitness, the second in proportion to its attraction. In the child
the second parent weighs w before a split point and 1 - w behind it. A newcomer drives out the genome of the least
fitness.

Where this differs from the paper:

- Genomes are split and mixed, in the unit cube, not the models' weights. Merges that are linear in their
  coefficients are thereby mixed linearly, where the paper mixes spherically.
- Coordinates are split in the order of their depth: by the number of their layer, group or anchor. Those that hold
  for all layers lie behind all others. A choice is not mixed, but taken from the parent of more weight.
- Children are mutated, which the paper does only to models trained from nothing: crossover alone never leaves the
  convex hull of the known points. The step is drawn log-uniformly between a hundredth of `step` and `step`;
  `mutation: 0` turns mutation off.
- Scores below 0 (log-likelihoods) are no resources: on a document where the archive has one, scores count from the
  worst of the archive upward.

The first generation is the known points. If they are fewer than the archive holds, the second generation fills it
with their mutated children.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._options import ProposalOptions
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.samplers._variation import mix, mutate
from evomerge.searching.spaces.genes import Coordinate, Genome

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = False
WANTS_DOCUMENT_SCORES = True
LEARNS = True


class Options(ProposalOptions):
    """What M2N2 may be told, beside what `ProposalOptions` has.

    Attributes:
        archive: N, the number of genomes that are kept.
        capacity: C_j, what a document offers: `best`, the archive's best score on it, so that a document weighs as
            much as there is to win; or `one`. For answers that are right or wrong the two are the same.
        competition: α; at 0 nothing is shared, and the fitness is the plain sum of the scores.
        epsilon: ε, which keeps a document that nobody answers from dividing by 0.
        mutation: the probability that a child is mutated.
        step: the largest standard deviation of a mutation, as a fraction of each gene's range.
    """

    archive: int = Field(default=20, ge=2)
    capacity: Literal["best", "one"] = "best"
    competition: float = Field(default=1.0, ge=0.0)
    epsilon: float = Field(default=1e-9, gt=0.0)
    mutation: float = Field(default=0.9, ge=0.0, le=1.0)
    step: float = Field(default=0.3, gt=0.0, le=1.0)


class M2N2Sampler:
    """Draws a child from the archive by (seed, generation, slot); the archive follows from the results told."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._order = by_depth(problem.coordinates)
        self._starts = np.array([to_units(problem.coordinates, start) for start in problem.starts])
        self._asked: dict[int, np.ndarray] = {}
        self._genomes = np.empty((0, len(problem.coordinates)))  # (members, coordinates), in the unit cube
        self._scores = np.empty((0, 0))  # (members, documents)

    def ask(self, number: int) -> Generation:
        """The known points; then the genomes that fill the archive; then children of its members."""
        if number == 0:
            self._asked[0] = self._starts
            return Generation(self._problem.starts)
        missing = self._options.archive - len(self._starts)
        if number == 1 and missing > 0:
            units = [self._fill(number, slot) for slot in range(missing)]
        elif len(self._genomes) < 2:
            units = [self._fill(number, slot) for slot in range(self._options.population)]
        else:
            units = self._mate(number)
        self._asked[number] = np.array(units)
        return Generation([to_genome(self._problem.coordinates, unit) for unit in units])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Lets the candidates into the archive one by one; each of them drives out the least fit genome."""
        for unit, result in zip(self._asked.pop(number), results, strict=True):
            if result.documents is not None:
                self._admit(unit, result.documents)

    def recommend(self) -> Genome | None:
        """The archive's best genome by the plain mean of its scores; None while the archive is empty."""
        if not len(self._genomes):
            return None
        best = int(np.argmax(self._scores.mean(axis=1)))
        return to_genome(self._problem.coordinates, self._genomes[best])

    def _admit(self, unit: np.ndarray, scores: np.ndarray) -> None:
        """Adds a genome and its documents' scores, and removes the least fit of an archive that is too large."""
        self._genomes = np.vstack([self._genomes, unit])
        self._scores = np.vstack([self._scores.reshape(-1, len(scores)), scores])
        if len(self._genomes) > self._options.archive:
            worst = int(np.argmin(_fitness(_shares(self._scores, self._options))))
            self._genomes = np.delete(self._genomes, worst, axis=0)
            self._scores = np.delete(self._scores, worst, axis=0)

    def _mate(self, number: int) -> list[np.ndarray]:
        """A generation of children of the archive's members, as points of the unit cube."""
        shares = _shares(self._scores, self._options)
        fitness = _fitness(shares)
        units = []
        for slot in range(self._options.population):
            random = generator(self._problem.seed, number, slot)
            first = _draw(fitness, random)
            second = _draw(_attraction(shares, first), random)
            child = self._cross(self._genomes[first], self._genomes[second], random)
            if random.random() < self._options.mutation:
                child = mutate(self._problem.coordinates, child, self._options.step, random)
            units.append(child)
        return units

    def _fill(self, number: int, slot: int) -> np.ndarray:
        """A mutated child of two of the known points, drawn with replacement."""
        random = generator(self._problem.seed, number, slot)
        first, second = self._starts[random.integers(len(self._starts), size=2)]
        child = self._cross(first, second, random)
        if not self._options.mutation:
            return child
        return mutate(self._problem.coordinates, child, self._options.step, random)

    def _cross(self, first: np.ndarray, second: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The paper's crossover: the second parent weighs w before the split point, 1 - w behind it."""
        weights = np.full(len(first), random.random())
        behind = self._order[random.integers(len(first)) :]
        weights[behind] = 1.0 - weights[behind]
        return mix(self._problem.coordinates, first, second, weights)


def _shares(scores: np.ndarray, options: Options) -> np.ndarray:
    """Each member's share of each document, C_j s_ij / (z_j^α + ε): (members, documents)."""
    scores = scores - np.minimum(scores.min(axis=0), 0.0)
    taken = scores.sum(axis=0) ** options.competition + options.epsilon
    capacity = scores.max(axis=0) if options.capacity == "best" else 1.0
    return np.asarray(scores * (capacity / taken))


def _fitness(shares: np.ndarray) -> np.ndarray:
    """The fitness f of each member: (members,)."""
    return np.asarray(shares.sum(axis=1))


def _attraction(shares: np.ndarray, first: int) -> np.ndarray:
    """How each member attracts the first parent, g: its shares beyond the first parent's, (members,)."""
    return np.asarray(np.maximum(shares - shares[first], 0.0).sum(axis=1))


def _draw(weights: np.ndarray, random: np.random.Generator) -> int:
    """An index drawn in proportion to its weight; drawn uniformly if all weights are 0."""
    total = weights.sum()
    return int(random.choice(len(weights), p=weights / total if total > 0.0 else None))


def by_depth(coordinates: Sequence[Coordinate]) -> np.ndarray:
    """The coordinates' indices from the first layer to the last; those that hold for all layers come last."""
    depths = [np.inf if coordinate.depth is None else coordinate.depth for coordinate in coordinates]
    return np.argsort(depths, kind="stable")


def make(problem: Problem, options: Options) -> M2N2Sampler:
    """An M2N2 over the problem's coordinates."""
    return M2N2Sampler(problem, options)
