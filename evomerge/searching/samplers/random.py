"""Uniform random search within the bounds: the baseline that every sampler has to beat.

Bergstra and Bengio 2012, "Random search for hyper-parameter optimization". The first generation is the known
points.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._options import ProposalOptions
from evomerge.searching.samplers._units import to_genome
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = False


class Options(ProposalOptions):
    """What a random search may be told: what `ProposalOptions` has."""


class RandomSampler:
    """Draws a candidate's point from (seed, generation, slot) alone."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._population = options.population

    def ask(self, number: int) -> Generation:
        """The known points; then the next `population` points."""
        if number == 0:
            return Generation(self._problem.starts)
        return Generation([self._draw(number, slot) for slot in range(self._population)])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Does nothing: random search does not learn."""

    def recommend(self) -> Genome | None:
        """None: random search has no opinion."""

    def _draw(self, number: int, slot: int) -> Genome:
        """A point uniform in the unit cube, as a genome."""
        coordinates = self._problem.coordinates
        units = generator(self._problem.seed, number, slot).random(len(coordinates))
        return to_genome(coordinates, units)


def make(problem: Problem, options: Options) -> RandomSampler:
    """A random search over the problem's coordinates."""
    return RandomSampler(problem, options)
