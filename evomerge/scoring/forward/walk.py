"""Batches of a plan through a model, with the keys and values of the trunks that they stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from evomerge.scoring.forward.caches import KeysValues, keys_values, path_cache
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.pass_plan import Batch


@dataclass(frozen=True)
class Step:
    """A batch of a plan on the model's device.

    Attributes:
        masked: whether the model must be told which token sees which; else each line is plain text from its
            beginning.
        ids, depths, ends: (b, l) int64, see `pass_plan.Batch`.
    """

    batch: Batch
    masked: bool
    ids: Tensor
    depths: Tensor
    ends: Tensor

    @classmethod
    def of(cls, batch: Batch, device: Any) -> Step:
        """The step of a batch, its arrays copied to a device."""
        ids, depths, ends = (as_tensor(array, device) for array in (batch.ids, batch.depths, batch.ends))
        return cls(batch, batch.past > 0 or batch.branches, ids, depths, ends)


class Walk:
    """Forwards the batches of a plan in their order; a batch may be left out if none that follows stands on it.

    Args:
        masks: None where the model takes each row by itself.

    Attributes:
        kept: the keys and values of the present trunk, (1, heads, past, d) for each layer.
        tokens, padding: how many were forwarded so far.
        size: tokens of the latest batch, padding included.
    """

    def __init__(self, model: Any, masks: TreeMasks | None) -> None:
        self._model, self._masks = model, masks
        self.kept: KeysValues = []
        self.tokens = self.padding = self.size = 0

    def forward(self, step: Step, *, keep: bool = False) -> tuple[Tensor, KeysValues]:
        """Forwards one batch. If the batch is a trunk, its keys and values are kept for those that follow.

        Args:
            keep: whether to return the keys and values also of a batch that is no trunk.

        Returns: the last hidden states, (b, l, d); and the keys and values, (b, heads, past + l, d) for each layer,
            [] where they are not kept.
        """
        batch = step.batch
        tokens = sum(batch.lengths)
        self.size = step.ids.numel()
        self.tokens, self.padding = self.tokens + tokens, self.padding + self.size - tokens
        keep = keep or batch.keep
        if self._masks is None or not (keep or step.masked):
            return self._model.base_model(input_ids=step.ids, use_cache=False)[0], []
        self.kept = [(keys[:, :, : batch.past], values[:, :, : batch.past]) for keys, values in self.kept]
        past = path_cache(self.kept if batch.past else [], store=keep) if keep or batch.past else None
        hidden = last_hidden(self._model, self._masks, step.ids, step.ends, step.depths, past, batch.past)
        after = keys_values(past) if keep and past is not None else []
        if batch.keep:
            self.kept = after
        return hidden, after


def last_hidden(
    model: Any, masks: TreeMasks, ids: Tensor, ends: Tensor, depths: Tensor, cache: Cache | None, past: int = 0
) -> Tensor:
    """The body's last hidden states, (b, l, d), for one batch under a tree mask.

    Args:
        ids, ends, depths: (b, l) int64, see `pass_plan.Batch`.
        cache: a `caches.path_cache`; None where nothing is kept before or after.
        past: the length of the kept path, in tokens.
    """
    hidden: Tensor = model.base_model(
        input_ids=ids,
        attention_mask=masks.of_batch(ends, depths, past),
        position_ids=depths,
        past_key_values=cache,
        use_cache=cache is not None,
    )[0]
    return hidden


def as_tensor(values: np.ndarray | Sequence[int], device: Any) -> Tensor:
    """Numbers as an int64 tensor on a device."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64)).to(device)
