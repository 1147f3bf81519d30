"""Log-probabilities that a backward pass can follow, in little memory.

The head's gradient is streamed over the vocabulary as its log-probabilities are: nothing is as large as (positions,
vocabulary) in either direction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evomerge.scoring.forward import head
from evomerge.scoring.forward.head import Finish


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
