from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from evomerge.errors import CandidateError
from evomerge.files import hashing
from evomerge.models import low_rank
from evomerge.operators.training import lora


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=14, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=14, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def adapters(model: Any) -> dict[str, torch.Tensor]:
    """Adapters that change something."""
    found = lora.factors(model, 3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name in found:
        if name.endswith(".B"):
            found[name] = 0.3 * torch.randn(found[name].shape, generator=generator)
    return found


@pytest.mark.parametrize("make", [llama, gpt2])
def test_what_is_folded_is_what_the_hooks_gave(make: Any) -> None:
    model = make()
    ids = torch.arange(10)[None]
    given = adapters(model)
    before = model(input_ids=ids).logits
    with lora.hooked(model, given):
        hooked = model(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.allclose(hooked, before, atol=1e-2)
    names = set(model.state_dict())
    lora.fold(model, lora.scaled(given))
    assert torch.allclose(model(input_ids=ids).logits, hooked, atol=1e-5)
    assert set(model.state_dict()) == names


def test_fresh_adapters_change_nothing() -> None:
    model = llama()
    ids = torch.arange(10)[None]
    before = model(input_ids=ids).logits
    with lora.hooked(model, lora.factors(model, 3, seed=0)):
        assert torch.equal(model(input_ids=ids).logits, before)


def test_the_head_and_the_embeddings_take_none() -> None:
    names = lora.targets(llama())
    assert len(names) == 2 * 7
    assert not any("head" in name or "embed" in name for name in names)
    assert set(lora.targets(gpt2())) == {
        f"transformer.h.{layer}.{name}"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_seeds_and_layers_draw_their_own() -> None:
    model = llama()
    one, two, three = (lora.factors(model, 3, seed=seed) for seed in (0, 0, 1))
    assert hashing.sha256(one) == hashing.sha256(two) != hashing.sha256(three)
    assert len({float(tensor[0, 0]) for name, tensor in one.items() if name.endswith(".A")}) == 14


def test_threads_and_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = llama().bfloat16(), llama().bfloat16()
    kept = lora.scaled(adapters(first))
    lora.fold(first, kept)
    monkeypatch.setattr(low_rank, "_BLOCK", 40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        lora.fold(second, kept)
    finally:
        torch.set_num_threads(threads)
    assert hashing.sha256(first.state_dict()) == hashing.sha256(second.state_dict())
    assert first.dtype == torch.bfloat16


def test_another_models_adapters_are_refused() -> None:
    model = llama()
    kept = lora.scaled(adapters(model))
    name = "model.layers.0.mlp.up_proj"
    wrong = copy.copy(kept)
    wrong[f"{name}.B"] = torch.zeros(5, 3)
    with pytest.raises(CandidateError, match=f"{name}: the adapter is for a layer of another shape"):
        lora.fold(model, wrong)
    with pytest.raises(CandidateError, match=r"no linear layer lm_head"):
        lora.fold(model, {"lm_head.A": kept[f"{name}.A"], "lm_head.B": kept[f"{name}.B"]})
