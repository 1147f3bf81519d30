"""The two NSGA samplers' common options, and the search by either of Optuna's two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from evomerge.searching.samplers import Problem, Sampler, SamplerOptions


class GeneticOptions(SamplerOptions):
    """What a genetic algorithm of Optuna's may be told.

    Attributes:
        population: parents kept, and candidates proposed at once.
        crossover: the probability that a child has two parents.
        swapping: the probability that a coordinate is the second parent's.
        mutation: the probability that a coordinate is drawn anew; by default one coordinate is, on average.
    """

    population: int = Field(default=32, ge=2)
    crossover: float = Field(default=0.9, ge=0.0, le=1.0)
    swapping: float = Field(default=0.5, ge=0.0, le=1.0)
    mutation: float | None = Field(default=None, ge=0.0, le=1.0)


def genetic_search(problem: Problem, options: GeneticOptions, kind: Callable[..., Any], **more: int) -> Sampler:
    """A search over the problem's coordinates by an Optuna sampler class. more: its further arguments."""
    from evomerge.searching.samplers._optuna import OptunaSampler

    def algorithm(seed: int) -> Any:
        return kind(
            population_size=options.population,
            crossover_prob=options.crossover,
            swapping_prob=options.swapping,
            mutation_prob=options.mutation,
            seed=seed,
            **more,
        )

    return OptunaSampler(problem, options.population, algorithm)
