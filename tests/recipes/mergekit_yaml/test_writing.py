"""A recipe is written in mergekit's words, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge import plugins
from evomerge.recipes import mergekit_yaml
from evomerge.recipes.recipe import Recipe
from tests.helpers.mergekit_recipes import NAMES, make, write


def test_equal_layers_are_one_slice() -> None:
    config = write(make("task_arithmetic", {"weight": {"a": 0.3, "b": 0.4}, "lambda": 1.1}))
    (part,) = config["slices"]
    assert [source["model"] for source in part["sources"]] == ["org/base", "org/a", "org/b"]
    assert [source.get("parameters") for source in part["sources"]] == [None, {"weight": 0.3}, {"weight": 0.4}]
    assert part["parameters"] == {"lambda": 1.1}
    assert config["base_model"] == "org/base"
    assert config["parameters"] == {"normalize": False}


def test_layers_of_other_values_are_slices_that_cover_the_model() -> None:
    config = write(make("ties", {"weight": [0.1, 0.1, 0.1, 0.9]}))
    assert [part["sources"][0]["layer_range"] for part in config["slices"]] == [[0, 3], [3, 4]]
    assert [part["sources"][1]["parameters"]["weight"] for part in config["slices"]] == [0.1, 0.9]


def test_module_groups_become_filters_made_of_the_models_own_names() -> None:
    config = write(make("dare_ties", {"weight": {"attention": 0.1, "norm": 0.2, "*": 0.3}}))
    assert config["slices"][0]["sources"][1]["parameters"]["weight"] == [
        {"filter": ".self_attn.", "value": 0.1},
        {"filter": ".input_layernorm.", "value": 0.2},
        {"filter": ".norm.", "value": 0.2},
        {"value": 0.3},
    ]


def test_patterns_around_a_part_of_a_name_become_filters_and_come_first() -> None:
    config = write(make("slerp", {"t": {"mlp": 0.1, "*q_proj*": 0.2, "lm_head.weight": 0.9, "*": 0.3}}))
    assert config["slices"][0]["parameters"]["t"] == [
        {"filter": "q_proj", "value": 0.2},
        {"filter": "lm_head.weight", "value": 0.9},
        {"filter": ".mlp.", "value": 0.1},
        {"value": 0.3},
    ]


def test_mergekit_computes_in_float32_as_we_do() -> None:
    assert (write(make("linear"))["dtype"], write(make("linear"))["out_dtype"]) == ("float32", "bfloat16")
    alone = write(make("linear", dtype="float32"))
    assert alone["dtype"] == "float32"
    assert "out_dtype" not in alone


def test_the_base_is_among_the_models_only_where_it_takes_part() -> None:
    def models(config: Any) -> list[str]:
        return [source["model"] for source in config["slices"][0]["sources"]]

    linear = write(make("linear"))
    assert linear["base_model"] == "org/base"
    assert models(linear) == ["org/a", "org/b"]
    with_base = write(make("nuslerp"))
    assert with_base["base_model"] == "org/base"
    assert models(with_base) == ["org/base", "org/a", "org/b"]
    without = write(make("nuslerp", options={"task_vectors": False}))
    assert "base_model" not in without
    assert without["tokenizer_source"] == "org/base"
    assert models(without) == ["org/a", "org/b"]


def test_options_have_mergekits_names() -> None:
    nuslerp = write(make("nuslerp", options={"flatten": False, "row_wise": True}))
    assert nuslerp["parameters"] == {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    assert write(make("multislerp"))["parameters"] == {"normalize_weights": True}


def test_revisions_are_written_and_odd_paths_are_not_taken_for_adapters() -> None:
    experts = {"a": "org/a@v2", "b": {"model": "/models/one+two"}, "c": {"model": "/at@home/c"}}
    config = write(make("linear", experts=experts))
    assert [source["model"] for source in config["slices"][0]["sources"]] == [
        "org/a@v2",
        {"model": {"path": "/models/one+two"}},
        {"model": {"path": "/at@home/c"}},
    ]
    assert set(mergekit_yaml.read("", config).experts.values()) == set(
        make("linear", experts=experts).experts.values()
    )


INEXPRESSIBLE = {
    "operators": make("linear", operators=({"name": "some_operator"},)),
    "methods by module group": make({"attention": "linear", "*": "ties"}),
    "patterns of several parts": make("ties", {"weight": {"*layers.1*q_proj*": 0.1, "*": 0.5}}),
    "patterns with places for one letter": make("ties", {"weight": {"*?_proj*": 0.1, "*": 0.5}}),
    "patterns of one end": make("ties", {"weight": {"*q_proj.weight": 0.1, "*": 0.5}}),
    "a model twice": make("linear", experts={"a": "org/a", "b": "org/a"}),
    "lambda of sce": make("sce", {"lambda": 0.9}),
    "lambda of ram": make("ram", {"lambda": [1.0, 1.0, 1.0, 0.5]}),
    "lambda of arcee_fusion": make("arcee_fusion", {"lambda": {"mlp": 0.5, "*": 1.0}}),
    "lambda of model_stock": make("model_stock", {"lambda": 1.1}),
    "unequal weights of karcher": make("karcher", {"weight": {"a": 0.5, "b": {"mlp": 0.6, "*": 0.5}}}),
    "task vectors of karcher": make("karcher", options={"task_vectors": True}),
}


@pytest.mark.parametrize("recipe", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_mergekit_cannot_say_is_not_written(recipe: Recipe) -> None:
    assert write(recipe) is None


def test_groups_that_filters_cannot_tell_apart_are_not_written() -> None:
    names = [*NAMES, "model.layers.0.mlp.self_attn.gate.weight"]
    recipe = make("ties", {"weight": {"attention": 0.1, "mlp": 0.2, "*": 0.3}})
    assert mergekit_yaml.write(recipe, NAMES)
    assert mergekit_yaml.write(recipe, names) is None


def test_every_method_that_mergekit_has_can_be_written() -> None:
    assert set(mergekit_yaml.SUPPORTED) == set(plugins.names("methods"))
