"""Gradients in bfloat16, and of other families of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from evomerge.searching.spaces import decoding
from tests.helpers.family import make_tokenizer
from tests.helpers.gradients import (
    bench_for,
    check,
    everything,
    laid,
    open_bench,
    pulled,
    some_genome,
)


def test_bfloat16_models_have_gradients_too(coarse: Path, tmp_path: Path) -> None:
    """Those of the weights are the model's, as coarse as it computes; what is made of them is exact to float32."""
    bench, chosen = open_bench(coarse, tmp_path, dtype="bfloat16"), everything("task_arithmetic")
    frame = laid(bench)
    genome = some_genome(chosen, frame)
    found = pulled(bench, chosen, genome)
    assert bench.scorer is not None
    documents = {"first": range(6), "second": range(6)}
    bench.model.requires_grad_(True)
    bench.scorer.backward(documents, {"first": ("loglikelihood", 0.25), "second": ("probability", 0.75)})
    pairs = []
    for coordinate, slope in found.items():
        tiny = [
            decoding.decode(chosen, frame, {**genome, coordinate: genome[coordinate] + step})
            for step in (0.0, 1e-3)
        ]
        wanted = 0.0
        for name, parameter in bench.model.named_parameters():
            files = bench.merger.base, *bench.merger.experts.values()
            base, *experts = (one[name].double() for one in files)
            rises = []
            for recipe in tiny:
                values = recipe.coefficients(bench.merger.places[name])
                weights = [values["lambda"][0] * one for one in values["weight"]]
                rises.append(sum(w * (one - base) for w, one in zip(weights, experts, strict=True)))
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.bfloat16
            wanted += float((parameter.grad.double() * (rises[1] - rises[0])).sum()) / 1e-3
        pairs.append((slope, wanted))
    largest = max(abs(wanted) for _, wanted in pairs)
    assert all(slope == pytest.approx(wanted, rel=1e-4, abs=1e-5 * largest) for slope, wanted in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "slerp"])
def test_bfloat16_gradients_point_where_those_of_float32_do(coarse: Path, tmp_path: Path, method: str) -> None:
    found, chosen = {}, everything(method)
    for dtype in ("float32", "bfloat16"):
        bench = bench_for(coarse, tmp_path / dtype, method, dtype=dtype)
        found[dtype] = pulled(bench, chosen, some_genome(chosen, laid(bench)))
    pairs = np.array([[found["bfloat16"][name], slope] for name, slope in found["float32"].items()])
    cosine = pairs.prod(axis=1).sum() / np.sqrt(np.square(pairs).sum(axis=0).prod())
    assert cosine > 0.9  # a random model in bfloat16 is another model: its scores differ by percents too


SIZES: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "gpt2": lambda: GPT2Config(
        vocab_size=14, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    ),
    "gemma3-tied": lambda: Gemma3TextConfig(**GEMMA),
    "gemma3-capped": lambda: Gemma3TextConfig(**GEMMA, final_logit_softcapping=5.0),
    "llama-untied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("family_name", FAMILIES)
def test_other_families_have_gradients_too(coarse: Path, tmp_path: Path, family_name: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "tasks").symlink_to(coarse / "tasks")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family_name](), dtype=torch.float32)
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for folder in ("base", "ant", "bee"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name] + (0.1 * torch.randn_like(parameter) if folder != "base" else 0.0))
        model.save_pretrained(tmp_path / "models" / folder)
        make_tokenizer().save_pretrained(tmp_path / "models" / folder)
    chosen = everything("task_arithmetic", modules=["attention", "mlp"])
    check(open_bench(tmp_path, tmp_path / "cache"), chosen)
