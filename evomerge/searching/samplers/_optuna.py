"""Any of Optuna's algorithms as a sampler whose studies resume exactly.

Optuna's samplers keep a running generator, and a study that is resumed proposes other points. So each candidate is
proposed by an Optuna sampler made for it, seeded by (seed, generation, slot). All else it learns from the trials of
an in-memory study. It sees the trials told and the earlier candidates of the generation being asked for; it never
sees generations still out, which a resumed study would not know of.

All use of Optuna in this folder that its documentation does not promise is in this file. Each such thing has a test
of its own in `tests/searching/samplers/test_optuna_canary.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from evomerge.searching.samplers import Generation, Problem, Result, generator
from evomerge.searching.samplers._alone import alone
from evomerge.searching.spaces.genes import Coordinate, Genome

_SETTLING = 2**32  # stands for a slot in the key of the draws that are made when a generation is told


class OptunaSampler:
    """Asks and tells an Optuna study.

    Args:
        population: candidates proposed at once.
        algorithm: seed -> a new Optuna sampler.
        joint: whether the algorithm proposes all coordinates together. It is then spared Optuna's search for the
            coordinates that all trials share, which takes longer than the algorithm's own work.
        memory: the number of told candidates that it learns from: half are the best, the rest the newest. None for
            all.
    """

    def __init__(
        self,
        problem: Problem,
        population: int,
        algorithm: Callable[[int], BaseSampler],
        *,
        joint: bool = True,
        memory: int | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._problem = problem
        self._population = population
        self._algorithm = algorithm
        self._coordinates = {c.name: c for c in problem.coordinates}
        self._distributions = {c.name: _encoded(c) for c in problem.coordinates}
        self._space = {name: d for name, d in self._distributions.items() if not d.single()} if joint else None
        self._memory = memory
        self._storage = _Storage()
        with alone():
            self._study = optuna.create_study(
                storage=self._storage, directions=["maximize"] * problem.objectives, sampler=algorithm(0)
            )
        self._asked: dict[int, list[Trial]] = {}
        self._told: dict[int, tuple[float, ...]] = {}
        self._best: tuple[float, Genome] | None = None

    def ask(self, number: int) -> Generation:
        """The known points; then `population` points at a time, proposed one after the other."""
        with alone():
            self._storage.shown = remembered(self._told, self._memory)
            if number == 0:
                self._asked[number] = [self._place(slot, start) for slot, start in enumerate(self._problem.starts)]
                return Generation(self._problem.starts)
            self._asked[number] = [self._propose(number, slot) for slot in range(self._population)]
        return Generation([self._genome(trial) for trial in self._asked[number]])

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Finishes the generation's trials. A failed candidate's result carries its generation's worst value."""
        with alone():
            for trial, result in zip(self._asked.pop(number), results, strict=True):
                values = result.objectives if self._problem.objectives > 1 else (result.value,)
                self._study.tell(trial, values)
                self._told[trial.number] = values
                if not result.failed and (self._best is None or result.value > self._best[0]):
                    self._best = (result.value, self._genome(trial))
            self._settle(number)

    def recommend(self) -> Genome | None:
        """The best point told; None if there are several objectives."""
        return self._best[1] if self._best and self._problem.objectives == 1 else None

    def _propose(self, number: int, slot: int) -> Trial:
        """A new trial, which the slots after it see as well."""
        self._renew(number, slot)
        trial = self._study.ask(self._distributions)
        self._storage.shown.append(trial.number)
        return trial

    def _place(self, slot: int, point: Genome) -> Trial:
        """A new trial of a known point."""
        self._study.enqueue_trial({name: _encode(self._coordinates[name], value) for name, value in point.items()})
        trial = self._propose(0, slot)
        _ = trial.relative_params  # genetic algorithms enter a trial into their population here
        return trial

    def _genome(self, trial: Trial) -> Genome:
        """A trial's point in Python's own numbers; some algorithms give numpy's."""
        genome: Genome = {}
        for name, value in trial.params.items():
            plain = value.item() if isinstance(value, np.generic) else value
            genome[name] = self._coordinates[name].at(plain) if self._coordinates[name].step else plain
        return genome

    def _settle(self, number: int) -> None:
        """Lets a genetic algorithm choose the parents of a full population now, from exactly what is told by now.

        It would choose them at the next ask otherwise, and more may be told by then.
        """
        if isinstance(self._study.sampler, BaseGASampler):
            self._storage.shown = sorted(self._told)
            self._renew(number, _SETTLING)
            _ = self._study.ask().relative_params

    def _renew(self, number: int, slot: int) -> None:
        """Gives the study a new sampler, seeded for a slot, that proposes all coordinates if they go together."""
        sampler = self._algorithm(int(generator(self._problem.seed, number, slot).integers(2**31)))
        if self._space is not None:
            setattr(sampler, "infer_relative_search_space", lambda study, trial: self._space)  # noqa: B010
        self._study.sampler = sampler


class _Storage(InMemoryStorage):
    """A storage that shows an algorithm some of the trials: those whose numbers are in `shown`, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials that are shown. Waiting trials, asked for alone, are all shown: they are known points."""
        if states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        trials = super().get_all_trials(study_id, deepcopy=False)
        shown = [trials[number] for number in self.shown if states is None or trials[number].state in states]
        return copy.deepcopy(shown) if deepcopy else shown


def distribution(coordinate: Coordinate) -> BaseDistribution:
    """Optuna's distribution for a coordinate's values in genomes; for a number with a step a continuous one."""
    if coordinate.choices:
        return CategoricalDistribution(coordinate.choices)
    return FloatDistribution(coordinate.low, coordinate.high, log=coordinate.log)


def _encoded(coordinate: Coordinate) -> BaseDistribution:
    """Optuna's distribution for what the algorithms search. A number with a step is searched by its index, for
    Optuna's own steps are other floats."""
    return IntDistribution(0, coordinate.steps) if coordinate.step else distribution(coordinate)


def _encode(coordinate: Coordinate, value: float | str) -> float | str:
    """A coordinate's value as the algorithms search it."""
    return coordinate.index(value) if coordinate.step and not isinstance(value, str) else value


def remembered(told: Mapping[int, tuple[float, ...]], memory: int | None) -> list[int]:
    """The numbers of the trials that an algorithm learns from, ascending.

    Args:
        told: number -> values, of all trials told.
        memory: how many to keep: half are the best (of several objectives, those that fewest others beat in every
            one), the rest the newest. None for all.
    """
    numbers = sorted(told)
    if memory is None or len(numbers) <= memory:
        return numbers
    beaten = _beaten(np.array([told[number] for number in numbers]))
    best = np.argsort(beaten, kind="stable")[: memory // 2].tolist()
    rest = sorted(set(range(len(numbers))) - set(best))
    return [numbers[index] for index in sorted([*best, *rest[len(best) - memory :]])]


def _beaten(values: np.ndarray) -> np.ndarray:
    """For each trial the number of others that are better in every objective. values: (trials, objectives)."""
    if values.shape[1] == 1:
        column = values[:, 0]
        return len(column) - np.searchsorted(np.sort(column), column, side="right")
    return np.array([(values > row).all(axis=1).sum() for row in values])
