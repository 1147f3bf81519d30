"""TPE: tree-structured Parzen estimators, by Optuna.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Watanabe 2023, arXiv 2304.11127. Two densities
are estimated, l(x) of the best tenth of the candidates (25 at most) and g(x) of the others, and of 24 points drawn
from l the one with the largest l(x)/g(x) is proposed. Of several objectives the best are those that no other
dominates (Ozaki et al. 2022, "Multiobjective tree-structured Parzen estimator"). The first generation is the known
points.
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
    """What TPE may be told, beside what `ModelOptions` has.

    Attributes:
        multivariate: whether to model the coordinates jointly, which is also several times faster.
        memory: told candidates that the densities are estimated from, half of them the best and half the newest.
            The time that a proposal takes grows with them.
    """

    multivariate: bool = True
    memory: int = Field(default=500, ge=50)


def make(problem: Problem, options: Options) -> Sampler:
    """A TPE search over the problem's coordinates."""
    from optuna.samplers import TPESampler

    from evomerge.searching.samplers._optuna import OptunaSampler

    def algorithm(seed: int) -> TPESampler:
        return TPESampler(n_startup_trials=options.startup, multivariate=options.multivariate, seed=seed)

    joint, memory = options.multivariate, max(options.memory, options.startup)
    return OptunaSampler(problem, options.population, algorithm, joint=joint, memory=memory)
