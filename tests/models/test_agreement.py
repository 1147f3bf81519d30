"""Base and experts that do not agree on what their weights mean: refused, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from evomerge.errors import CheckpointError
from evomerge.models.family import Inputs
from tests.helpers.inputs import FIRST, change_config, change_tensors, save_adapter, save_model, source, tiny_gpt2


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a copy of it."""
    base = save_model(tmp_path / "base", [*FIRST, *"abcdef"], 10, tied=False, seed=1)
    return base, shutil.copytree(base, tmp_path / "ant")


def notes(pair: tuple[Path, Path], policy: Any = None) -> tuple[str, ...]:
    base, ant = pair
    found = Inputs(source(base), {"ant": source(ant)}, policy).notes
    assert not any("\n" in note for note in found)
    return found


def test_equal_models_need_no_note(pair: tuple[Path, Path]) -> None:
    assert notes(pair) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.0",
            "_name_or_path": "org/x",
            "architectures": ["X"],
        },
        {"use_cache": False, "attention_dropout": 0.1, "initializer_range": 0.1, "pretraining_tp": 2},
        {"unsloth_version": "2024.9", "no_such_key": True, "hidden_act": "swish"},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
        {"rope_parameters": None},
        {"head_dim": None, "rms_norm_eps": None, "attention_bias": None},
    ],
)
def test_what_no_merged_model_computes_with_and_written_defaults_need_no_note(
    pair: tuple[Path, Path], changes: dict[str, Any]
) -> None:
    change_config(pair[1], **changes)
    assert notes(pair) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_parameters.rope_theta 500000.0 (the",
        ),
        ({"rope_parameters": None, "rope_theta": 5e5}, "rope_parameters.rope_theta 500000.0 (the base 10000.0)"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters.rope_type linear (the base default), rope_parameters.factor 2.0 (the base none)",
        ),
        ({"max_position_embeddings": 128}, "max_position_embeddings 128 (the base 64)"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05 (the base 1e-06)"),
    ],
)
def test_other_positions_lengths_and_epsilons_are_a_note(
    pair: tuple[Path, Path], changes: dict[str, Any], said: str
) -> None:
    change_config(pair[1], **changes)
    (note,) = notes(pair)
    assert note.startswith(f"experts.ant: {pair[1] / 'config.json'} has {said}")
    assert note.endswith("; the merged model computes with the base's")


def test_another_window_is_a_note(pair: tuple[Path, Path]) -> None:
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    for folder, changes in zip(pair, ({}, window), strict=True):
        data = json.loads((folder / "config.json").read_text())
        plain = {key: data[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        Qwen2Config(**plain, **heads, **changes).save_pretrained(folder)
        _biased(folder)
    (note,) = notes(pair)
    assert "sliding_window 16 (the base none)" in note
    assert "layer_types ['full_attention', 'sliding_attention'] (the base ['full_att" in note


def _biased(folder: Path) -> None:
    sizes = {"q": 16, "k": 8, "v": 8}
    change_tensors(
        folder / "model.safetensors",
        {f"model.layers.{n}.self_attn.{p}_proj.bias": torch.zeros(s) for n in (0, 1) for p, s in sizes.items()},
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
            "num_attention_heads 4 (the base 2), num_key_value_heads 2 (the base 1), head_dim 4 (the base 8)",
        ),
        ({"hidden_act": "gelu"}, "hidden_act gelu (the base silu)"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3 (the base 2)"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor 0.5 (the base none)",
        ),
    ],
)
def test_what_gives_tensors_of_one_shape_another_meaning_is_refused(
    pair: tuple[Path, Path], changes: dict[str, Any], said: str
) -> None:
    change_config(pair[1], **changes)
    with pytest.raises(CheckpointError) as caught:
        notes(pair)
    assert str(caught.value).startswith(f"experts.ant: {pair[1] / 'config.json'} has {said}: tensors of the same")
    assert "\n" not in str(caught.value)


def test_keys_that_a_class_has_under_another_name_count_as_well(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    ant = shutil.copytree(base, tmp_path / "ant")
    change_config(ant, activation_function="gelu")  # the base has gelu_new, an approximation
    (note,) = notes((base, ant))
    assert "activation_function gelu (the base gelu_new)" in note
    change_config(ant, n_head=4)
    with pytest.raises(CheckpointError, match=r"has n_head 4 \(the base 2\)"):
        notes((base, ant))


def test_a_model_of_another_architecture_is_refused_although_its_tensors_fit(pair: tuple[Path, Path]) -> None:
    change_config(pair[1], model_type="mistral")
    with pytest.raises(CheckpointError, match=r"config\.json describes a mistral model, and the base is llama"):
        notes(pair)


def test_an_expert_without_a_config_is_said_to_have_none(pair: tuple[Path, Path]) -> None:
    (pair[1] / "config.json").unlink()
    assert notes(pair) == (f"experts.ant: {pair[1]} has no config.json; it is taken to be as the base's says",)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_another_end_of_text_is_a_note(pair: tuple[Path, Path], file: str) -> None:
    if file == "config.json":
        (pair[1] / "generation_config.json").unlink()
        change_config(pair[1], eos_token_id=[3, 1])
    else:
        path = pair[1] / file
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [3, 1]}))
    assert notes(pair) == ("experts.ant: has eos_token_id [3, 1] (the base 1); the merged model has the base's",)


def test_ids_are_not_compared_where_rows_are_matched_by_token(strangers: Path) -> None:
    change_config(strangers / "ant", eos_token_id=3)
    (strangers / "ant" / "generation_config.json").unlink()
    assert notes((strangers / "base", strangers / "ant"), "base") == ()


def test_an_adapter_has_the_bases_config(pair: tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(pair[0], tmp_path / "lora", r=2, target_modules=["q_proj"])
    assert notes((pair[0], tmp_path / "lora")) == ()


def test_what_is_known_of_one_folder_is_said_once(pair: tuple[Path, Path]) -> None:
    save_adapter(pair[1], pair[1], r=2, target_modules=["q_proj"])
    (note,) = notes((pair[1], pair[1]))
    assert note.startswith("base: ")
