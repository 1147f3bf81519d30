"""CMA-ES for noisy fitness: mirrored samples, learning rates that follow the noise. The default.

Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv 1604.00772, with learning-rate adaptation (LRA-CMA-ES,
Nomura, Akimoto and Ono 2023, arXiv 2304.03473, by the package `cmaes`) and mirrored sampling (Brockhoff et al.
2010): half of a generation are the other half's mirror images about the mean. It expects each generation to be
scored on a few documents of its own. It searches the unit cube that the genes' bounds map to, and clips what leaves
it; a choice takes equal parts of its side.

The first generation is the known points, of which it learns nothing: the first of them is the first mean. With
`gradient: N` up to N steps of gradient ascent come between, see `samplers.gradient`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from evomerge.searching.samplers import Generation, Problem, Result, _cmaes, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.samplers._ascent import Ascent
from evomerge.searching.samplers._evolution import EvolutionOptions, default_population
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.spaces.genes import Genome

if TYPE_CHECKING:
    from cmaes import CMA

FRESH_DOCUMENTS = True
SEVERAL_OBJECTIVES = False
WANTS_DOCUMENT_SCORES = False
LEARNS = True

_REFINING_SIGMA = 0.1  # the first step after an ascent, which ends near a summit


class Options(EvolutionOptions):
    """What CMA-ES may be told, beside what `EvolutionOptions` has; `population` is made even.

    Attributes:
        largest_sigma: the largest step size.
        gradient: the most steps of gradient ascent that come first.
        rate: the length of the first of these steps, as a fraction of each gene's range.
        effort: how many times the usual number of documents each of them is taken on.
    """

    largest_sigma: float = Field(default=0.3, gt=0.0)
    gradient: int = Field(default=0, ge=0)
    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    effort: int = Field(default=1, ge=1)

    @property
    def climbs_gradients(self) -> bool:
        """Whether an ascent comes first."""
        return self.gradient > 0


class CmaSampler:
    """Draws the normal deviates of a generation from (seed, generation) alone; all else is replayed."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem, self._options = problem, options
        self._dimensions = max(len(problem.coordinates), 2)  # one beside a lone coordinate decodes to nothing
        count = options.population or default_population(self._dimensions)
        self._population = count + count % 2
        self._mean, self._sigma = problem.starts[0], options.sigma
        self._ascent: Ascent | None = None
        self._engine: CMA | None = None
        self._asked: dict[int, np.ndarray] = {}

    def ask(self, number: int) -> Generation:
        """The known points; then what the ascent asks, if there is one; then a generation at a time."""
        if number == 0:
            return Generation(self._problem.starts)
        if self._ascent is not None:
            return self._ascent.ask(number)
        with alone():
            engine = self._open() if self._engine is None else self._engine
            self._asked[number] = points = self._draw(engine, number)
        return Generation([to_genome(self._problem.coordinates, point) for point in points])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Begins the ascent, or takes a step of it; else adapts mean, step size and covariance."""
        if number == 0:
            self._begin_ascent()
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
        if self._engine is None:
            return self._mean
        return to_genome(self._problem.coordinates, _cmaes.mean(self._engine))

    def _begin_ascent(self) -> None:
        """Begins it if it is wanted, unless CMA-ES has learned already, from generations told before the first."""
        if self._options.climbs_gradients and self._engine is None:
            self._ascent = Ascent(
                self._problem.coordinates,
                self._mean,
                rate=self._options.rate,
                steps=self._options.gradient,
                watch=5,
                pull=0.1,
                effort=self._options.effort,
            )

    def _open(self) -> CMA:
        """A new engine at the first mean."""
        from cmaes import CMA

        mean = np.full(self._dimensions, 0.5)
        mean[: len(self._problem.coordinates)] = to_units(self._problem.coordinates, self._mean)
        return CMA(mean=mean, sigma=self._sigma, population_size=self._population, lr_adapt=True, seed=0)

    def _draw(self, engine: CMA, number: int) -> np.ndarray:
        """The generation's points in the unit cube: float64 (population, dimensions)."""
        half = generator(self._problem.seed, number).standard_normal((self._population // 2, self._dimensions))
        normal = np.stack([half, -half], axis=1).reshape(self._population, self._dimensions)
        return np.asarray(np.clip(_cmaes.deviate(engine, normal), 0.0, 1.0))

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
            _cmaes.limit_step(self._engine, self._options.largest_sigma)
            _cmaes.clip_mean(self._engine)


def make(problem: Problem, options: Options) -> CmaSampler:
    """A CMA-ES over the problem's coordinates."""
    return CmaSampler(problem, options)
