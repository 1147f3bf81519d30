"""Tiny configurations: a config class's defaults with every size made small."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo_overrides import OVERRIDES

VOCABULARY = 96  # the tiny tokenizer's size
FIRST_ID = 24  # the ids of placeholders for images and the like begin here; prompts are made of those below

_WIDTH, _HEADS, _GROUPS, _HEAD = 32, 4, 2, 8
_IDS = {"pad": 0, "eos": 1, "bos": 2, "decoder_start": 2, "forced_eos": 1, "forced_bos": 2, "unk": 3}
_KEEP = -1  # a size that is small already

# Pattern of a field's name -> its size; the first that matches the whole name wins. Any other field keeps what it
# is up to `_HEADROOM`, and is `_WIDTH` above.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"chunk_size_feed_forward|chunk_size_lm_head|(num|in|out|audio)_channels|seed|type_vocab_size", _KEEP),
    (r".*vocab_size.*|codebook_size|num_embeddings|encoder_hash_byte_group_vocab", VOCABULARY),
    (r".*(key_value|kv_n|num_kv)_heads|num_query_groups|linear_num_key_heads", _GROUPS),
    (r".*_heads|n_head|num_heads|n_groups|mamba_num_heads", _HEADS),
    (r"qk_head_dim", 2 * _HEAD),
    (r".*head_dim|.*head_size|d_head|.*headdim|dim_head|d_kv|kv_channels|rotary_dim|query_pre_attn_scalar", _HEAD),
    (r".*lora_rank|.*low_?rank|.*_rank|d_rel", _HEAD),
    (r"n_group|topk_group|num_expert_group", 1),
    (r".*top_?k(_blocks|_experts)?|.*experts_per_tok(en)?|moe_k", 2),
    (r".*shared_experts", 1),
    (r".*experts|zero_expert_num", 4),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_\w+_positions|context_length|rel_extent)", 64),
    (r"original_max_position_embeddings", 32),
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers", 1),
    (r"num_kv_shared_layers", 0),
    (r".*sliding_window(_size)?|window_size|.*attention_chunk_size|attention_window_size", _HEAD),
    (r".*state_size|.*d_state|(mamba_)?chunk_size|block_size|index_block_size", _HEAD),
    (r"image_size|max_image_size|max_img_size|resolution", 16),
    (r"patch_size", 4),
    (r"num_position_embeddings|image_seq_length|num_image_tokens|mm_tokens_per_image|num_patches", 16),
)
_LAYERS = re.compile(r"(.*_)?(num|n)_(\w+_)?(layers?|blocks)|n_layers?|(encoder_|decoder_)?layers|depth")
_HEADROOM = 8  # sizes up to here are no matter


def tiny_config(name: str) -> PreTrainedConfig:
    """The tiny configuration of a model type."""
    return _tiny(CONFIG_MAPPING[name], OVERRIDES.get(name, {}), {})


def _tiny(kind: type[PreTrainedConfig], override: Mapping[str, Any], ids: dict[str, int]) -> PreTrainedConfig:
    """A config class's defaults with small sizes.

    Args:
        override: field -> its value; for a field that is a config itself a mapping of its own fields. Names that
            begin with "=" are given to the class before its defaults are read.
        ids: the ids that names of tokens have been given; is added to.
    """
    default = kind(**{key[1:]: value for key, value in override.items() if key.startswith("=")})
    fields = {field.name: _default(default, field) for field in dataclasses.fields(kind)}
    kept = _kept_layers(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        given = override.get(name)
        if isinstance(value, PreTrainedConfig):
            small[name] = _tiny(type(value), given or {}, ids)
        elif name in override:
            small[name] = given
        elif (size := _small(name, value, kept, ids)) is not None:
            small[name] = size
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]  # latent attention has no groups
    if isinstance(rope := small.get("rope_parameters", fields.get("rope_parameters")), Mapping):
        ignored = getattr(kind, "ignore_keys_at_rope_validation", ())
        small["rope_parameters"] = _fitted_rope(rope, sections="mrope_section" in ignored)
    others = {key.removeprefix("="): value for key, value in override.items() if key.removeprefix("=") not in small}
    return kind(**small, **others)


def _default(config: PreTrainedConfig, field: dataclasses.Field[Any]) -> Any:
    """A field's value; the class's default where the layers have different ones."""
    try:
        return getattr(config, field.name)
    except Exception:
        return field.default


def _kept_layers(fields: Mapping[str, Any]) -> list[int]:
    """The numbers of the layers to keep: two or more, and one of each kind that the lists of kinds tell apart."""
    counts = [value for name, value in fields.items() if _LAYERS.fullmatch(name) and type(value) is int]
    lists = [value for name, value in fields.items() if name.endswith(("_types", "_type", "no_rope_layers"))]
    lists = [value for value in lists if isinstance(value, list | tuple) and len(value) in counts]
    first: dict[Any, int] = {}
    for number, kinds in enumerate(zip(*lists, strict=False)):
        first.setdefault(str(kinds), number)
    numbers = sorted(first.values())
    return numbers if len(numbers) > 1 else [0, 1]


def _small(name: str, value: Any, kept: list[int], ids: dict[str, int]) -> Any:
    """The small value of a field; None where the default is to be kept."""
    if re.search(r"(token_id|token_index|_id|_index|token_ids)$", name):
        return _token(name, value, ids)
    if isinstance(value, list | tuple):
        return _short(name, list(value), kept)
    if name == "head_dim" and value is None:
        return _HEAD
    if type(value) is not int:
        return None
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return value if size == _KEEP or value <= 0 else size
    if _LAYERS.fullmatch(name):
        return len(kept)
    return _WIDTH if value > _HEADROOM else value


def _token(name: str, value: Any, ids: dict[str, int]) -> Any:
    """The id of a token: a special one, or one that no letter has."""
    if isinstance(value, list | tuple):
        return [_token(f"{name}-{at}", one, ids) for at, one in enumerate(value)]
    if type(value) is not int or value < 0:
        return None
    key = re.sub(r"(_token)?(_ids?|_index)(-\d+)?$", "", name)
    return _IDS[key] if key in _IDS else ids.setdefault(name, FIRST_ID + len(ids))


def _short(name: str, value: list[Any], kept: list[int]) -> Any:
    """A list with one entry a layer, or a list of layers, for the layers that are kept."""
    if name.endswith(("_types", "_type", "no_rope_layers", "_per_layer")) and len(value) > max(kept):
        return [value[number] for number in kept]
    if re.search(r"(index(es)?|idxs|layers|layers_indices)$", name) and value and type(value[0]) is int:
        return list(range(len(kept)))[: len(value)]
    return None


def _fitted_rope(rope: Mapping[str, Any], *, sections: bool) -> dict[str, Any]:
    """A rope's parameters with lists as long as a tiny head is wide; a mapping from kinds of layers likewise.

    Args:
        sections: whether positions have three dimensions.
    """
    if any(isinstance(value, Mapping) for value in rope.values()):
        return {kind: value and _fitted_rope(value, sections=sections) for kind, value in rope.items()}
    fitted = dict(rope)
    if sections and sum(rope.get("mrope_section", ())) != _HEAD // 2:
        half = int(_HEAD * rope.get("partial_rotary_factor", 1.0)) // 2
        fitted["mrope_section"] = [half // 3 + (at < half % 3) for at in range(3)]
    for key in ("short_factor", "long_factor"):
        if key in rope:
            fitted[key] = rope[key][: _HEAD // 2]
    return fitted
