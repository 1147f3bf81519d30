from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

from evomerge.files import hashing
from evomerge.models import tensor_names


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "attention"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"),
        ("model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "mlp"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "head"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.h.2.ln_1.bias", "norm"),
        ("transformer.h.2.attn.c_attn.weight", "attention"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("embed_out.weight", "head"),
        ("gpt_neox.layers.1.attention.dense.weight", "attention"),
        ("backbone.layers.1.mixer.in_proj.weight", "attention"),
        ("something.else", "other"),
    ],
)
def test_module_groups_are_read_off_names(name: str, module: str) -> None:
    assert tensor_names.module_of(name) == module


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2),
        Qwen3Config(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, head_dim=4
        ),
        GPT2Config(vocab_size=8, n_embd=8, n_layer=3, n_head=2),
        GPTNeoXConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_are_found_without_architecture_tables(config: object) -> None:
    model = AutoModelForCausalLM.from_config(config)
    places = tensor_names.places(name for name, _ in model.named_parameters())
    assert tensor_names.layer_count(places) == 3
    assert {place.layer for place in places.values() if place.inside} == {0, 1, 2}
    for name, place in places.items():
        if not place.inside:
            assert place.layer == (0 if place.module == "embedding" else 2), name
    assert {"attention", "mlp", "norm", "embedding"} <= {place.module for place in places.values()}


def test_the_outermost_numbers_are_the_layers_even_with_more_experts_than_layers() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.w1.weight" for i in range(2) for j in range(9)]
    assert tensor_names.layer_count(tensor_names.places(names)) == 2


def test_a_model_without_layers_has_one() -> None:
    assert tensor_names.layer_count(tensor_names.places(["weight", "bias"])) == 1


@given(st.permutations(["a", "b", "c"]))
def test_the_hash_does_not_depend_on_order(order: list[str]) -> None:
    values = {"a": torch.ones(2), "b": torch.zeros(3, 1), "c": torch.ones(0)}
    assert hashing.sha256({name: values[name] for name in order}) == hashing.sha256(values)


def test_the_hash_tells_name_dtype_shape_and_bytes_apart() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 3).index_fill(0, torch.tensor([0]), -0.0)},
    ]
    hashes = {hashing.sha256(value) for value in [base, *others]}
    assert len(hashes) == 5


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(tensor_names).failed == 0


# --- towers and heads beside the text model


SEEING = [
    "model.language_model.layers.0.mlp.w.weight",
    "model.language_model.layers.1.mlp.w.weight",
    *(f"model.vision_tower.encoder.layers.{number}.mlp.fc1.weight" for number in range(5)),
    "model.multi_modal_projector.linear_1.weight",
    "model.audio_tower.conv1.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.norm.weight",
    "lm_head.weight",
    "mtp.layers.0.mlp.up_proj.weight",
]


def test_the_layers_are_those_of_the_text_model() -> None:
    placed = tensor_names.places(SEEING)
    assert tensor_names.layer_count(placed) == 2
    assert placed["model.language_model.layers.1.mlp.w.weight"].inside
    assert not placed["model.vision_tower.encoder.layers.1.mlp.fc1.weight"].inside


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("model.vision_tower.encoder.layers.4.mlp.fc1.weight", "vision", 0),
        ("model.multi_modal_projector.linear_1.weight", "vision", 0),
        ("model.audio_tower.conv1.weight", "audio", 0),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp", 1),
        ("model.language_model.embed_tokens.weight", "embedding", 0),
        ("lm_head.weight", "head", 1),
    ],
)
def test_a_tower_has_a_group_of_its_own(name: str, module: str, layer: int) -> None:
    placed = tensor_names.places(SEEING)[name]
    assert (placed.module, placed.layer) == (module, layer)


def test_a_layer_beyond_those_that_are_built_is_a_head() -> None:
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in range(3)]
    placed = tensor_names.places(names, carried=names[2:])
    assert (placed[names[2]].module, placed[names[2]].layer) == ("mtp", 1)
    assert tensor_names.layer_count(placed) == 2
    assert tensor_names.layer_count(tensor_names.places(names)) == 3


def test_experts_for_images_inside_a_layer_are_no_tower() -> None:
    assert tensor_names.module_of("model.language_model.layers.1.mlp.vision_moe.experts.0.up_proj.weight") == "mlp"
