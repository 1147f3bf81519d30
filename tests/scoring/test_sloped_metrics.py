"""Metrics written for torch have the numbers of the smooth metrics."""

import numpy as np
import pytest
import torch

from evomerge.scoring.sloped_metrics import STAND_IN, choice_metric
from evomerge.scoring.smooth_metrics import choice_metrics


@pytest.mark.parametrize("gold", [[0], [2, 1], [0, 1, 2]])
def test_metrics_are_those_of_the_smooth_ones(gold: list[int]) -> None:
    logprobs = np.log([0.1, 0.2, 0.5])
    for metric, value in choice_metrics(logprobs, gold).items():
        assert choice_metric(metric, torch.from_numpy(logprobs), gold).item() == pytest.approx(value)
    stand_in = choice_metric(STAND_IN, torch.from_numpy(logprobs), gold).exp().item()
    assert stand_in == pytest.approx(choice_metrics(logprobs, gold)["probability"])
