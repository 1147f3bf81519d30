"""Rows cut into batches by a token budget."""

import pytest

from evomerge.scoring.forward.budgets import Budget


@pytest.mark.parametrize("tokens", [1, 10, 17, 100])
def test_a_budgets_batches_begin_with_their_longest_row(tokens: int) -> None:
    lengths = [3, 5, 2, 9, 1, 9]
    batches = Budget(tokens).batches(range(6), lengths.__getitem__)
    assert [row for batch in batches for row in batch] == [3, 5, 1, 0, 2, 4]
    assert all(len(batch) * lengths[batch[0]] <= tokens or len(batch) == 1 for batch in batches)
