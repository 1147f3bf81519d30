"""Forward passes for log-likelihoods: no token twice, logits only where scored.

Rows that begin alike share tokens, see `prefixes`. Where a model cannot mask a tree, each distinct row is forwarded
by itself, padded on the right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.scoring.forward import attention, head, prefixes
from evomerge.scoring.forward.attention import Attention, Step, Walk, as_tensor
from evomerge.scoring.forward.budgets import Budget, Recent
from evomerge.scoring.forward.requests import LikelihoodRequest

Found = dict[int, tuple[float, bool]]


Report = Callable[[Found], None]

_SCORED_AT_ONCE = 1024  # positions that the head is applied to in one go


_REPORT_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Likelihoods:
    """Answers to log-likelihood requests.

    answers: request -> the summed log-probability of its answer's tokens, and whether each of them is the most
        likely one.
    tokens, padding: how many tokens were forwarded, and how many padding tokens besides.
    """

    answers: Found
    tokens: int
    padding: int


@dataclass
class _Group:
    """Steps whose scored positions pass the head together: what is forwarded or skipped as a whole.

    where: (g,) int64 into the places of all its steps, tokens: (g,) int64: what is scored.
    answers: (g,) int64, which answer tokens these are, counted over all requests of the choice.
    requests: those that have tokens here. complete: those of which none comes later.
    """

    steps: list[int]
    where: Tensor
    tokens: Tensor
    answers: np.ndarray
    requests: frozenset[int]
    complete: list[int]


@dataclass
class _Prepared:
    """A choice of requests, ready to be forwarded.

    places: of each step, (p,) int64 into b * l: the scored positions.
    starts: (n + 1,) int64, where the answer tokens of each request start among those of all.
    """

    chosen: tuple[int, ...]
    steps: list[Step]
    places: list[Tensor]
    groups: list[_Group]
    starts: np.ndarray


class Packed:
    """All log-likelihood requests of a fitness, tokenized; any choice of them is forwarded as often as asked.

    masks: how the model is told what sees what; None forwards each distinct row by itself.
    shortcut: whether the output embedding is applied to scored positions alone, in float32. Where a model does
        something else to its logits, whole forward passes are taken and their logits converted.
    """

    def __init__(
        self,
        model: Any,
        requests: Sequence[LikelihoodRequest],
        budget: Budget,
        masks: Attention | None,
        *,
        shortcut: bool,
    ) -> None:
        self._model = model
        self._requests = requests
        self._budget = budget
        self._finish = head.finisher(model.config)
        rows: dict[tuple[int, ...], int] = {}
        self._row_of = [rows.setdefault(request.row, len(rows)) for request in requests]
        self._rows = [np.array(row, dtype=np.int64) for row in rows]
        self._masks, self._shortcut = masks, shortcut
        self._cost = attention.cost(model)
        self._prepared: Recent[_Prepared] = Recent()

    @torch.no_grad()
    def run(
        self, chosen: Sequence[int], known: Found | None = None, report: Report = lambda found: None
    ) -> Likelihoods:
        """Scores the chosen requests, in their order, with the model's present weights.

        known: answers that an earlier call with the same choice reported before it was interrupted. Batches that
            have nothing else to answer are skipped; the others are what they would have been.
        report: is given answers as they are found, every few seconds.

        Raises:
            CandidateError: memory runs out even for a small batch.
        """
        found = dict(known or {})
        tokens = padding = 0
        while True:
            prepared = self._prepared.get((tuple(chosen), self._budget.sizes), lambda: self._build(tuple(chosen)))
            run = _Run(self, prepared, found, report)
            try:
                run.forward()
                break
            except torch.OutOfMemoryError:
                size = run.walk.size
            finally:
                tokens, padding = tokens + run.walk.tokens, padding + run.walk.padding
            # Out of the handler, whose exception holds on to the batch's memory.
            del run, prepared
            self._prepared.clear()
            self._budget.shrink(size)
        return Likelihoods(found, tokens, padding)

    def _build(self, chosen: tuple[int, ...]) -> _Prepared:
        lengths = [len(self._requests[request].answer) for request in chosen]
        tails: dict[int, int] = {}
        for request, length in zip(chosen, lengths, strict=True):
            row = self._row_of[request]
            tails[row] = max(tails.get(row, 0), length)
        rows = [self._rows[row] for row in tails]
        plan = prefixes.plan_passes(
            rows,
            list(tails.values()),
            self._budget.tokens,
            self._budget.line,
            self._cost,
            share=self._masks is not None,
            pad=not attention.looks_at_length(self._model),
        )
        places = dict(zip(tails, plan.places, strict=True))
        where = np.concatenate(
            [places[self._row_of[request]][-length:] for request, length in zip(chosen, lengths, strict=True)]
        )
        answers = np.argsort(where[:, 0], kind="stable")
        cuts = np.searchsorted(where[answers, 0], np.arange(1, len(plan.batches)))
        places_in, scored = [], []
        for batch, mine in zip(plan.batches, np.split(answers, cuts), strict=True):
            flat = where[mine, 1] * batch.ids.shape[1] + where[mine, 2]
            unique, at = np.unique(flat, return_inverse=True)
            places_in.append(as_tensor(unique, self._model.device))
            scored.append((mine, at))
        groups = self._groups([len(one) for one in places_in], scored, chosen, lengths)
        steps = [Step.of(batch, self._model.device) for batch in plan.batches]
        return _Prepared(chosen, steps, places_in, groups, np.concatenate([[0], np.cumsum(lengths)]))

    def _groups(
        self,
        counts: list[int],
        scored: list[tuple[np.ndarray, np.ndarray]],
        chosen: Sequence[int],
        lengths: Sequence[int],
    ) -> list[_Group]:
        """Consecutive steps, as many as have enough scored positions together."""
        owner = np.repeat(np.array(chosen), lengths)
        tokens = np.concatenate([np.array(self._requests[request].answer, dtype=np.int64) for request in chosen])
        members: list[list[int]] = [[]]
        positions = 0
        for number, count in enumerate(counts):
            if positions >= (_SCORED_AT_ONCE if self._shortcut else 1):
                members.append([])
                positions = 0
            members[-1].append(number)
            positions += count
        groups: list[_Group] = []
        later: set[int] = set()
        for numbers in reversed(members):
            answers = np.concatenate([scored[number][0] for number in numbers])
            offsets = np.cumsum([0, *(counts[number] for number in numbers)])
            where = np.concatenate([scored[n][1] + offset for n, offset in zip(numbers, offsets, strict=False)])
            requests = frozenset(owner[answers].tolist())
            complete = sorted(requests - later)
            later |= requests
            device = self._model.device
            groups.append(
                _Group(
                    numbers,
                    as_tensor(where, device),
                    as_tensor(tokens[answers], device),
                    answers,
                    requests,
                    complete,
                )
            )
        return groups[::-1]

    def walk(self) -> Walk:
        """Forwards the steps, from the first."""
        return Walk(self._model if self._shortcut else _Whole(self._model), self._masks)

    def logprobs(self, group: _Group, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(g,) float32 log-probabilities, and (g,) bool, whether each token is the most likely one."""
        if not self._shortcut:
            return head.full_logprobs(hidden, group.where, group.tokens)
        embedding = self._model.get_output_embeddings()
        bias = getattr(embedding, "bias", None)
        return head.answer_logprobs(hidden, embedding.weight, bias, self._finish, group.where, group.tokens)


class _Whole:
    """A model whose body gives logits, for those whose head cannot be applied to hidden states."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def base_model(self, **inputs: Any) -> tuple[Tensor]:
        """The logits."""
        return (self._model(**inputs).logits,)


class _Run:
    """One pass over what is prepared.

    found: answers; those that are there already are not looked for, those that are found are added.
    """

    def __init__(self, packed: Packed, prepared: _Prepared, found: Found, report: Report) -> None:
        self._packed, self._prepared, self._found, self._report = packed, prepared, found, report
        self._at = {request: at for at, request in enumerate(prepared.chosen)}
        self._logprobs = np.zeros(prepared.starts[-1])
        self._greedy = np.zeros(prepared.starts[-1], dtype=bool)
        self._pending: list[tuple[_Group, tuple[Tensor, Tensor]]] = []
        self.walk = packed.walk()

    def forward(self) -> None:
        """Forwards all that is needed for answers that are not known.

        Raises:
            torch.OutOfMemoryError: what was found before is kept.
        """
        todo = [group for group in self._prepared.groups if not group.requests <= self._found.keys()]
        wanted = {number for group in todo for number in group.steps}
        wanted |= {below for number in wanted for below in self._prepared.steps[number].batch.under}
        reported = time.monotonic()
        try:
            for group in self._prepared.groups:
                hidden = [self._forward(number) for number in group.steps if number in wanted]
                if group.requests <= self._found.keys():
                    continue
                self._pending.append((group, self._packed.logprobs(group, torch.cat(hidden))))
                if time.monotonic() - reported > _REPORT_EVERY:
                    self._gather()
                    reported = time.monotonic()
        finally:
            self._gather()

    def _forward(self, number: int) -> Tensor:
        hidden, _ = self.walk.forward(self._prepared.steps[number])
        return hidden.flatten(0, 1)[self._prepared.places[number]]

    def _gather(self) -> None:
        """Sums over each answer's tokens, in float64 and in one order, with one transfer from the device."""
        if not self._pending:
            return
        groups = [group for group, _ in self._pending]
        answers = np.concatenate([group.answers for group in groups])
        self._logprobs[answers] = torch.cat([one for _, (one, _) in self._pending]).double().cpu().numpy()
        self._greedy[answers] = torch.cat([one for _, (_, one) in self._pending]).cpu().numpy()
        self._pending = []
        starts = self._prepared.starts[:-1]
        sums = np.add.reduceat(self._logprobs, starts).tolist()
        every = np.logical_and.reduceat(self._greedy, starts).tolist()
        complete = [request for group in groups for request in group.complete if request not in self._found]
        new = {request: (sums[self._at[request]], every[self._at[request]]) for request in complete}
        self._found.update(new)
        self._report(new)
