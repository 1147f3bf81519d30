"""CMA-ES for noisy fitness: mirrored samples, learning rates that follow the noise. The default.

Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv 1604.00772, with learning-rate adaptation (LRA-CMA-ES,
Nomura, Akimoto and Ono 2023, arXiv 2304.03473, by the package `cmaes`) and mirrored sampling (Brockhoff et al.
2010): half of a generation are the other half's mirror images about the mean. It expects each generation to be
scored on a few documents of its own. Searches the unit cube that the genes' bounds map to, clipped at its sides; a
choice takes equal parts of its side.

The first generation is the known points; the search begins at the first of them. With `gradient: N` up to N steps
of gradient ascent come between, see `gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cmaes
import numpy as np
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.samplers._ascent import Ascent
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = True


SEVERAL_OBJECTIVES = False


WANTS_DOCUMENT_SCORES = False

_REFINING_SIGMA = 0.1  # after an ascent, which ends near a summit


class Options(Strict):
    """population: candidates a generation, made even; 4 + 3 ln(dimensions) by default. sigma: the first step, as a
    fraction of each gene's range; largest_sigma: no step is larger. gradient: at most so many steps of gradient
    ascent come first; rate: of the first of these, as a fraction of each gene's range; effort: documents of each,
    as a multiple of a batch."""

    population: int | None = Field(default=None, ge=4)
    sigma: float = Field(default=0.2, gt=0.0, le=1.0)
    largest_sigma: float = Field(default=0.3, gt=0.0)
    gradient: int = Field(default=0, ge=0)
    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    effort: int = Field(default=1, ge=1)


class CmaSampler:
    """The normal deviates of a generation are drawn from (seed, generation) alone; the rest is replayed."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem, self._options = problem, options
        self._dimensions = max(len(problem.coordinates), 2)  # one more decodes to nothing
        count = options.population or 4 + int(3 * math.log(self._dimensions))
        self._population = count + count % 2
        self._mean, self._sigma = problem.starts[0], options.sigma
        self._ascent: Ascent | None = None
        self._engine: cmaes.CMA | None = None
        self._asked: dict[int, np.ndarray] = {}

    def ask(self, number: int) -> Generation:
        """The known points; the ascent, if there is one; then a generation at a time."""
        if number == 0:
            return Generation(self._problem.starts)
        if self._ascent is not None:
            return self._ascent.ask(number)
        with alone():
            self._asked[number] = points = self._draw(
                self._open() if self._engine is None else self._engine, number
            )
        return Generation([to_genome(self._problem.coordinates, point) for point in points])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Begins; takes the ascent's step; then adapts mean, step and covariance."""
        if number == 0:
            self._begin()
        elif number in self._asked:
            self._adapt(number, [result.value for result in results])
        elif self._ascent is not None:
            self._ascent.tell(number, results)
            if self._ascent.over:
                self._mean, self._sigma = self._ascent.best, min(self._sigma, _REFINING_SIGMA)
                self._ascent = None

    def recommend(self) -> Genome | None:
        """The distribution's mean, which noise misleads less than it does the best candidate."""
        if self._ascent is not None:
            return self._ascent.best
        return self._mean if self._engine is None else to_genome(self._problem.coordinates, self._engine._mean)

    def _begin(self) -> None:
        if self._options.gradient and self._engine is None:  # else it has learned without the known points
            options = self._options
            self._ascent = Ascent(
                self._problem.coordinates,
                self._mean,
                rate=options.rate,
                steps=options.gradient,
                watch=5,
                pull=0.1,
                effort=options.effort,
            )

    def _open(self) -> cmaes.CMA:
        """An engine at the first mean."""
        mean = np.full(self._dimensions, 0.5)
        mean[: len(self._problem.coordinates)] = to_units(self._problem.coordinates, self._mean)
        return cmaes.CMA(mean=mean, sigma=self._sigma, population_size=self._population, lr_adapt=True, seed=0)

    def _draw(self, engine: cmaes.CMA, number: int) -> np.ndarray:
        """The generation's points: float64 (population, dimensions), in the unit cube."""
        half = generator(self._problem.seed, number).standard_normal((self._population // 2, self._dimensions))
        normal = np.stack([half, -half], axis=1).reshape(self._population, self._dimensions)
        basis, widths = engine._eigen_decomposition()
        points = engine._mean + engine._sigma * (normal * widths) @ basis.T
        clipped: np.ndarray = np.clip(points, 0.0, 1.0)
        return clipped

    def _adapt(self, number: int, values: Sequence[float]) -> None:
        points = self._asked.pop(number)
        if len(set(values)) == 1:
            return  # nothing to learn, and the order of the slots is no ranking
        # Ties fall by lot: their order would otherwise prefer one of each pair of mirror images.
        lots = generator(self._problem.seed, number, 1).permutation(len(values))
        order = sorted(range(len(values)), key=lambda slot: (-values[slot], lots[slot]))
        with alone():
            if self._engine is None:
                self._engine = self._open()
            self._engine.tell([(points[slot], float(rank)) for rank, slot in enumerate(order)])
            self._engine._sigma = min(self._engine._sigma, self._options.largest_sigma)
            self._engine._mean = np.clip(self._engine._mean, 0.0, 1.0)


def make(problem: Problem, options: Options) -> CmaSampler:
    """A CMA-ES over the coordinates."""
    return CmaSampler(problem, options)
