"""The rotary position embedding of a live model: read, changed in place, put back; and written for other readers.

transformers computes the frequencies once, when a model is made, and keeps them in buffers that no checkpoint
holds: to edit `config.rope_parameters` of a live model changes nothing. Here a second rotary module is made from
the changed config, just as loading an exported folder would make it, and its state moves into the live one. So the
live model is what the exported one will be, bit for bit, in every family whose rotary module is made from a config
alone; there are no tables of architectures.

RoPE: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from evomerge.errors import CandidateError, first_line

FULL = "full_attention"  # of the ropes of a model with several, the one whose layers see the whole text

# What a rope type adds to theta and to the part of a head that is rotated.
SCALING = frozenset(
    {
        "type",
        "rope_type",
        "factor",
        "original_max_position_embeddings",
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

_ORIGINAL = "original_max_position_embeddings"


_ABSENT = object()


_EVERY_MODULE = frozenset(vars(nn.Module()))


_MADE_IN_FORWARD = ("long_inv_freq", "max_seq_len_cached")  # ends of names of attributes


# --- reading -----------------------------------------------------------------------------------------------


def layer_type(config: Any) -> str | None:
    """Which of a model's ropes reaches the whole text: FULL where there are several, None where there is one.

    Raises:
        CandidateError: the model has no rotary embedding, or none that is known to be this one.
    """
    text = config.get_text_config()
    found = getattr(text, "rope_parameters", None)
    if not found:
        raise CandidateError(f"a model of type {text.model_type} has no rotary position embedding")
    if not _nested(found):
        return None
    if not isinstance(found.get(FULL), dict):
        raise CandidateError(
            f"a model of type {text.model_type} has ropes for {', '.join(found)}, but not for {FULL}"
        )
    return FULL


def parameters(config: Any) -> dict[str, Any]:
    """A copy of the parameters of the rope that reaches the whole text."""
    kind = layer_type(config)
    found = config.get_text_config().rope_parameters
    return copy.deepcopy(dict(found if kind is None else found[kind]))


def original_length(config: Any) -> int:
    """The length, in tokens, that the model had before its context was extended: its own if it never was.

    Raises:
        CandidateError: it was extended in a way that does not say from what length.
    """
    text, now = config.get_text_config(), parameters(config)
    kind = now.get("rope_type", "default")
    if kind == "default":
        return int(text.max_position_embeddings)
    length = now.get(_ORIGINAL) or getattr(text, _ORIGINAL, None)
    if length is None or kind in ("dynamic", "proportional"):
        raise CandidateError(
            f"the model's rope is of type {kind} already, which does not say what length it was extended from"
        )
    return int(length)


def rotary(model: nn.Module) -> list[nn.Module]:
    """The model's modules that make rotary embeddings.

    Raises:
        CandidateError: none is made as those of transformers 5 are.
    """
    found = [
        module
        for module in _textual(model)
        if "rope_type" in vars(module) and any(name.endswith("inv_freq") for name in module._buffers)
    ]
    if not found:
        raise CandidateError(f"{type(model).__name__} has no rotary module with `rope_type` and `inv_freq`")
    return found


def dimension(model: nn.Module) -> int:
    """How many dimensions of each head are rotated."""
    return 2 * len(_of_layer(rotary(model)[0], model, "inv_freq"))


def attention_factor(model: nn.Module) -> float:
    """What cosines and sines are multiplied by; the attention's scores are by its square."""
    return float(_of_layer(rotary(model)[0], model, "attention_scaling"))


def _text(model: Any) -> Any:
    return model.config.get_text_config()


def _textual(model: nn.Module) -> Iterator[nn.Module]:
    """Its modules that were made from the text config or a copy: a multimodal model has others."""
    kind = type(_text(model))
    return (module for module in model.modules() if type(vars(module).get("config")) is kind)


def _nested(found: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in found.values())


def _of_layer(module: nn.Module, model: nn.Module, name: str) -> Any:
    kind = layer_type(_text(model))
    full = name if kind is None else f"{kind}_{name}"
    if not hasattr(module, full):
        raise CandidateError(f"{type(module).__name__} keeps no `{full}`, as those of transformers 5 do")
    return getattr(module, full)


# --- changing ----------------------------------------------------------------------------------------------


def set_rope(
    model: nn.Module,
    parameters: Mapping[str, Any],
    layer_type: str | None = None,
    max_position_embeddings: int | None = None,
) -> Callable[[], None]:
    """Changes the rope of a live model in place, and returns what puts it back exactly.

    Args:
        parameters: all of them, `rope_type` and `rope_theta` too, as in `config.rope_parameters`.
        layer_type: of a model with several ropes, the one to change.
        max_position_embeddings: the model's new length; None leaves it.

    Raises:
        CandidateError: transformers would not load a model with such parameters. The model is as it was.
    """
    modules = rotary(model)
    with ExitStack() as done:
        for config in _configs(model):
            done.callback(_set_config(config, parameters, layer_type, max_position_embeddings))
            with _refusals(config):
                config.standardize_rope_params()
                config.validate_rope()
        for module in modules:
            with _refusals(module.config), torch.device("cpu"):
                fresh = type(module)(module.config)
            done.callback(_move(fresh, module))
        return done.pop_all().close


def _configs(model: nn.Module) -> list[Any]:
    """The text config and its copies: a multimodal model may give its language model one of its own."""
    every = (_text(model), *(vars(module)["config"] for module in _textual(model)))
    return list({id(config): config for config in every}.values())


def _set_config(
    config: Any, parameters: Mapping[str, Any], layer_type: str | None, length: int | None
) -> Callable[[], None]:
    own = copy.deepcopy(dict(parameters))
    new = {
        "rope_parameters": own if layer_type is None else {**copy.deepcopy(config.rope_parameters), layer_type: own}
    }
    if length is not None:
        new["max_position_embeddings"] = length  # type: ignore[assignment]
    if _ORIGINAL in own and hasattr(config, _ORIGINAL):
        new[_ORIGINAL] = own[_ORIGINAL]  # at the top it overrides the one inside
    before = {name: getattr(config, name, _ABSENT) for name in new}

    def undo() -> None:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(config, name)
            else:
                setattr(config, name, value)

    for name, value in new.items():
        setattr(config, name, value)
    return undo


@contextmanager
def _refusals(config: Any) -> Iterator[None]:
    """Turns what transformers raises for rope parameters into one line."""
    try:
        yield
    except Exception as error:  # a family's own validation may raise anything
        raise CandidateError(
            f"transformers refuses this rope for a {config.model_type} model: {first_line(error)}"
        ) from error


def _move(fresh: nn.Module, live: nn.Module) -> Callable[[], None]:
    """Gives the live module the state of a fresh one.

    Tensors are replaced, not written over: the old ones may be of another dtype, and come back as they were.
    """
    buffers = {name for name, _ in fresh.named_buffers(recurse=False)}
    names = buffers | (set(vars(fresh)) - _EVERY_MODULE)
    before = {name: getattr(live, name) for name in {*names, *_made_in_forward(live)} if hasattr(live, name)}

    def undo() -> None:
        for name in {*names, *_made_in_forward(live)} - set(before):
            delattr(live, name)
        for name, value in before.items():
            setattr(live, name, value)

    device = next(live.buffers(recurse=False)).device
    for name in set(_made_in_forward(live)) - names:
        delattr(live, name)
    for name in names:
        value = getattr(fresh, name)
        setattr(live, name, value.to(device) if name in buffers else value)
    return undo


def _made_in_forward(module: nn.Module) -> list[str]:
    return [name for name in vars(module) if name.endswith(_MADE_IN_FORWARD)]


# --- the scale of the attention ----------------------------------------------------------------------------


def scale_queries(model: nn.Module, scale: float) -> Callable[[], None]:
    """Multiplies the attention's scores by `scale`, in the weights that make the queries; returns what undoes it.

    It does what a factor on cosines and sines would do: scales the rotated part of each head, in the layers whose
    rope reaches the whole text. It does so in the last weights before the rotation: those of the norm of the
    queries where there is one, for a norm undoes any scale that comes before it; else those of their projection.

    Layers that say `use_rope: false` are left alone. Some families have layers without a rope that do not say so
    (Cohere 2, EXAONE 4): these are scaled too.

    Raises:
        CandidateError: how this model makes its queries is not known here. The model is as it was.
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
    """The attention modules that the rope of the whole text acts in."""
    kind = layer_type(_text(model))
    for module in _textual(model):
        config: Any = module.config
        if not {"q_proj", "qkv_proj", "query_key_value"} & set(module._modules):
            continue
        if kind is not None and config.layer_types[module.layer_idx] != kind:
            continue
        if getattr(module, "use_rope", True):  # SmolLM3 and Llama 4 have layers without
            yield module


def _query_weights(module: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor, float]]:
    """Parameters, each with its part that makes the queries, as (heads, dimension of a head, ...), and with 1.0 if
    it is the weight of a norm that multiplies by one plus it."""
    children = module._modules
    width, heads = getattr(module, "head_dim", None), module.config.num_attention_heads
    norm, projection = children.get("q_norm"), children.get("q_proj") or children.get("qkv_proj")
    known = width is not None and {name for name in children if "norm" in name} <= {"q_norm", "k_norm", "v_norm"}
    if known and isinstance(getattr(norm, "weight", None), nn.Parameter):
        offset = 1.0 if _adds_one(norm) else 0.0
        for name, parameter in norm.named_parameters(recurse=False):
            yield parameter, parameter.detach().view(-1, width), offset if name == "weight" else 0.0
    elif known and norm is None and _queries_first(module, projection):
        for parameter in projection.parameters(recurse=False):
            queries = parameter.detach()[: heads * width]
            yield parameter, queries.view(heads, width, *parameter.shape[1:]), 0.0
    else:
        raise CandidateError(
            f"how {type(module).__name__} makes its queries from {', '.join(children)} is not known, so that no "
            "scale can be put into its weights"
        )


def _queries_first(module: Any, projection: nn.Module | None) -> bool:
    """Whether a projection makes the queries in its first rows, in the order of the heads."""
    if not isinstance(projection, nn.Linear):
        return False
    heads = module.config.num_attention_heads
    if "q_proj" not in module._modules:
        heads += 2 * module.config.num_key_value_heads
    return bool(len(projection.weight) == heads * module.head_dim)


def _adds_one(norm: Any) -> bool:
    """Whether a norm multiplies by one plus its weight, as Gemma's do: with weights of 0 it is no zero then."""
    probe = copy.deepcopy(norm).to_empty(device="cpu").requires_grad_(False)
    for parameter in probe.parameters():
        parameter.zero_()
    like = next(probe.parameters())
    return bool(probe(torch.ones(1, *like.shape, dtype=like.dtype)).any())


# --- writing -----------------------------------------------------------------------------------------------


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with its rope under the old keys too, for readers that know only those.

    Since transformers 5 `rope_parameters` holds everything. Before there were `rope_theta` and `rope_scaling`, and
    some readers take `original_max_position_embeddings` from the top for llama3 (llama.cpp) and longrope (Phi-3).
    Where the old keys would change what transformers reads, the config stays as it is: transformers prefers
    `rope_scaling`, and not every family had these keys.
    """
    found = config.get("rope_parameters")
    if not found:
        inner = config.get("text_config")
        return {**config, "text_config": portable(inner)} if isinstance(inner, Mapping) else dict(config)
    if config.get("model_type") in CONFIG_MAPPING:
        for old in _old_nested(found) if _nested(found) else _old_flat(found):
            new = {**copy.deepcopy(dict(config)), **old}
            if _read(new) == _read(config):
                return new
    return dict(config)


def _old_flat(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    old = {name: found[name] for name in ("rope_theta", "partial_rotary_factor") if name in found}
    kind = found.get("rope_type", "default")
    if kind == "default":
        yield old
        return
    if kind in ("llama3", "longrope"):
        old[_ORIGINAL] = found[_ORIGINAL]
    if kind == "longrope":  # Phi-3's own reader takes these three and no more; the factor is the lengths' ratio
        lists = {name: found[name] for name in ("short_factor", "long_factor")}
        yield {**old, "rope_scaling": {"type": kind, **lists}}
    yield {**old, "rope_scaling": _scaling(found)}


def _old_nested(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Gemma 3's keys; no other family with several ropes is known to have had any."""
    full, local = found.get(FULL), found.get("sliding_attention")
    if full and local and len(found) == 2:
        old = {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
        stretched = full.get("rope_type", "default") != "default"
        yield {**old, "rope_scaling": _scaling(full)} if stretched else old


def _scaling(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name in SCALING and name != "type"}


def _read(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What transformers makes of a config's rope."""
    read = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))
    found = {name: value for name, value in read.rope_parameters.items() if name != "type"}
    if found.get("rope_type") == "longrope":
        found["factor"] = found.get("factor") or read.max_position_embeddings / found[_ORIGINAL]
    return found, read.max_position_embeddings, read.rope_parameters.get(_ORIGINAL)
