"""Tiny models of several families, and rope parameters that fit them."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
)

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
