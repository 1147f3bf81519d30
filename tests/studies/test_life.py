"""The life of a study's folder: when it is at its end, and what that spares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.results.summary import summary
from evomerge.studies import life, study
from evomerge.studies.folder import ENDED, EXPERIMENT
from evomerge.studies.journal import read_trials
from evomerge.studies.log import Log
from evomerge.studies.plan import Plan, make_plan
from tests.helpers.studies import Silent, begin

MINI = {"batch": 8, "select": 0.25}


def told(plan: Plan) -> bool:
    """Whether a summary of the study says that it is finished."""
    finished = summary(read_trials(plan.folder), plan.experiment, str(plan.folder))["finished"]
    assert type(finished) is bool
    return finished


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"candidates": 10}},
        {"budget": {"candidates": 20}, "fidelity": MINI},
        {"budget": {"documents": 500}, "fidelity": MINI},
        {"budget": {"candidates": 10}, "mode": "async"},
    ],
    ids=["candidates", "mini-batches", "documents", "async"],
)
def test_a_study_whose_budget_is_spent_is_finished(
    write_experiment: Callable[..., Path], changes: dict[str, Any]
) -> None:
    plan = begin(write_experiment(sampler={"name": "cma", "population": 4}, **changes))
    trials = study.search(plan, Silent())
    assert told(plan)
    if "candidates" in changes["budget"]:
        assert len(trials) <= changes["budget"]["candidates"]


def test_a_study_whose_hours_are_over_is_finished(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = begin(write_experiment(budget={"hours": 0.5}))
    monkeypatch.setattr(Log, "elapsed", property(lambda log: 3600.0 if log.trials else 0.0))
    trials = study.search(plan, Silent())
    assert {trial.generation for trial in trials} == {0}
    assert told(plan)


@pytest.mark.slow
def test_a_study_that_is_stopped_is_not_finished_and_a_larger_budget_begins_it_again(
    write_experiment: Callable[..., Path],
) -> None:
    plan = begin(write_experiment(sampler={"name": "cma", "population": 4}, budget={"candidates": 8}))
    with pytest.raises(KeyboardInterrupt):
        study.search(plan, Silent(stop_after=3))
    assert not told(plan)
    study.search(make_plan(life.reopen(plan.folder)), Silent())
    assert told(plan)
    before = (plan.folder / EXPERIMENT).read_bytes()
    larger = make_plan(life.reopen(plan.folder, candidates=12))
    with pytest.raises(KeyboardInterrupt):
        study.search(larger, Silent(stop_after=1))
    assert (plan.folder / EXPERIMENT).read_bytes() != before
    assert not told(larger)


def test_what_was_noted_of_another_log_or_experiment_counts_for_nothing(
    write_experiment: Callable[..., Path],
) -> None:
    plan = begin(write_experiment())
    assert not life.ended(plan.folder, 0)
    life.note_end(plan.experiment, 5)
    assert life.ended(plan.folder, 5)
    assert not life.ended(plan.folder, 4)
    path = plan.folder / EXPERIMENT
    path.write_text(path.read_text() + "# touched\n")
    assert not life.ended(plan.folder, 5)
    (plan.folder / ENDED).write_text("{")
    assert not life.ended(plan.folder, 5)
