"""Forward passes for log-likelihoods: equal rows once, sorted, padded on the right, logits only where scored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.scoring import head
from evomerge.scoring.encoder import LikelihoodRequest
from evomerge.scoring.memory import Budget

_PLANS = 8


@dataclass(frozen=True)
class Likelihoods:
    """Answers to log-likelihood requests.

    logprobs: (n,) float64, the summed log-probability of each answer's tokens.
    greedy: (n,) bool, whether each of its tokens is the most likely one.
    tokens, padding: how many tokens were forwarded, and how many padding tokens besides.
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    tokens: int
    padding: int


@dataclass(frozen=True)
class _Batch:
    """Rows as tensors on the model's device.

    ids: (b, l) int64, zeros on the right. places: (p,) int64 into b * l, the scored positions.
    where: (g,) int64 into places, tokens: (g,) int64: what is scored. requests: their requests, in order.
    """

    rows: list[int]
    ids: Tensor
    places: Tensor
    where: Tensor
    tokens: Tensor
    requests: list[int]


class Packed:
    """All log-likelihood requests of a fitness, tokenized; any choice of them is forwarded as often as asked.

    shortcut: whether the output embedding is applied to scored positions alone, in float32. Where a model does
        something else to its logits, whole forward passes are taken and their logits converted.
    """

    def __init__(self, model: Any, requests: Sequence[LikelihoodRequest], budget: Budget) -> None:
        self._model = model
        self._requests = requests
        self._budget = budget
        self._finish = head.finisher(model.config)
        self.shortcut = bool(requests) and head.shortcut_holds(model, self._finish)
        rows: dict[tuple[int, ...], int] = {}
        self._row_of = [rows.setdefault(request.row, len(rows)) for request in requests]
        self._rows = list(rows)
        self._plans: OrderedDict[tuple[int, ...], list[_Batch]] = OrderedDict()

    @torch.no_grad()
    def run(self, chosen: Sequence[int]) -> Likelihoods:
        """Scores the chosen requests, in their order, with the model's present weights.

        Raises:
            CandidateError: one row alone runs out of memory.
        """
        plan = self._plan(tuple(chosen))
        answers: list[tuple[Tensor, Tensor]] = []
        done: list[_Batch] = []
        for batch in plan:
            for part, answer in self._budget.halving(batch.rows, batch.ids.shape[1], self._scored(batch, chosen)):
                done.append(part)
                answers.append(answer)
        if len(done) > len(plan):
            self._plans.clear()
            self._plans[tuple(chosen)] = done
        logprobs, greedy = self._gather(done, answers, chosen)
        tokens = sum(len(self._rows[row]) for batch in done for row in batch.rows)
        return Likelihoods(logprobs, greedy, tokens, sum(batch.ids.numel() for batch in done) - tokens)

    def _plan(self, chosen: tuple[int, ...]) -> list[_Batch]:
        """The batches for a choice of requests: built once, kept for the latest few choices."""
        if chosen not in self._plans:
            rows = sorted({self._row_of[request] for request in chosen})
            batches = self._budget.batches(rows, lambda row: len(self._rows[row]))
            by_row = self._by_row(chosen)
            self._plans[chosen] = [self._batch(rows, by_row) for rows in batches]
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(chosen)
        return self._plans[chosen]

    def _by_row(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        by_row: dict[int, list[int]] = {}
        for request in chosen:
            by_row.setdefault(self._row_of[request], []).append(request)
        return by_row

    def _batch(self, rows: list[int], by_row: dict[int, list[int]]) -> _Batch:
        length = max(len(self._rows[row]) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        places: dict[int, int] = {}
        where: list[int] = []
        tokens: list[int] = []
        requests: list[int] = []
        for line, row in enumerate(rows):
            ids[line, : len(self._rows[row])] = torch.tensor(self._rows[row])
            for request in by_row[row]:
                answer = self._requests[request].answer
                first = line * length + len(self._rows[row]) - len(answer)
                where += [places.setdefault(place, len(places)) for place in range(first, first + len(answer))]
                tokens += answer
                requests.append(request)
        device = self._model.device

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return _Batch(rows, ids.to(device), column(list(places)), column(where), column(tokens), requests)

    def _scored(self, whole: _Batch, chosen: Sequence[int]) -> Any:
        """Scores some rows of a batch: all of them as they were prepared, fewer as a batch of their own."""

        def scored(rows: list[int]) -> tuple[_Batch, tuple[Tensor, Tensor]]:
            batch = whole if rows is whole.rows else self._batch(rows, self._by_row(chosen))
            return batch, self._forward(batch)

        return scored

    def _forward(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        if not self.shortcut:
            logits = self._model(input_ids=batch.ids, use_cache=False).logits.flatten(0, 1)[batch.places]
            return head.full_logprobs(logits, batch.where, batch.tokens)
        hidden = self._model.base_model(input_ids=batch.ids, use_cache=False)[0].flatten(0, 1)[batch.places]
        embedding = self._model.get_output_embeddings()
        bias = getattr(embedding, "bias", None)
        return head.answer_logprobs(hidden, embedding.weight, bias, self._finish, batch.where, batch.tokens)

    def _gather(
        self, batches: list[_Batch], answers: list[tuple[Tensor, Tensor]], chosen: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums over each answer's tokens, in float64 and in one order, with one transfer from the device."""
        logprobs = torch.cat([answer[0] for answer in answers]).double().cpu().numpy()
        greedy = torch.cat([answer[1] for answer in answers]).cpu().numpy()
        order = [request for batch in batches for request in batch.requests]
        lengths = [len(self._requests[request].answer) for request in order]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        place = {request: at for at, request in enumerate(chosen)}
        at = [place[request] for request in order]
        summed, every = np.empty(len(chosen)), np.empty(len(chosen), dtype=bool)
        summed[at] = np.add.reduceat(logprobs, starts)
        every[at] = np.logical_and.reduceat(greedy, starts)
        return summed, every
