"""Lessons are the rows of all domains in turn, with the answers that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.operators.training import lessons
from evomerge.operators.training.lessons import Lessons, Teaching
from evomerge.operators.training.settings import Loss
from evomerge.operators.training.teachers import Parents, Stored, Teacher
from tests.helpers.training import VOCABULARY, make_model


def parents(opened: list[str]) -> Parents:
    def parent(name: str) -> Any:
        opened.append(name)
        return make_model(0 if name == "ant" else 1)

    return Parents(parent, {"ant": "01", "bee": "02"}, VOCABULARY, 1.0)


def test_each_step_has_as_many_samples_of_every_domain_and_every_row_comes_once_an_epoch(make_rows: Any) -> None:
    rows = {"ants": make_rows(6), "bees": make_rows(4, seed=1)}
    supply = Lessons(rows, {}).supply(2, seed=0)
    steps = [supply(step) for step in range(6)]
    for step in steps:
        assert {domain: len(samples) for domain, samples in step.items()} == {"ants": 2, "bees": 2}
        for domain, samples in step.items():
            assert all(sample.row is rows[domain][sample.number] for sample in samples)
            assert all(sample.domain == domain for sample in samples)
    ants = [sample.number for step in steps for sample in step["ants"]]
    assert sorted(ants[:6]) == sorted(ants[6:]) == list(range(6))
    assert ants[:6] != ants[6:]
    other = Lessons(rows, {}).supply(2, seed=1)
    assert [sample.number for step in range(6) for sample in other(step)["ants"]] != ants


def test_the_first_samples_are_no_more_than_there_are(make_rows: Any) -> None:
    first = Lessons({"ants": make_rows(6), "bees": make_rows(2)}, {}).first(4)
    assert {domain: [sample.number for sample in samples] for domain, samples in first.items()} == {
        "ants": [0, 1, 2, 3],
        "bees": [0, 1],
    }


@pytest.mark.parametrize(("targets", "kind"), [(3, Stored), ("live", Teacher), (None, None)])
def test_teachers_answer_as_they_are_asked_to(targets: Any, kind: Any, tmp_path: Path, make_rows: Any) -> None:
    rows, opened = {"ants": make_rows(3), "bees": make_rows(3, seed=1), "cats": make_rows(2, seed=2)}, list[str]()
    teaching = Teaching({"ants": "ant", "bees": "bee", "cats": "ant"}, False, targets, 64)
    learned = lessons.taught(make_model(2), rows, teaching, parents(opened), folder=tmp_path, end=1)
    assert learned.rows == rows
    assert {domain: type(answers) for domain, answers in learned.answers.items()} == (
        {} if kind is None else dict.fromkeys(rows, kind)
    )
    assert opened == ([] if kind is None else ["ant", "bee"])


def test_teachers_write_what_is_learned(tmp_path: Path, make_rows: Any) -> None:
    rows, opened = {"ants": make_rows(5)}, list[str]()
    teaching = Teaching({"ants": "ant"}, True, None, 64)
    learned = lessons.taught(make_model(2), rows, teaching, parents(opened), folder=tmp_path, end=1)
    assert learned.rows != rows
    assert learned.answers == {}
    assert opened == ["ant"]


def test_without_answers_the_loss_is_the_cross_entropy_of_the_texts(make_rows: Any) -> None:
    rows, model = make_rows(3), make_model()
    learned = Lessons({"ants": rows}, {})
    samples = learned.first(3)["ants"]
    got = learned.losses(model, Loss(hard=1.0), samples)
    wanted = [
        -model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)[at - 1, row.ids[at]]
        for row in rows
        for at in range(row.start, len(row.ids))
    ]
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)
