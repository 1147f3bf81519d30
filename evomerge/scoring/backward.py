"""The gradient of the fitness in the live model's weights: backward passes through the metrics that are climbed.

F is a sum over tasks of share · mean of a smooth metric over some documents. One pass over these documents, in
micro-batches, leaves ∂F/∂W in the parameters' gradients; a hook may take each one as it comes and free it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError
from evomerge.models.checkpointing import checkpointed
from evomerge.scoring.forward.budgets import Budget
from evomerge.scoring.forward.differentiable import AnswerSums
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.sloped_metrics import SlopedMetric, sloped_metric
from evomerge.scoring.tasks import BuiltTask

# Tokens of a micro-batch. Every micro-batch costs a pass over base and experts besides, so they are large;
# checkpointed layers keep them small in memory.
_CPU_TOKENS, _DEVICE_TOKENS = 2048, 32768

Attempt = Callable[[], AbstractContextManager[None]]
"""A context around one micro-batch. Where it is left by an exception, what was added inside must be forgotten."""

Documents = list[tuple[str, int]]
"""Pairs of task and document id."""


@dataclass(frozen=True)
class Backward:
    """The result of one call of `Scorer.backward`.

    Attributes:
        values: task -> (n,) float64, each document's value of the climbed metric, in ascending order of ids.
        climbed: task -> the metric that was climbed: the one asked for, or its stand-in.
        tokens: how many were forwarded, without padding; tokens forwarded again on the way back are not counted.
    """

    values: dict[str, np.ndarray]
    climbed: dict[str, str]
    tokens: int


class Ascent:
    """Backward passes over any choice of a scorer's documents.

    Args:
        numbers: task -> for each document, the numbers of its log-likelihood requests, references last.
        full_forward: whether whole logits must be computed, see `Scorer`.
        batch_tokens: tokens of a micro-batch, padding included; None chooses by device.
    """

    def __init__(
        self,
        model: Any,
        tasks: Mapping[str, BuiltTask],
        requests: Sequence[LikelihoodRequest],
        numbers: Mapping[str, Sequence[Sequence[int]]],
        *,
        full_forward: bool,
        batch_tokens: int | None,
    ) -> None:
        self._model, self._tasks, self._requests, self._numbers = model, tasks, requests, numbers
        self._budget = Budget(batch_tokens or (_CPU_TOKENS if model.device.type == "cpu" else _DEVICE_TOKENS))
        self._sums = AnswerSums(model, full_forward=full_forward)
        self._metrics: dict[tuple[str, str], SlopedMetric] = {}

    def run(
        self,
        documents: Mapping[str, Sequence[int]],
        terms: Mapping[str, tuple[str, float]],
        attempt: Attempt = nullcontext,
    ) -> Backward:
        """Climbs some documents, see `Scorer.backward`.

        Args:
            documents: task -> ids, ascending, each once.
        """
        if set(terms) != set(documents):
            raise ValueError(f"terms are of {', '.join(terms)}, but documents of {', '.join(documents)}")
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            raise ValueError("no parameter of the model requires a gradient")
        metrics = {name: self._metric(name, metric) for name, (metric, _) in terms.items()}
        shares = {name: share / len(documents[name]) for name, (_, share) in terms.items()}
        climbed: dict[tuple[str, int], float] = {}
        left = [(name, at) for name, ids in documents.items() for at in ids]
        tokens = 0
        with checkpointed(self._model), torch.enable_grad():
            while left:
                size = 0
                for batch in self._batches(left, metrics):
                    rows = self._rows(batch, metrics)
                    size = len(rows) * max(map(len, rows), default=0)
                    try:
                        climbed |= self._climb(batch, rows, metrics, shares, attempt)
                    except torch.OutOfMemoryError:
                        break
                    tokens += sum(map(len, rows))
                left = [one for one in left if one not in climbed]
                if left:  # out of the handler, whose exception holds on to the batch's memory
                    self._budget.shrink(size)
        values = {name: np.array([climbed[name, at] for at in ids]) for name, ids in documents.items()}
        return Backward(values, {name: one.name for name, one in metrics.items()}, tokens)

    def _metric(self, task: str, metric: str) -> SlopedMetric:
        """What is climbed for a metric of a task; made once."""
        key = (task, metric)
        if key not in self._metrics:
            self._metrics[key] = sloped_metric(self._tasks[task], self._numbers[task], metric)
        return self._metrics[key]

    def _rows(self, documents: Documents, metrics: Mapping[str, SlopedMetric]) -> dict[tuple[int, ...], int]:
        """The distinct rows of some documents -> their numbers."""
        rows: dict[tuple[int, ...], int] = {}
        for name, at in documents:
            for request in metrics[name].requests(at):
                rows.setdefault(self._requests[request].row, len(rows))
        return rows

    def _batches(self, documents: Documents, metrics: Mapping[str, SlopedMetric]) -> Iterator[Documents]:
        """Whole documents, those with the longest rows first; one that is too large gets a batch of its own."""
        own = {one: self._rows([one], metrics) for one in documents}
        longest = {one: max(map(len, rows), default=0) for one, rows in own.items()}
        batch: Documents = []
        rows: set[tuple[int, ...]] = set()
        for one in sorted(documents, key=lambda one: -longest[one]):
            more = rows | own[one].keys()
            if batch and len(more) * longest[batch[0]] > self._budget.tokens:
                yield batch
                batch, more = [], set(own[one])
            batch, rows = [*batch, one], more
        yield batch

    def _climb(
        self,
        batch: Documents,
        rows: Mapping[tuple[int, ...], int],
        metrics: Mapping[str, SlopedMetric],
        shares: Mapping[str, float],
        attempt: Attempt,
    ) -> dict[tuple[str, int], float]:
        """The values of a micro-batch's documents; their part of F is followed back to the parameters."""
        requests = [metrics[name].requests(at) for name, at in batch]
        sums = self._sums([self._requests[one] for one in chain(*requests)], rows)
        parts = torch.split(sums, [len(one) for one in requests])
        values = torch.stack([metrics[n].value(at, part) for (n, at), part in zip(batch, parts, strict=True)])
        numbers = values.tolist()
        for (name, _), number in zip(batch, numbers, strict=True):
            if not np.isfinite(number):
                raise CandidateError(f"{name}: the model's logits are not finite (NaN or infinite)")
        weights = torch.tensor([shares[name] for name, _ in batch], dtype=torch.float64, device=values.device)
        if values.requires_grad:  # but for texts without tokens alone
            with attempt():
                (weights * values).sum().backward()  # type: ignore[no-untyped-call]
        return dict(zip(batch, numbers, strict=True))
