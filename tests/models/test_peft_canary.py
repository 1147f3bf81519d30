"""What peft writes and `evomerge.models.adapters` reads: one test each, which names what changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import peft
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from evomerge.models import adapter_settings, adapters

CONFIG = LlamaConfig(
    vocab_size=29, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["embed_tokens", "q_proj", "k_proj"],
        exclude_modules=["k_proj"],
        modules_to_save=["norm"],
    )
    peft.get_peft_model(AutoModelForCausalLM.from_config(CONFIG), settings).save_pretrained(str(out))
    return out


def test_the_settings_are_where_they_were(saved: Path) -> None:
    assert (saved / adapter_settings.CONFIG).is_file(), "peft's configuration has another name now"
    assert (saved / adapters.WEIGHTS).is_file(), "peft's weights have another name now"
    data = json.loads((saved / adapter_settings.CONFIG).read_text())
    assert data["peft_type"] == "LORA"
    for key in adapter_settings.READ:
        assert key in data, f"adapter_config.json lost {key}: mend models/adapter_settings.py"


def test_a_plain_adapter_has_no_setting_that_is_not_understood(saved: Path) -> None:
    assert adapter_settings.read(saved, "experts.ant").r == 2


def test_each_of_pefts_settings_is_read_passed_over_or_refused() -> None:
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    kinds = (adapter_settings.READ, adapter_settings.MOOT, frozenset(adapter_settings.REFUSED))
    known = frozenset().union(*kinds)
    assert sum(map(len, kinds)) == len(known), "a setting stands twice in models/adapter_settings.py"
    assert names - known == set(), "peft has new settings: enter them in models/adapter_settings.py"
    assert known - names == set(), "peft's settings went: take them out of models/adapter_settings.py"


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
        "base_model.model.model.norm.weight",
    ],
)
def test_an_adapters_tensors_have_the_names_that_are_read(saved: Path, key: str) -> None:
    assert key in load_file(saved / adapters.WEIGHTS), f"peft names {key} otherwise now: mend models/adapters.py"
