"""The slope of the fitness in the live model's weights: backward passes through what is climbed.

F is a sum over tasks of share · mean of a smooth metric over some documents. One pass over these documents, in
micro-batches, leaves ∂F/∂W in the parameters' gradients; a hook may take each one as it comes and free it.

Metrics are those of `smooth`, written once more for torch: the numbers are the same. A metric that only jumps (acc,
exact_match) is climbed by its smooth stand-in:

    log_probability  of multiple choice: log of softmax(l) summed over the gold choices
    loglikelihood    of all else
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateError, ConfigError
from evomerge.models.checkpointing import checkpointed
from evomerge.scoring.forward import admission, differentiable, head
from evomerge.scoring.forward.budgets import Budget
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.forward.walk import as_tensor
from evomerge.scoring.smooth_metrics import ROLLING_METRICS, golds, smooth
from evomerge.scoring.tasks import BuiltTask

# Tokens of a micro-batch. Every one costs a pass over base and experts besides, so they are large; checkpointed
# layers keep them small in memory.
_CPU_TOKENS, _DEVICE_TOKENS = 2048, 32768


STAND_IN = "log_probability"

Attempt = Callable[[], AbstractContextManager[None]]


Documents = list[tuple[str, int]]  # task, document id


@dataclass(frozen=True)
class Backward:
    """What one call of `backward` found.

    values: task -> (n,) float64, each document's value of what was climbed, in ascending order of ids.
    climbed: task -> the metric that was climbed: the one asked for, or its stand-in.
    tokens: forwarded, without padding; those forwarded again on the way back are not counted.
    """

    values: dict[str, np.ndarray]
    climbed: dict[str, str]
    tokens: int


@dataclass(frozen=True)
class Objective:
    """What is climbed of one task.

    metric: its name. requests: document id -> numbers of the log-likelihood requests that it needs.
    value: (document id, their summed log-probabilities, (n,) float64) -> the metric, a float64 number.
    """

    metric: str
    requests: Callable[[int], Sequence[int]]
    value: Callable[[int, Tensor], Tensor]


def objective(built: BuiltTask, numbers: Sequence[Sequence[int]], metric: str) -> Objective:
    """What to climb for a metric.

    numbers: of each document's log-likelihood requests, references last; all windows of a text.

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
        return Objective(
            chosen, lambda at: numbers[at], lambda at, sums: sums.sum() * known.values(at, [1.0])[chosen]
        )
    return Objective(chosen, lambda at: numbers[at], lambda at, sums: sums.logsumexp(0))


def _of_choices(
    built: BuiltTask, numbers: Sequence[Sequence[int]], metric: str, right: Sequence[Sequence[int]]
) -> Objective:
    def requests(at: int) -> Sequence[int]:
        # acc_mutual_info asks for each choice once more, without its context.
        return numbers[at][: len(built.task.doc_to_choice(built.documents[at].record))]

    return Objective(metric, requests, lambda at, sums: choice_metric(metric, sums, right[at]))


def choice_metric(metric: str, logprobs: Tensor, gold: Sequence[int]) -> Tensor:
    """A smooth metric of one document, see `smooth.choice_metrics`, or its stand-in.

    logprobs: (choices,) float64. gold: indices into it.
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


class Ascent:
    """Backward passes over any choice of a scorer's documents.

    numbers: task -> of each document, the numbers of its log-likelihood requests, references last.
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
        self._full_forward = full_forward
        self._budget = Budget(batch_tokens or (_CPU_TOKENS if model.device.type == "cpu" else _DEVICE_TOKENS))
        self._finish = head.finisher(model.config)
        self._padded = not admission.looks_at_length(model)
        self._objectives: dict[tuple[str, str], Objective] = {}

    def run(
        self,
        documents: Mapping[str, Sequence[int]],
        terms: Mapping[str, tuple[str, float]],
        attempt: Attempt = nullcontext,
    ) -> Backward:
        """See `Scorer.backward`. documents: ids ascending, each once."""
        if set(terms) != set(documents):
            raise ValueError(f"terms are of {', '.join(terms)}, but documents of {', '.join(documents)}")
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            raise ValueError("no parameter of the model requires a gradient")
        objectives = {name: self._objective(name, metric) for name, (metric, _) in terms.items()}
        shares = {name: share / len(documents[name]) for name, (_, share) in terms.items()}
        found: dict[tuple[str, int], float] = {}
        left = [(name, at) for name, ids in documents.items() for at in ids]
        tokens = 0
        with checkpointed(self._model), torch.enable_grad():
            while left:
                size = 0
                for batch in self._batches(left, objectives):
                    rows = self._rows(batch, objectives)
                    size = len(rows) * max(map(len, rows), default=0)
                    try:
                        found |= self._climb(batch, rows, objectives, shares, attempt)
                    except torch.OutOfMemoryError:
                        break
                    tokens += sum(map(len, rows))
                left = [one for one in left if one not in found]
                if left:  # out of the handler, whose exception holds on to the batch's memory
                    self._budget.shrink(size)
        values = {name: np.array([found[name, at] for at in ids]) for name, ids in documents.items()}
        return Backward(values, {name: one.metric for name, one in objectives.items()}, tokens)

    def _objective(self, task: str, metric: str) -> Objective:
        key = (task, metric)
        if key not in self._objectives:
            self._objectives[key] = objective(self._tasks[task], self._numbers[task], metric)
        return self._objectives[key]

    def _rows(self, documents: Documents, objectives: Mapping[str, Objective]) -> dict[tuple[int, ...], int]:
        """The distinct rows of some documents, and their numbers."""
        found: dict[tuple[int, ...], int] = {}
        for name, at in documents:
            for request in objectives[name].requests(at):
                found.setdefault(self._requests[request].row, len(found))
        return found

    def _batches(self, documents: Documents, objectives: Mapping[str, Objective]) -> Iterator[Documents]:
        """Whole documents, those with the longest rows first; one that is too large gets a batch of its own."""
        own = {one: self._rows([one], objectives) for one in documents}
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
        objectives: Mapping[str, Objective],
        shares: Mapping[str, float],
        attempt: Attempt,
    ) -> dict[tuple[str, int], float]:
        """The values of a micro-batch's documents, their part of F followed back to the parameters."""
        requests = [objectives[name].requests(at) for name, at in batch]
        sums = self._sums([self._requests[one] for one in chain(*requests)], rows)
        parts = torch.split(sums, [len(one) for one in requests])
        values = torch.stack([objectives[n].value(at, part) for (n, at), part in zip(batch, parts, strict=True)])
        numbers = values.tolist()
        for (name, _), number in zip(batch, numbers, strict=True):
            if not np.isfinite(number):
                raise CandidateError(f"{name}: the model's logits are not finite (NaN or infinite)")
        weights = torch.tensor([shares[name] for name, _ in batch], dtype=torch.float64, device=values.device)
        if values.requires_grad:  # but for texts without tokens alone
            with attempt():
                (weights * values).sum().backward()  # type: ignore[no-untyped-call]
        return dict(zip(batch, numbers, strict=True))

    def _sums(self, requests: Sequence[LikelihoodRequest], rows: Mapping[tuple[int, ...], int]) -> Tensor:
        """The summed log-probability of each request's answer, (n,) float64."""
        device = self._model.device
        if not rows:
            return torch.zeros(len(requests), dtype=torch.float64, device=device)
        texts = list(rows)
        # Right padding is behind all that is scored, where no causal model sees it.
        by_length = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        alike = groupby(by_length, lambda row: 0 if self._padded else len(texts[row]))
        ends: dict[int, int] = {}
        outputs, before = [], 0
        for group in (list(rows_alike) for _, rows_alike in alike):
            width = len(texts[group[0]])
            padded = np.array([texts[row] + (0,) * (width - len(texts[row])) for row in group])
            ids = as_tensor(padded, device)
            ends |= {row: before + line * width + len(texts[row]) for line, row in enumerate(group)}
            outputs.append(self._forward(ids).flatten(0, 1))
            before += ids.numel()
        scored = [ends[rows[one.row]] - len(one.answer) + k for one in requests for k in range(len(one.answer))]
        places, where = np.unique(scored, return_inverse=True)
        hidden = torch.cat(outputs)[as_tensor(places, device)]
        tokens = as_tensor([token for one in requests for token in one.answer], device)
        owner = as_tensor(np.repeat(np.arange(len(requests)), [len(one.answer) for one in requests]), device)
        logprobs = self._logprobs(hidden, as_tensor(where, device), tokens).double()
        return torch.zeros(len(requests), dtype=torch.float64, device=device).index_add(0, owner, logprobs)

    def _forward(self, ids: Tensor) -> Tensor:
        """Last hidden states, (b, l, d), or the logits where these cannot be had from them."""
        if self._full_forward:
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits
        hidden: Tensor = self._model.base_model(input_ids=ids, use_cache=False)[0]
        return hidden

    def _logprobs(self, hidden: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
        if self._full_forward:
            return head.full_logprobs(hidden, where, tokens)[0]
        embedding = self._model.get_output_embeddings()
        bias = getattr(embedding, "bias", None)
        return differentiable.logprobs(hidden, embedding.weight, bias, self._finish, where, tokens)
