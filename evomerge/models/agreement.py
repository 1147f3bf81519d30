"""Whether base and experts agree on what their weights mean: their configs, key by key.

A merged model computes with the base's config. Configs are compared as transformers' classes read them: a default
that is left out equals the default that is written, and keys that the class does not know count for nothing.

Where a difference changes what a tensor means although its shape is the same (heads, activations, the order of the
rotated dimensions), the expert is refused. All other differences are notes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from evomerge.errors import CheckpointError
from evomerge.files.json_mapping import read_mapping
from evomerge.models.configs import CONFIG, config_of
from evomerge.models.input import Input
from evomerge.models.layer_settings import setting

# Keys of no merged model's forward pass: training, names, extra heads, and what other checks compare.
_MOOT = re.compile(
    r"drop|initializer|(^|_)init(_|$)|_std$|^use_cache$|^pretraining_tp$|aux_loss|z_loss|loss_scaling|jitter|dtype"
    r"|^output_(router_logits|attentions|hidden_states)$|^summary_|^tie_word_embeddings$|vocab_size|^type$|mtp|nextn"
    r"|^use_sliding_window$|^max_window_layers$|^num_logits_to_keep$"
)

# Keys by which tensors of one shape mean different things.
_STRUCTURE = re.compile(
    r"(?<!lm)(^|_)heads?(_|$)|^num_(hidden_)?layers$|^depth$|^multi_query$|parallel|alibi|^new_decoder|^rotary_|partial_rotary"
    r"|interleave|^position_embedding_type$|^do_layer_norm_before$|^pre_norm$|^norm_(first|type)$|post_(layer)?norm$"
    r"|^scale_attn_|^scoring_func$|selection_fn$"
)
_ACTIVATION = re.compile(r"(^|_)(act|activation)(_|$)")
_IDS = re.compile(r"_token_ids?$")

_APPROXIMATE = 1e-3  # the greatest difference of two approximations of one activation (of gelu: 5e-4)
_LONGEST = 60  # signs of a value in a message
_MISSING = object()


def check_agreement(models: Mapping[str, Input], renumbered: Collection[str]) -> tuple[str, ...]:
    """Compares the experts' configs with the base's. Adapters have the base's.

    Args:
        models: the base (""), and the experts by name.
        renumbered: the names of the experts whose token ids are not the base's, because rows are matched by token.

    Returns:
        Notes, a line each: how folders are read, and what of an expert's config the merged model does not have.

    Raises:
        CheckpointError: tensors of experts mean something else than the base's, with the faults of all experts.
    """
    base = models[""]
    own = config_of(base)
    folders: dict[Path, tuple[str, ...]] = {}
    notes, faults = list[str](), list[str]()
    for name, model in models.items():
        known = model.folder in folders
        folders.setdefault(model.folder, model.notes)
        if known or not name or model.adapter is not None:
            continue
        config = config_of(model)
        if config is None:
            notes.append(f"{model.where}: {model.folder} has no {CONFIG}; it is taken to be as the base's says")
            continue
        fault, lines = _compare(model, config, base, own, ids=name not in renumbered)
        faults += fault
        notes += lines
    if faults:
        raise CheckpointError("\n".join(faults))
    return (*(note for found in folders.values() for note in found), *notes)


def _compare(model: Input, config: Any, base: Input, own: Any, *, ids: bool) -> tuple[list[str], list[str]]:
    """The faults and the notes of one expert.

    Args:
        config, own: the expert's config and the base's.
        ids: whether token ids are compared.
    """
    text, own_text = config.get_text_config(), own.get_text_config()
    path = model.folder / CONFIG
    # A class of a folder's own, and the text part of a model with towers, go by other names than the text model
    # that they were made of.
    named = text is config and own_text is own and all(map(_is_transformers, (text, own_text)))
    if text.model_type != own_text.model_type and named:
        return [
            f"{model.where}: {path} describes a {text.model_type} model, and the base is {own_text.model_type}: "
            "tensors of the same names mean something else; merge models of one architecture"
        ], []
    differing = {
        key: line for key, line in _differences(text, own_text) if not _alike(key, text, own_text, greatest=0.0)
    }
    structure = [line for key, line in differing.items() if _changes_meaning(key, text, own_text)]
    structure += _differing_towers(config, own)
    if structure:
        return [
            f"{model.where}: {path} has {', '.join(structure)}: tensors of the same shapes mean something else; "
            "give an expert that was fine-tuned from the base, or its own config.json"
        ], []
    notes = []
    values = [line for key, line in differing.items() if not _IDS.search(key)]
    if text.model_type != own_text.model_type:
        values.insert(0, f"model_type {text.model_type} (the base {own_text.model_type})")
    if values:
        notes.append(f"{model.where}: {path} has {', '.join(values)}; the merged model computes with the base's")
    if ids and (lines := _differing_ids(model.folder, text, base.folder, own_text)):
        notes.append(f"{model.where}: has {', '.join(lines)}; the merged model has the base's")
    return [], notes


def _is_transformers(config: Any) -> bool:
    """Whether a config's class is one of transformers' own."""
    return type(config).__module__.startswith("transformers.")


def _differing_towers(config: Any, own: Any) -> list[str]:
    """What gives the tensors of two models' towers another meaning, in words."""
    lines = []
    for name in ("vision_config", "audio_config"):
        tower, other = setting(config, name), setting(own, name)
        if isinstance(tower, PreTrainedConfig) and type(tower) is type(other):
            differing = _differences(tower, other)
            lines += [f"{name}.{line}" for key, line in differing if _changes_meaning(key, tower, other)]
    return lines


def _changes_meaning(key: str, config: Any, own: Any) -> bool:
    """Whether a difference in a key gives tensors of one shape another meaning."""
    if _ACTIVATION.search(key):
        return not _alike(key, config, own, greatest=_APPROXIMATE)
    last = key.rpartition(".")[2]
    canonical = {real: general for general, real in type(own).attribute_map.items()}
    return any(_STRUCTURE.search(name) for name in (last, canonical.get(last, last)))


def _alike(key: str, config: Any, own: Any, *, greatest: float) -> bool:
    """Whether a key names activations in both configs whose values differ by `greatest` at most."""
    first, second = (setting(one, key) for one in (config, own))
    known = all(isinstance(name, str) and name in ACT2FN for name in (first, second))
    if not known or not _ACTIVATION.search(key):
        return False
    at = torch.linspace(-8.0, 8.0, 1001)
    with torch.no_grad():
        gap = (ACT2FN[first](at) - ACT2FN[second](at)).abs().max()
    return bool(gap <= greatest)


def _differences(config: Any, own: Any) -> Iterator[tuple[str, str]]:
    """Each key of two configs in which they differ, with the values in words; nested keys are joined by dots."""
    common = inspect.signature(PreTrainedConfig).parameters
    other = inspect.signature(type(config)).parameters
    names = [name for name in inspect.signature(type(own)).parameters if name in other and name not in common]
    first, second = ({name: setting(one, name) for name in names} for one in (config, own))
    first, second = dict(_flat(first)), dict(_flat(second))
    for key in dict.fromkeys((*second, *first)):
        if any(_MOOT.search(part) for part in key.split(".")):
            continue
        mine, theirs = first.get(key, _MISSING), second.get(key, _MISSING)
        if mine != theirs:
            yield key, f"{key} {_shown(mine)} (the base {_shown(theirs)})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as one mapping, keys joined by dots. A value of None counts as none."""
    for key, value in values.items():
        value = value.to_dict() if isinstance(value, PreTrainedConfig) else value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    """A value in a message."""
    text = "none" if value is _MISSING else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _differing_ids(folder: Path, config: Any, base: Path, own: Any) -> list[str]:
    """The token ids in which two models differ, in words; their generation configs go before their configs."""
    lines = []
    first, second = (read_mapping(one / "generation_config.json") for one in (folder, base))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        mine, theirs = (
            generation.get(key, setting(one, key)) for generation, one in ((first, config), (second, own))
        )
        if mine != theirs and mine is not None:
            lines.append(f"{key} {_shown(mine)} (the base {_shown(_MISSING if theirs is None else theirs)})")
    return lines
