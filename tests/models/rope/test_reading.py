"""A rope is read from a config."""

from __future__ import annotations

import pytest
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
)

from evomerge.errors import CandidateError
from evomerge.models import rope
from tests.helpers.ropes import COMMON, LINEAR, LLAMA3


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
