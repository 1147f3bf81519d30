"""Tree masks: which tokens of a batch see which, in the form that a transformers model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeMasks:
    """Makes the masks that one model wants.

    Attributes:
        windows: kind of layer -> how many tokens back such a layer sees, the token itself included; None for all.
            A model with one kind of layer takes one mask, a model with several takes a mask for each, by name.
        dtype: the dtype of the masks, which are added to the attention scores.
    """

    windows: dict[str, int | None]
    dtype: torch.dtype

    @property
    def window(self) -> int | None:
        """The narrowest window, in tokens; None where every layer sees all tokens."""
        return min((window for window in self.windows.values() if window is not None), default=None)

    def of_batch(self, ends: Tensor, depths: Tensor, past: int) -> Any:
        """The model's `attention_mask` for one batch.

        Args:
            ends, depths: (b, l) int64, on the model's device, see `pass_plan.Batch`.
            past: the length of the kept path, in tokens.

        Returns: (b, 1, l, past + l): 0 where a token is seen, else the dtype's least number. A model with several
            kinds of layers gets such a mask for each kind, by name.
        """
        length = ends.shape[1]
        column = torch.arange(length, device=ends.device)
        seen = (column[None, :] <= column[:, None]) & (column[:, None] < ends[:, None, :])
        return self._by_kind(lambda window: self._tree(seen, depths, past, window))

    def of_step(self, lengths: Tensor, columns: int, step: int) -> Any:
        """The model's `attention_mask` for one more token of each answer.

        Args:
            lengths: (b,) int64, the prompts' lengths. Prompts stand in the first `columns` columns, answers after
                them.
            step: how many tokens each answer has so far.

        Returns: (b, 1, 1, columns + step + 1), or such a mask for each kind of layer.
        """
        column = torch.arange(columns + step + 1, device=lengths.device)[None]
        depth = torch.where(column < columns, column, column - columns + lengths[:, None])
        seen = (column >= columns) | (column < lengths[:, None])

        def mask(window: int | None) -> Tensor:
            near = seen if window is None else seen & (depth > lengths[:, None] + step - window)
            zeros = torch.zeros(near.shape, dtype=self.dtype, device=near.device)
            return zeros.masked_fill_(~near, torch.finfo(self.dtype).min)[:, None, None]

        return self._by_kind(mask)

    def _by_kind(self, mask: Callable[[int | None], Tensor]) -> Any:
        """The mask of each window: alone for a model with one kind of layer, else by the kind's name."""
        masks = {kind: mask(window) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _tree(self, seen: Tensor, depths: Tensor, past: int, window: int | None) -> Tensor:
        """The mask of one batch. seen: (b, l, l) bool, which columns each column sees if no window hides them."""
        lines, length = depths.shape
        mask = torch.zeros(lines, 1, length, past + length, dtype=self.dtype, device=depths.device)
        least = torch.finfo(self.dtype).min
        if window is not None:
            seen = seen & (depths[:, None, :] > depths[:, :, None] - window)
            before = torch.arange(past, device=depths.device) <= depths[:, :, None] - window
            mask[:, 0, :, :past].masked_fill_(before, least)
        mask[:, 0, :, past:].masked_fill_(~seen, least)
        return mask
