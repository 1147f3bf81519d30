"""Changes the rope of a live model in place, and puts the old one back.

transformers computes the frequencies once, when a model is made, and keeps them in buffers that no checkpoint
holds: editing `config.rope_parameters` of a live model changes nothing. Here a second rotary module is made from
the changed config, just as loading an exported folder would make it, and its state moves into the live module. So
the live model is what the exported one will be, bit for bit, in every family whose rotary module is made from a
config alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from evomerge.errors import CandidateError, first_line
from evomerge.models.rope.reading import ORIGINAL, rotary, text_config, text_modules

_ABSENT = object()  # the old value of an attribute that a config did not have

_EVERY_MODULE = frozenset(vars(nn.Module()))  # the attributes that torch gives to each module

_MADE_IN_FORWARD = ("long_inv_freq", "max_seq_len_cached")  # ends of names of attributes


def set_rope(
    model: nn.Module,
    parameters: Mapping[str, Any],
    layer_type: str | None = None,
    max_position_embeddings: int | None = None,
) -> Callable[[], None]:
    """Changes the rope of a live model in place, and returns a function that puts the old rope back exactly.

    Args:
        parameters: all of the rope's parameters, `rope_type` and `rope_theta` too, as in `config.rope_parameters`.
        layer_type: the rope to change, in a model with several.
        max_position_embeddings: the model's new greatest length in tokens; None keeps the old one.

    Raises:
        CandidateError: transformers would not load a model with such parameters. The model is left unchanged.
    """
    modules = rotary(model)
    with ExitStack() as undoing:
        for config in _configs(model):
            undoing.callback(_set_config(config, parameters, layer_type, max_position_embeddings))
            with _refusals(config):
                config.standardize_rope_params()
                config.validate_rope()
        for module in modules:
            with _refusals(module.config), torch.device("cpu"):
                fresh = type(module)(module.config)
            undoing.callback(_move(fresh, module))
        return undoing.pop_all().close


def _configs(model: nn.Module) -> list[Any]:
    """The text config and its copies: a multimodal model may give its language model a config of its own."""
    every = (text_config(model), *(vars(module)["config"] for module in text_modules(model)))
    return list({id(config): config for config in every}.values())


def _set_config(
    config: Any, parameters: Mapping[str, Any], layer_type: str | None, length: int | None
) -> Callable[[], None]:
    """Enters a rope in a config, and returns a function that puts the old values back."""
    own = copy.deepcopy(dict(parameters))
    new = {
        "rope_parameters": own if layer_type is None else {**copy.deepcopy(config.rope_parameters), layer_type: own}
    }
    if length is not None:
        new["max_position_embeddings"] = length  # type: ignore[assignment]
    if ORIGINAL in own and hasattr(config, ORIGINAL):
        new[ORIGINAL] = own[ORIGINAL]  # at the top it overrides the one inside
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
    """Turns the error of transformers for rope parameters into one line."""
    try:
        yield
    except Exception as error:  # a family's own validation may raise anything
        raise CandidateError(
            f"transformers refuses this rope for a {config.model_type} model: {first_line(error)}"
        ) from error


def _move(fresh: nn.Module, live: nn.Module) -> Callable[[], None]:
    """Gives a live module the state of a fresh one, and returns a function that puts the old state back.

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
    """The attributes that a rotary module has got from its forward passes, and not from its config."""
    return [name for name in vars(module) if name.endswith(_MADE_IN_FORWARD)]
