"""Log-probabilities of answers that a backward pass can follow, in little memory.

The head's gradient is streamed over the vocabulary as its log-probabilities are: nothing is as large as (positions,
vocabulary) in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.scoring.forward import admission, head
from evomerge.scoring.forward.head import Finish
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.forward.walk import as_tensor


class AnswerSums:
    """The summed log-probabilities of answers, with gradients of all of the model's parameters.

    Args:
        full_forward: whether whole logits must be computed, see `Scorer`.
    """

    def __init__(self, model: Any, *, full_forward: bool) -> None:
        self._model, self._full_forward = model, full_forward
        self._finish = head.finisher(model.config)
        self._padded = not admission.looks_at_length(model)

    def __call__(self, requests: Sequence[LikelihoodRequest], rows: Mapping[tuple[int, ...], int]) -> Tensor:
        """The summed log-probability of each request's answer, (n,) float64.

        Args:
            rows: the distinct rows of the requests -> their numbers, from 0.
        """
        device = self._model.device
        if not rows:
            return torch.zeros(len(requests), dtype=torch.float64, device=device)
        outputs, ends = self._outputs(list(rows))
        scored = [ends[rows[one.row]] - len(one.answer) + k for one in requests for k in range(len(one.answer))]
        places, where = np.unique(scored, return_inverse=True)
        hidden = outputs[as_tensor(places, device)]
        tokens = as_tensor([token for one in requests for token in one.answer], device)
        owner = as_tensor(np.repeat(np.arange(len(requests)), [len(one.answer) for one in requests]), device)
        summed = self._logprobs(hidden, as_tensor(where, device), tokens).double()
        return torch.zeros(len(requests), dtype=torch.float64, device=device).index_add(0, owner, summed)

    def _outputs(self, rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, dict[int, int]]:
        """The outputs at all positions of some rows, (positions, d), and row -> the position after its last."""
        # Right padding is behind all that is scored, where no causal model sees it.
        by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        alike = groupby(by_length, lambda row: 0 if self._padded else len(rows[row]))
        ends: dict[int, int] = {}
        outputs, before = [], 0
        for group in (list(rows_alike) for _, rows_alike in alike):
            width = len(rows[group[0]])
            padded = np.array([rows[row] + (0,) * (width - len(rows[row])) for row in group])
            ids = as_tensor(padded, self._model.device)
            ends |= {row: before + line * width + len(rows[row]) for line, row in enumerate(group)}
            outputs.append(self._forward(ids).flatten(0, 1))
            before += ids.numel()
        return torch.cat(outputs), ends

    def _forward(self, ids: Tensor) -> Tensor:
        """The last hidden states, (b, l, d), or the logits where these cannot be had from hidden states."""
        if self._full_forward:
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits
        hidden: Tensor = self._model.base_model(input_ids=ids, use_cache=False)[0]
        return hidden

    def _logprobs(self, hidden: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities from what `_forward` gave at the scored positions, (g,) float32."""
        if self._full_forward:
            return head.full_logprobs(hidden, where, tokens)[0]
        embedding = self._model.get_output_embeddings()
        bias = getattr(embedding, "bias", None)
        return logprobs(hidden, embedding.weight, bias, self._finish, where, tokens)


def logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, where: Tensor, tokens: Tensor
) -> Tensor:
    """The log-probabilities of `head.answer_logprobs`, (g,) float32, with gradients of hidden, weight and bias.

    Args: as in `head.answer_logprobs`; `where` names each of the p positions at least once.
    """
    scored: Tensor = _Logprobs.apply(hidden, weight, bias, finish, where, tokens)  # type: ignore[no-untyped-call]
    return scored


class _Logprobs(torch.autograd.Function):
    """Follows ∂ log softmax(z)[t] / ∂z = [t] − softmax(z) back, some vocabulary rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, where: Tensor, tokens: Tensor
    ) -> Tensor:
        scored, _ = head.answer_logprobs(hidden, weight, bias, finish, where, tokens)
        ctx.save_for_backward(hidden, weight, bias, where, tokens, scored)
        ctx.finish = finish
        return scored

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, where, tokens, scored = ctx.saved_tensors
        (slope,) = given
        states = hidden.float()
        gold = (states[where] * weight[tokens].float()).sum(-1)
        if bias is not None:
            gold = gold + bias[tokens].float()
        totals = states.new_empty(len(states))
        totals[where] = ctx.finish(gold) - scored  # a position's log of Σ exp(z), whichever token tells it
        mass = states.new_zeros(len(states)).index_add(0, where, slope)
        to_hidden, to_weight = torch.zeros_like(states), torch.empty_like(weight)
        to_bias = None if bias is None else torch.empty_like(bias)
        chunk = head.CHUNK if hidden.device.type == "cpu" else head.DEVICE_CHUNK
        step = max(256, chunk // max(1, *hidden.shape))
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            part = weight[rows].float()
            raw = states @ part.T
            if bias is not None:
                raw += bias[rows].float()
            with torch.enable_grad():
                raw.requires_grad_()
                logits = ctx.finish(raw)
            to_logits = torch.exp(logits.detach() - totals[:, None]) * -mass[:, None]
            inside = (tokens >= start) & (tokens < start + len(part))
            to_logits.index_put_((where[inside], tokens[inside] - start), slope[inside], accumulate=True)
            to_raw = to_logits if logits is raw else torch.autograd.grad(logits, raw, to_logits)[0]
            to_hidden += to_raw @ part
            to_weight[rows] = (to_raw.T @ states).to(weight.dtype)
            if to_bias is not None:
                to_bias[rows] = to_raw.sum(0).to(to_bias.dtype)
        return to_hidden.to(hidden.dtype), to_weight, to_bias, None, None, None
