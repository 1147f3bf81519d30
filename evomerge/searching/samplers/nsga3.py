"""NSGA-III: NSGA-II for three objectives and more, by Optuna.

Deb and Jain 2014, "An evolutionary many-objective optimization algorithm using reference-point-based nondominated
sorting approach, part I". Of a front too large to be kept whole, those candidates are kept that lie nearest to
reference points spread evenly over the objectives. The first generation is the known points.
"""

from __future__ import annotations

from pydantic import Field

from evomerge.searching.samplers import Problem, Sampler
from evomerge.searching.samplers._nsga import GeneticOptions, genetic_search

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = True


class Options(GeneticOptions):
    """What NSGA-III may be told, beside what `GeneticOptions` has.

    Attributes:
        divisions: parts of each objective between the reference points.
    """

    divisions: int = Field(default=3, ge=1)


def make(problem: Problem, options: Options) -> Sampler:
    """An NSGA-III search over the problem's coordinates."""
    from optuna.samplers import NSGAIIISampler

    return genetic_search(problem, options, NSGAIIISampler, dividing_parameter=options.divisions)
