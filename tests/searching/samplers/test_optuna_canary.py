"""The parts of Optuna that `samplers._optuna` uses beyond its promises: one test each, which names what went."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseGASampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.samplers._optuna import _Storage

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE: dict[str, Any] = {name: FloatDistribution(0.0, 1.0) for name in "xy"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(sampler: Any, storage: InMemoryStorage | None = None) -> optuna.Study:
    return optuna.create_study(storage=storage or InMemoryStorage(), sampler=sampler)


def params(study: optuna.Study) -> dict[str, Any]:
    return study.ask(SPACE).params


class Asked(InMemoryStorage):
    """A storage that keeps which states of trials it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Container[TrialState] | None] = []

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self.states.append(states)
        return super().get_all_trials(study_id, deepcopy, states)


def test_a_trial_asks_the_samplers_own_infer_relative_search_space() -> None:
    sampler = TPESampler(seed=0, multivariate=True)
    asked = []

    def infer(study: Any, trial: Any) -> dict[str, Any]:
        asked.append(trial)
        return SPACE

    setattr(sampler, "infer_relative_search_space", infer)  # noqa: B010
    params(open_study(sampler))
    assert asked, "Trial no longer asks sampler.infer_relative_search_space"


def test_a_studys_sampler_may_be_replaced() -> None:
    study, fresh = open_study(RandomSampler(seed=0)), open_study(RandomSampler(seed=1))
    study.sampler = RandomSampler(seed=1)
    assert params(study) == params(fresh), "Study.sampler can no longer be replaced"


@pytest.mark.parametrize("kind", [TPESampler, GPSampler, NSGAIISampler, NSGAIIISampler])
def test_an_algorithm_sees_no_trials_but_those_of_get_all_trials(kind: Any) -> None:
    """With nothing shown, an algorithm proposes after twelve trials what it proposes after none."""
    few = {"population_size": 2} if issubclass(kind, BaseGASampler) else {"n_startup_trials": 2}
    storage = _Storage()
    study = open_study(RandomSampler(seed=0), storage)
    for number in range(12):
        storage.shown.append(number)
        study.tell(study.ask(SPACE), float(number))
    storage.shown = []
    study.sampler, fresh = kind(seed=5, **few), open_study(kind(seed=5, **few))
    assert params(study) == params(fresh), f"{kind.__name__} reads trials past Storage.get_all_trials"


def test_waiting_trials_are_looked_for_by_their_state_alone() -> None:
    storage = Asked()
    study = open_study(RandomSampler(seed=0), storage)
    study.enqueue_trial({"x": 0.25, "y": 0.75})
    assert params(study) == {"x": 0.25, "y": 0.75}
    assert (TrialState.WAITING,) in storage.states, "Study.ask no longer asks get_all_trials for (WAITING,)"


def test_trials_are_numbered_by_their_place() -> None:
    storage = InMemoryStorage()
    study = open_study(RandomSampler(seed=0), storage)
    asked = [study.ask(SPACE).number for _ in range(3)]
    every = storage.get_all_trials(study._study_id, deepcopy=False)
    assert [trial.number for trial in every] == asked == [0, 1, 2], "get_all_trials no longer sorts by number"


@pytest.mark.parametrize("kind", [NSGAIISampler, NSGAIIISampler])
def test_a_genetic_algorithm_enters_a_trial_when_its_relative_params_are_read(kind: Any) -> None:
    assert issubclass(kind, BaseGASampler), f"{kind.__name__} is no BaseGASampler any more"
    study = open_study(kind(seed=0, population_size=2))
    _ = study.ask().relative_params
    assert any("generation" in key for key in study.trials[0].system_attrs), (
        f"{kind.__name__} no longer enters a trial into its population at Trial.relative_params"
    )


@pytest.mark.parametrize("kind", [NSGAIISampler, NSGAIIISampler])
def test_a_genetic_algorithm_chooses_parents_once_and_keeps_them(kind: Any) -> None:
    """So parents that are chosen when a generation is told hold for every later ask."""
    study = open_study(kind(seed=0, population_size=2))
    for number in range(2):
        study.tell(study.ask(SPACE), float(number))
    _ = study.ask().relative_params
    kept = study._storage.get_study_system_attrs(study._study_id)
    assert any("parent" in key for key in kept), f"{kind.__name__} no longer keeps a generation's parents"
