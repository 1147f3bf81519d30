"""CatCMA with margin: CMA-ES for numbers, whole numbers and choices together, by cmaes.

Hamano et al. 2025, "CatCMA with margin", arXiv 2504.07884; Hamano et al. 2022, "CMA-ES with margin", arXiv
2205.13482. The joint distribution is N(m, σ² A C A) over the numbers and a categorical one, q, over each choice. A
number of few values is a Gaussian coordinate that is rounded: A and m keep the probability that it leaves its
value, and q that of each category, above a margin, so that neither freezes. q follows the natural gradient, at a
rate that adapts to its noise.

Searches the unit cube that the genes' bounds map to, clips what leaves it, and ranks what was clipped lower the
further outside it lay. The first generation is the known points, at four times the effort; the best of them is the
first mean, and half of each choice's probability begins on its category, the other half spread over all.

Where this differs from the paper: values are replaced by their ranks within the generation, on which the penalty of
what was clipped is measured; a generation of equal values changes nothing; and no deviation exceeds 0.3 of a gene's
range, or half the distance between a number's values, without which noise may blow the step up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cmaes import CatCMAwM
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.spaces.genes import Coordinate, Genome

FRESH_DOCUMENTS = True


SEVERAL_OBJECTIVES = False


WANTS_DOCUMENT_SCORES = False

_LEAN = 0.5  # the share of q that begins on the first mean's category


_LARGEST = 0.3  # deviation, as a fraction of a gene's range


_EFFORT = 4  # of the known points, one of which becomes the first mean


class Options(Strict):
    """population: candidates a generation, 4 + 3 ln(dimensions) by default; sigma: the first step, as a fraction
    of each gene's range."""

    population: int | None = Field(default=None, ge=4)
    sigma: float = Field(default=0.2, gt=0.0, le=1.0)


class CatCmaSampler:
    """The random numbers of a generation are drawn from (seed, generation) alone; the rest is replayed."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._choices = [c for c in problem.coordinates if c.choices]
        self._grids = {c.name: grid for c in problem.coordinates if (grid := _grid(c)) is not None}
        self._whole = [c for c in problem.coordinates if c.name in self._grids]
        self._smooth = [c for c in problem.coordinates if not c.choices and c.name not in self._grids]
        self._start = problem.starts[0]
        self._engine: CatCMAwM | None = None
        self._asked: dict[int, list[CatCMAwM.Solution]] = {}

    def ask(self, number: int) -> Generation:
        """The known points; then a generation at a time."""
        if number == 0:
            return Generation(self._problem.starts, effort=_EFFORT)
        if self._engine is None:
            self._engine = self._open()
        self._engine._rng = np.random.RandomState(generator(self._problem.seed, number).bit_generator)
        with alone():
            self._asked[number] = [self._engine.ask() for _ in range(self._engine.population_size)]
        return Generation([self._genome(found.x, found.z, found.c) for found in self._asked[number]])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Chooses the first mean; then adapts both distributions."""
        values = np.array([result.value for result in results])
        if number == 0:
            self._start = self._problem.starts[int(np.argmax(values))]
            if self._engine is not None and not self._engine.generation:
                self._engine = None  # opened before this was known
            return
        asked = self._asked.pop(number)
        if np.all(values == values[0]):
            return
        self._engine = self._engine or self._open()
        ranks = _ranks(-values)
        with alone():
            self._engine.tell(list(zip(asked, ranks, strict=True)))
        self._cap(self._engine)

    def recommend(self) -> Genome | None:
        """The distribution's mean and its most likely categories."""
        if self._engine is None:
            return self._start
        mean, smooth = self._mean(self._engine), len(self._smooth)
        nearest = [
            grid[np.argmin(abs(grid - unit))]
            for grid, unit in zip(self._grids.values(), mean[smooth:], strict=True)
        ]
        return self._genome(mean[:smooth], np.array(nearest), self._engine._q if self._choices else None)

    def _open(self) -> CatCMAwM:
        numbers = [*self._smooth, *self._whole]
        sigma = self._options.sigma
        engine = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._smooth) or None,
            z_space=[grid.tolist() for grid in self._grids.values()] or None,
            c_space=[len(c.choices) for c in self._choices] or None,
            population_size=self._options.population,
            mean=np.array([c.to_unit(self._start[c.name]) for c in numbers]),
            sigma=sigma,
            cov=np.diag(np.maximum(self._half_steps() / sigma, 1.0) ** 2),
            cat_param=self._leaning(),
        )
        # The spread that penalties are measured by, until a generation has shown one.
        engine._iqhist_values = [engine.population_size / 2]
        return engine

    def _half_steps(self) -> np.ndarray:
        """Half the distance between a number's values, 0 for a continuous one."""
        return np.array([0.0] * len(self._smooth) + [0.5 * (grid[1] - grid[0]) for grid in self._grids.values()])

    def _leaning(self) -> np.ndarray | None:
        """(choices, most categories): q at first, padded with zeros."""
        if not self._choices:
            return None
        leaning = np.zeros((len(self._choices), max(len(c.choices) for c in self._choices)))
        for row, c in zip(leaning, self._choices, strict=True):
            row[: len(c.choices)] = (1.0 - _LEAN) / len(c.choices)
            row[c.choices.index(str(self._start[c.name]))] += _LEAN
        return leaning

    def _mean(self, engine: CatCMAwM) -> np.ndarray:
        return np.asarray(engine._mean) if self._smooth or self._whole else np.empty(0)

    def _cap(self, engine: CatCMAwM) -> None:
        """Shrinks the step until no deviation is larger than allowed."""
        if self._smooth or self._whole:
            allowed = np.maximum(self._half_steps(), _LARGEST)
            engine._sigma /= max(1.0, float(np.max(engine._sigma * np.sqrt(np.diag(engine._C)) / allowed)))

    def _genome(self, smooth: np.ndarray | None, whole: np.ndarray | None, shares: np.ndarray | None) -> Genome:
        """The genome of a point of the unit cube, and of the largest share of each choice."""
        found: Genome = {}
        for coordinates, units in ((self._smooth, smooth), (self._whole, whole)):
            if units is not None:
                found |= {c.name: c.from_unit(float(u)) for c, u in zip(coordinates, units, strict=True)}
        if shares is not None:
            found |= {c.name: c.choices[int(np.argmax(s))] for c, s in zip(self._choices, shares, strict=True)}
        return {c.name: found[c.name] for c in self._problem.coordinates}


def _grid(coordinate: Coordinate) -> np.ndarray | None:
    """Where in the unit interval a number's values lie, if it has but a few; None for a continuous one."""
    count = coordinate.steps + 1
    return (np.arange(count) + 0.5) / count if coordinate.step else None


def _ranks(losses: np.ndarray) -> np.ndarray:
    """(n,): each loss's place from 0, the mean place among equals."""
    _, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])


def make(problem: Problem, options: Options) -> CatCmaSampler:
    """A CatCMA over the coordinates."""
    return CatCmaSampler(problem, options)
