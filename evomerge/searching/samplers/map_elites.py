"""MAP-Elites over the tasks' scores, as CycleQD does it: an archive of elites for each task, taken in turn.

Mouret and Clune 2015, "Illuminating search spaces by mapping elites", arXiv 1504.04909; Kuroki et al. 2024, "Agent
skill acquisition for large language models via CycleQD", arXiv 2410.14735. Task q's archive is a grid over the
scores of the other tasks; each cell keeps the elite of the best score on q. Generation t breeds from the archive of
task t mod M, whose elites are drawn in proportion to

    γ_i = Π_j [α_low + (α_high - α_low) (s_ij - min_i s_ij) / (max_i s_ij - min_i s_ij)],  α_low = 0.5, α_high = 0.8

over all tasks j. Two elites are mixed linearly, and the child is mutated. Every candidate is entered in every
archive. With one objective the grid is over the mean of the genome in the unit cube: how much is merged in overall.

Where this differs from CycleQD:

- Scores may have any range, so the grid's boundaries are quantiles of all scores told so far, and the elites are
  sorted into it anew at each tell (MAP-Elites with sliding boundaries, Fontaine et al. 2019, arXiv 1904.10656).
- A genome has coefficients only, so mutation is Gaussian where CycleQD's is along the singular vectors of the task
  vectors; see `samplers._variation.mutate`.
- The mixing ratio is normal about 1/2 with a deviation of 1/2, so that a child lies beyond its parents now and
  then. CycleQD's ratio has a deviation of about 0.01, which makes midpoints and draws the elites together.

The first generation is the known points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._options import ProposalOptions
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.samplers._variation import mix, mutate
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = True

_LOW, _HIGH = 0.5, 0.8  # CycleQD's α
_SPREAD = 0.5  # the deviation of the mixing ratio from 1/2
_CELLS = 64  # about as many cells an archive has by default


class Options(ProposalOptions):
    """What MAP-Elites may be told, beside what `ProposalOptions` has.

    Attributes:
        bins: parts of each axis of the grid; by default as many as make about 64 cells, from 2 to 16.
        step: the largest standard deviation of a mutation, as a fraction of each gene's range.
    """

    bins: int | None = Field(default=None, ge=2)
    step: float = Field(default=0.3, gt=0.0, le=1.0)


class MapElitesSampler:
    """Draws a child from an archive by (seed, generation, slot); the archives follow from the results told."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        axes = max(problem.objectives - 1, 1)
        self._bins = options.bins or int(np.clip(round(_CELLS ** (1 / axes)), 2, 16))
        self._starts = np.array([to_units(problem.coordinates, start) for start in problem.starts])
        self._asked: dict[int, np.ndarray] = {}
        self._told = np.empty((0, problem.objectives))  # features of all candidates told, from which cells are made
        self._genomes = np.empty((0, len(problem.coordinates)))  # (elites of all archives, coordinates)
        self._scores = np.empty((0, problem.objectives))  # (elites, objectives)
        self._archives = [np.empty(0, dtype=int)] * problem.objectives  # for each task, the numbers of its elites

    def ask(self, number: int) -> Generation:
        """The known points; then children of one task's elites."""
        if number == 0:
            self._asked[0] = self._starts
            return Generation(self._problem.starts)
        archive = self._archives[number % self._problem.objectives]
        parents = self._genomes[archive] if len(archive) else self._starts
        weights = _frequencies(self._scores[archive]) if len(archive) else np.ones(len(parents))
        slots = range(self._options.population)
        self._asked[number] = np.array([self._breed(parents, weights, number, slot) for slot in slots])
        return Generation([to_genome(self._problem.coordinates, unit) for unit in self._asked[number]])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Sorts the elites and the candidates into every archive."""
        units = self._asked.pop(number)
        good = [slot for slot, result in enumerate(results) if not result.failed]
        if not good:
            return
        scores = np.array([results[slot].objectives or (results[slot].value,) for slot in good])
        self._told = np.vstack([self._told, _features(units[good], scores)])
        self._genomes = np.vstack([self._genomes, units[good]])
        self._scores = np.vstack([self._scores, scores])
        self._sort()

    def recommend(self) -> Genome | None:
        """The best elite; None if there are several objectives."""
        if self._problem.objectives > 1 or not len(self._scores):
            return None
        return to_genome(self._problem.coordinates, self._genomes[int(np.argmax(self._scores))])

    def _breed(self, parents: np.ndarray, weights: np.ndarray, number: int, slot: int) -> np.ndarray:
        """The point of a mutated child of two parents, drawn by their weights; or of the only parent there is."""
        random = generator(self._problem.seed, number, slot)
        coordinates = self._problem.coordinates
        child: np.ndarray = parents[0]
        if len(parents) > 1:
            first, second = random.choice(len(parents), 2, replace=False, p=weights / weights.sum())
            ratio = np.full(len(coordinates), random.normal(0.5, _SPREAD))
            child = mix(coordinates, parents[first], parents[second], ratio)
        return mutate(coordinates, child, self._options.step, random)

    def _sort(self) -> None:
        """Keeps the best genome of each cell of each archive, and no other."""
        cells = _cells(_features(self._genomes, self._scores), self._told, self._bins)
        tasks = range(self._problem.objectives)
        archives = [_elites(self._scores[:, task], _others(cells, task)) for task in tasks]
        kept = np.unique(np.concatenate(archives))
        self._genomes, self._scores = self._genomes[kept], self._scores[kept]
        self._archives = [np.searchsorted(kept, elites) for elites in archives]


def _features(genomes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What places candidates in the grids, (candidates, objectives): scores, or a lone objective's genome mean."""
    return scores if scores.shape[1] > 1 else np.asarray(genomes.mean(axis=1, keepdims=True))


def _cells(features: np.ndarray, told: np.ndarray, bins: int) -> np.ndarray:
    """The part of each axis that each feature lies in, between quantiles of `told`: (candidates, objectives)."""
    edges = np.quantile(told, np.arange(1, bins) / bins, axis=0)
    columns = zip(edges.T, features.T, strict=True)
    return np.stack([np.searchsorted(edge, column, side="right") for edge, column in columns], axis=1)


def _others(cells: np.ndarray, task: int) -> np.ndarray:
    """The cells along the axes of a task's grid: those of all other tasks, or a lone task's own."""
    return cells if cells.shape[1] == 1 else np.asarray(np.delete(cells, task, axis=1))


def _elites(quality: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The index of the best candidate of each cell that has any; of equally good ones, the first told.

    Args:
        quality: each candidate's score on the archive's task, (candidates,).
        cells: (candidates, axes).
    """
    order = np.lexsort((-quality, *cells.T))  # stable: cell by cell, the best first
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(cells[order], axis=0) != 0).any(axis=1)
    return np.asarray(order[new])


def _frequencies(scores: np.ndarray) -> np.ndarray:
    """γ, to which the probability of being a parent is proportional: (elites,). scores: (elites, objectives)."""
    low, high = scores.min(axis=0), scores.max(axis=0)
    parts = (scores - low) / np.where(high > low, high - low, 1.0)
    return np.asarray(np.prod(_LOW + (_HIGH - _LOW) * parts, axis=1))


def make(problem: Problem, options: Options) -> MapElitesSampler:
    """A MAP-Elites over the problem's coordinates."""
    return MapElitesSampler(problem, options)
