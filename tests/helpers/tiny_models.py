"""Tiny random models of many families, and what one plain forward pass of them says."""

import json
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    Starcoder2Config,
    Zamba2Config,
)

from evomerge.scoring.forward.requests import GenerationRequest

VOCABULARY = 400
MAX_LENGTH = 160

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_IDS = {name: _SIZES[name] for name in _SIZES if name.endswith(("_id", "_range", "vocab_size"))}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}
_WINDOW = {"head_dim": 8, "sliding_window": 16}
_FEW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_MIXED = ["sliding_attention", "full_attention"]


def _rope(kind, **keywords):
    """A Llama whose rope looks at how long the row is."""
    return LlamaConfig(**_SIZES, rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **keywords})


# Models that heed a tree mask.
TREES = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(**_GPT2, **_IDS),
    "gemma2": lambda: Gemma2Config(**_SIZES, **_WINDOW, final_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, **_WINDOW, layer_types=_MIXED),
    "cohere": lambda: CohereConfig(**_SIZES, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=4.0),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=16),
    "qwen2_window": lambda: Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=8),
    "phi3": lambda: Phi3Config(**_SIZES),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "starcoder2": lambda: Starcoder2Config(**_SIZES),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "gptj": lambda: GPTJConfig(**_GPT2, **_IDS, rotary_dim=8),
    "falcon": lambda: FalconConfig(**_FEW, **_IDS, alibi=False),
    "opt": lambda: OPTConfig(
        **_FEW, **_IDS, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=MAX_LENGTH, init_std=0.3
    ),
}
# Models that a 4-D mask cannot be right for: biases and windows by columns, chunks, ropes by length, recurrence.
ROWS = {
    "falcon_alibi": lambda: FalconConfig(**_FEW, **_IDS, alibi=True),
    "bloom": lambda: BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: MptConfig(**_IDS, d_model=32, n_layers=2, n_heads=4, max_seq_len=MAX_LENGTH),
    "gpt_neo": lambda: GPTNeoConfig(
        **_IDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=MAX_LENGTH,
    ),
    "llama_dynamic": lambda: _rope("dynamic"),
    "llama_longrope": lambda: _rope(
        "longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=48
    ),
    "llama4": lambda: Llama4TextConfig(
        **_SIZES,
        head_dim=8,
        attention_chunk_size=16,
        num_local_experts=2,
        intermediate_size_mlp=64,
        no_rope_layers=[1, 0],
    ),
    "mamba": lambda: MambaConfig(**_IDS, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": lambda: JambaConfig(
        **_SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, mamba_dt_rank=4
    ),
    "zamba2": lambda: Zamba2Config(
        **{**_SIZES, "num_key_value_heads": 4},
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        num_mem_blocks=1,
        use_mem_rope=True,
        layers_block_type=["mamba", "hybrid"],
    ),
    "qwen3_next": lambda: Qwen3NextConfig(
        **_SIZES,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "lfm2": lambda: Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"]),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **_FEW, **_IDS, intermediate_size=64, num_key_value_heads=1, attention_window_size=16, lru_width=32
    ),
}
CONFIGS = TREES | ROWS


def make_tiny_model(name: str, seed: int = 0) -> Any:
    """A random float32 model of a family; the seed decides its weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()


def generation(prompt, max_tokens=8, until=("</s>",), options=None):
    """A generation request for token ids."""
    return GenerationRequest(
        tuple(prompt), tuple(until), max_tokens, json.dumps(options or {}, sort_keys=True), False
    )


@torch.no_grad()
def plain_logprobs(model, row, answer):
    """The summed log-probability of an answer by one plain forward pass, and whether it is the greedy one."""
    logits = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -len(answer) :]
    logprobs = logits.float().log_softmax(-1)
    ids = torch.tensor(answer, device=model.device)
    return logprobs.gather(1, ids[:, None]).sum().item(), bool((logits.argmax(-1) == ids).all())


def short_of_memory(model, fits):
    """Makes forward passes run out of memory unless `fits(lines, columns)`; gives the shapes of those that did."""
    failures = []

    def check(_, __, keywords):
        shape = tuple(keywords["input_ids"].shape)
        if not fits(*shape):
            failures.append(shape)
            assert len(failures) < 100, "it never gives up"
            raise torch.OutOfMemoryError("provoked")

    hook = model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    return failures, hook
