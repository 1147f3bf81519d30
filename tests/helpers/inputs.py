"""Small models, adapters and mixtures as the inputs of a merge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.source import Source
from tests.helpers.family import make_tokenizer

NORM = "model.norm.weight"


EMBEDDING = "model.embed_tokens.weight"


def source(folder: Path) -> Source:
    return Source(model=str(folder))


def opened(cache: Path, base: Path, *experts: Path, policy: Any = None) -> dict[str, Checkpoint]:
    found = Inputs(source(base), {folder.name: source(folder) for folder in experts}, policy)
    first, rest = found.open(cache)
    return {"": first, **rest}


def live(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def save_adapter(base: Path, out: Path, seed: int = 0, save_embedding_layers: Any = "auto", **options: Any) -> Any:
    """A random adapter on a model folder; gives the model with peft's own merge."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(str(out), save_embedding_layers=save_embedding_layers)
    return wrapped.merge_and_unload()


PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


ADAPTER_KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": PROJECTIONS,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {r"layers\.[01]\.self_attn\.v_proj": 9},
    },
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "k_proj"]},
    "modules_to_save": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "saved_embedding": {
        "r": 2,
        "target_modules": ["k_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


def silent(text: str) -> None:
    """Progress that nobody reads."""


def change_tensors(file: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(file), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, file, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    """Changes keys of a folder's config.json; None takes a key out."""
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({key: value for key, value in data.items() if key not in changes or value is not None})
    )


def tiny_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    options = GPT2Config(
        vocab_size=14, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    AutoModelForCausalLM.from_config(options).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_mixtures(folder: Path) -> Path:
    """A base and an expert whose tensors transformers fuses on load."""
    torch.manual_seed(0)
    options = MixtralConfig(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(options)
    for name in ("base", "ant"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


def save_model(
    folder: Path, tokens: list[str], rows: int, *, tied: bool, seed: int, special: str | None = None
) -> Path:
    """A Llama with a tokenizer of those tokens in that order, one token a character."""
    torch.manual_seed(seed)
    options = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(options).save_pretrained(folder)
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"] = {token: row for row, token in enumerate(tokens)}
    state["added_tokens"] = [
        {**entry, "id": tokens.index(entry["content"])}
        for entry in state["added_tokens"]
        if entry["content"] in tokens
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    if special:
        tokenizer.add_tokens([AddedToken(special, special=True)])
    tokenizer.save_pretrained(folder)
    return folder


FIRST = ["<pad>", "<eos>", "<unk>", "="]
