from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.merging.kernels.importance import Importance
from tests.helpers.merging import normal


def test_importance_is_the_change_times_how_far_its_row_moved() -> None:
    base, expert = normal(6, 9), normal(6, 9, seed=1)
    table = Importance.of(base, [expert])
    p, q = expert.softmax(1), base.softmax(1)
    np.testing.assert_allclose(table.divergence, (p * (p / q).log()).sum(1).numpy(), rtol=1e-4)
    scores = ((expert - base).abs() * torch.from_numpy(table.divergence)[:, None]).reshape(-1).sort().values
    quarter, half, three = (float(scores[int(share * 53)]) for share in (0.25, 0.5, 0.75))
    assert float(table.threshold[0]) == pytest.approx(half + 1.5 * (three - quarter), rel=1e-5)
