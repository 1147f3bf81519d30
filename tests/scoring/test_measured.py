from __future__ import annotations

from evomerge.scoring.measured import document_scores, gradient_terms, task_values
from tests.helpers.objectives import lone, members
from tests.helpers.reports import report

GROUPS = {"group": members({"x": 0.5, "y": 0.5}, "acc", "margin")} | lone("z")
SCORED = report(
    x={"acc": [1.0, 0.0], "margin": [0.5, -0.5]},
    y={"acc": [1.0], "margin": [2.0]},
    z={"acc": [0.0]},
    left_out={"acc": [0.0]},
)


def test_tasks_have_their_climbed_and_reported_metrics() -> None:
    assert task_values(SCORED, GROUPS) == {"x": 0.0, "y": 2.0, "z": 0.0}
    assert task_values(SCORED, GROUPS, reported=True) == {"x": 0.5, "y": 1.0, "z": 0.0}
    found = document_scores(SCORED, GROUPS)
    assert {task: values.tolist() for task, values in found.items()} == {"x": [0.5, -0.5], "y": [2.0], "z": [0.0]}
    assert document_scores(SCORED, GROUPS, reported=True)["x"].tolist() == [1.0, 0.0]


def test_tasks_without_documents_have_none() -> None:
    some = report(z={"acc": [1.0, 1.0]})
    assert task_values(some, GROUPS) == {"z": 1.0}
    assert list(document_scores(some, GROUPS)) == ["z"]


def test_a_report_of_one_metric_has_it_in_the_place_of_all_others() -> None:
    assert document_scores(report(x={"log_probability": [-1.0]}), GROUPS, reported=True)["x"].tolist() == [-1.0]


def test_a_gradient_has_a_term_for_each_task_that_has_a_share() -> None:
    assert gradient_terms(GROUPS, {"x": 0.75, "z": 0.25}) == {"x": ("margin", 0.75), "z": ("acc", 0.25)}
