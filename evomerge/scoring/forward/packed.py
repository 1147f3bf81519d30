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

from evomerge.scoring.forward import admission, head
from evomerge.scoring.forward.budgets import Budget, Recent
from evomerge.scoring.forward.costs import cost_of
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.prefixes import plan_passes
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.forward.scored_groups import Group, Prepared, prepare
from evomerge.scoring.forward.walk import Walk

Scores = dict[int, tuple[float, bool]]
"""Request -> the summed log-probability of its answer's tokens, and whether each of them is the most likely one."""

Listener = Callable[[Scores], None]

_SCORED_AT_ONCE = 1024  # positions that the head is applied to in one go

_REPORT_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Likelihoods:
    """Answers to log-likelihood requests.

    Attributes:
        answers: request -> its answer, see `Scores`.
        tokens, padding: how many tokens were forwarded, and how many padding tokens besides.
    """

    answers: Scores
    tokens: int
    padding: int


class Packed:
    """All log-likelihood requests of a fitness, tokenized; any choice of them is forwarded as often as asked.

    Args:
        masks: tell the model which token sees which; None forwards each distinct row by itself.
        shortcut: whether the output embedding is applied to scored positions alone, in float32. Where a model does
            something else to its logits, whole forward passes are taken and their logits converted.
    """

    def __init__(
        self,
        model: Any,
        requests: Sequence[LikelihoodRequest],
        budget: Budget,
        masks: TreeMasks | None,
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
        self._cost = cost_of(model)
        self._prepared: Recent[Prepared] = Recent()

    @torch.no_grad()
    def run(
        self, chosen: Sequence[int], known: Scores | None = None, report: Listener = lambda scores: None
    ) -> Likelihoods:
        """Scores the chosen requests, in their order, with the model's present weights.

        Args:
            known: answers that an earlier call with the same choice reported before it was interrupted. Batches
                that have nothing else to answer are skipped; the others are what they would have been.
            report: is given answers as they are found, every few seconds.

        Raises:
            CandidateError: memory runs out even for a small batch.
        """
        scores = dict(known or {})
        tokens = padding = 0
        while True:
            prepared = self._prepared.get((tuple(chosen), self._budget.sizes), lambda: self._prepare(tuple(chosen)))
            run = _Run(self, prepared, scores, report)
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
        return Likelihoods(scores, tokens, padding)

    def _prepare(self, chosen: tuple[int, ...]) -> Prepared:
        tails: dict[int, int] = {}
        for request in chosen:
            row = self._row_of[request]
            tails[row] = max(tails.get(row, 0), len(self._requests[request].answer))
        plan = plan_passes(
            [self._rows[row] for row in tails],
            list(tails.values()),
            self._budget.tokens,
            self._budget.line,
            self._cost,
            share=self._masks is not None,
            pad=not admission.looks_at_length(self._model),
        )
        places = dict(zip(tails, plan.places, strict=True))
        requests = {number: self._requests[number] for number in chosen}
        return prepare(
            requests,
            plan,
            [places[self._row_of[number]] for number in requests],
            self._model.device,
            at_once=_SCORED_AT_ONCE if self._shortcut else 1,
        )

    def walk(self) -> Walk:
        """A walk over prepared steps. Without `shortcut` it gives logits in place of hidden states."""
        return Walk(self._model if self._shortcut else _Whole(self._model), self._masks)

    def logprobs(self, group: Group, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of a group's tokens, (g,) float32, and whether each is the most likely, (g,) bool.

        Args:
            hidden: (p, d), what the walk gave at the group's scored positions.
        """
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
        """The logits, (b, l, v)."""
        return (self._model(**inputs).logits,)


class _Run:
    """One pass over prepared requests.

    scores: answers that are known; those that are found are added.
    """

    def __init__(self, packed: Packed, prepared: Prepared, scores: Scores, report: Listener) -> None:
        self._packed, self._prepared, self._scores, self._report = packed, prepared, scores, report
        self._at = {request: at for at, request in enumerate(prepared.chosen)}
        self._logprobs = np.zeros(prepared.starts[-1])
        self._greedy = np.zeros(prepared.starts[-1], dtype=bool)
        self._pending: list[tuple[Group, tuple[Tensor, Tensor]]] = []
        self.walk = packed.walk()

    def forward(self) -> None:
        """Forwards all steps that are needed for answers that are not known.

        Raises:
            torch.OutOfMemoryError: what was found before is kept.
        """
        todo = [group for group in self._prepared.groups if not group.requests <= self._scores.keys()]
        wanted = {number for group in todo for number in group.steps}
        wanted |= {below for number in wanted for below in self._prepared.steps[number].batch.under}
        reported = time.monotonic()
        try:
            for group in self._prepared.groups:
                hidden = [self._forward(number) for number in group.steps if number in wanted]
                if group.requests <= self._scores.keys():
                    continue
                self._pending.append((group, self._packed.logprobs(group, torch.cat(hidden))))
                if time.monotonic() - reported > _REPORT_EVERY:
                    self._gather()
                    reported = time.monotonic()
        finally:
            self._gather()

    def _forward(self, number: int) -> Tensor:
        """The hidden states at a step's scored positions, (p, d)."""
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
        complete = [request for group in groups for request in group.complete if request not in self._scores]
        new = {request: (sums[self._at[request]], every[self._at[request]]) for request in complete}
        self._scores.update(new)
        self._report(new)
