"""GP: Bayesian optimization with a Gaussian process, by Optuna.

Snoek, Larochelle and Adams 2012, "Practical Bayesian optimization of machine learning algorithms", arXiv 1206.2944.
A process with a Matérn-5/2 kernel, one length scale a coordinate, is fitted to the candidates, and the point of the
largest log expected improvement is proposed (Ament et al. 2023, arXiv 2310.20708); of several objectives that of
the hypervolume (Daulton et al. 2020, arXiv 2006.05078). The first generation is the known points.

It is meant for a few dozen coordinates. A proposal takes the time of many evaluations of the acquisition function,
which is seconds at 200 coordinates; and the fit's time grows with the cube of the candidates, hence `memory`.
"""

from __future__ import annotations

from pydantic import Field

from evomerge.searching.samplers import Problem, Sampler
from evomerge.searching.samplers._options import ModelOptions

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = True


class Options(ModelOptions):
    """What the Gaussian-process search may be told, beside what `ModelOptions` has.

    Attributes:
        memory: told candidates that the process is fitted to, half of them the best and half the newest.
    """

    memory: int = Field(default=200, ge=10)


def make(problem: Problem, options: Options) -> Sampler:
    """A Gaussian-process search over the problem's coordinates."""
    from optuna.samplers import GPSampler

    from evomerge.searching.samplers._optuna import OptunaSampler

    def algorithm(seed: int) -> GPSampler:
        return GPSampler(n_startup_trials=options.startup, seed=seed)

    memory = max(options.memory, options.startup)
    return OptunaSampler(problem, options.population, algorithm, memory=memory)
