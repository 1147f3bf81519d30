from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.errors import CandidateError
from evomerge.scoring.fitness import Entry
from evomerge.scoring.reports import Member, Report
from evomerge.studies.candidates.score import measure, objective_of
from tests.helpers.objectives import lone, members
from tests.helpers.reports import report

Groups = dict[str, dict[str, Member]]


def found(entries: list[Entry], groups: Groups, scored: Report, **options: Any) -> Any:
    sizes = {name: len(task.documents) for name, task in scored.tasks.items()}
    return measure(objective_of(entries, groups, sizes), scored, groups, **options)


def test_what_is_reported_and_what_is_climbed_stand_beside_each_other() -> None:
    entries = [Entry(task="a", climb="probability", weight=3.0), Entry(task="b")]
    groups = lone("a", climbs="probability") | lone("b")
    measured = found(entries, groups, report(a={"acc": [0.2] * 5, "probability": [0.4] * 5}, b={"acc": [0.8] * 5}))
    value = objective_of(entries, groups, {"a": 5, "b": 5}).of_entries(measured.climbed)
    assert value == pytest.approx((3 * 0.4 + 0.8) / 4)
    assert measured.tasks == pytest.approx({"a": 0.2, "b": 0.8})
    assert measured.climbed == pytest.approx({"a": 0.4, "b": 0.8})
    assert measured.mean == pytest.approx(0.5)


@pytest.mark.parametrize(("shares", "value"), [((0.75, 0.25), 0.75), ((0.5, 0.5), 0.5)])
def test_a_group_counts_its_tasks_by_their_shares(shares: tuple[float, float], value: float) -> None:
    groups = {"group": members({"x": shares[0], "y": shares[1]})}
    scored = report(x={"acc": [1.0] * 30}, y={"acc": [0.0] * 10})
    assert found([Entry(task="group")], groups, scored).climbed == {"group": pytest.approx(value)}
    of_both = objective_of([Entry(task="group", weight=3.0)], groups, {"x": 30, "y": 10})
    assert of_both.value({"x": np.ones(30), "y": np.zeros(10)}) == pytest.approx(value)


def test_on_some_documents_the_shares_are_those_of_their_choice() -> None:
    groups = {"group": members({"x": 0.5, "y": 0.3, "z": 0.2})} | lone("a")
    scored = report(x={"acc": [1.0, 0.0]}, z={"acc": [1.0]}, a={"acc": [0.25]})
    entries = [Entry(task="group"), Entry(task="a")]
    sizes = {"x": 4, "y": 4, "z": 4, "a": 4}
    objective = objective_of(entries, groups, sizes)
    measured = measure(objective, scored, groups, {"x": 0.125, "z": 0.375, "a": 0.5})
    assert measured.tasks == pytest.approx({"group": 0.25 * 0.5 + 0.75, "a": 0.25})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_fails_the_candidate(value: float) -> None:
    with pytest.raises(CandidateError, match=r"a: acc is (nan|inf), which is no score"):
        found([Entry(task="a")], lone("a"), report(a={"acc": [value, 0.0]}))
