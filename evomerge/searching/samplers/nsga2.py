"""NSGA-II: a genetic algorithm that keeps the whole front of several objectives, by Optuna.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II". Parents are the candidates that
fewest dominate, those in sparse parts of their front first; children take each coordinate from either of two
parents, or anew. The first generation is the known points.
"""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler
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
    of them on average by default."""

    population: int = Field(default=32, ge=2)
    crossover: float = Field(default=0.9, ge=0.0, le=1.0)
    swapping: float = Field(default=0.5, ge=0.0, le=1.0)
    mutation: float | None = Field(default=None, ge=0.0, le=1.0)


def make(problem: Problem, options: Options) -> OptunaSampler:
    """An NSGA-II search over the coordinates."""

    def algorithm(seed: int) -> BaseSampler:
        return NSGAIISampler(
            population_size=options.population,
            crossover_prob=options.crossover,
            swapping_prob=options.swapping,
            mutation_prob=options.mutation,
            seed=seed,
        )

    return OptunaSampler(problem, options.population, algorithm)
