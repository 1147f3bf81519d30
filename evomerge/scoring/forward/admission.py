"""Whether a transformers model can be told which token sees which, tried out on the model itself.

A model is told by a 4-D `attention_mask`, `position_ids` and `past_key_values`. Its configuration says which masks
it wants; a small tree of tokens shows whether it heeds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import CheckpointError, first_line
from evomerge.models.layer_settings import by_layer
from evomerge.scoring.forward.caches import keys_values, path_cache
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.walk import last_hidden

_TAKES = ("attention_mask", "position_ids", "past_key_values")

# Settings of models whose position biases or windows go by columns, not by positions.
_BY_COLUMN = ("alibi", "use_alibi", "attention_chunk_size", "window_size", "attention_layers")

_KINDS = ("full_attention", "sliding_attention")

_TRIED = 128  # tokens of the longest text that a model is tried on

_LENGTH_DEPENDENT = ("dynamic", "longrope")  # ropes that look at the longest row of a batch


@torch.no_grad()
def check_reads_text(model: Any, text: Sequence[int]) -> None:
    """Checks that a model takes text alone, gives each token logits that do not depend on what follows the token,
    and gives the same ones again.

    Args:
        text: a text to try it on, at least two tokens; of a long one the beginning is taken.

    Raises:
        CheckpointError: it needs more than text, looks ahead, or draws.
        torch.OutOfMemoryError: memory ran out, which says nothing of the model.
    """
    name, length = type(model).__name__, min(len(text), _TRIED)
    ids = torch.tensor([text[:length]], device=model.device)
    rows = (ids, ids, ids[:, : length // 2])
    try:
        whole, again, part = (model(input_ids=row, use_cache=False).logits.float() for row in rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises that wants an image, or another input
        raise CheckpointError(
            f"{name} cannot be scored, because it does not take text alone: {first_line(error)}"
        ) from error
    tolerance = 1e-2 if model.dtype == torch.float32 else 1e-1
    if whole.shape[:2] != ids.shape:
        raise CheckpointError(f"{name} cannot be scored, because it does not give logits for each token of a text")
    if _apart(whole, again) > tolerance:
        raise CheckpointError(f"{name} cannot be scored, because it does not answer the same text twice alike")
    if _apart(whole[:, : length // 2], part) > tolerance:
        raise CheckpointError(
            f"{name} cannot be scored, because what it says of a token depends on the tokens after it; "
            "log-likelihoods and generated text need a causal language model"
        )


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The median over tokens of how far logits are apart, as a share of their norm: a router may turn for a few."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).median())


def find_masks(model: Any, longest: int) -> TreeMasks | None:
    """The masks that a model wants; None where it heeds none, and each row must be forwarded by itself.

    Args:
        longest: tokens of the longest row to come.
    """
    masks = describe(model)
    return masks if masks is not None and admit_trees(model, masks, longest) else None


def describe(model: Any) -> TreeMasks | None:
    """The masks that a model's configuration asks for; None where it shows that masks cannot do."""
    text = model.config.get_text_config()
    takes = inspect.signature(model.base_model.forward).parameters
    if not all(name in takes for name in _TAKES) or any(any(by_layer(text, name)) for name in _BY_COLUMN):
        return None
    if looks_at_length(model):
        return None
    window, *others = set(by_layer(text, "sliding_window"))
    kinds = sorted(set(getattr(text, "layer_types", None) or ()))
    if others or not set(kinds) <= set(_KINDS):
        return None
    if len(kinds) > 1:
        windows: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    else:
        windows = {"": None if kinds == ["full_attention"] else window}
    return TreeMasks(windows, model.dtype)


def looks_at_length(model: Any) -> bool:
    """Whether what a model makes of a row depends on the longest row of its batch."""
    ropes = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{rope}'" in ropes for rope in _LENGTH_DEPENDENT)


@torch.no_grad()
def admit_trees(model: Any, masks: TreeMasks, longest: int) -> bool:
    """Whether the model gives each token of a tree the hidden state that it has in a row of its own.

    Tried with a kept path, two lines, and choices that branch off; and, if rows of `longest` tokens exceed the
    window, with a row that exceeds it as well. Needs sensible weights.

    Raises:
        torch.OutOfMemoryError: memory ran out, which says nothing of the model.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tolerance = 1e-3 if model.dtype == torch.float32 else 6e-2
    window = masks.window
    lengths = [9] if window is None or longest <= window else [9, window + 9]
    try:
        return all(_agrees(model, masks, vocabulary, past, tolerance) for past in lengths)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model raises that was not made for this
        return False


def _agrees(model: Any, masks: TreeMasks, vocabulary: int, past: int, tolerance: float) -> bool:
    """Whether two lines over a kept path have the hidden states of the four rows that they stand for.

    past: the path's length, in tokens. tolerance: a share of a hidden state's norm.
    """
    device = model.device
    path = torch.arange(past, device=device) * 7 % vocabulary
    tokens = (torch.arange(14, device=device).view(2, 7) * 11 + 3) % vocabulary
    # Three tokens of context, a choice of two tokens, another of two.
    ends = torch.tensor([[7, 7, 7, 5, 5, 7, 7]] * 2, device=device)
    depths = past + torch.tensor([[0, 1, 2, 3, 4, 3, 4]] * 2, device=device)
    first = path_cache([])
    positions = torch.arange(past, device=device)[None]
    last_hidden(model, masks, path[None], torch.full_like(positions, past), positions, first)
    lines = last_hidden(model, masks, tokens, ends, depths, path_cache(keys_values(first)), past)
    for line in range(2):
        for columns in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6]):
            row = torch.cat([path, tokens[line, columns]])
            wanted = model.base_model(input_ids=row[None], use_cache=False)[0][0, past:].float()
            found = lines[line, columns].float()
            if bool(((found - wanted).norm(dim=-1) > tolerance * wanted.norm(dim=-1)).any()):
                return False
    return True
