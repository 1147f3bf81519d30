"""NSGA-III: NSGA-II for three objectives and more, by Optuna.

Deb and Jain 2014, "An evolutionary many-objective optimization algorithm using reference-point-based nondominated
sorting approach, part I". Of a front too large to be kept whole, those candidates are kept that lie nearest to
reference points spread evenly over the objectives. The first generation is the known points.
"""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIIISampler
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.samplers import Problem
from evomerge.searching.samplers._optuna import OptunaSampler

FRESH_DOCUMENTS = False


SEVERAL_OBJECTIVES = True


WANTS_DOCUMENT_SCORES = False


class Options(Strict):
    """population: parents kept, and candidates proposed at once; crossover: how likely a child has two parents;
    swapping: how likely a coordinate is the second parent's; mutation: how likely a coordinate is drawn anew, one
    of them on average by default; divisions: of each objective between reference points."""

    population: int = Field(default=32, ge=2)
    crossover: float = Field(default=0.9, ge=0.0, le=1.0)
    swapping: float = Field(default=0.5, ge=0.0, le=1.0)
    mutation: float | None = Field(default=None, ge=0.0, le=1.0)
    divisions: int = Field(default=3, ge=1)


def make(problem: Problem, options: Options) -> OptunaSampler:
    """An NSGA-III search over the coordinates."""

    def algorithm(seed: int) -> BaseSampler:
        return NSGAIIISampler(
            population_size=options.population,
            crossover_prob=options.crossover,
            swapping_prob=options.swapping,
            mutation_prob=options.mutation,
            dividing_parameter=options.divisions,
            seed=seed,
        )

    return OptunaSampler(problem, options.population, algorithm)
