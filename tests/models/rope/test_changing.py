"""A rope is changed in place and put back exactly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
)

from evomerge.errors import CandidateError
from evomerge.models import rope
from tests.helpers.ropes import COMMON, GEMMA, LINEAR, LONGROPE, YARN, logits, make


def test_a_changed_config_alone_changes_nothing_and_set_rope_does() -> None:
    model = make(LlamaConfig(**COMMON))
    plain = logits(model)
    model.config.rope_parameters = dict(YARN)
    assert torch.equal(logits(model), plain)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    undo = rope.set_rope(model, YARN, max_position_embeddings=128)
    assert not torch.equal(logits(model), plain)
    module = model.model.rotary_emb
    assert (module.rope_type, module.max_seq_len_cached, module.original_max_seq_len) == ("yarn", 128, 128)
    assert torch.equal(module.inv_freq, module.original_inv_freq)
    assert rope.attention_factor(model) == module.attention_scaling > 1
    undo()
    assert torch.equal(logits(model), plain)
    assert (module.rope_type, module.max_seq_len_cached, module.attention_scaling) == ("default", 32, 1.0)


def test_what_was_not_there_is_not_there_again() -> None:
    model = make(LlamaConfig(**COMMON))
    module, buffers = model.model.rotary_emb, dict(model.named_buffers())
    names, settings = set(vars(module)), copy.deepcopy(vars(model.config))
    undo = rope.set_rope(model, LONGROPE, max_position_embeddings=128)
    logits(model)
    assert set(vars(module)) - names == {"long_inv_freq"}  # made by the first forward
    undo()
    assert set(vars(module)) == names
    assert vars(model.config) == settings
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_changes_are_undone_in_the_order_of_a_stack() -> None:
    model = make(LlamaConfig(**COMMON))
    plain = logits(model)
    first = rope.set_rope(model, LONGROPE, max_position_embeddings=128)
    between = logits(model)
    second = rope.set_rope(model, LINEAR, max_position_embeddings=64)
    assert not hasattr(model.model.rotary_emb, "long_inv_freq")
    second()
    assert torch.equal(logits(model), between)
    first()
    assert torch.equal(logits(model), plain)


def test_the_given_parameters_are_not_kept() -> None:
    model = make(LlamaConfig(**COMMON))
    given: dict[str, Any] = copy.deepcopy(LONGROPE)
    rope.set_rope(model, given, max_position_embeddings=128)
    wanted = logits(model)
    given["long_factor"][1] = 9.0
    assert torch.equal(logits(model), wanted)
    assert model.config.rope_parameters["long_factor"] == LONGROPE["long_factor"]


@pytest.mark.parametrize(
    ("config", "parameters", "reason"),
    [
        (Phi3Config(**COMMON), YARN, "refuses this rope for a phi3 model"),
        (LlamaConfig(**COMMON), {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}, "Missing required keys"),
        (LlamaConfig(**COMMON), {"rope_type": "spiral", "rope_theta": 1e4}, "refuses this rope for a llama model"),
    ],
)
def test_a_refused_rope_leaves_the_model_as_it_was(config: Any, parameters: dict[str, Any], reason: str) -> None:
    model = make(config)
    plain, settings = logits(model), copy.deepcopy(vars(model.config))
    with pytest.raises(CandidateError, match=reason):
        rope.set_rope(model, parameters, max_position_embeddings=128)
    assert torch.equal(logits(model), plain)
    assert vars(model.config) == settings


def test_of_two_ropes_the_one_for_the_whole_text_is_changed() -> None:
    model = make(Gemma3TextConfig(**GEMMA))
    module = model.model.rotary_emb
    near = module.sliding_attention_inv_freq.clone()
    assert rope.layer_type(model.config) == "full_attention"
    undo = rope.set_rope(model, {**LINEAR, "rope_theta": 1e6}, "full_attention", 128)
    assert torch.equal(module.sliding_attention_inv_freq, near)
    assert module.rope_type == {"full_attention": "linear", "sliding_attention": "default"}
    assert rope.parameters(model.config)["factor"] == 4.0
    assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    undo()
    assert module.rope_type == {"full_attention": "default", "sliding_attention": "default"}


def test_a_multimodal_model_has_its_text_changed(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = make(
        Gemma3Config(
            text_config=GEMMA,
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=28,
            boi_token_index=27,
            eoi_token_index=26,
        )
    )
    text = torch.arange(90).remainder(20)[None] + 2
    plain = model(text).logits
    undo_rope = rope.set_rope(model, {**YARN, "truncate": True}, "full_attention", 128)
    undo_scale = rope.scale_queries(model, 1.2)
    live = model(text).logits
    assert not torch.equal(live, plain)
    copy.deepcopy(model).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = rope.portable(json.loads(path.read_text()))
    assert config["text_config"]["rope_scaling"]["factor"] == 4.0
    path.write_text(json.dumps(config))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(text).logits, live)
    undo_scale()
    undo_rope()
    assert torch.equal(model(text).logits, plain)
