"""M2N2: genomes compete for documents, and mate with those that know what they do not.

Abrantes, Lange and Tang 2025, "Competition and attraction improve model fusion", arXiv 2508.16204. An archive keeps
N genomes θ with the score s(x_j | θ) of each document x_j. A document is a resource, shared by those who answer it:

    z_j = Σ_k s(x_j | θ_k)                                               what the archive scores on document j
    f(θ_i) = Σ_j C_j s(x_j | θ_i) / (z_j^α + ε)                          fitness: what few others know counts more
    g(θ_A, θ_B) = Σ_j C_j max(s(x_j | θ_B) - s(x_j | θ_A), 0) / (z_j^α + ε)   how B attracts A

The first parent is drawn in proportion to its fitness, the second in proportion to its attraction. The child mixes
them by w before a split point and by 1 - w behind it; a newcomer drives out the genome of the least fitness.

Where this differs from the paper:

- What is split and mixed are the genomes, in the unit cube, not the models' weights. Merges that are linear in
  their coefficients are thereby mixed linearly, where the paper mixes spherically.
- Coordinates are split in the order of their depth: by the number of their layer, group or anchor, those that have
  none behind all others. A choice is not mixed, but taken from the parent of more weight.
- Mutation, which the paper has only for models trained from nothing: crossover never leaves the convex hull of the
  known points. Its step is drawn log-uniformly between a hundredth of `step` and `step`. 0 turns it off.
- Scores below 0 (log-likelihoods) are no resources: on each document where the archive has one, they count from
  the worst of the archive upward.

The first generation is the known points; if they are fewer than the archive holds, the second fills it with mutated
children of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.spaces.genes import Coordinate, Genome

FRESH_DOCUMENTS = False


SEVERAL_OBJECTIVES = False


WANTS_DOCUMENT_SCORES = True


class Options(Strict):
    """What M2N2 may be told.

    Attributes:
        population: candidates proposed at once.
        archive: genomes that are kept, N.
        capacity: of a document, C_j: `best`, the archive's best score on it, so that it weighs what is at stake
            there; or `one`. For answers that are right or wrong the two are the same.
        competition: α; at 0 nothing is shared, and the fitness is the plain sum of the scores.
        epsilon: ε, which keeps a document that nobody answers from dividing by 0.
        mutation: the probability that a child is mutated.
        step: the largest standard deviation of a mutation, as a fraction of each gene's range.
    """

    population: int = Field(default=16, ge=1)
    archive: int = Field(default=20, ge=2)
    capacity: Literal["best", "one"] = "best"
    competition: float = Field(default=1.0, ge=0.0)
    epsilon: float = Field(default=1e-9, gt=0.0)
    mutation: float = Field(default=0.9, ge=0.0, le=1.0)
    step: float = Field(default=0.3, gt=0.0, le=1.0)


class M2N2Sampler:
    """A child is drawn from the archive by (seed, generation, slot); the archive follows from what was told."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._order = by_depth(problem.coordinates)
        self._starts = np.array([to_units(problem.coordinates, start) for start in problem.starts])
        self._asked: dict[int, np.ndarray] = {}
        self._genomes = np.empty((0, len(problem.coordinates)))  # (members, coordinates), in the unit cube
        self._scores = np.empty((0, 0))  # (members, documents)

    def ask(self, number: int) -> Generation:
        """The known points; what fills the archive; then children of its members."""
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
        """Lets the candidates into the archive one by one, each of which drives out the least fit."""
        for unit, result in zip(self._asked.pop(number), results, strict=True):
            if result.documents is not None:
                self._admit(unit, result.documents)

    def recommend(self) -> Genome | None:
        """The archive's best by the plain mean of its scores."""
        if not len(self._genomes):
            return None
        best = int(np.argmax(self._scores.mean(axis=1)))
        return to_genome(self._problem.coordinates, self._genomes[best])

    def _admit(self, unit: np.ndarray, scores: np.ndarray) -> None:
        self._genomes = np.vstack([self._genomes, unit])
        self._scores = np.vstack([self._scores.reshape(-1, len(scores)), scores])
        if len(self._genomes) > self._options.archive:
            worst = int(np.argmin(_fitness(_shares(self._scores, self._options))))
            self._genomes = np.delete(self._genomes, worst, axis=0)
            self._scores = np.delete(self._scores, worst, axis=0)

    def _mate(self, number: int) -> list[np.ndarray]:
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
    """(members, documents): what each member gets of each document, C_j s_ij / (z_j^α + ε)."""
    scores = scores - np.minimum(scores.min(axis=0), 0.0)
    taken = scores.sum(axis=0) ** options.competition + options.epsilon
    capacity = scores.max(axis=0) if options.capacity == "best" else 1.0
    return np.asarray(scores * (capacity / taken))


def _fitness(shares: np.ndarray) -> np.ndarray:
    return np.asarray(shares.sum(axis=1))


def _attraction(shares: np.ndarray, first: int) -> np.ndarray:
    """(members,): what each would get of the documents beyond what the first parent gets; g."""
    return np.asarray(np.maximum(shares - shares[first], 0.0).sum(axis=1))


def _draw(weights: np.ndarray, random: np.random.Generator) -> int:
    """An index in proportion to its weight; any, if all are 0."""
    total = weights.sum()
    return int(random.choice(len(weights), p=weights / total if total > 0.0 else None))


def by_depth(coordinates: Sequence[Coordinate]) -> np.ndarray:
    """The coordinates' indices from the first layer to the last; those without a layer come last."""
    return np.argsort([_depth(coordinate.name) for coordinate in coordinates], kind="stable")


def _depth(name: str) -> float:
    """The number behind g, l or a in a name like `weight.g0.attention.maths`."""
    layer = [*name.split("."), ""][1]
    return int(layer[1:]) if layer[:1] in ("g", "l", "a") and layer[1:].isdecimal() else np.inf


def mix(
    coordinates: Sequence[Coordinate], first: np.ndarray, second: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mixes two genomes; a choice is taken from the parent of more weight.

    Args:
        weights: (coordinates,), of the second parent.
    """
    whole = np.array([bool(coordinate.choices) for coordinate in coordinates])
    weights = np.where(whole, weights > 0.5, weights)
    return np.asarray(np.clip((1.0 - weights) * first + weights * second, 0.0, 1.0))


def mutate(
    coordinates: Sequence[Coordinate], units: np.ndarray, step: float, random: np.random.Generator
) -> np.ndarray:
    """Adds N(0, σ²) to each number, σ log-uniform in [step/100, step]; draws one choice anew, on average."""
    size = step * 100.0 ** -random.random()
    moved = np.clip(units + size * random.standard_normal(len(units)), 0.0, 1.0)
    whole = np.array([bool(coordinate.choices) for coordinate in coordinates])
    anew = random.random(len(units)) * max(int(whole.sum()), 1) < 1.0
    return np.where(whole, np.where(anew, random.random(len(units)), units), moved)


def make(problem: Problem, options: Options) -> M2N2Sampler:
    """An M2N2 over the coordinates."""
    return M2N2Sampler(problem, options)
