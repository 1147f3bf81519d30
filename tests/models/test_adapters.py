"""LoRA adapters are folded into their base as peft folds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig, VeloraConfig
from safetensors.torch import load_file

from evomerge.errors import CheckpointError
from evomerge.models import adapter_settings, adapters, loading, survey
from evomerge.models.family import Inputs
from evomerge.models.input import find_input
from tests.helpers.inputs import (
    ADAPTER_KINDS,
    EMBEDDING,
    FIRST,
    change_tensors,
    live,
    opened,
    save_adapter,
    save_model,
    source,
    tiny_gpt2,
)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_folded_as_peft_folds_it(
    family: Path, bf16_family: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    base = (family if dtype == "float32" else bf16_family) / "models/base"
    merged = save_adapter(base, tmp_path / "lora", **ADAPTER_KINDS[kind])
    found = opened(tmp_path / "cache", base, tmp_path / "lora")
    rtol, atol = (2e-6, 2e-6) if dtype == "float32" else (2**-6, 2**-7)
    changed = 0
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found["lora"][name], parameter.data, rtol=rtol, atol=atol)
        changed += not torch.equal(found["lora"][name], found[""][name])
    assert changed >= 4
    assert found["lora"].dtype == dtype


@pytest.mark.parametrize("lora_bias", [False, True])
def test_weights_that_are_kept_transposed_are_folded_transposed(tmp_path: Path, lora_bias: bool) -> None:
    base = tiny_gpt2(tmp_path / "base")
    # c_proj of the attention is square, so that its shape does not tell.
    merged = save_adapter(
        base, tmp_path / "lora", r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, lora_bias=lora_bias
    )
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
    bias = "transformer.h.0.attn.c_attn.bias"
    assert torch.equal(found[bias], live(base)[bias]) is not lora_bias


def test_trained_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    options: dict[str, Any] = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}
    merged = save_adapter(base, tmp_path / "lora", **options)
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
    assert found["transformer.h.0.ln_1.bias"].abs().sum() > 0


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / adapter_settings.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora: True, .*\(it has a magnitude"),
        ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens, .*\(it acts only after certain tokens"),
        ({"init_lora_weights": "corda", "corda_config": {"cache_file": "x"}}, "init_lora_weights: corda"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights: loftq"),
        ({"peft_type": "LOHA"}, "peft_type: LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"something_new": 3}, "something_new: 3"),
        ({"r": "many"}, "is damaged"),
        ({"r": 4.7}, "is damaged"),
        ({"r": float("inf")}, "is damaged"),
        ({"lora_alpha": float("nan")}, "is damaged"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "is damaged"),
        ({"rank_pattern": {"(": 3}}, "is damaged"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_its_key(
    family: Path, lora: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(lora, **changes)
    with pytest.raises(CheckpointError, match=rf"experts\.lora: .*adapter_config\.json.* {message}") as caught:
        Inputs(source(family / "models/base"), {"lora": source(lora)})
    assert "\n" not in str(caught.value)


STARTS: dict[str, dict[str, Any]] = {
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "mica": {"init_lora_weights": "mica"},
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "idle": {"corda_config": CordaConfig(), "eva_config": peft.EvaConfig()},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", STARTS)
def test_what_concerns_the_start_of_training_alone_changes_nothing(
    family: Path, tmp_path: Path, start: str
) -> None:
    base = family / "models/base"
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "k_proj"]} | STARTS[start]
    merged = save_adapter(base, tmp_path / "lora", **options)
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text()).keys() >= STARTS[start].keys()
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_pefts_copies_of_a_saved_module_are_passed_over(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", [*FIRST, *"abcd"], 10, tied=False, seed=1)
    saved: dict[str, Any] = {
        "r": 2,
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head", "norm"],
    }
    merged = save_adapter(base, tmp_path / "lora", save_embedding_layers=True, **saved)
    held = load_file(tmp_path / "lora" / adapters.WEIGHTS)
    copies = [f"base_model.model.lm_head.{kind}weight" for kind in ("", "modules_to_save.", "original_module.")]
    assert held.keys() >= set(copies), "peft writes no copies now"
    assert not torch.equal(held[copies[0]], held[copies[2]])
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
    change_tensors(tmp_path / "lora" / adapters.WEIGHTS, {copies[1]: held[copies[1]] + 1})
    with pytest.raises(CheckpointError, match=r"are both for lm_head\.weight and differ; copy the adapter again"):
        Inputs(source(base), {"lora": source(tmp_path / "lora")})


@pytest.fixture
def left(family: Path, tmp_path: Path) -> Path:
    """A model's folder with an adapter beside its weights."""
    folder = shutil.copytree(family / "models/ant", tmp_path / "left")
    save_adapter(family / "models/base", folder, **ADAPTER_KINDS["plain"])
    return folder


def test_weights_with_an_adapter_beside_them_are_the_weights_alone(
    family: Path, left: Path, tmp_path: Path
) -> None:
    ant, base = family / "models/ant", family / "models/base"
    assert any("lora" in name for name in live(left)), "transformers adds the adapter no more"
    found = opened(tmp_path / "cache", base, left)["left"]
    for loaded in (found, opened(tmp_path / "cache", left, base)[""], dict(load_model(left).named_parameters())):
        for name, tensor in live(ant).items():
            assert torch.equal(loaded[name], tensor)
    assert Inputs(source(left), {"x": source(left)}).sha256("x") == Inputs(source(ant), {}).sha256("")


def test_weights_with_an_adapter_beside_them_are_said_to_be_so(left: Path) -> None:
    (note,) = find_input(source(left), "experts.x").notes
    assert note.startswith(f"experts.x: {left} has adapter_config.json beside model.safetensors; the weights are")
    assert "\n" not in note


def load_model(folder: Path) -> Any:
    return loading.load_model(folder, "float32", "cpu")


def test_converted_weights_are_converted_without_the_adapter_beside_them(mixtures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mixtures / "ant", tmp_path / "left")
    save_adapter(mixtures / "base", folder, r=2, target_modules=["q_proj"])
    found = opened(tmp_path / "cache", mixtures / "base", folder)["left"]
    for name, tensor in live(mixtures / "ant").items():
        assert torch.equal(found[name], tensor)


KEY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{KEY}.lora_A.weight": None}, rf"{KEY}\.lora_B\.weight in .* lacks its other half"),
        ({f"{KEY}.lora_A.weight": torch.ones(4, 31)}, rf"{KEY}\.lora_A\.weight .* \[4, 31\], but \[4, 32\] fits"),
        ({f"{KEY}.lora_A.weight": torch.ones(3, 32)}, rf"{KEY}\.lora_A\.weight .* \[3, 32\], but \[4, 32\] fits"),
        ({f"{KEY}.lora_magnitude_vector": torch.ones(32)}, r"lora_magnitude_vector in .* is no part of LoRA"),
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, r"layers\.9.* has not"),
        ({f"base_model.model.{EMBEDDING}": torch.ones(14, 32)}, r"was trained without lm_head\.weight, which is"),
        ({"base_model.model.lm_head.weight": torch.ones(14, 32)}, r"lm_head\.weight in .* has not"),
        ({"base_model.model.model.norm.weight": torch.ones(31)}, r"norm\.weight .*\[31\], but \[32\] fits"),
        ({"base_model.model.model.norm.weight": torch.ones(32, dtype=torch.int8)}, r"norm\.weight .* torch\.int8"),
    ],
)
def test_an_adapters_tensor_that_does_not_fit_is_named_with_its_file(
    family: Path, lora: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    change_tensors(lora / adapters.WEIGHTS, changes)
    with pytest.raises(CheckpointError, match=rf"experts\.lora: .*{message}") as caught:
        Inputs(source(family / "models/base"), {"lora": source(lora)})
    assert str(lora / adapters.WEIGHTS) in str(caught.value)


def test_a_truncated_adapter_is_named(family: Path, lora: Path) -> None:
    data = (lora / adapters.WEIGHTS).read_bytes()
    (lora / adapters.WEIGHTS).write_bytes(data[:-7])
    with pytest.raises(CheckpointError, match=r"experts\.lora: .*adapter_model\.safetensors is damaged"):
        Inputs(source(family / "models/base"), {"lora": source(lora)})


def test_an_adapter_that_is_not_finite_is_named_with_its_tensor(family: Path, lora: Path) -> None:
    change_tensors(lora / adapters.WEIGHTS, {f"{KEY}.lora_A.weight": torch.full((4, 32), torch.nan)})
    with pytest.raises(
        CheckpointError, match=rf"experts\.lora: {KEY}\.lora_A\.weight .* not finite in .*adapter_model"
    ):
        survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto")


def test_an_adapter_alone_cannot_be_scored(lora: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^model: .* is a LoRA adapter, which can be an expert but not stand"
    ):
        Inputs(source(lora), {}, where="model")


def test_an_adapter_is_known_by_all_that_goes_into_it(family: Path, lora: Path, tmp_path: Path) -> None:
    def identity(base: str = "base") -> str:
        return Inputs(source(family / "models" / base), {"lora": source(lora)}).sha256("lora")

    first = identity()
    assert identity() == first
    moved = shutil.copytree(lora, tmp_path / "elsewhere")
    change_config(moved, base_model_name_or_path="another/name", lora_dropout=0.5)
    assert Inputs(source(family / "models/base"), {"x": source(moved)}).sha256("x") == first
    assert identity("ant") != first
    change_config(lora, lora_alpha=7)
    assert identity() != first
    change_config(lora, lora_alpha=6)
    change_tensors(lora / adapters.WEIGHTS, {f"{KEY}.lora_A.weight": torch.ones(4, 32)})
    assert identity() != first
