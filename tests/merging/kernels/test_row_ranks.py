from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.merging.kernels.row_ranks import POINTS, RowRanks
from tests.helpers.merging import normal


def test_short_rows_are_ranked_whole_and_long_ones_at_even_steps() -> None:
    expert = normal(4, POINTS)
    assert np.array_equal(
        RowRanks.of(torch.zeros_like(expert), [expert]).values, expert.abs().sort(dim=1).values.numpy()
    )
    assert RowRanks.of(torch.zeros_like(expert), [expert]).complete
    expert = normal(3, 10_001)
    wanted = expert.abs().sort(dim=1).values[:, torch.linspace(0, 10_000, POINTS).round().long()]
    assert np.array_equal(RowRanks.of(torch.zeros_like(expert), [expert]).values, wanted.numpy())
    assert not RowRanks.of(torch.zeros_like(expert), [expert]).complete


def test_the_lean_is_the_mass_weighted_mean_rank() -> None:
    table = RowRanks.of(torch.zeros(1, 3), [torch.tensor([[3.0, -1.0, 2.0]])])
    assert float(table.lean[0]) == pytest.approx((0 * 1 + 0.5 * 2 + 1 * 3) / 6)
