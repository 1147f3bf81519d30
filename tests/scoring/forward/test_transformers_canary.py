"""The parts of transformers that `scoring.forward` uses though no documentation promises them.

Each test names the part that went, if it goes.
"""

import inspect
from typing import Any

import pytest
import torch
from transformers import cache_utils

from evomerge.scoring.forward import admission, caches
from tests.helpers.tiny_models import make_tiny_model

KEYS = torch.zeros(1, 2, 3, 4)


@pytest.fixture
def model() -> Any:
    return make_tiny_model("llama")


def test_cache_layers_have_the_methods_that_ours_fill_in() -> None:
    ours = {"lazy_initialization", "update", "get_mask_sizes", "get_seq_length", "get_max_length"}
    asked = set(cache_utils.CacheLayerMixin.__abstractmethods__)
    assert asked <= ours, f"CacheLayerMixin has new abstract methods: {sorted(asked - ours)}"
    assert asked >= ours, f"CacheLayerMixin no longer asks for {sorted(ours - asked)}"


@pytest.mark.parametrize("argument", ["layers", "layer_class_to_replicate"])
def test_a_cache_takes_layers_or_their_class(argument: str) -> None:
    assert argument in inspect.signature(cache_utils.Cache.__init__).parameters, f"Cache has lost {argument}="


def test_a_cache_makes_layers_of_the_class_it_is_given() -> None:
    cache = caches.path_cache([])
    cache.update(KEYS, KEYS, 0)
    assert hasattr(cache, "layers"), "Cache.layers has gone"
    assert len(cache.layers) == 1, "Cache no longer makes a layer of layer_class_to_replicate with the first update"


def test_a_cache_hands_its_layers_updates_on() -> None:
    cache = caches.path_cache([(KEYS, KEYS)])
    keys, _ = cache.update(KEYS, KEYS, 0)
    assert keys.shape[2] == 6, "Cache.update no longer returns what the layer's update returns"
    assert cache.get_seq_length() == 3, "Cache.get_seq_length no longer asks the first layer"


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "past_key_values"])
def test_a_models_body_takes(name: str, model: Any) -> None:
    taken = inspect.signature(model.base_model.forward).parameters
    assert name in taken, f"LlamaModel.forward has lost {name}="


def test_a_mask_of_four_dimensions_reaches_the_layers_as_it_is(model: Any) -> None:
    masks = admission.describe(model)
    assert masks is not None
    assert admission.admit_trees(model, masks, 100), "LlamaModel no longer takes a 4-D attention_mask as it is"


def test_a_model_with_windows_takes_a_mask_for_each_kind_of_layer() -> None:
    model = make_tiny_model("gemma3")
    kinds = set(model.config.layer_types)
    assert kinds == {"full_attention", "sliding_attention"}, "config.layer_types names its kinds otherwise"
    masks = admission.describe(model)
    assert masks is not None
    assert admission.admit_trees(model, masks, 100), "Gemma3TextModel no longer takes a dict of masks by layer type"


def test_a_config_says_how_its_rope_depends_on_length() -> None:
    kinds = str(make_tiny_model("llama_dynamic").config.rope_parameters)
    assert "'dynamic'" in kinds, "config.rope_parameters no longer names the kind of rope"


def test_the_first_output_of_a_body_is_its_last_hidden_state(model: Any) -> None:
    output = model.base_model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    assert output[0] is output.last_hidden_state, "output[0] of a body is no longer last_hidden_state"
