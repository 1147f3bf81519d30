from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.operators.training import teachers
from evomerge.operators.training.loop import Sample
from evomerge.operators.training.teachers import Parents, Setting, Teacher
from tests.helpers.training import VOCABULARY, make_model

SETTING = Setting(k=5, temperature=1.0, dtype="float32", batch_tokens=30, device="cpu")


def parents(opened: list[str] | None = None) -> Parents:
    def parent(name: str) -> Any:
        if opened is not None:
            opened.append(name)
        return make_model(0 if name == "ant" else 1)

    return Parents(parent, {"ant": "01", "bee": "02"}, VOCABULARY, 1.0)


def test_stored_answers_are_the_likeliest_of_the_live_ones(tmp_path: Path, make_rows: Any) -> None:
    rows = make_rows(20)
    answers = teachers.stored(tmp_path, "ant", parents(), rows, SETTING)
    samples = [Sample(rows[number], "ants", number) for number in (3, 17, 3)]
    stored, live = answers.targets(samples), Teacher(make_model(0)).targets(samples)
    assert stored.tokens is not None
    assert stored.tokens.dtype == torch.int64
    assert torch.allclose(stored.logs[:, :5], live.logs.gather(1, stored.tokens), atol=1e-5)
    assert torch.allclose(stored.logs[:, :5], live.logs.topk(5).values, atol=1e-5)
    assert torch.allclose(stored.logs.exp().sum(1), torch.ones(len(stored.logs)), atol=1e-5)


def test_a_model_is_opened_once_and_only_where_it_is_needed(tmp_path: Path, make_rows: Any) -> None:
    rows, opened = make_rows(20), list[str]()
    first = parents(opened)
    teachers.stored(tmp_path, "ant", first, rows, SETTING)
    teachers.stored(tmp_path, "ant", first, rows[:5], SETTING)
    teachers.stored(tmp_path, "bee", first, rows, SETTING)
    assert opened == ["ant", "bee"]
    again = parents(opened)
    teachers.stored(tmp_path, "bee", again, rows, SETTING)
    assert opened == ["ant", "bee"]
    first.release()
    first.teacher("ant")
    assert opened == ["ant", "bee", "ant"]


def test_answers_in_half_precision_are_near(tmp_path: Path, make_rows: Any) -> None:
    rows = make_rows(6)
    half = Setting(k=5, temperature=1.0, dtype="bfloat16", batch_tokens=30, device="cpu")
    samples = [Sample(row, "ants", number) for number, row in enumerate(rows)]
    whole, halved = (
        teachers.stored(tmp_path, "ant", parents(), rows, setting).targets(samples) for setting in (SETTING, half)
    )
    assert halved.logs.dtype == torch.float32
    assert torch.allclose(whole.logs, halved.logs, rtol=1e-3)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_threads_give_other_keys(make_rows: Any) -> None:
    threads, rows = torch.get_num_threads(), make_rows(3)
    try:
        torch.set_num_threads(1)
        one = teachers.key("01", rows, k=1)
        torch.set_num_threads(2)
        assert teachers.key("01", rows, k=1) != one
    finally:
        torch.set_num_threads(threads)


def test_another_vocabulary_and_an_unknown_model_are_refused() -> None:
    narrow = Parents(lambda name: make_model(), {"ant": "01"}, 13, 1.0)
    with pytest.raises(CandidateError, match="ant answers for 14 tokens, but the merged model has 13"):
        narrow.teacher("ant")
    with pytest.raises(CandidateError, match="no model 'cow' here"):
        narrow.sha256("cow")
