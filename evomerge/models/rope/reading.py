"""What the rope of a config or of a live model is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from evomerge.errors import CandidateError

FULL = "full_attention"  # the type of the layers that see the whole text, in a model with several ropes

ORIGINAL = "original_max_position_embeddings"

# The keys that a rope type adds to theta and to the part of a head that is rotated.
SCALING = frozenset(
    {
        "type",
        "rope_type",
        "factor",
        ORIGINAL,
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
        "short_factor",
        "long_factor",
        "low_freq_factor",
        "high_freq_factor",
    }
)


# --- a config ----------------------------------------------------------------------------------------------


def layer_type(config: Any) -> str | None:
    """The type of the layers whose rope reaches the whole text: FULL in a model with several ropes, else None.

    Raises:
        CandidateError: the model has no rotary embedding, or several of which none is for FULL.
    """
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None)
    if not ropes:
        raise CandidateError(f"a model of type {text.model_type} has no rotary position embedding")
    if not is_nested(ropes):
        return None
    if not isinstance(ropes.get(FULL), dict):
        raise CandidateError(
            f"a model of type {text.model_type} has ropes for {', '.join(ropes)}, but not for {FULL}"
        )
    return FULL


def is_nested(rope_parameters: Mapping[str, Any]) -> bool:
    """Whether rope parameters are those of several ropes, by the type of their layers."""
    return any(isinstance(value, Mapping) for value in rope_parameters.values())


def parameters(config: Any) -> dict[str, Any]:
    """A copy of the parameters of the rope that reaches the whole text."""
    kind = layer_type(config)
    ropes = config.get_text_config().rope_parameters
    return copy.deepcopy(dict(ropes if kind is None else ropes[kind]))


def original_length(config: Any) -> int:
    """The greatest length, in tokens, that the model had before its context was extended.

    It is the config's own greatest length if the context never was extended.

    Raises:
        CandidateError: the context was extended in a way that does not say from what length.
    """
    text, now = config.get_text_config(), parameters(config)
    kind = now.get("rope_type", "default")
    if kind == "default":
        return int(text.max_position_embeddings)
    length = now.get(ORIGINAL) or getattr(text, ORIGINAL, None)
    if length is None or kind in ("dynamic", "proportional"):
        raise CandidateError(
            f"the model's rope is of type {kind} already, which does not say what length it was extended from"
        )
    return int(length)


# --- a live model ------------------------------------------------------------------------------------------


def text_config(model: Any) -> Any:
    """The config of a model's language part; of a plain language model its only one."""
    return model.config.get_text_config()


def text_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that were made from the text config or a copy of it. A multimodal model has others too."""
    kind = type(text_config(model))
    return (module for module in model.modules() if type(vars(module).get("config")) is kind)


def rotary(model: nn.Module) -> list[nn.Module]:
    """The model's modules that make rotary embeddings.

    Raises:
        CandidateError: no module keeps its rope as those of transformers 5 do.
    """
    modules = [
        module
        for module in text_modules(model)
        if "rope_type" in vars(module)
        and any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    ]
    if not modules:
        raise CandidateError(f"{type(model).__name__} has no rotary module with `rope_type` and `inv_freq`")
    return modules


def dimension(model: nn.Module) -> int:
    """The number of dimensions of each head that are rotated."""
    return 2 * len(_kept(model, "inv_freq"))


def attention_factor(model: nn.Module) -> float:
    """The factor of cosines and sines. The attention's scores are multiplied by its square."""
    return float(_kept(model, "attention_scaling"))


def _kept(model: nn.Module, name: str) -> Any:
    """What the first rotary module keeps under a name for the rope that reaches the whole text."""
    module, kind = rotary(model)[0], layer_type(text_config(model))
    full = name if kind is None else f"{kind}_{name}"
    if not hasattr(module, full):
        raise CandidateError(f"{type(module).__name__} keeps no `{full}`, as those of transformers 5 do")
    return getattr(module, full)
