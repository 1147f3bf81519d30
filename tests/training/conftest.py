"""A tiny random Llama, and rows of the letters that it knows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.training.corpus import Row

VOCABULARY = 14


def make_model(seed: int = 0, *, end: float = 0.0) -> Any:
    """In evaluation mode. end: is added to the logit of token 1, by way of a head of its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(20.0)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    model.lm_head.bias[1] = end
    return model


@pytest.fixture
def model() -> Any:
    return make_model()


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Random rows of 2 to `longest` tokens."""

    def make(count: int, longest: int = 12, seed: int = 0) -> list[Row]:
        rng = random.Random(seed)
        lengths = [rng.randint(2, longest) for _ in range(count)]
        return [Row(tuple(rng.choices(range(4, VOCABULARY), k=n)), rng.randint(1, n - 1)) for n in lengths]

    return make
