"""Rows cut into batches by a budget of tokens."""

from __future__ import annotations

from evomerge.models.batching import cut_batches


def test_batches_are_cut_in_the_order_of_the_rows() -> None:
    lengths = [3, 5, 2, 9, 1]
    assert cut_batches(range(5), lengths.__getitem__, 10) == [[0, 1], [2], [3], [4]]


def test_a_row_that_exceeds_the_budget_has_a_batch_of_its_own() -> None:
    assert cut_batches([30, 4, 5], lambda row: row, 10) == [[30], [4, 5]]
