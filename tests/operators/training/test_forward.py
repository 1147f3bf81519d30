from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from evomerge.errors import CandidateError
from evomerge.operators.training import forward
from evomerge.operators.training.corpus import Row


def test_rows_are_padded_and_their_learned_tokens_told() -> None:
    ids, where, labels = forward.pad([Row((4, 5, 6), 1), Row((7, 8, 9, 10), 3)], "cpu")
    assert ids.tolist() == [[4, 5, 6, 0], [7, 8, 9, 10]]
    assert where.tolist() == [[True, True, False, False], [False, False, True, False]]
    assert labels.tolist() == [5, 6, 10]


def test_padding_changes_no_logit(model: Any, make_rows: Callable[..., list[Row]]) -> None:
    rows = make_rows(8)
    together, labels = forward.logits(model, rows)
    alone = [forward.logits(model, [row]) for row in rows]
    assert torch.allclose(together, torch.cat([one for one, _ in alone]), atol=1e-5)
    assert labels.tolist() == [token for row in rows for token in row.ids[row.start :]]


def test_batches_hold_each_row_once_and_no_more_tokens_than_allowed(make_rows: Callable[..., list[Row]]) -> None:
    rows = make_rows(50)
    batches = forward.batches(rows, 30)
    assert sorted(number for batch in batches for number in batch) == list(range(50))
    assert all(len(batch) * max(len(rows[number].ids) for number in batch) <= 30 for batch in batches)
    assert forward.batches(rows[:2], 1) == [
        [number] for number in sorted(range(2), key=lambda n: -len(rows[n].ids))
    ]


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_attention_is_put_back(own: str, model: Any) -> None:
    model.set_attn_implementation(own)
    with forward.attention(model, 100):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == own
    with forward.attention(model, 10_000):
        assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), forward.attention(model, 100):
        raise KeyError
    assert model.config._attn_implementation == own


def test_a_registered_attention_is_put_back_even_where_it_has_gone(model: Any) -> None:
    model.config._attn_implementation_internal = "of_a_kind_that_nobody_knows"
    with forward.attention(model, 100):
        forward.logits(model, [Row((4, 5, 6), 1)])
    assert model.config._attn_implementation == "of_a_kind_that_nobody_knows"


def test_a_model_is_clean_after_training(model: Any) -> None:
    before = [(sorted(vars(module)), module.training) for module in model.modules()]
    parameters = list(model.parameters())
    with contextlib.suppress(KeyError), forward.training(model, parameters, 8, checkpointing=True):
        assert all(parameter.requires_grad for parameter in parameters)
        assert ["forward" in vars(layer) for layer in model.model.layers] == [True, True]
        assert not any(module.training for module in model.modules())
        forward.logits(model, [Row((4, 5, 6), 1)])[0].sum().backward()
        assert parameters[0].grad is not None
        raise KeyError
    assert [(sorted(vars(module)), module.training) for module in model.modules()] == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)


def test_gradients_flow_where_the_caller_forbade_them(model: Any) -> None:
    with torch.no_grad(), forward.training(model, list(model.parameters()), 8, checkpointing=False):
        assert forward.logits(model, [Row((4, 5), 1)])[0].requires_grad


def test_a_model_without_attention_trains_too() -> None:
    config = MambaConfig(vocab_size=14, hidden_size=16, state_size=4, num_hidden_layers=1)
    mamba = MambaForCausalLM(config).eval().requires_grad_(False)
    with forward.training(mamba, list(mamba.parameters()), 8, checkpointing=False):
        forward.logits(mamba, [Row((4, 5, 6), 1)])[0].sum().backward()  # type: ignore[no-untyped-call]


def test_checkpointing_wants_layers() -> None:
    class Plain(torch.nn.Module):
        def set_attn_implementation(self, name: str) -> None: ...

    with (
        pytest.raises(CandidateError, match="Plain has no layers"),
        forward.training(Plain(), (), 8, checkpointing=True),
    ):
        pass
