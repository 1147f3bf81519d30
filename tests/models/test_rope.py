"""A rope is changed in place, put back exactly, and written so that every reader finds it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    SmolLM3Config,
)

from evomerge.errors import CandidateError
from evomerge.models import rope

COMMON: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA = {**COMMON, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "truncate": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 3.0, 4.0],
}
LINEAR = {"rope_type": "linear", "rope_theta": 20000.0, "factor": 4.0}


def make(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(96).remainder(27)[None] + 2).logits  # type: ignore[no-any-return]


def written(config: PretrainedConfig) -> dict[str, Any]:
    """What a config.json holds."""
    return json.loads(config.to_json_string())  # type: ignore[no-any-return]


# --- changing ----------------------------------------------------------------------------------------------


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


# --- reading -----------------------------------------------------------------------------------------------


def test_the_original_length_is_the_one_before_any_extension() -> None:
    assert rope.original_length(LlamaConfig(**COMMON)) == 32
    long = {**COMMON, "max_position_embeddings": 128}
    assert rope.original_length(LlamaConfig(**long, rope_parameters=dict(LLAMA3))) == 32
    assert rope.original_length(Phi3Config(**long)) == 128  # its own key counts only for longrope
    with pytest.raises(CandidateError, match="of type linear already"):
        rope.original_length(LlamaConfig(**long, rope_parameters=dict(LINEAR)))


def test_a_model_without_a_rope_is_refused() -> None:
    config = GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(CandidateError, match="type gpt2 has no rotary"):
        rope.parameters(config)
    with pytest.raises(CandidateError, match="GPT2LMHeadModel has no rotary module"):
        rope.set_rope(AutoModelForCausalLM.from_config(config), LINEAR)


# --- the scale of the attention ----------------------------------------------------------------------------


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


# --- writing -----------------------------------------------------------------------------------------------

LONG = {**COMMON, "max_position_embeddings": 128}
WITHOUT_THETA = {
    kind: {name: value for name, value in given.items() if name != "rope_theta"}
    for kind, given in {"yarn": YARN, "llama3": LLAMA3, "linear": LINEAR, "longrope": LONGROPE}.items()
}
SHORT_LONG = {name: LONGROPE[name] for name in ("short_factor", "long_factor")}
GEMMA_ROPES = {
    "full_attention": {**LINEAR, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
CASES: dict[str, tuple[PretrainedConfig, dict[str, Any]]] = {
    "default": (
        LlamaConfig(**LONG, rope_parameters={"rope_type": "default", "rope_theta": 3e4}),
        {"rope_theta": 3e4},
    ),
    "linear": (
        LlamaConfig(**LONG, rope_parameters=dict(LINEAR)),
        {"rope_theta": 2e4, "rope_scaling": WITHOUT_THETA["linear"]},
    ),
    "yarn": (
        LlamaConfig(**LONG, rope_parameters=dict(YARN)),
        {"rope_theta": 2e4, "rope_scaling": WITHOUT_THETA["yarn"]},
    ),
    "llama3": (
        LlamaConfig(**LONG, rope_parameters=dict(LLAMA3)),
        {"rope_theta": 2e4, "rope_scaling": WITHOUT_THETA["llama3"], "original_max_position_embeddings": 32},
    ),
    "longrope": (
        LlamaConfig(**LONG, rope_parameters=copy.deepcopy(LONGROPE)),
        {"rope_theta": 1e4, "rope_scaling": WITHOUT_THETA["longrope"], "original_max_position_embeddings": 32},
    ),
    "phi3": (
        Phi3Config(**LONG, original_max_position_embeddings=32, rope_parameters=copy.deepcopy(LONGROPE)),
        {
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "rope_scaling": {"type": "longrope", **SHORT_LONG},
            "original_max_position_embeddings": 32,
        },
    ),
    "gemma3": (
        Gemma3TextConfig(**{**GEMMA, "max_position_embeddings": 128}, rope_parameters=copy.deepcopy(GEMMA_ROPES)),
        {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": WITHOUT_THETA["linear"]},
    ),
    # its old keys are rotary_emb_base and rotary_pct, and with rope_scaling its base would be lost
    "gptneox": (
        GPTNeoXConfig(
            **{key: value for key, value in LONG.items() if key != "num_key_value_heads"},
            rope_parameters={**LINEAR, "partial_rotary_factor": 0.5},
        ),
        {},
    ),
    "gpt2": (GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_config_says_its_rope_under_the_old_keys_too(case: str) -> None:
    config, added = CASES[case]
    before = written(config)
    kept = copy.deepcopy(before)
    found = rope.portable(before)
    assert before == kept
    assert found == {**before, **added}
    assert rope.portable(found) == found
    kind = CONFIG_MAPPING[config.model_type]
    versions = [found] if not added else [found, {k: v for k, v in found.items() if k != "rope_parameters"}]
    for version in versions:
        read = kind.from_dict(copy.deepcopy(version))
        assert read.max_position_embeddings == config.max_position_embeddings
        if hasattr(config, "rope_parameters"):
            plain, again = (AutoModelForCausalLM.from_config(each) for each in (config, read))
            for (name, wanted), (_, buffer) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
                assert torch.equal(buffer, wanted), name
            assert rope.attention_factor(again) == rope.attention_factor(plain)


def test_a_config_of_an_unknown_family_stays_as_it_is() -> None:
    config = {"model_type": "not_in_transformers", "rope_parameters": dict(LINEAR)}
    assert rope.portable(config) == config
