"""CMA-ES: covariance matrix adaptation evolution strategy, by pycma. The default.

Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv 1604.00772. Searches the unit cube that the genes'
bounds map to; a choice takes equal parts of its side. The first generation is the known points, and the best of
them is the first mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydantic import Field
from threadpoolctl import threadpool_limits

from evomerge.recipe import Strict
from evomerge.samplers import generator
from evomerge.space import Coordinate, Genome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it cannot plot
    import cma

# A search on noisy fitness ends by its budget; pycma's own reasons to stop do not apply.
_NEVER_STOP = {
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


class Options(Strict):
    """population: candidates a generation, 4 + 3 ln(dimensions) by default; sigma: the first step, as a fraction
    of each gene's range."""

    population: int | None = Field(default=None, ge=4)
    sigma: float = Field(default=0.2, gt=0.0, le=1.0)


class CmaSampler:
    """The normal deviates of generation g are drawn from (seed, g) alone; the rest is replayed by telling."""

    def __init__(
        self, coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]
    ) -> None:
        self._coordinates = coordinates
        self._options = options
        self._seed = seed
        self._starts = list(starts)
        self._mean = self._starts[0]
        self._engine: Any = None
        self._generation = 0

    def ask(self) -> list[Genome]:
        """The known points; then a generation at a time."""
        self._generation += 1
        if self._generation == 1:
            return self._starts
        if self._engine is None:
            self._engine = self._open()
        self._normal = generator(self._seed, self._generation)
        with _alone():
            self._units = self._engine.ask()
        return [self._genome(unit) for unit in self._units]

    def tell(self, values: Sequence[float]) -> None:
        """Chooses the first mean; then adapts mean, step and covariance."""
        if self._engine is None:
            self._mean = self._starts[int(np.argmax(values))]
            return
        with _alone():
            self._engine.tell(self._units, [-value for value in values])

    def _open(self) -> Any:
        units = [c.to_unit(self._mean[c.name]) for c in self._coordinates]
        units += [0.5] * (len(units) == 1)  # pycma wants two dimensions; this one decodes to nothing
        options = {
            "bounds": [0.0, 1.0],
            "popsize": self._options.population or 4 + int(3 * math.log(len(units))),
            "randn": lambda *shape: self._normal.standard_normal(shape),
            "seed": math.nan,
            "verbose": -10,
            "verb_log": 0,
            **_NEVER_STOP,
        }
        inside = np.clip(units, _EDGE, 1.0 - _EDGE)
        with _alone():
            return cma.CMAEvolutionStrategy(inside, self._options.sigma, options)

    def _genome(self, unit: np.ndarray) -> Genome:
        return {c.name: c.from_unit(float(u)) for c, u in zip(self._coordinates, unit, strict=False)}


@contextmanager
def _alone() -> Iterator[None]:
    """One BLAS thread, for equal bits and speed; and none of pycma's warnings."""
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]) -> CmaSampler:
    """A CMA-ES over the coordinates."""
    return CmaSampler(coordinates, options, seed, starts)
