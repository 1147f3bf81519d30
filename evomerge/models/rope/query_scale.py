"""Scales the attention's scores of a live model in the weights that make its queries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from evomerge.errors import CandidateError
from evomerge.models.rope.reading import dimension, layer_type, text_config, text_modules

_PROJECTIONS = {"q_proj", "qkv_proj", "query_key_value"}


def scale_queries(model: nn.Module, scale: float) -> Callable[[], None]:
    """Multiplies the attention's scores by `scale`, and returns a function that puts the old weights back.

    It does what a factor on cosines and sines would do: it scales the rotated part of each head, in the layers
    whose rope reaches the whole text. It does so in the last weights before the rotation. These are the weights of
    the norm of the queries where there is one, for a norm undoes any scale that comes before it; else those of the
    queries' projection.

    Layers that say `use_rope: false` are left alone. Some families have layers without a rope that do not say so
    (Cohere 2, EXAONE 4): these are scaled too.

    Raises:
        CandidateError: it is not known how this model makes its queries. The model is left unchanged.
    """
    rotated = dimension(model)
    views: dict[int, tuple[torch.Tensor, float]] = {}  # by parameter, for layers may share one
    for module in _attention(model):
        for parameter, view, offset in _query_weights(module):
            views[id(parameter)] = view[:, :rotated], offset
    if not views:
        raise CandidateError(f"{type(model).__name__} has no attention layers with q_proj or qkv_proj")
    kept = [view.clone() for view, _ in views.values()]
    for view, offset in views.values():
        if offset:
            view.copy_((view.float() + offset) * scale - offset)
        else:
            view.mul_(scale)

    def undo() -> None:
        for (view, _), value in zip(views.values(), kept, strict=True):
            view.copy_(value)

    return undo


def _attention(model: nn.Module) -> Iterator[nn.Module]:
    """The attention modules in which the rope of the whole text acts."""
    kind = layer_type(text_config(model))
    for module in text_modules(model):
        config: Any = module.config
        if not _PROJECTIONS & dict(module.named_children()).keys():
            continue
        if kind is not None and config.layer_types[module.layer_idx] != kind:
            continue
        if getattr(module, "use_rope", True):  # SmolLM3 and Llama 4 have layers without
            yield module


def _query_weights(module: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor, float]]:
    """The parameters of an attention module that make its queries last.

    Yields:
        The parameter; a view of its part that makes the queries, (heads, dimension of a head, ...); and 1.0 if it
        is the weight of a norm that multiplies by one plus its weight, else 0.0.

    Raises:
        CandidateError: it is not known how the module makes its queries.
    """
    children = dict(module.named_children())
    width, heads = getattr(module, "head_dim", None), module.config.num_attention_heads
    norm, projection = children.get("q_norm"), children.get("q_proj") or children.get("qkv_proj")
    known = width is not None and {name for name in children if "norm" in name} <= {"q_norm", "k_norm", "v_norm"}
    if norm is not None and known and isinstance(getattr(norm, "weight", None), nn.Parameter):
        offset = 1.0 if _adds_one(norm) else 0.0
        for name, parameter in norm.named_parameters(recurse=False):
            yield parameter, parameter.detach().view(-1, width), offset if name == "weight" else 0.0
    elif known and norm is None and projection is not None and _queries_first(module, projection):
        for parameter in projection.parameters(recurse=False):
            queries = parameter.detach()[: heads * width]
            yield parameter, queries.view(heads, width, *parameter.shape[1:]), 0.0
    else:
        raise CandidateError(
            f"how {type(module).__name__} makes its queries from {', '.join(children)} is not known, so that no "
            "scale can be put into its weights"
        )


def _queries_first(module: Any, projection: nn.Module) -> bool:
    """Whether a projection makes the queries in its first rows, in the order of the heads."""
    if not isinstance(projection, nn.Linear):
        return False
    heads = module.config.num_attention_heads
    if not hasattr(module, "q_proj"):
        heads += 2 * module.config.num_key_value_heads
    return bool(len(projection.weight) == heads * module.head_dim)


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm multiplies by one plus its weight, as Gemma's do: with weights of 0 it is no zero then."""
    probe = copy.deepcopy(norm).to_empty(device="cpu").requires_grad_(False)
    for parameter in probe.parameters():
        parameter.zero_()
    like = next(probe.parameters())
    return bool(probe(torch.ones(1, *like.shape, dtype=like.dtype)).any())
