from __future__ import annotations

from typing import Any

import pytest
import yaml

from evomerge import mergekit_yaml, plugins
from evomerge.recipe import Recipe

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(4)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
]


def write(method: str, parameters: dict[str, Any], **changes: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "method": method,
            "base": "org/base",
            "experts": {"a": "org/a"} if method == "slerp" else {"a": "org/a", "b": "org/b"},
            "dtype": "bfloat16",
            "layers": 4,
            "parameters": parameters,
            **changes,
        }
    )
    text = mergekit_yaml.write(recipe, NAMES)
    return text and yaml.safe_load(text)


def test_equal_layers_are_one_slice() -> None:
    config = write("task_arithmetic", {"weight": {"a": 0.3, "b": 0.4}, "lambda": 1.1})
    (part,) = config["slices"]
    assert [source["model"] for source in part["sources"]] == ["org/base", "org/a", "org/b"]
    assert [source.get("parameters") for source in part["sources"]] == [None, {"weight": 0.3}, {"weight": 0.4}]
    assert part["parameters"] == {"lambda": 1.1}
    assert config["base_model"] == "org/base"
    assert config["dtype"] == "bfloat16"
    assert config["parameters"] == {"normalize": False}


def test_layers_of_other_values_are_slices_that_cover_the_model() -> None:
    config = write("ties", {"weight": [0.1, 0.1, 0.1, 0.9], "density": 0.5})
    assert [part["sources"][0]["layer_range"] for part in config["slices"]] == [[0, 3], [3, 4]]
    assert [part["sources"][1]["parameters"]["weight"] for part in config["slices"]] == [0.1, 0.9]


def test_module_groups_become_filters_made_of_the_models_own_names() -> None:
    config = write("dare_ties", {"weight": {"attention": 0.1, "norm": 0.2, "*": 0.3}, "density": 1.0})
    assert config["slices"][0]["sources"][1]["parameters"]["weight"] == [
        {"filter": "self_attn", "value": 0.1},
        {"filter": "input_layernorm", "value": 0.2},
        {"value": 0.3},
    ]


def test_linear_has_no_base_and_slerp_its_t_beside_the_slice() -> None:
    linear = write("linear", {"weight": 1.0})
    assert "base_model" not in linear
    assert [source["model"] for source in linear["slices"][0]["sources"]] == ["org/a", "org/b"]
    slerp = write("slerp", {"t": 0.25})
    assert slerp["slices"][0]["parameters"] == {"t": 0.25}


def test_what_mergekit_cannot_say_is_not_written() -> None:
    operators = ({"name": "some_operator"},)
    assert write("linear", {"weight": 1.0}, operators=operators) is None


@pytest.mark.parametrize("method", mergekit_yaml.SUPPORTED)
def test_every_supported_method_exists(method: str) -> None:
    assert method in plugins.names("methods")
