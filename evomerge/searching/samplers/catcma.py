"""CatCMA with margin: CMA-ES for numbers, whole numbers and choices together, by cmaes.

Hamano et al. 2025, "CatCMA with margin", arXiv 2504.07884; Hamano et al. 2022, "CMA-ES with margin", arXiv
2205.13482. The joint distribution is N(m, σ² A C A) over the numbers and a categorical one, q, over each choice. A
number of few values is a Gaussian coordinate that is rounded. A and m keep the probability that such a number
leaves its value above a margin, and q does so for each category, so that neither freezes. q follows the natural
gradient, at a rate that adapts to its noise.

It searches the unit cube that the genes' bounds map to, clips what leaves it, and ranks what was clipped lower the
further outside it lay. The first generation is the known points, at four times the effort; the best of them is the
first mean. Half of each choice's probability begins on that point's category, the other half spread over all.

Where this differs from the paper: values are replaced by their ranks within the generation, on which the penalty of
what was clipped is measured; a generation of equal values changes nothing; and no deviation exceeds 0.3 of a gene's
range, or half the distance between a number's values, without which noise may blow the step up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.searching.samplers import Generation, Problem, Result, _cmaes, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.samplers._evolution import EvolutionOptions
from evomerge.searching.samplers._units import to_units
from evomerge.searching.spaces.genes import Coordinate, Genome

if TYPE_CHECKING:
    from cmaes import CatCMAwM

FRESH_DOCUMENTS = True
SEVERAL_OBJECTIVES = False
WANTS_DOCUMENT_SCORES = False
LEARNS = True

_LEAN = 0.5  # the share of q that begins on the first mean's category
_LARGEST = 0.3  # the largest deviation, as a fraction of a gene's range
_EFFORT = 4  # the effort for the known points, one of which becomes the first mean


class Options(EvolutionOptions):
    """What CatCMA may be told: what `EvolutionOptions` has."""


class CatCmaSampler:
    """Draws the random numbers of a generation from (seed, generation) alone; all else is replayed."""

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
        random = generator(self._problem.seed, number).bit_generator
        _cmaes.draw_from(self._engine, np.random.RandomState(random))
        with alone():
            self._asked[number] = [self._engine.ask() for _ in range(self._engine.population_size)]
        return Generation([self._genome(point.x, point.z, point.c) for point in self._asked[number]])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Makes the best known point the first mean; then adapts both distributions."""
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
        if self._smooth or self._whole:
            _cmaes.limit_deviations(self._engine, np.maximum(self._half_steps(), _LARGEST))

    def recommend(self) -> Genome | None:
        """The distribution's mean and its most likely categories."""
        if self._engine is None:
            return self._start
        mean = _cmaes.mean(self._engine) if self._smooth or self._whole else np.empty(0)
        smooth = len(self._smooth)
        nearest = [
            grid[np.argmin(abs(grid - unit))]
            for grid, unit in zip(self._grids.values(), mean[smooth:], strict=True)
        ]
        shares = _cmaes.category_shares(self._engine) if self._choices else None
        return self._genome(mean[:smooth], np.array(nearest), shares)

    def _open(self) -> CatCMAwM:
        """A new engine at the first mean."""
        from cmaes import CatCMAwM

        sigma = self._options.sigma
        engine = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._smooth) or None,
            z_space=[grid.tolist() for grid in self._grids.values()] or None,
            c_space=[len(c.choices) for c in self._choices] or None,
            population_size=self._options.population,
            mean=to_units([*self._smooth, *self._whole], self._start),
            sigma=sigma,
            cov=np.diag(np.maximum(self._half_steps() / sigma, 1.0) ** 2),
            cat_param=self._leaning(),
        )
        _cmaes.begin_spread(engine, engine.population_size / 2)
        return engine

    def _half_steps(self) -> np.ndarray:
        """Half the distance between each number's values, (numbers,); 0 for a continuous one."""
        return np.array([0.0] * len(self._smooth) + [0.5 * (grid[1] - grid[0]) for grid in self._grids.values()])

    def _leaning(self) -> np.ndarray | None:
        """The first q: (choices, most categories), padded with zeros; None if there are no choices."""
        if not self._choices:
            return None
        leaning = np.zeros((len(self._choices), max(len(c.choices) for c in self._choices)))
        for row, c in zip(leaning, self._choices, strict=True):
            row[: len(c.choices)] = (1.0 - _LEAN) / len(c.choices)
            row[c.choices.index(str(self._start[c.name]))] += _LEAN
        return leaning

    def _genome(self, smooth: np.ndarray | None, whole: np.ndarray | None, shares: np.ndarray | None) -> Genome:
        """The genome of the numbers' places in the unit interval and of the largest share of each choice."""
        values: Genome = {}
        for coordinates, units in ((self._smooth, smooth), (self._whole, whole)):
            if units is not None:
                values |= {c.name: c.from_unit(float(u)) for c, u in zip(coordinates, units, strict=True)}
        if shares is not None:
            values |= {c.name: c.choices[int(np.argmax(s))] for c, s in zip(self._choices, shares, strict=True)}
        return {c.name: values[c.name] for c in self._problem.coordinates}


def _grid(coordinate: Coordinate) -> np.ndarray | None:
    """The places of a number's values in the unit interval, (values,); None for a continuous one."""
    count = coordinate.steps + 1
    return (np.arange(count) + 0.5) / count if coordinate.step else None


def _ranks(losses: np.ndarray) -> np.ndarray:
    """Each loss's rank from 0, float64 (losses,); equal losses share the mean of their ranks."""
    _, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])


def make(problem: Problem, options: Options) -> CatCmaSampler:
    """A CatCMA over the problem's coordinates."""
    return CatCmaSampler(problem, options)
