"""Key-value caches that are handed to a transformers model.

The one module that builds on transformers' cache classes; the tests of `test_transformers_canary.py` name each part
of them that is used here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, one pair a layer."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values; a subclass says how many tokens it holds and what a forward pass adds."""

    @abstractmethod
    def get_seq_length(self) -> int:
        """How many tokens the layer holds before the forward pass."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the layer is ready once it is made."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys after a forward pass of `query_length` tokens, and the first key's position."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1, which tells transformers that there is no greatest length."""
        return -1


class _PathLayer(_Layer):
    """The keys and values of a kept path, which all lines of a batch share, and after them the batch's own.

    kept: (1, heads, past, d) each; None where there is no path.
    store: whether the layer holds on to all of them afterwards, for which a batch of many lines has no room.
    """

    def __init__(self, kept: tuple[Tensor, Tensor] | None = None, *, store: bool = True) -> None:
        super().__init__()
        self._kept, self._store = kept, store

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, (b, heads, past + l, d) each."""
        keys, values = key_states, value_states
        if self._kept is not None:
            before = [one.expand(keys.shape[0], -1, -1, -1) for one in self._kept]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        if self._store:
            self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """The length of the kept path, in tokens."""
        return 0 if self._kept is None else int(self._kept[0].shape[2])


class AnswerLayer(_Layer):
    """The keys and values of one layer for a batch of answers, with room for tokens to come.

    keys, values: (b, heads, columns, d) each, of which the first `column` columns are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor, column: int) -> None:
        super().__init__()
        self.keys, self.values, self.column = keys, values, column

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of one token a row, and returns all filled columns."""
        self.keys[:, :, self.column] = key_states[:, :, 0]
        self.values[:, :, self.column] = value_states[:, :, 0]
        self.column += 1
        return self.keys[:, :, : self.column], self.values[:, :, : self.column]

    def get_seq_length(self) -> int:
        """How many columns are filled."""
        return self.column

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows and drops the others. rows: int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def path_cache(kept: KeysValues, *, store: bool = True) -> Cache:
    """A cache for one forward pass over a kept path.

    Args:
        kept: the path's keys and values, (1, heads, past, d) each; [] where there is no path.
        store: whether `keys_values` is asked for afterwards.
    """
    if not kept:
        return Cache(layer_class_to_replicate=_PathLayer)
    return Cache(layers=[_PathLayer(one, store=store) for one in kept])


def keys_values(cache: Cache) -> KeysValues:
    """The keys and values that a path cache holds after its forward pass, (b, heads, past + l, d) each."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def answer_cache(layers: Sequence[AnswerLayer]) -> Cache:
    """A cache for one forward pass of one token a row, which writes into the layers."""
    return Cache(layers=list(layers))
