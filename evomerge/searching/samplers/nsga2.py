"""NSGA-II: a genetic algorithm that keeps the whole front of several objectives, by Optuna.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II". Parents are the candidates that
fewest dominate, those in sparse parts of their front first; children take each coordinate from either of two
parents, or anew. The first generation is the known points.
"""

from __future__ import annotations

from evomerge.searching.samplers import Problem, Sampler
from evomerge.searching.samplers._nsga import GeneticOptions, genetic_search

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = True


class Options(GeneticOptions):
    """What NSGA-II may be told: what `GeneticOptions` has."""


def make(problem: Problem, options: Options) -> Sampler:
    """An NSGA-II search over the problem's coordinates."""
    from optuna.samplers import NSGAIISampler

    return genetic_search(problem, options, NSGAIISampler)
