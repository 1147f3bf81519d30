"""QMC: points that fill the space more evenly than random ones do, a scrambled Sobol or Halton sequence.

Bergstra and Bengio 2012, "Random search for hyper-parameter optimization"; Sobol 1967 with the scrambling of
Matoušek 1998; Halton 1960 with the scrambling of Owen 2017, arXiv 1706.02808. The first generation is the known
points.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._options import ProposalOptions
from evomerge.searching.samplers._units import to_genome
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = False


class Options(ProposalOptions):
    """What a quasi-random search may be told, beside what `ProposalOptions` has.

    With Sobol's sequence a `population` that is a power of two is best.

    Attributes:
        sequence: `sobol` or `halton`.
    """

    sequence: Literal["sobol", "halton"] = "sobol"


class QmcSampler:
    """Proposes the points of a sequence, by their place in the study; the seed scrambles the sequence."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._population = options.population
        self._sequence = options.sequence
        self._best: tuple[float, Genome] | None = None
        self._asked: dict[int, Generation] = {}

    def ask(self, number: int) -> Generation:
        """The known points; then the sequence's next `population` points."""
        genomes: Sequence[Genome] = self._problem.starts
        if number:
            genomes = [to_genome(self._problem.coordinates, unit) for unit in self._units(number)]
        self._asked[number] = Generation(genomes)
        return self._asked[number]

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Remembers the best point; the sequence learns nothing."""
        for genome, result in zip(self._asked.pop(number).genomes, results, strict=True):
            if not result.failed and (self._best is None or result.value > self._best[0]):
                self._best = (result.value, dict(genome))

    def recommend(self) -> Genome | None:
        """The best point told; None if there are several objectives."""
        return self._best[1] if self._best and self._problem.objectives == 1 else None

    def _units(self, number: int) -> np.ndarray:
        """The points of a generation, (population, coordinates), each in [0, 1)."""
        from scipy.stats import qmc

        seed = int(generator(self._problem.seed).integers(2**31))
        kind = {"sobol": qmc.Sobol, "halton": qmc.Halton}[self._sequence]
        sequence = kind(len(self._problem.coordinates), rng=seed)
        if number > 1:
            sequence.fast_forward((number - 1) * self._population)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this many points are not balanced
            units: np.ndarray = sequence.random(self._population)
        return units


def make(problem: Problem, options: Options) -> QmcSampler:
    """A quasi-random search over the problem's coordinates."""
    return QmcSampler(problem, options)
