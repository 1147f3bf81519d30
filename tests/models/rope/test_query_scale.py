"""The scale of the attention is put into the weights that make the queries."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3TextConfig,
    Phi3Config,
    Qwen2Config,
    SmolLM3Config,
)

from evomerge.models import rope
from tests.helpers.ropes import COMMON, GEMMA, make


def test_a_norm_that_adds_one_is_scaled_as_a_whole() -> None:
    model = make(Gemma3TextConfig(**GEMMA))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    undo = rope.scale_queries(model, 1.5)
    (changed,) = (name for name, value in model.named_parameters() if not torch.equal(value, before[name]))
    assert changed == "model.layers.1.self_attn.q_norm.weight"
    found = dict(model.named_parameters())[changed]
    torch.testing.assert_close(1 + found, 1.5 * (1 + before[changed]), rtol=1e-6, atol=1e-6)
    undo()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_weight_and_bias_of_the_queries_are_scaled() -> None:
    model = make(Qwen2Config(**COMMON))
    attention = model.model.layers[0].self_attn
    weight, bias, keys = (
        value.clone() for value in (attention.q_proj.weight, attention.q_proj.bias, attention.k_proj.weight)
    )
    rope.scale_queries(model, 1.5)
    assert torch.equal(attention.q_proj.weight, weight * 1.5)
    assert torch.equal(attention.q_proj.bias, bias * 1.5)
    assert torch.equal(attention.k_proj.weight, keys)


def test_only_what_is_rotated_is_scaled() -> None:
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    model = make(Phi3Config(**COMMON, rope_parameters=half))
    assert rope.dimension(model) == 4
    weight = model.model.layers[0].self_attn.qkv_proj.weight
    before = weight.clone()
    rope.scale_queries(model, 2.0)
    ratio = (weight / before).view(-1, 8, 32)
    assert (ratio[:4, :4] == 2).all()
    assert (ratio[:4, 4:] == 1).all()
    assert (ratio[4:] == 1).all()


def test_layers_that_use_no_rope_are_left() -> None:
    model = make(SmolLM3Config(**COMMON, no_rope_layers=[1, 0]))
    before = [layer.self_attn.q_proj.weight.clone() for layer in model.model.layers]
    rope.scale_queries(model, 2.0)
    found = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    assert torch.equal(found[0], 2 * before[0])
    assert torch.equal(found[1], before[1])
