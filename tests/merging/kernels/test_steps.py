from __future__ import annotations

import torch

from evomerge.merging.kernels import steps


def test_elected_sign_is_that_of_the_sum() -> None:
    deltas = [torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([-3.0, 1.0, 1.0, -1.0])]
    weights = torch.tensor([1.0, 1.0])
    merged = steps.elect(deltas, weights, normalize=False)  # weights of 1: terms and deltas are the same
    assert merged.tolist() == [-3.0, -2.0, 4.0, -1.0]
    normalized = steps.elect(deltas, weights, normalize=True)
    assert normalized.tolist() == [-3.0, -2.0, 2.0, -1.0]
