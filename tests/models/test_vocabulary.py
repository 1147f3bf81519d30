"""Rows are matched by token; who lacks a token has a zero task vector for it."""

from __future__ import annotations

import pytest
import torch

from evomerge.models.vocabulary import Holding, align, realign


def holding(tokens: str, rows: int | None = None) -> Holding:
    return Holding({token: row for row, token in enumerate(tokens)}, len(tokens) if rows is None else rows)


@pytest.mark.parametrize("policy", ["base", "union"])
def test_equal_vocabularies_need_no_change(policy: str) -> None:
    found = align(policy, holding("abc", 5), {"ant": holding("abc", 5)})  # type: ignore[arg-type]
    assert (found.rows, found.sources, found.added) == (5, {}, {})


def test_an_expert_that_has_the_union_already_stays_as_it_is() -> None:
    found = align("union", holding("ab"), {"ant": holding("abxy"), "bee": holding("aby")})
    assert found.added == {"x": 2, "y": 3}
    assert set(found.sources) == {"", "bee"}
    assert found.sources["bee"].tolist() == [0, 1, -1, 2]


def test_new_tokens_come_in_the_order_of_the_experts_names_then_of_their_ids() -> None:
    found = align("union", holding("ab"), {"bee": holding("xwa"), "ant": holding("zbya")})
    assert found.added == {"z": 2, "y": 3, "x": 4, "w": 5}


def test_padding_is_the_bases_even_where_an_expert_has_rows_there() -> None:
    found = align("base", holding("ab", 4), {"ant": holding("abxy", 5)})
    assert found.sources["ant"].tolist() == [0, 1, -1, -1]


def test_a_token_without_a_row_is_one_that_a_model_lacks() -> None:
    found = align("union", holding("abcd", 3), {"ant": holding("abcde"), "bee": holding("abx", 2)})
    assert found.added == {"e": 4}
    assert found.sources[""].tolist() == [0, 1, 2, -1, -1]
    assert found.sources["bee"].tolist() == [0, 1, -1, -1, -1]


def test_new_rows_are_means_in_float32_rounded_to_the_bases_dtype() -> None:
    base = torch.tensor([1.0, 2.0]).bfloat16()  # a head's bias
    experts = {
        "ant": torch.tensor([3.0, 1.0078125]).bfloat16(),
        "bee": torch.tensor([4.0, 5.0, 1.0234375]).bfloat16(),
        "cat": torch.tensor([6.0, 7.0, 8.0]),
    }
    holdings = {"ant": holding("ax"), "bee": holding("bax"), "cat": holding("bay")}
    found = align("union", holding("ab"), holdings)
    assert found.added == {"x": 2, "y": 3}
    mean = torch.tensor((1.0078125 + 1.0234375) / 2).bfloat16().item()
    assert realign("", found, base, experts).tolist() == [1.0, 2.0, mean, 8.0]
    assert realign("ant", found, base, experts).tolist() == [3.0, 2.0, 1.0078125, 8.0]
    assert realign("bee", found, base, experts).tolist() == [5.0, 4.0, 1.0234375, 8.0]
    cat = realign("cat", found, base, experts)
    assert cat.tolist() == [7.0, 6.0, mean, 8.0]
    assert (cat.dtype, realign("bee", found, base, experts).dtype) == (torch.float32, torch.bfloat16)


def test_a_row_that_nobody_has_is_zero() -> None:
    found = align("union", holding("abc", 2), {"ant": holding("ax")})
    rows = realign("", found, torch.ones(2, 3), {"ant": torch.full((2, 3), 5.0)})
    assert rows[:, 0].tolist() == [1.0, 1.0, 0.0, 5.0]
