"""Configs that do not fit their weights are refused by name; a head that is tied or its own has its right value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import CheckpointError
from evomerge.models.family import Inputs
from evomerge.models.survey import survey_models
from tests.helpers.inputs import FIRST, change_config, change_tensors, live, opened, save_model, source

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tied", [*FIRST, *"abcdef"], 10, tied=True, seed=1)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return save_model(tmp_path / "untied", [*FIRST, *"abcdef"], 10, tied=False, seed=2)


def refusal(base: Path, expert: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        survey_models(source(base), {"ant": source(expert)}, "auto")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_expert_that_ties_its_head_has_its_embedding_as_the_head_of_an_untied_base(
    tied: Path, untied: Path, tmp_path: Path
) -> None:
    found = opened(tmp_path / "cache", untied, tied)["tied"]
    assert torch.equal(found[HEAD], live(tied)[EMBEDDING])
    for name, tensor in live(tied).items():
        assert torch.equal(found[name], tensor)


def test_an_expert_with_a_head_of_its_own_does_not_fit_a_base_that_ties_it(tied: Path, untied: Path) -> None:
    assert refusal(tied, untied).startswith(f"experts.ant: {HEAD} in {untied}/model.safetensors differs")


def test_an_untied_expert_whose_head_equals_its_embedding_fits_a_base_that_ties_it(
    tied: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied)
    state = {**model.state_dict(), HEAD: model.state_dict()[EMBEDDING].clone()}
    model.config.tie_word_embeddings = False
    again = AutoModelForCausalLM.from_config(model.config)
    again.load_state_dict(state)
    again.save_pretrained(tmp_path / "own")
    survey_models(source(tied), {"ant": source(tmp_path / "own")}, "auto")
    assert torch.equal(opened(tmp_path / "cache", tied, tmp_path / "own")["own"][EMBEDDING], state[EMBEDDING])


@pytest.mark.parametrize("role", ["base", "expert", "model"])
def test_a_config_that_ties_nothing_over_weights_without_a_head_is_refused_with_the_cure(
    tied: Path, untied: Path, role: str
) -> None:
    change_config(tied, tie_word_embeddings=False)
    if role == "model":
        with pytest.raises(CheckpointError) as caught:
            Inputs(source(tied), {}, where="model")
        said = str(caught.value)
    else:
        said = refusal(tied, untied) if role == "base" else refusal(untied, tied)
    where = {"base": "base", "expert": "experts.ant", "model": "model"}[role]
    assert said.startswith(f"{where}: {tied} lacks {HEAD}, and its config.json does not tie the head")
    assert "set tie_word_embeddings: true there" in said


@pytest.mark.parametrize(
    "settings", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "fp8"}]
)
@pytest.mark.parametrize("role", ["base", "expert"])
def test_plain_weights_that_a_config_calls_quantized_are_refused(
    untied: Path, tmp_path: Path, role: str, settings: dict[str, Any]
) -> None:
    other = shutil.copytree(untied, tmp_path / "other")
    change_config(other, quantization_config=settings)
    said = refusal(other, untied) if role == "base" else refusal(untied, other)
    assert (
        f"{other / 'config.json'} has quantization_config, but the weights are float32; take that key out" in said
    )


def test_a_quantized_checkpoint_is_refused_as_one(untied: Path, tmp_path: Path) -> None:
    other = shutil.copytree(untied, tmp_path / "other")
    change_config(other, quantization_config={"quant_method": "gptq", "bits": 4})
    change_tensors(other / "model.safetensors", {HEAD: torch.ones(10, 2, dtype=torch.int32)})
    assert refusal(untied, other).startswith(f"experts.ant: {other} is a quantized checkpoint")


@pytest.mark.parametrize("config", ["{", "[]", json.dumps({"model_type": "nonsense"})])
def test_an_experts_config_that_transformers_cannot_read_is_one_line(
    untied: Path, tmp_path: Path, config: str
) -> None:
    other = shutil.copytree(untied, tmp_path / "other")
    (other / "config.json").write_text(config)
    assert refusal(untied, other).startswith(f"experts.ant: transformers cannot open {other}: ")
