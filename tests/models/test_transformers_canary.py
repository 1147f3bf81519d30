"""The undocumented parts of transformers that `evomerge.models` uses: one test each, which names what went."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3_5Config,
)
from transformers.pytorch_utils import Conv1D

from evomerge.models.rope import rotary
from evomerge.models.unbuilt import unbuilt
from tests.helpers.ropes import COMMON, LONGROPE


def llama(**options: Any) -> Any:
    return AutoModelForCausalLM.from_config(LlamaConfig(**COMMON, **options))


def gemma() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return AutoModelForCausalLM.from_config(Gemma3TextConfig(**COMMON, head_dim=8, layer_types=kinds))


# --- models.loading and models.unbuilt ----------------------------------------------------------------------


@pytest.mark.parametrize("opener", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_an_auto_class_tells_which_model_it_opens(opener: Any) -> None:
    config, model = (Qwen3_5Config, "Qwen3_5") if opener is AutoModelForImageTextToText else (LlamaConfig, "Llama")
    assert opener._model_mapping[config].__name__.startswith(model), "mend models/loading.auto_class"


def test_a_model_tells_its_decoder() -> None:
    model = llama()
    assert model.get_decoder() is model.model, "get_decoder went: mend models/loading.text_modules"


def test_transformers_tells_where_a_tensor_of_a_file_goes() -> None:
    sizes = {"num_local_experts": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(MixtralConfig(**{**COMMON, **sizes}))
    told = {"model.layers.0.block_sparse_moe.experts.0.w1.weight": True, "layers.0.self_attn.q_proj.weight": True}
    told |= {"model.layers.9.self_attn.q_proj.weight": False, "mtp.fc.weight": False}
    left = [name for name, goes_in in told.items() if not goes_in]
    assert unbuilt(model, told) == left, "rename_source_key has changed: mend models/unbuilt.py"


# --- models.rope -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config", "rope_type", "inv_freq", "attention_scaling"])
def test_a_rotary_module_has_its_attribute(name: str) -> None:
    (module,) = rotary(llama())
    assert hasattr(module, name), f"{type(module).__name__}.{name} went: mend models/rope/reading.py"


@pytest.mark.parametrize("name", ["full_attention_inv_freq", "full_attention_attention_scaling"])
def test_a_rotary_module_of_several_ropes_has_its_attribute(name: str) -> None:
    (module,) = rotary(gemma())
    assert hasattr(module, name), f"{type(module).__name__}.{name} went: mend models/rope/reading.py"


def test_a_rotary_module_is_made_from_a_config_alone() -> None:
    module: Any = rotary(llama())[0]
    again = type(module)(module.config)
    assert torch.equal(again.inv_freq, module.inv_freq), "type(rotary)(config) makes another: mend rope/changing.py"


def test_a_long_forward_keeps_long_inv_freq() -> None:
    model = llama(rope_parameters=LONGROPE)
    model(torch.zeros(1, 40, dtype=torch.long))
    (module,) = rotary(model)
    assert hasattr(module, "long_inv_freq"), "long_inv_freq went: mend _MADE_IN_FORWARD in models/rope/changing.py"


@pytest.mark.parametrize("name", ["standardize_rope_params", "validate_rope"])
def test_a_config_has_its_method(name: str) -> None:
    assert hasattr(LlamaConfig(**COMMON), name), f"config.{name} went: mend models/rope/changing.py"


@pytest.mark.parametrize("name", ["config", "head_dim", "layer_idx", "q_proj"])
def test_an_attention_module_has_its_attribute(name: str) -> None:
    attention = llama().model.layers[0].self_attn
    assert hasattr(attention, name), f"{type(attention).__name__}.{name} went: mend models/rope/query_scale.py"


# --- models.loading and models.conversion ------------------------------------------------------------------


def test_gpt2_keeps_its_weights_in_conv1d() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2))
    message = "transformers.pytorch_utils.Conv1D holds no weights of GPT-2: mend models/loading.py"
    assert any(isinstance(module, Conv1D) for module in model.modules()), message


def test_resizing_has_a_switch_for_the_mean_of_old_rows() -> None:
    names = inspect.signature(llama().resize_token_embeddings).parameters
    assert "mean_resizing" in names, "resize_token_embeddings lost mean_resizing: mend models/loading.py"


def test_a_model_loads_from_tensors_without_content_and_reports_what_did_not_fit() -> None:
    model = llama()
    state = {name: value.to("meta") for name, value in model.state_dict().items() if "norm" not in name}
    state["extra.weight"] = torch.empty(2, device="meta")
    state["lm_head.weight"] = torch.empty(3, 32, device="meta")
    _, info = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=state,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    for key, name in (
        ("missing_keys", "model.norm.weight"),
        ("unexpected_keys", "extra.weight"),
        ("mismatched_keys", "lm_head.weight"),
    ):
        names = [entry[0] if isinstance(entry, tuple) else entry for entry in info[key]]
        assert name in names, f"output_loading_info's {key} changed: mend models/conversion.py"


def test_a_failed_conversion_is_logged_with_its_tensor_and_error(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {**COMMON, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=1))
    prefix = "model.layers.0.block_sparse_moe.experts"
    state = {f"{prefix}.{expert}.w1.weight": torch.ones(24, 32 - expert) for expert in range(2)}
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger.name), pytest.raises(Exception, match=r"\S"):
            type(model).from_pretrained(None, config=model.config, state_dict=state)
    finally:
        logger.removeHandler(caplog.handler)
    lines = caplog.text.replace("  ", " ")
    assert "CONVERSION |" in lines, "the log's table of conversions changed: mend models/conversion.py"
    assert "Error: " in lines, "the log's reasons of failed conversions changed: mend models/conversion.py"
