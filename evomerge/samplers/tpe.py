"""TPE: tree-structured Parzen estimators, by Optuna.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Watanabe 2023, arXiv 2304.11127. The first
generation is the known points.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import Field

from evomerge.recipe import Strict
from evomerge.samplers import generator
from evomerge.space import Coordinate, Genome


class Options(Strict):
    """population: candidates proposed at once; startup: random candidates before the model takes over;
    multivariate: model the coordinates jointly."""

    population: int = Field(default=4, ge=1)
    startup: int = Field(default=12, ge=1)
    multivariate: bool = True


class TpeSampler:
    """A fresh Optuna sampler, seeded by (seed, candidate), proposes each candidate: it carries no random state."""

    def __init__(
        self, coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._options = options
        self._seed = seed
        self._study = optuna.create_study(direction="maximize")
        self._distributions: dict[str, BaseDistribution] = {
            c.name: CategoricalDistribution(c.choices) if c.choices else FloatDistribution(c.low, c.high, log=c.log)
            for c in coordinates
        }
        self._starts = list(starts)
        self._asked: list[Genome] = []
        self._count = 0

    def ask(self) -> list[Genome]:
        """The known points; then `population` points at a time, each proposed from what has been told."""
        if self._starts:
            self._asked, self._starts = self._starts, []
        else:
            self._asked = [self._propose() for _ in range(self._options.population)]
        return self._asked

    def tell(self, values: Sequence[float]) -> None:
        """Adds the generation to what proposals are made from."""
        for genome, value in zip(self._asked, values, strict=True):
            self._study.add_trial(
                optuna.create_trial(params=genome, distributions=self._distributions, value=value)
            )

    def _propose(self) -> Genome:
        self._count += 1
        seed = int(generator(self._seed, self._count).integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate TPE is marked experimental
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self._options.startup, multivariate=self._options.multivariate, seed=seed
            )
            self._study.sampler = sampler
            return dict(self._study.ask(self._distributions).params)


def make(coordinates: Sequence[Coordinate], options: Options, seed: int, starts: Sequence[Genome]) -> TpeSampler:
    """A TPE search over the coordinates."""
    return TpeSampler(coordinates, options, seed, starts)
