"""Writes a rope under the keys of config.json that were in use before transformers 5 too."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from evomerge.models.rope.reading import FULL, ORIGINAL, SCALING, is_nested


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with its rope under the old keys too, for readers that know only those.

    Since transformers 5 `rope_parameters` holds everything. Before there were `rope_theta` and `rope_scaling`, and
    some readers take `original_max_position_embeddings` from the top for llama3 (llama.cpp) and longrope (Phi-3).
    Where the old keys would change what transformers reads, the config stays as it is: transformers prefers
    `rope_scaling`, and not every family had these keys.
    """
    rope = config.get("rope_parameters")
    if not rope:
        inner = config.get("text_config")
        return {**config, "text_config": portable(inner)} if isinstance(inner, Mapping) else dict(config)
    if config.get("model_type") in CONFIG_MAPPING:
        for old in _old_nested(rope) if is_nested(rope) else _old_flat(rope):
            new = {**copy.deepcopy(dict(config)), **old}
            if _read(new) == _read(config):
                return new
    return dict(config)


def _old_flat(rope: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The old keys of a model with one rope, in the ways in which they were written."""
    old = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    kind = rope.get("rope_type", "default")
    if kind == "default":
        yield old
        return
    if kind in ("llama3", "longrope"):
        old[ORIGINAL] = rope[ORIGINAL]
    if kind == "longrope":  # Phi-3's own reader takes these three and no more; the factor is the lengths' ratio
        lists = {name: rope[name] for name in ("short_factor", "long_factor")}
        yield {**old, "rope_scaling": {"type": kind, **lists}}
    yield {**old, "rope_scaling": _scaling(rope)}


def _old_nested(ropes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The old keys of Gemma 3; no other family with several ropes is known to have had any."""
    full, local = ropes.get(FULL), ropes.get("sliding_attention")
    if full and local and len(ropes) == 2:
        old = {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
        stretched = full.get("rope_type", "default") != "default"
        yield {**old, "rope_scaling": _scaling(full)} if stretched else old


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The value of the old key `rope_scaling`."""
    return {name: value for name, value in rope.items() if name in SCALING and name != "type"}


def _read(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The rope that transformers reads from a config, and its two lengths, as values to compare."""
    read = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))
    rope = {name: value for name, value in read.rope_parameters.items() if name != "type"}
    if rope.get("rope_type") == "longrope":
        rope["factor"] = rope.get("factor") or read.max_position_embeddings / rope[ORIGINAL]
    return rope, read.max_position_embeddings, read.rope_parameters.get(ORIGINAL)
