"""What a model makes of rows, and what a live model is set to while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.models.batching import cut_batches
from evomerge.models.checkpointing import checkpointed, decoder_layers
from evomerge.operators.training.corpus import Row

# On a CPU the backward pass of the fused kernel is slow on short sequences, and on a GPU its sums have no fixed
# order. Beyond this length the scores that the plain one keeps take too much memory.
_PLAIN, _FUSED, _LONG = "eager", "sdpa", 1024


def pad(rows: Sequence[Row], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of several lengths as one batch, padded on the right: causal attention needs no mask then.

    Returns:
        The tokens, int64 (b, l); the positions that predict a learned token, bool (b, l); and the learned tokens,
        int64 (P,), row by row.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    where = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        where[number, row.start - 1 : len(row.ids) - 1] = True
    labels = torch.tensor([token for row in rows for token in row.ids[row.start :]])
    return ids.to(device), where.to(device), labels.to(device)


def logits(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The logits at the positions that predict learned tokens, float32 (P, V), and these tokens, int64 (P,)."""
    ids, where, labels = pad(rows, model.device)
    return model(input_ids=ids, use_cache=False).logits[where].float(), labels


def batches(rows: Sequence[Row], tokens: int) -> list[list[int]]:
    """The rows' numbers in batches of at most `tokens` tokens, padding included, longest rows first.

    A row that is longer than that has a batch of its own.
    """
    longest_first = sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), number))
    return cut_batches(longest_first, lambda number: len(rows[number].ids), tokens)


@contextmanager
def attention(model: Any, length: int) -> Iterator[None]:
    """Gives a model the attention that suits training on rows of at most `length` tokens; afterwards its own again.

    Raises:
        CandidateError: the model has no such attention.
    """
    configs = {id(config): config for config in _configs(model)}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        try:
            model.set_attn_implementation(_PLAIN if length <= _LONG else _FUSED)
        except (ValueError, ImportError) as error:
            raise CandidateError(f"{type(model).__name__} cannot be trained: {error}") from error
        yield
    finally:
        for config, implementation in before:
            # The attribute behind the property, which would hand the top config's value on to those below.
            config._attn_implementation_internal = implementation


@contextmanager
def training(model: Any, parameters: Sequence[Tensor], length: int, *, checkpointing: bool) -> Iterator[None]:
    """Sets a live model for training. Afterwards, in any case: evaluation mode, no gradients, its own attention.

    Dropout stays off all the while, for merging has its noise already, and equal seeds are to give equal bits.

    Args:
        parameters: those of the model's parameters that are trained; () if what is trained is not the model's.
        length: tokens of the longest row.
        checkpointing: whether activations within layers are computed again on the way back.
    """
    with ExitStack() as undo:
        undo.callback(_clean, model)
        _clean(model)
        undo.enter_context(attention(model, length))
        undo.enter_context(torch.enable_grad())
        if checkpointing:
            if not decoder_layers(model):
                raise CandidateError(
                    f"{type(model).__name__} has no layers that can be computed again; drop checkpointing"
                )
            undo.enter_context(checkpointed(model))
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield


def _clean(model: Any) -> None:
    """Puts a model into evaluation mode, without gradients."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None


def _configs(model: Any) -> Iterator[Any]:
    """The configs of a model and of its parts that choose an attention; some may come twice."""
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "_attn_implementation_internal"):
            yield config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
