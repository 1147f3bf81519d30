"""Each tensor takes the value that mergekit would take for it."""

from __future__ import annotations

import pytest

from evomerge.models import tensor_names
from evomerge.recipes.recipe import Recipe
from tests.helpers.mergekit_recipes import NAMES, PLACES, faults, layer, read, value


def test_models_with_plain_numbers() -> None:
    recipe = read(
        """
        name: my-merge
        merge_method: ties
        base_model: org/base
        models:
          - model: org/base
          - {model: org/maths, parameters: {weight: 0.6, density: 0.4}}
          - {model: org/code@v2, parameters: {weight: 3e-1}}
        parameters: {normalize: false, int8_mask: true, density: 0.9}
        dtype: bfloat16
        """
    )
    assert recipe == Recipe.model_validate(
        {
            "method": "ties",
            "base": "org/base",
            "experts": {"maths": "org/maths", "code": "org/code@v2"},
            "dtype": "bfloat16",
            "layers": 4,
            "parameters": {"weight": {"maths": 0.6, "code": 0.3}, "density": {"maths": 0.4, "code": 0.9}},
            "options": {"normalize": False},
        }
    )


def test_a_value_beside_a_model_goes_before_its_slices_and_that_before_the_files() -> None:
    recipe = read(
        """
        merge_method: ties
        base_model: org/base
        slices:
          - sources:
              - {model: org/base, layer_range: [0, 2]}
              - {model: org/a, layer_range: [0, 2], parameters: {weight: 0.1}}
              - {model: org/b, layer_range: [0, 2]}
            parameters: {weight: 0.2, lambda: 0.5}
          - sources:
              - {model: org/b, layer_range: [2, 4]}
              - {model: org/base, layer_range: [2, 4]}
              - {model: org/a, layer_range: [2, 4], parameters: {density: 0.25}}
        parameters: {weight: 0.3, density: 0.75}
        """
    )
    first, last = layer(1, "mlp.up_proj"), layer(2, "mlp.up_proj")
    assert [recipe.coefficients(PLACES[name])["weight"] for name in (first, last)] == [(0.1, 0.2), (0.3, 0.3)]
    assert [recipe.coefficients(PLACES[name])["density"] for name in (first, last)] == [(0.75, 0.75), (0.25, 0.75)]
    assert [value(recipe, name, "lambda") for name in (first, last)] == [0.5, 1.0]
    assert value(recipe, "model.embed_tokens.weight", "weight", 1) == 0.2
    assert value(recipe, "lm_head.weight", "weight", 1) == 0.3


def test_a_level_in_which_no_filter_matches_is_passed_over() -> None:
    recipe = read(
        """
        merge_method: task_arithmetic
        base_model: org/base
        models:
          - {model: org/a, parameters: {weight: [{filter: q_proj, value: 0.1}, {filter: self_attn, value: 0.2}]}}
          - {model: org/b, parameters: {weight: {filter: self_attn, value: 0.7}}}
        parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.4}, {filter: up_proj, value: 9}]}
        """
    )
    found = {
        part: recipe.coefficients(PLACES[layer(1, part)])["weight"]
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm")
    }
    assert found == {
        "self_attn.q_proj": (0.1, 0.7),
        "self_attn.o_proj": (0.2, 0.7),
        "mlp.up_proj": (0.3, 0.3),
        "input_layernorm": (0.4, 0.4),
    }
    assert list(recipe.parameters["weight"]) == ["*q_proj*", "*self_attn*", "*mlp*", "*"]


def test_filters_that_cross_in_another_order_for_another_model_are_told_apart() -> None:
    recipe = read(
        """
        merge_method: linear
        models:
          - model: org/a
            parameters: {weight: [{filter: layers.1., value: 0.1}, {filter: proj, value: 0.2}, {value: 0.3}]}
          - model: org/b
            parameters: {weight: [{filter: proj, value: 0.4}, {filter: layers.1., value: 0.5}, {value: 0.6}]}
        """
    )
    found = {
        (number, part): recipe.coefficients(PLACES[layer(number, part)])["weight"]
        for number in (0, 1)
        for part in ("mlp.up_proj", "input_layernorm")
    }
    assert found == {
        (0, "mlp.up_proj"): (0.2, 0.4),
        (0, "input_layernorm"): (0.3, 0.6),
        (1, "mlp.up_proj"): (0.1, 0.4),
        (1, "input_layernorm"): (0.1, 0.5),
    }


def test_letters_that_mean_something_in_a_pattern_mean_themselves_in_a_filter() -> None:
    odd = "model.layers.0.w[1].weight"
    text = """
        merge_method: linear
        models: [{model: org/a}, {model: org/b}]
        parameters: {weight: [{filter: "w[1]", value: 0.1}, {value: 0.4}]}
        """
    recipe = read(text, [*NAMES, odd])
    places = tensor_names.places([*NAMES, odd])
    assert recipe.coefficients(places[odd])["weight"] == (0.1, 0.1)
    assert {recipe.coefficients(places[name])["weight"] for name in NAMES} == {(0.4, 0.4)}


def test_a_gradient_is_spread_over_the_layers_and_does_not_reach_the_end() -> None:
    recipe = read(
        "{merge_method: slerp, base_model: org/base, models: [{model: org/a}], parameters: {t: [0, 1, 0.5]}}"
    )
    found = [value(recipe, layer(number, "mlp.up_proj"), "t") for number in range(4)]
    assert found == pytest.approx([0, 2 / 3, 5 / 6, 0.5])
    # mergekit gives what follows the layers the first value, not the last one
    assert [value(recipe, name, "t") for name in ("model.embed_tokens.weight", "model.norm.weight")] == [0.0, 0.0]
    assert list(recipe.parameters["t"]) == ["model.norm.weight", "lm_head.weight", "*"]


def test_a_gradient_with_one_value_for_each_layer_is_these_values() -> None:
    recipe = read(
        """
        merge_method: slerp
        base_model: org/base
        models: [{model: org/base}, {model: org/a}]
        parameters: {t: [{filter: proj, value: [0.1, 0.7, 0.3, 0.9]}, {value: 0.5}]}
        """
    )
    assert recipe.parameters["t"] == {"*proj*": {"": [0.1, 0.7, 0.3, 0.9]}, "*": {"": 0.5}}


def test_each_slice_has_a_gradient_of_its_own_and_one_layer_its_last_value() -> None:
    sources = "[{{model: org/base, layer_range: {0}}}, {{model: org/a, layer_range: {0}}}]"
    recipe = read(
        f"""
        merge_method: nearswap
        base_model: org/base
        slices:
          - {{sources: {sources.format([0, 3])}, parameters: {{t: [0.1, 0.3]}}}}
          - {{sources: {sources.format([3, 4])}, parameters: {{t: [0.5, 0.7]}}}}
        """
    )
    assert [value(recipe, layer(number, "mlp.up_proj"), "t") for number in range(4)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.7]
    )
    assert value(recipe, "model.embed_tokens.weight", "t") == 0.1
    assert value(recipe, "lm_head.weight", "t") == 0.5


def test_a_model_that_is_missing_in_some_layers_has_the_weight_0_there() -> None:
    text = """
        merge_method: METHOD
        base_model: org/base
        slices:
          - sources: [{model: org/base, layer_range: [0, 3]}, {model: org/a, layer_range: [0, 3]}]
          - sources:
            - {model: org/base, layer_range: [3, 4]}
            - {model: org/a, layer_range: [3, 4]}
            - {model: org/b, layer_range: [3, 4]}
        parameters: {weight: 0.5, density: 0.5}
        """
    recipe = read(text.replace("METHOD", "dare_ties"))
    assert recipe.coefficients(PLACES[layer(2, "mlp.up_proj")])["weight"] == (0.5, 0.0)
    assert recipe.coefficients(PLACES[layer(3, "mlp.up_proj")])["weight"] == (0.5, 0.5)
    (fault,) = faults(text.replace("METHOD", "sce").replace("{weight: 0.5, density: 0.5}", "{}"))
    assert fault == "slices[0].sources: lacks org/b; sce takes the same models in all layers"
