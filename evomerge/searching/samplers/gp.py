"""GP: Bayesian optimization with a Gaussian process, by Optuna.

Snoek, Larochelle and Adams 2012, "Practical Bayesian optimization of machine learning algorithms", arXiv 1206.2944.
A process with a Matérn-5/2 kernel, one length scale a coordinate, is fitted to the candidates, and the point of the
largest log expected improvement is proposed (Ament et al. 2023, arXiv 2310.20708); of several objectives that of
the hypervolume (Daulton et al. 2020, arXiv 2006.05078). The first generation is the known points.

For a few dozen coordinates: a proposal takes the time of many evaluations of the acquisition function, seconds at
200 coordinates, and the fit grows with the cube of the candidates, hence `memory`.
"""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.samplers import Problem
from evomerge.searching.samplers._optuna import OptunaSampler

FRESH_DOCUMENTS = False


SEVERAL_OBJECTIVES = True


WANTS_DOCUMENT_SCORES = False


class Options(Strict):
    """population: candidates proposed at once; startup: random candidates before the model takes over; memory: told
    candidates that the process is fitted to, half of them the best and half the newest."""

    population: int = Field(default=4, ge=1)
    startup: int = Field(default=12, ge=1)
    memory: int = Field(default=200, ge=10)


def make(problem: Problem, options: Options) -> OptunaSampler:
    """A Gaussian-process search over the coordinates."""

    def algorithm(seed: int) -> BaseSampler:
        return GPSampler(n_startup_trials=options.startup, seed=seed)

    memory = max(options.memory, options.startup)
    return OptunaSampler(problem, options.population, algorithm, memory=memory)
