from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from evomerge.errors import CandidateError
from evomerge.operators.training import texts
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.teachers import Parents
from tests.helpers.training import VOCABULARY, make_model


def test_beginnings_are_continued_to_the_rows_length(model: Any, make_rows: Any) -> None:
    rows = make_rows(30, 16)
    written = texts.write(model, rows, None, 0)
    for row, own in zip(rows, written, strict=True):
        begun = texts.beginning(row)
        assert own.ids[: own.start] == begun == row.ids[: len(begun)]
        assert len(own.ids) == len(row.ids)
        assert len(begun) == (row.start if row.start > 1 else max(1, round(len(row.ids) / 4)))
    assert written != rows


def test_writing_ends_with_the_end_token(make_rows: Any) -> None:
    rows = [Row(tuple(range(4, 14)), 1)] * 40
    written = texts.write(make_model(end=6.0), rows, 1, 0)
    lengths = {len(row.ids) for row in written}
    assert len(lengths) > 1
    for row in written:
        assert 1 not in row.ids[:-1]
        assert row.ids[-1] == 1 or len(row.ids) == 10


def test_chances_are_the_rows_own(model: Any) -> None:
    rows = [Row(tuple(range(4, 14)), 1)] * 100
    written = texts.write(model, rows, None, "a", 0)
    assert written == texts.write(model, rows, None, "a", 0)
    assert written[:70] == texts.write(model, rows[:70], None, "a", 0)
    assert written != texts.write(model, rows, None, "a", 1)
    assert len(set(written)) > 10


def test_tokens_are_drawn_by_their_probabilities(model: Any) -> None:
    rows = [Row((4, 5), 1)] * 4000
    drawn = torch.tensor([row.ids[1] for row in texts.write(model, rows, None, 0)])
    wanted = model(input_ids=torch.tensor([[4]])).logits[0, -1].softmax(-1)
    found = drawn.bincount(minlength=VOCABULARY) / len(rows)
    assert float((found - wanted).abs().max()) < 0.03


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_reading_on_is_reading_at_once(attention: str) -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    for model in (make_model(), GPT2LMHeadModel(config).eval().requires_grad_(False)):
        model.set_attn_implementation(attention)
        ids = torch.arange(4, 12).view(2, 4)
        wanted = model(input_ids=ids).logits.softmax(-1)
        writer = texts.Writer(model)
        assert torch.allclose(writer.read(ids[:, :2]).float(), wanted[:, 1], atol=1e-6)
        assert torch.allclose(writer.read(ids[:, 2:3]).float(), wanted[:, 2], atol=1e-6)
        assert torch.allclose(writer.read(ids[:, 3:]).float(), wanted[:, 3], atol=1e-6)


def test_a_model_without_keys_and_values_is_refused() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(CandidateError, match="MambaForCausalLM keeps no keys and values"):
        texts.Writer(MambaForCausalLM(config)).read(torch.tensor([[4]]))


def test_certain_tokens_are_drawn_whatever_the_chance() -> None:
    probabilities = torch.zeros(3, 5, dtype=torch.float64)
    probabilities[:, 2] = 1.0
    chances = torch.tensor([0.0, 0.5, 1.0 - 1e-16], dtype=torch.float64)
    assert texts.draw(probabilities, chances).tolist() == [2, 2, 2]


def test_teachers_texts_are_written_once(tmp_path: Path, make_rows: Any) -> None:
    rows = make_rows(10)
    parents = Parents(lambda name: make_model(), {"ant": "01", "bee": "02"}, VOCABULARY, 1.0)
    first = texts.stored(tmp_path, "ant", parents, rows, 1, "float32")

    def gone(name: str) -> Any:
        raise AssertionError

    absent = Parents(gone, {"ant": "01", "bee": "02"}, VOCABULARY, 1.0)
    assert texts.stored(tmp_path, "ant", absent, rows, 1, "float32") == first
    for other in (("bee", rows, 1), ("ant", rows[1:], 1), ("ant", rows, None)):
        with pytest.raises(AssertionError):
            texts.stored(tmp_path, other[0], absent, other[1], other[2], "float32")
    with pytest.raises(CandidateError, match="no model 'cow'"):
        texts.stored(tmp_path, "cow", parents, rows, 1, "float32")
