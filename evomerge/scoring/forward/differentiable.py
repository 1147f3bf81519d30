"""Forward passes that a backward pass can follow, in little memory.

Decoder layers are checkpointed (Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv
1604.06174): a layer keeps its input, and is computed again on the way back. The head's gradient is streamed over
the vocabulary as its log-probabilities are: nothing is as large as (positions, vocabulary) in either direction.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evomerge.scoring.forward import head
from evomerge.scoring.forward.head import Finish


def logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, where: Tensor, tokens: Tensor
) -> Tensor:
    """`head.answer_logprobs`, (g,) float32, with gradients of hidden states, weight and bias.

    where: each of the p positions at least once.
    """
    found: Tensor = _Logprobs.apply(hidden, weight, bias, finish, where, tokens)  # type: ignore[no-untyped-call]
    return found


class _Logprobs(torch.autograd.Function):
    """∂ log softmax(z)[t] / ∂z = [t] − softmax(z), for some vocabulary rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, where: Tensor, tokens: Tensor
    ) -> Tensor:
        found, _ = head.answer_logprobs(hidden, weight, bias, finish, where, tokens)
        ctx.save_for_backward(hidden, weight, bias, where, tokens, found)
        ctx.finish = finish
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, where, tokens, found = ctx.saved_tensors
        (slope,) = given
        states = hidden.float()
        gold = (states[where] * weight[tokens].float()).sum(-1)
        if bias is not None:
            gold = gold + bias[tokens].float()
        totals = states.new_empty(len(states))
        totals[where] = ctx.finish(gold) - found  # a position's log of Σ exp(z), whichever token tells it
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


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """The model's layers are checkpointed meanwhile. Its results are the same, to the bit."""
    with ExitStack() as undo:
        for layer in layers(model):
            own = layer.__dict__.get("forward")
            # Without random numbers there is no generator to put back: the model is in eval mode.
            layer.forward = functools.partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
            undo.callback(_restore, layer, own)
        yield


def _restore(layer: nn.Module, own: Any) -> None:
    if own is None:
        del layer.forward
    else:
        layer.forward = own


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the numbered list that holds the most parameters, the outermost of several such. As in
    `tensors.places`, no architecture is known by its name."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda one: sum(1 for _ in one.parameters()), default=[]))
