"""Every family that transformers runs is merged exactly, whatever its tensors are called, and exported again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from evomerge.models import tensor_names
from evomerge.models.live_weights import weights_sha256
from evomerge.models.source import Source
from evomerge.models.survey import survey_models
from evomerge.recipes.recipe import Recipe
from evomerge.results.exporting.folder import export_recipe
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from tests.helpers.family import make_tokenizer

LAYERS = 3
WEIGHTS = {"ant": 0.5, "bee": 0.25}
COMMON: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
SPARSE = {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "llama-tied": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama-bfloat16": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**GROUPED),
    "qwen2-tied": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=4),
    "gemma3-tied": lambda: Gemma3TextConfig(**GROUPED, head_dim=4),
    "phi3": lambda: Phi3Config(**GROUPED),
    "gpt2-tied": lambda: GPT2Config(
        vocab_size=14, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    ),
    "gptneox": lambda: GPTNeoXConfig(**COMMON),
    "olmo2": lambda: Olmo2Config(**GROUPED),
    "mixtral": lambda: MixtralConfig(**GROUPED, num_local_experts=3),
    "mixtral-bfloat16": lambda: MixtralConfig(**GROUPED, num_local_experts=3),
    "qwen2moe": lambda: Qwen2MoeConfig(**SPARSE, shared_expert_intermediate_size=8),
    "qwen3moe": lambda: Qwen3MoeConfig(**SPARSE, head_dim=4),
    "mamba-tied": lambda: MambaConfig(
        vocab_size=14, hidden_size=16, state_size=4, num_hidden_layers=LAYERS, eos_token_id=1, pad_token_id=0
    ),
}
WITHOUT = {"mamba-tied": {"mlp"}}  # module groups that an architecture has not


def silent(text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(params=FAMILIES)
def kin(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A family's name, and a folder with base, ant and bee: random neighbours."""
    torch.manual_seed(0)
    name: str = request.param
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
    model = AutoModelForCausalLM.from_config(FAMILIES[name]()).float()
    state = {key: tensor.clone() for key, tensor in model.named_parameters()}
    for folder in ("base", *WEIGHTS):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = 0.05 * torch.randn_like(parameter)
                parameter.copy_(state[key] + noise)
                if folder == "base":
                    state[key] = parameter.detach().clone()
        model.to(dtype).save_pretrained(tmp_path / folder)
        model.float()
        make_tokenizer().save_pretrained(tmp_path / folder)
    return name, tmp_path


def live(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def expected(folder: Path) -> dict[str, torch.Tensor]:
    """θ0 + Σ wk (θk − θ0), of what transformers loads."""
    base, experts = live(folder / "base"), {name: live(folder / name) for name in WEIGHTS}
    merged = {}
    for name, tensor in base.items():
        total = tensor.double()
        for expert, weight in WEIGHTS.items():
            total = total + weight * (experts[expert][name].double() - tensor.double())
        merged[name] = total.to(tensor.dtype)
    return merged


def check_places(family: str, names: list[str]) -> None:
    """Layers and module groups are found from the names alone."""
    places = tensor_names.places(names)
    assert tensor_names.layer_count(places) == LAYERS
    inside = {name for name, place in places.items() if place.inside}
    assert inside == {name for name in names if f".{places[name].layer}." in name}, "a block's tensor lies outside"
    assert {places[name].layer for name in inside} == set(range(LAYERS))
    wanted = {"attention", "mlp", "norm", "embedding"} - WITHOUT.get(family, set())
    wanted |= {"head"} if "tied" not in family and not family.startswith("llama-b") else set()
    assert {place.module for place in places.values()} == wanted


@pytest.mark.slow
def test_a_family_is_surveyed_merged_and_exported_exactly(kin: tuple[str, Path], tmp_path: Path) -> None:
    family, folder = kin
    sources = {name: Source(model=str(folder / name)) for name in WEIGHTS}
    survey = survey_models(Source(model=str(folder / "base")), sources, "auto")
    assert survey.layers == LAYERS
    assert survey.dtype == ("bfloat16" if family.endswith("bfloat16") else "float32")
    check_places(family, survey.names)

    bench = Workbench(Setup(survey.base, survey.experts, survey.dtype, str(tmp_path / "cache")))
    recipe = {
        "method": "task_arithmetic",
        "base": survey.base.model,
        "experts": {name: source.model for name, source in survey.experts.items()},
        "parameters": {"weight": WEIGHTS},
    }
    model = bench.build(
        Recipe.model_validate(
            {**recipe, "base": survey.base, "experts": survey.experts, "dtype": survey.dtype, "layers": LAYERS}
        )
    ).model
    merged = dict(model.named_parameters())
    wanted = expected(folder)
    assert list(merged) == list(wanted) == survey.names
    one = 2.0**-8 if survey.dtype == "bfloat16" else 2.0**-23
    for name, tensor in wanted.items():
        torch.testing.assert_close(merged[name].data, tensor, rtol=one, atol=one / 8)

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = export_recipe(tmp_path / "recipe.yaml", tmp_path / "out", silent)
    digest = weights_sha256(model)
    assert json.loads((out / "evomerge.json").read_text())["weights_sha256"] == digest
    # mergekit reads the files' own names: where they are others, it could not be told the same
    assert (out / "mergekit.yaml").exists() == survey.plain
    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert weights_sha256(again) == digest
    with torch.no_grad():
        tokens = torch.tensor([[4, 5, 6, 7, 3, 8]])
        assert torch.equal(again(tokens).logits, model(tokens).logits)
