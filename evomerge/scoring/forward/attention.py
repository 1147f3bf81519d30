"""Tree masks: which tokens of a batch see which, told to any transformers model that can be told.

A model is told by a 4-D `attention_mask`, `position_ids` and `past_key_values`. Whether it heeds them is tried out
on the model itself before they are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from evomerge.scoring.forward.prefixes import Batch, Cost

KeysValues = list[tuple[Tensor, Tensor]]

_TAKES = ("attention_mask", "position_ids", "past_key_values")


# Position biases and windows that go by columns, not by positions.
_FOREIGN = ("alibi", "use_alibi", "attention_chunk_size", "window_size", "attention_layers")


_KINDS = ("full_attention", "sliding_attention")


# What a forward pass costs beside its tokens, in tokens.
_CPU_CALL, _DEVICE_CALL = 48.0, 512.0


_LENGTH_DEPENDENT = ("dynamic", "longrope")  # ropes that look at the longest row of a batch


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: those kept, which all lines share, and the batch's own after them.

    store: whether to hold on to both after the layer is done, which a batch of many lines has no room for.
    """

    def __init__(self, kept: tuple[Tensor, Tensor] | None = None, *, store: bool = True) -> None:
        super().__init__()
        self._kept, self._store = kept, store

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

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
        """Kept tokens."""
        return 0 if self._kept is None else int(self._kept[0].shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys in all, and the first one's position."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """None."""
        return -1


def cache(kept: KeysValues, *, store: bool = True) -> Cache:
    """A cache over kept keys and values, (1, heads, past, d) each, for one forward pass. Empty for no past.

    store: whether `kept` is wanted of it afterwards.
    """
    if not kept:
        return Cache(layer_class_to_replicate=_Layer)
    return Cache(layers=[_Layer(one, store=store) for one in kept])


def kept(cache: Cache) -> KeysValues:
    """Keys and values after a forward pass of one line."""
    return [(layer.keys, layer.values) for layer in cache.layers]


@dataclass(frozen=True)
class Attention:
    """The masks that a model wants.

    windows: kind of layer -> how many tokens back it sees, itself included; None for all. A model of one kind takes
        one mask, a model of several a mask for each, by name.
    dtype: of the masks, which are added to the attention scores.
    """

    windows: dict[str, int | None]
    dtype: torch.dtype

    @property
    def window(self) -> int | None:
        """The narrowest window."""
        return min((window for window in self.windows.values() if window is not None), default=None)

    def masks(self, ends: Tensor, depths: Tensor, past: int) -> Any:
        """The model's `attention_mask` for one batch, see `prefixes.Batch`.

        ends, depths: (b, l) int64, on the model's device.

        Returns: (b, 1, l, past + l) zeros and the dtype's least number, or such a mask for each kind of layer.
        """
        length = ends.shape[1]
        column = torch.arange(length, device=ends.device)
        seen = (column[None, :] <= column[:, None]) & (column[:, None] < ends[:, None, :])
        masks = {kind: self._mask(seen, depths, past, window) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def steps(self, lengths: Tensor, columns: int, step: int) -> Any:
        """The model's `attention_mask` for one more token of each answer.

        lengths: (b,) int64, of the prompts, which stand in the first of `columns` columns; answers come after them.
        step: tokens of each answer so far.

        Returns: (b, 1, 1, columns + step + 1), or such a mask for each kind of layer.
        """
        column = torch.arange(columns + step + 1, device=lengths.device)[None]
        depth = torch.where(column < columns, column, column - columns + lengths[:, None])
        seen = (column >= columns) | (column < lengths[:, None])
        masks = {}
        for kind, window in self.windows.items():
            near = seen if window is None else seen & (depth > lengths[:, None] + step - window)
            mask = torch.zeros(near.shape, dtype=self.dtype, device=near.device)
            masks[kind] = mask.masked_fill_(~near, torch.finfo(self.dtype).min)[:, None, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, seen: Tensor, depths: Tensor, past: int, window: int | None) -> Tensor:
        lines, length = depths.shape
        mask = torch.zeros(lines, 1, length, past + length, dtype=self.dtype, device=depths.device)
        least = torch.finfo(self.dtype).min
        if window is not None:
            seen = seen & (depths[:, None, :] > depths[:, :, None] - window)
            before = torch.arange(past, device=depths.device) <= depths[:, :, None] - window
            mask[:, 0, :, :past].masked_fill_(before, least)
        mask[:, 0, :, past:].masked_fill_(~seen, least)
        return mask


def describe(model: Any) -> Attention | None:
    """The masks that a model's configuration says it wants; None where it says that masks cannot do."""
    text = model.config.get_text_config()
    takes = inspect.signature(model.base_model.forward).parameters
    if not all(name in takes for name in _TAKES) or any(getattr(text, name, None) for name in _FOREIGN):
        return None
    if looks_at_length(model):
        return None
    window = getattr(text, "sliding_window", None)
    kinds = sorted(set(getattr(text, "layer_types", None) or ()))
    if not set(kinds) <= set(_KINDS):
        return None
    if len(kinds) > 1:
        windows: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    else:
        windows = {"": None if kinds == ["full_attention"] else window}
    return Attention(windows, model.dtype)


@dataclass(frozen=True)
class Step:
    """A batch of a plan on the model's device. ids, depths, ends: (b, l) int64, see `prefixes.Batch`.

    masked: whether the model must be told what sees what, or each line is plain text from its beginning.
    """

    batch: Batch
    masked: bool
    ids: Tensor
    depths: Tensor
    ends: Tensor

    @classmethod
    def of(cls, batch: Batch, device: Any) -> Step:
        """The batch's arrays on a device."""
        ids, depths, ends = (as_tensor(array, device) for array in (batch.ids, batch.depths, batch.ends))
        return cls(batch, batch.past > 0 or batch.branches, ids, depths, ends)


class Walk:
    """Forwards the batches of a plan in their order; some may be left out, but for the trunks of the others.

    attention: None where the model takes each row by itself.
    kept: keys and values of the present trunk, (1, heads, past, d) of each layer.
    tokens, padding: forwarded so far. size: tokens of the latest batch, padding included.
    """

    def __init__(self, model: Any, attention: Attention | None) -> None:
        self._model, self._attention = model, attention
        self.kept: KeysValues = []
        self.tokens = self.padding = self.size = 0

    def forward(self, step: Step, *, keep: bool = False) -> tuple[Tensor, KeysValues]:
        """The last hidden states, (b, l, d); and if asked for, the keys and values, (b, heads, past + l, d).

        A batch that is a trunk is kept in any case, for those that follow.
        """
        batch = step.batch
        tokens = sum(batch.lengths)
        self.size = step.ids.numel()
        self.tokens, self.padding = self.tokens + tokens, self.padding + self.size - tokens
        keep = keep or batch.keep
        if self._attention is None or not (keep or step.masked):
            return self._model.base_model(input_ids=step.ids, use_cache=False)[0], []
        self.kept = [(keys[:, :, : batch.past], values[:, :, : batch.past]) for keys, values in self.kept]
        past = cache(self.kept if batch.past else [], store=keep) if keep or batch.past else None
        hidden = run(self._model, self._attention, step.ids, step.ends, step.depths, past, batch.past)
        after = kept(past) if keep and past is not None else []
        if batch.keep:
            self.kept = after
        return hidden, after


def looks_at_length(model: Any) -> bool:
    """Whether what a model makes of a row depends on the longest row of its batch."""
    ropes = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{rope}'" in ropes for rope in _LENGTH_DEPENDENT)


def find(model: Any, longest: int) -> Attention | None:
    """The masks that a model wants; None where it cannot be told, and each row must be forwarded by itself.

    longest: tokens of the longest row to come.
    """
    found = describe(model)
    return found if found is not None and admit_trees(model, found, longest) else None


@torch.no_grad()
def admit_trees(model: Any, attention: Attention, longest: int) -> bool:
    """Whether the model gives each token of a tree the hidden state that it has in a row of its own.

    Tried with a kept path, two lines, and choices that branch off; and with a row longer than the window where rows
    of `longest` tokens are. Needs sensible weights.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tolerance = 1e-3 if model.dtype == torch.float32 else 6e-2
    window = attention.window
    lengths = [9] if window is None or longest <= window else [9, window + 9]
    try:
        return all(_agrees(model, attention, vocabulary, past, tolerance) for past in lengths)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model raises that was not made for this
        return False


def _agrees(model: Any, attention: Attention, vocabulary: int, past: int, tolerance: float) -> bool:
    """Hidden states of two lines over a kept path, against those of the four rows that they stand for."""
    device = model.device
    path = torch.arange(past, device=device) * 7 % vocabulary
    tokens = (torch.arange(14, device=device).view(2, 7) * 11 + 3) % vocabulary
    # Three tokens of context, a choice of two tokens, another of two.
    ends = torch.tensor([[7, 7, 7, 5, 5, 7, 7]] * 2, device=device)
    depths = past + torch.tensor([[0, 1, 2, 3, 4, 3, 4]] * 2, device=device)
    first = cache([])
    run(
        model,
        attention,
        path[None],
        torch.full_like(path, past)[None],
        torch.arange(past, device=device)[None],
        first,
    )
    lines = run(model, attention, tokens, ends, depths, cache(kept(first)), past)
    for line in range(2):
        for columns in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6]):
            row = torch.cat([path, tokens[line, columns]])
            wanted = model.base_model(input_ids=row[None], use_cache=False)[0][0, past:].float()
            found = lines[line, columns].float()
            if bool(((found - wanted).norm(dim=-1) > tolerance * wanted.norm(dim=-1)).any()):
                return False
    return True


def run(
    model: Any, attention: Attention, ids: Tensor, ends: Tensor, depths: Tensor, kept: Cache | None, past: int = 0
) -> Tensor:
    """The body's last hidden states, (b, l, d), of one batch under a tree mask."""
    hidden: Tensor = model.base_model(
        input_ids=ids,
        attention_mask=attention.masks(ends, depths, past),
        position_ids=depths,
        past_key_values=kept,
        use_cache=kept is not None,
    )[0]
    return hidden


def cost(model: Any) -> Cost:
    """What attention and a forward pass cost this model, beside the linear layers.

    Multiplications by their shapes, times 3 for attention: softmax, masks and small matrices run slower than large
    ones.
    """
    text = model.config.get_text_config()
    embedded = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in embedded)
    heads = getattr(text, "num_attention_heads", None) or 1
    width = heads * (getattr(text, "head_dim", None) or getattr(text, "hidden_size", 64) // heads)
    layers = getattr(text, "num_hidden_layers", None) or 1
    key = 3 * 2 * layers * width / max(1, linear)
    return Cost(float(key), _CPU_CALL if model.device.type == "cpu" else _DEVICE_CALL)


def as_tensor(values: np.ndarray | Sequence[int], device: Any) -> Tensor:
    """int64 on a device."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64)).to(device)
