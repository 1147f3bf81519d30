"""Uniform random search within the bounds: the baseline that every sampler has to beat.

Bergstra and Bengio 2012, "Random search for hyper-parameter optimization". The first generation is the known
points.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from evomerge.recipe import Strict
from evomerge.samplers import generator
from evomerge.space import Coordinate, Genome


class Options(Strict):
    """population: candidates proposed at once."""

    population: int = Field(default=16, ge=1)


class RandomSampler:
    """Candidate k's point is drawn from (seed, k) alone."""

    def __init__(
        self, coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]
    ) -> None:
        self._coordinates = coordinates
        self._starts = list(starts)
        self._population = options.population
        self._seed = seed
        self._asked = 0

    def ask(self) -> list[Genome]:
        """The known points; then the next `population` points."""
        if self._starts:
            starts, self._starts = self._starts, []
            return starts
        first = self._asked
        self._asked += self._population
        return [self._draw(candidate) for candidate in range(first, self._asked)]

    def tell(self, values: Sequence[float]) -> None:
        """Random search learns nothing."""

    def _draw(self, candidate: int) -> Genome:
        units = generator(self._seed, candidate).random(len(self._coordinates))
        return {c.name: c.from_unit(float(unit)) for c, unit in zip(self._coordinates, units, strict=True)}


def make(coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]) -> RandomSampler:
    """A random search over the coordinates."""
    return RandomSampler(coordinates, options, seed, starts)
