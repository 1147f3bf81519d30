"""A rope is written so that every reader finds it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
)

from evomerge.models import rope
from tests.helpers.ropes import COMMON, GEMMA, LINEAR, LLAMA3, LONGROPE, YARN, written

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
