"""The names in the files that live tensors are made of are those that transformers makes them of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Qwen2MoeConfig

from evomerge.models.family import Inputs
from tests.helpers.inputs import live, source, tiny_gpt2
from tests.helpers.tiny_models import CONFIGS

_SIZES = {
    "vocab_size": 14,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def qwen2_moe(folder: Path) -> Path:
    config = Qwen2MoeConfig(
        **_SIZES, num_experts=3, moe_intermediate_size=8, shared_expert_intermediate_size=8, bos_token_id=None
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def gpt_neox(folder: Path) -> Path:
    config = GPTNeoXConfig(**{name: size for name, size in _SIZES.items() if name != "num_key_value_heads"})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def jamba(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["jamba"]()).save_pretrained(folder)
    return folder


def old_gpt2(folder: Path) -> Path:
    """Names without the prefix that transformers adds."""
    tiny_gpt2(folder)
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def moved(folder: Path, name: str, before: dict[str, torch.Tensor]) -> set[str]:
    """The live tensors that change if one tensor in the files is another."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name] + 1.0}, file, metadata={"format": "pt"})
    changed = {other for other, tensor in live(folder).items() if not torch.equal(tensor, before[other])}
    save_file(tensors, file, metadata={"format": "pt"})
    return changed


@pytest.mark.parametrize("make", [qwen2_moe, gpt_neox, jamba, old_gpt2])
def test_a_live_tensor_is_made_of_the_tensors_that_change_it(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path / "model")
    inputs = Inputs(source(folder), {})
    made_of = inputs.made_of()
    assert any(names != (name,) for name, names in made_of.items())
    before = live(folder)
    for name in load_file(folder / "model.safetensors"):
        goes_into = {target for target, names in made_of.items() if name in names}
        assert moved(folder, name, before) == goes_into, name


def test_a_mixture_of_experts_is_fused(mixtures: Path) -> None:
    made_of = Inputs(source(mixtures / "base"), {}).made_of()
    experts = "model.layers.1.block_sparse_moe.experts"
    assert set(made_of["model.layers.1.mlp.experts.gate_up_proj"]) == {
        f"{experts}.{number}.{part}.weight" for number in range(3) for part in ("w1", "w3")
    }
    assert made_of["model.layers.1.mlp.gate.weight"] == ("model.layers.1.block_sparse_moe.gate.weight",)


def test_tensors_that_keep_their_names_are_made_of_themselves(family: Path) -> None:
    made_of = Inputs(source(family / "models/base"), {}).made_of()
    assert all(names == (name,) for name, names in made_of.items())
