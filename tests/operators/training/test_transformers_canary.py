"""The parts of transformers that training relies on and that its documentation does not promise: are they there?"""

from __future__ import annotations

import pytest
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from tests.helpers.training import make_model


def small_gemma3() -> Gemma3ForConditionalGeneration:
    """A model whose text and vision parts have configs of their own."""
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_config_keeps_its_attention_in_attn_implementation_internal(implementation: str) -> None:
    model = make_model()
    model.set_attn_implementation(implementation)
    kept = getattr(model.config, "_attn_implementation_internal", "gone")
    assert kept == implementation, f"config._attn_implementation_internal is {kept}: see training/forward.py"
    model.config._attn_implementation_internal = "eager"
    assert model.config._attn_implementation == "eager", "config._attn_implementation_internal is not read any more"


def test_a_config_names_the_configs_inside_it_in_sub_configs() -> None:
    config = small_gemma3().config
    assert hasattr(config, "sub_configs"), "config.sub_configs is gone: see training/forward.py"
    assert {"text_config", "vision_config"} <= set(config.sub_configs), "config.sub_configs lacks its parts"


def test_an_attention_that_a_model_lacks_is_a_value_error_or_an_import_error() -> None:
    with pytest.raises((ValueError, ImportError)):
        make_model().set_attn_implementation("no_such_attention")


def test_gpt2_keeps_its_weights_in_conv1d_as_inputs_by_outputs() -> None:
    from transformers.pytorch_utils import Conv1D

    model = GPT2LMHeadModel(GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, Conv1D), "transformers.pytorch_utils.Conv1D is not GPT-2's layer: see training/lora.py"
    assert tuple(layer.weight.shape) == (16, 48), "Conv1D.weight is not (inputs, outputs) any more"
