"""Tiny parents that hold more than a text model's parameters: saved buffers, towers, heads that are not built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
)

from tests.helpers.family import make_tokenizer

_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_TEXT = {
    "vocab_size": 14,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "max_position_embeddings": 64,
    "full_attention_interval": 4,
    "initializer_range": 0.2,
    **_IDS,
}
# More layers than the text model, and more tensors in each.
_VISION = {
    "depth": 6,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
VISION = "model.visual."
MTP = ("mtp.fc.weight", "mtp.layers.0.mlp.down_proj.weight")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in a folder's files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def rewrite(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Changes some tensors of a folder with one file of weights; None takes a tensor away."""
    every = {**tensors(folder), **changes}
    save_file(
        {name: tensor.contiguous() for name, tensor in every.items() if tensor is not None},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def noisy(folder: Path, out: Path, seed: int, also: Mapping[str, torch.Tensor] | None = None) -> Path:
    """A neighbour of a folder's model: noise on every tensor of fractions in its file, and some tensors besides."""
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(seed)
    changed = {
        name: tensor + (0.05 * torch.randn(tensor.shape)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors(folder).items()
    }
    save_file({**changed, **(also or {})}, out / "model.safetensors", metadata={"format": "pt"})
    return out


def save_routed(folder: Path) -> Path:
    """A small DeepSeek-V3, whose routers keep a bias as a buffer."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **{name: _TEXT[name] for name in ("vocab_size", "hidden_size", "intermediate_size", *_IDS)},
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        qk_nope_head_dim=8,
        head_dim=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return _save(AutoModelForCausalLM.from_config(config), folder)


def save_seeing(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A small Qwen3.5 with its tower for images."""
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=_TEXT, vision_config=_VISION)
    return _save(Qwen3_5ForConditionalGeneration(config).to(dtype), folder)


def save_blind(folder: Path) -> Path:
    """The text model of `save_seeing`, as its own class saves it."""
    torch.manual_seed(1)
    return _save(Qwen3_5ForCausalLM(Qwen3_5Config(text_config=_TEXT).get_text_config()), folder)


def _save(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "bias" in name:
                buffer.copy_(0.1 * torch.randn(buffer.shape))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_recipe(file: Path, base: Path, experts: Mapping[str, Path], **changes: Any) -> Path:
    """A recipe file."""
    data = {"base": str(base), "experts": {name: str(folder) for name, folder in experts.items()}, **changes}
    file.write_text(json.dumps(data))
    return file
