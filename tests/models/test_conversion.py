"""Tensors that transformers renames or fuses become those of the live model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

from evomerge.errors import CheckpointError
from evomerge.models.family import Inputs
from tests.helpers.inputs import EMBEDDING, change_tensors, live, opened, save_adapter, source, tiny_gpt2


def test_fused_experts_are_what_transformers_loads(mixtures: Path, tmp_path: Path) -> None:
    found = opened(tmp_path, mixtures / "base", mixtures / "ant")
    for key, folder in (("", "base"), ("ant", "ant")):
        expected = live(mixtures / folder)
        assert all(torch.equal(found[key][name], tensor) for name, tensor in expected.items())
    files = sorted((tmp_path / "inputs").glob("*.safetensors"))
    assert len(files) == 2
    assert all(".mlp." in name for file in files for name in load_file(file)), "more is copied than what changed"


EXPERT = "model.layers.1.block_sparse_moe.experts.2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{EXPERT}.w1.weight": None}, r"mlp\.experts\.gate_up_proj cannot be made of .*ant "),
        (
            {f"{EXPERT}.w2.weight": torch.ones(3, 3)},
            r"mlp\.experts\.down_proj cannot be made of .*ant ",
        ),
        (
            dict.fromkeys([f"{EXPERT}.w{k}.weight" for k in (1, 2, 3)]),
            r"ant has model\.layers\.1.* other shapes",
        ),
        ({"model.norm.weight": None}, r"ant lacks model\.norm\.weight"),
    ],
)
def test_a_damaged_mixture_is_named_with_its_tensor_before_anything_is_made(
    mixtures: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    shutil.copytree(mixtures / "ant", tmp_path / "ant")
    change_tensors(tmp_path / "ant/model.safetensors", changes)
    with pytest.raises(CheckpointError, match=rf"experts\.ant: .*{message}") as caught:
        Inputs(source(mixtures / "base"), {"ant": source(tmp_path / "ant")})
    assert "\n" not in str(caught.value)


def test_an_expert_whose_config_is_lost_cannot_be_converted(mixtures: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtures / "ant", tmp_path / "ant")
    (tmp_path / "ant/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"ant lacks model\.layers\.0\.mlp.* no config\.json by which"):
        Inputs(source(mixtures / "base"), {"ant": source(tmp_path / "ant")})


def test_old_names_are_converted(tmp_path: Path) -> None:
    new = tiny_gpt2(tmp_path / "new")
    old = shutil.copytree(new, tmp_path / "old")
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(new / "model.safetensors").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    found = opened(tmp_path / "cache", old, new)
    assert all(torch.equal(found[""][name], tensor) for name, tensor in live(new).items())


def test_a_tied_expert_fits_a_base_with_a_head_of_its_own(family: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family / "models/base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    model.save_pretrained(tmp_path / "untied")
    found = opened(tmp_path / "cache", tmp_path / "untied", family / "models/ant")["ant"]
    assert torch.equal(found["lm_head.weight"], live(family / "models/ant")[EMBEDDING])


def test_an_adapter_folds_onto_a_converted_base(mixtures: Path, tmp_path: Path) -> None:
    merged = save_adapter(mixtures / "base", tmp_path / "lora", r=2, target_modules=["q_proj", "o_proj"])
    found = opened(tmp_path / "cache", mixtures / "base", tmp_path / "lora", mixtures / "ant")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
