"""Metrics that a gradient can climb: the smooth metrics, written once more for torch with the same numbers.

A metric that only jumps (acc, exact_match) is climbed by its smooth stand-in:

    log_probability  for multiple choice: log of softmax(l) summed over the gold choices
    loglikelihood    for every other kind of task
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.scoring.smooth_metrics import ROLLING_METRICS, golds, smooth
from evomerge.scoring.tasks import BuiltTask

STAND_IN = "log_probability"


@dataclass(frozen=True)
class SlopedMetric:
    """The metric of one task that a gradient climbs.

    Attributes:
        name: the metric's name.
        requests: document id -> the numbers of the log-likelihood requests that it needs.
        value: (document id, their summed log-probabilities, (n,) float64) -> the metric, a float64 number.
    """

    name: str
    requests: Callable[[int], Sequence[int]]
    value: Callable[[int, Tensor], Tensor]


def sloped_metric(built: BuiltTask, numbers: Sequence[Sequence[int]], metric: str) -> SlopedMetric:
    """The metric itself if it has a slope, else its stand-in.

    Args:
        numbers: for each document, the numbers of its log-likelihood requests, those of its references last; for a
            text, of all its windows.

    Raises:
        ConfigError: neither the metric nor a stand-in for it has a slope.
    """
    known = smooth(built)
    itself = metric in known.names and metric not in built.task.aggregation()  # lm-eval's own goes first
    right = golds(built)
    if right is not None:
        return _of_choices(built, numbers, metric if itself else STAND_IN, right)
    if "loglikelihood" not in known.names:
        fault = f"{metric} has no slope, and the task has no log-likelihood to climb in its place"
        raise ConfigError(built.name, [f"{fault}; a generation task has one if `climb: loglikelihood` asks for it"])
    chosen = metric if itself else "loglikelihood"
    if known.names == ROLLING_METRICS:
        # Proportional to the log-likelihood of the text: the factor is the metric of a text whose own is 1.
        return SlopedMetric(
            chosen, lambda at: numbers[at], lambda at, sums: sums.sum() * known.values(at, [1.0])[chosen]
        )
    return SlopedMetric(chosen, lambda at: numbers[at], lambda at, sums: sums.logsumexp(0))


def _of_choices(
    built: BuiltTask, numbers: Sequence[Sequence[int]], metric: str, right: Sequence[Sequence[int]]
) -> SlopedMetric:
    def requests(at: int) -> Sequence[int]:
        # acc_mutual_info asks for each choice once more, without its context.
        return numbers[at][: len(built.task.doc_to_choice(built.documents[at].record))]

    return SlopedMetric(metric, requests, lambda at, sums: choice_metric(metric, sums, right[at]))


def choice_metric(metric: str, logprobs: Tensor, gold: Sequence[int]) -> Tensor:
    """A smooth metric of one multiple-choice document, see `smooth_metrics.choice_metrics`, or its stand-in.

    Args:
        logprobs: (choices,) float64: the summed log-probability of each choice.
        gold: indices of the right choices.
    """
    is_gold = torch.zeros(len(logprobs), dtype=torch.bool, device=logprobs.device)
    is_gold[list(gold)] = True
    right, others = logprobs[is_gold], logprobs[~is_gold]
    if metric == "margin":
        return right.max() - others.max() if len(others) else 0.0 * right.sum()
    if metric == "loglikelihood":
        return right.logsumexp(0)
    share = right.logsumexp(0) - logprobs.logsumexp(0)
    return share if metric == STAND_IN else share.exp()
