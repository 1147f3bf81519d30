"""CMA-ES: covariance matrix adaptation evolution strategy, by pycma, without regard to noise.

Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv 1604.00772. It searches the unit cube that the genes'
bounds map to; a choice takes equal parts of its side. The first generation is the known points, of which it learns
nothing: the first of them is the first mean, moved away from the bounds a little.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.samplers._evolution import EvolutionOptions, default_population
from evomerge.searching.samplers._units import to_genome, to_units
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = True
SEVERAL_OBJECTIVES = False
WANTS_DOCUMENT_SCORES = False
LEARNS = True

# A search on noisy fitness ends by its budget; pycma's own reasons to stop do not apply.
NEVER_STOP = {
    "maxiter": math.inf,
    "tolfun": 0,
    "tolfunhist": 0,
    "tolfunrel": 0,
    "tolx": 0,
    "tolstagnation": math.inf,
    "tolflatfitness": math.inf,
    "tolconditioncov": False,
    "tolupsigma": math.inf,
    "tolxstagnation": False,
}

_EDGE = 0.02  # how far from its bounds the first mean stays: pycma's transform to them is flat there


class Options(EvolutionOptions):
    """What pycma may be told: what `EvolutionOptions` has."""


class PycmaSampler:
    """Draws the normal deviates of a generation from (seed, generation) alone; all else is replayed."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._engine: Any = None
        self._asked: dict[int, list[np.ndarray]] = {}

    def ask(self, number: int) -> Generation:
        """The known points; then a generation at a time."""
        if number == 0:
            return Generation(self._problem.starts)
        if self._engine is None:
            self._engine = self._open()
        self._normal = generator(self._problem.seed, number)
        with alone():
            self._asked[number] = self._engine.ask()
        return Generation([to_genome(self._problem.coordinates, unit) for unit in self._asked[number]])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Adapts mean, step size and covariance; learns nothing of the known points."""
        if number == 0:
            return
        losses = [-result.value for result in results]
        with alone():
            self._engine._flgtelldone = False  # several generations may be told one after the other
            self._engine.tell(self._asked.pop(number), losses)

    def recommend(self) -> Genome | None:
        """The distribution's mean, which noise misleads less than it does the best candidate."""
        if self._engine is None:
            return self._problem.starts[0]
        return to_genome(self._problem.coordinates, self._engine.result.xfavorite)

    def _open(self) -> Any:
        """A new engine at the first of the known points."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot plot
            import cma
        units = to_units(self._problem.coordinates, self._problem.starts[0]).tolist()
        units += [0.5] * (len(units) == 1)  # pycma wants two dimensions; this one decodes to nothing
        options = {
            "bounds": [0.0, 1.0],
            "popsize": self._options.population or default_population(len(units)),
            "randn": lambda *shape: self._normal.standard_normal(shape),
            "seed": math.nan,
            "verbose": -10,
            "verb_log": 0,
            **NEVER_STOP,
        }
        inside = np.clip(units, _EDGE, 1.0 - _EDGE)
        with alone():
            return cma.CMAEvolutionStrategy(inside, self._options.sigma, options)


def make(problem: Problem, options: Options) -> PycmaSampler:
    """A CMA-ES of pycma over the problem's coordinates."""
    return PycmaSampler(problem, options)
