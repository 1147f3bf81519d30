from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import CandidateError
from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import measure
from evomerge.scoring.reports import Report, TaskScore
from evomerge.searching.objective import Objective


def report(**tasks: tuple[int, dict[str, float]]) -> Report:
    scores = {
        name: TaskScore(np.arange(count), {m: np.full(count, v) for m, v in aggregates.items()}, aggregates)
        for name, (count, aggregates) in tasks.items()
    }
    return Report(scores, tokens=0, padding=0, truncated={}, cut_prompts={})


def test_what_is_reported_and_what_is_climbed_stand_beside_each_other() -> None:
    entries = [Entry(task="a", climb="probability", weight=3.0), Entry(task="b")]
    found = measure(
        entries,
        report(a=(5, {"acc": 0.2, "probability": 0.4}), b=(5, {"acc": 0.8})),
        {"a": ("a",), "b": ("b",)},
    )
    value = Objective({"a": 5, "b": 5}, {entry.task: entry.weight for entry in entries}).of_means(found.climbed)
    assert value == pytest.approx((3 * 0.4 + 0.8) / 4)
    assert found.tasks == {"a": 0.2, "b": 0.8}
    assert found.climbed == {"a": 0.4, "b": 0.8}
    assert found.mean == pytest.approx(0.5)


def test_a_group_counts_its_tasks_by_their_documents() -> None:
    found = measure(
        [Entry(task="group")], report(x=(30, {"acc": 1.0}), y=(10, {"acc": 0.0})), {"group": ("x", "y")}
    )
    assert found.climbed == {"group": pytest.approx(0.75)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_fails_the_candidate(value: float) -> None:
    with pytest.raises(CandidateError, match="a: acc is"):
        measure([Entry(task="a")], report(a=(2, {"acc": value})), {"a": ("a",)})
