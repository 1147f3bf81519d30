"""Log-probabilities of given tokens at given positions, in float32, without (batch, length, vocabulary) logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Elements of one chunk of float32 logits, and of the weights converted for it: 16 MB, and on a device 256 MB.
CHUNK, DEVICE_CHUNK = 1 << 22, 1 << 26

# How many tokens rounding to half precision may put in front of the best one.
_NEAR = 32

Finish = Callable[[Tensor], Tensor]
"""What a model does to its logits after the output embedding, elementwise in float32."""


def answer_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, where: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens under softmax(finish(hidden @ weight.T + bias)), streamed over the vocabulary.

    Args:
        hidden: (p, d) hidden states at the scored positions, any floating dtype.
        weight, bias: (v, d) and (v,) or None, any floating dtype; converted to float32 a chunk at a time.
        finish: elementwise function of float32 logits.
        where: (g,) int64, the position at which each token is scored, in [0, p).
        tokens: (g,) int64, in [0, v).

    Returns: (g,) float32 log-probabilities, and (g,) bool, whether the token is the most likely one.
    """
    exact = hidden.device.type == "cpu" and hidden.dtype == weight.dtype == torch.bfloat16
    hidden = hidden.float()
    vocabulary = weight.shape[0]
    chunk = CHUNK if hidden.device.type == "cpu" else DEVICE_CHUNK
    step = max(256, chunk // max(1, *hidden.shape))
    for start in range(0, vocabulary, step):
        rows = slice(start, start + step)
        with _rounding_nothing(exact):
            logits = hidden @ weight[rows].float().T
        if bias is not None:
            logits += bias[rows].float()
        logits = finish(logits)
        inside = (tokens >= start) & (tokens < start + logits.shape[1])
        gold = logits[where, (tokens - start).clamp(0, logits.shape[1] - 1)]
        total = torch.logsumexp(logits, dim=-1)
        high, at = logits.max(dim=-1)
        if start == 0:
            golds, totals, highest, best = gold, total, high, at
            continue
        golds = torch.where(inside, gold, golds)
        totals = torch.logaddexp(totals, total)
        best = torch.where(high > highest, at + start, best)
        highest = torch.maximum(high, highest)
    return golds - totals[where], best[where] == tokens


@contextmanager
def _rounding_nothing(exact: bool) -> Iterator[None]:
    """Lets a CPU multiply float32 matrices in its bfloat16 units if they hold bfloat16 numbers: nothing is lost."""
    units: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not exact or not hasattr(units, "fp32_precision"):
        yield
        return
    before = units.fp32_precision
    units.fp32_precision = "bf16"
    try:
        yield
    finally:
        units.fp32_precision = before


def best_tokens(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The most likely token at each position, by float32 logits. No finisher changes which token that is.

    Args:
        hidden, weight, bias: (p, d), (v, d), and (v,) or None, any floating dtype.

    Returns: (p,) int64, the tokens; and (p,) bool, whether each one's logit is finite.
    """
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if weight.dtype == torch.float32:
        highest, best = logits.max(dim=-1)
        return best, torch.isfinite(highest)
    # Of the best by coarse logits, the best by exact ones: far cheaper than float32 logits of all.
    coarse, near = logits.topk(min(_NEAR, logits.shape[1]), dim=-1)
    exact = (weight[near].float() @ hidden.float()[:, :, None])[:, :, 0]
    if bias is not None:
        exact = exact + bias[near].float()
    highest, at = exact.max(dim=-1)
    return near.gather(1, at[:, None])[:, 0], torch.isfinite(highest) & torch.isfinite(coarse[:, 0])


def full_logprobs(logits: Tensor, where: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `answer_logprobs` returns, from ready logits at the scored positions, (p, v) in any floating dtype."""
    logits = logits.float()
    return logits[where, tokens] - torch.logsumexp(logits, dim=-1)[where], logits.argmax(-1)[where] == tokens


def finisher(config: Any) -> Finish:
    """The scaling and soft-capping of logits that a model's config asks for, as one function."""
    text = config.get_text_config()
    scale = 1.0
    for name, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        value = getattr(text, name, None)
        if isinstance(value, int | float) and value:
            scale *= float(value) ** power
    cap = getattr(text, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return finish


@torch.no_grad()
def shortcut_holds(model: Any, finish: Finish) -> bool:
    """Whether the model's logits are `finish(output embedding(body's last hidden state))`.

    Looks at the structure, not at the weights, so that it holds for whatever is written into them later: one
    forward pass, in which the output embedding's result is replaced by known logits over a wide range.
    """
    body, head = model.base_model, model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if body is model or not isinstance(weight, Tensor) or weight.dim() != 2:
        return False
    vocabulary, width = weight.shape
    ids = torch.arange(4, device=model.device)[None] % vocabulary
    ramp = torch.linspace(-80.0, 80.0, vocabulary, device=weight.device).roll(1).expand(1, 4, -1)
    seen: list[Tensor] = []

    def replace(_: Any, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
        seen.append(inputs[0])
        return ramp.clone()  # a model may write into its logits

    hook = head.register_forward_hook(replace)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    hidden = body(input_ids=ids, use_cache=False)[0]
    if len(seen) != 1 or seen[0].shape != hidden.shape or hidden.shape[-1] != width:
        return False
    noise = torch.linspace(-1.0, 1.0, 2 * width, device=weight.device).view(2, width).to(weight.dtype)
    bias = getattr(head, "bias", None)
    expected = torch.nn.functional.linear(noise.float(), weight.float(), None if bias is None else bias.float())
    return (
        _close(seen[0], hidden, 1e-2)
        and _close(logits, finish(ramp), 1e-2)
        and _close(head(noise), expected, 1e-4 if weight.dtype == torch.float32 else 5e-2)
    )


def _close(got: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by at most `tolerance` of the norm of `wanted`.

    The model's weights may be anything: NaN counts as close.
    """
    distance, size = (got.float() - wanted.float()).norm(), wanted.float().norm()
    return not bool(distance > tolerance * size)
