"""A recipe and a mergekit configuration of one meaning become one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from evomerge import plugins
from evomerge.cli.main import app
from evomerge.errors import ConfigError
from evomerge.models import tensor_names
from evomerge.models.source import Source
from evomerge.recipes import mergekit_yaml
from evomerge.recipes.recipe import Recipe

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(4)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
PLACES = tensor_names.places(NAMES)


def layer(number: int, part: str) -> str:
    return f"model.layers.{number}.{part}.weight"


def make(method: Any, parameters: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    fewest, _ = plugins.load("methods", method).EXPERTS if isinstance(method, str) else (2, None)
    return Recipe.model_validate(
        {
            "method": method,
            "base": "org/base",
            "experts": {"a": "org/a"} if (method, fewest) in ONE_EXPERT else {"a": "org/a", "b": "org/b"},
            "dtype": "bfloat16",
            "layers": 4,
            "parameters": {**required(method), **(parameters or {})},
            **changes,
        }
    )


ONE_EXPERT = [(method, 1) for method in ("slerp", "nearswap", "arcee_fusion", "passthrough")]


def required(method: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in [method] if isinstance(method, str) else set(method.values()):
        parameters = plugins.load("methods", name).PARAMETERS
        found |= {parameter.name: 0.5 for parameter in parameters if parameter.default is None}
    return found


def write(recipe: Recipe) -> Any:
    text = mergekit_yaml.write(recipe, NAMES)
    return text and yaml.safe_load(text)


def read(text: str | dict[str, Any], names: list[str] = NAMES) -> Recipe:
    data = yaml.safe_load(text) if isinstance(text, str) else text
    return mergekit_yaml.read("file.yaml", data).recipe(names, "bfloat16")


def faults(text: str | dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.where == "file.yaml"
    return list(caught.value.faults)


def value(recipe: Recipe, name: str, parameter: str, expert: int = 0) -> float:
    return recipe.coefficients(PLACES[name])[parameter][expert]


# --- writing -----------------------------------------------------------------------------------------------


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


# --- both ways ---------------------------------------------------------------------------------------------

LISTS = {"one value": 0.25, "by layer": [0.1, 0.1, 0.4, 0.45]}
NODES: dict[str, Any] = {
    **LISTS,
    "by module": {"attention": 0.1, "norm": LISTS["by layer"], "head": 0.3, "*": 0.4},
    "by every module": {"attention": 0.1, "mlp": 0.2, "norm": 0.3, "embedding": 0.4, "head": 0.45, "other": 0.48},
    "by pattern": {"*q_proj*": 0.1, "*layers.2.*": 0.2, "*self_attn*": 0.3, "*": LISTS["by layer"]},
    "by tensor": {"model.norm.weight": 0.1, "lm_head.weight": 0.2, "*": LISTS["by layer"]},
    "by pattern and module": {"*o_proj*": LISTS["by layer"], "attention": 0.15, "mlp": 0.2, "*": 0.3},
    "by a pattern of nothing": {"*vision*": 0.1, "*": 0.2},
}


def varied(method: str, node: Any) -> dict[str, Any]:
    """The node for every parameter that mergekit has, each expert's a little different."""
    lacking = mergekit_yaml.DIALECTS[method].lacking
    found = {}
    for parameter in plugins.load("methods", method).PARAMETERS:
        if parameter.name not in lacking:
            experts = make(method).experts if parameter.per_expert else [""]
            rows = {expert: _shifted(node, number / 100) for number, expert in enumerate(experts)}
            found[parameter.name] = rows if parameter.per_expert else node
    return found


def _shifted(node: Any, by: float) -> Any:
    if isinstance(node, dict):
        return {key: _shifted(child, by) for key, child in node.items()}
    return [number + by for number in node] if isinstance(node, list) else node + by


def survives(recipe: Recipe) -> None:
    text = mergekit_yaml.write(recipe, NAMES)
    assert text is not None
    again = read(text)
    assert again == recipe
    assert again.sha256 == recipe.sha256


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("method", mergekit_yaml.SUPPORTED)
def test_a_recipe_that_is_written_and_read_is_the_same(method: str, node: Any) -> None:
    survives(make(method, varied(method, node)))


@pytest.mark.parametrize("method", mergekit_yaml.SUPPORTED)
def test_every_option_survives(method: str) -> None:
    for name, default in plugins.load("methods", method).OPTIONS.items():
        if name != "task_vectors":
            survives(make(method, options={name: not default}))


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_task_vectors_are_whether_there_is_a_base_model(method: str) -> None:
    survives(make(method, options={"task_vectors": True}))
    survives(make(method, options={"task_vectors": False}, vocabulary="base"))


@pytest.mark.parametrize("vocabulary", [None, "base", "union"])
def test_the_vocabulary_survives(vocabulary: str | None) -> None:
    survives(make("ties", vocabulary=vocabulary))


def test_a_base_that_is_an_expert_too_survives() -> None:
    survives(make("linear", experts={"a": "org/a", "base": "org/base"}))


NUMBERS = st.floats(0.01, 0.49).map(lambda number: round(number, 3))
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=4, max_size=4))
KEYS = ("*q_proj*", "*proj*", "*layers.1.*", "*layers.3.mlp*", "lm_head.weight", "attention", "mlp", "norm")
ROWS = st.permutations(KEYS).flatmap(
    lambda keys: st.integers(0, len(keys)).flatmap(
        lambda count: st.fixed_dictionaries(dict.fromkeys((*keys[:count], "*"), VALUES))
    )
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(mergekit_yaml.SUPPORTED), data=st.data())
def test_any_table_survives(method: str, data: st.DataObject) -> None:
    lacking = mergekit_yaml.DIALECTS[method].lacking
    parameters = {}
    for parameter in plugins.load("methods", method).PARAMETERS:
        if parameter.name not in lacking:
            rows = data.draw(ROWS)
            experts = make(method).experts
            by_expert = parameter.per_expert and data.draw(st.booleans())
            parameters[parameter.name] = (
                {key: {expert: data.draw(VALUES) for expert in experts} for key in rows} if by_expert else rows
            )
    survives(make(method, parameters))


# --- reading: where a value comes from ---------------------------------------------------------------------


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


# --- reading: models, methods, files -----------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False])
def test_linear_and_karcher_take_the_base_model_as_one_more_input(listed: bool) -> None:
    models = [{"model": "org/a"}, *([{"model": "org/base"}] if listed else [])]
    data = {"base_model": "org/base", "models": models}
    recipe = read({"merge_method": "linear", **data, "parameters": {"weight": 0.5}})
    assert {name: str(source) for name, source in recipe.experts.items()} == {"a": "org/a", "base": "org/base"}
    assert str(recipe.base) == "org/base"
    assert set(read({"merge_method": "karcher", **data}).experts) == {"a", "base"}


def test_slices_of_linear_need_not_hold_the_base_model() -> None:
    sources = [{"model": f"org/{name}", "layer_range": [0, 4], "parameters": {"weight": 1}} for name in "ab"]
    recipe = read({"merge_method": "linear", "base_model": "org/base", "slices": [{"sources": sources}]})
    assert set(recipe.experts) == {"a", "b"}
    assert str(recipe.base) == "org/base"


def test_without_a_base_model_the_first_model_or_the_tokenizers_is_the_base() -> None:
    data = {"merge_method": "karcher", "models": [{"model": "org/a"}, {"model": "org/b"}]}
    assert str(read(data).base) == "org/a"
    assert str(read({**data, "tokenizer_source": "org/b"}).base) == "org/b"


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_without_a_base_model_there_are_no_task_vectors(method: str) -> None:
    data = {"merge_method": method, "models": [{"model": "org/a"}, {"model": "org/b"}], "parameters": {"weight": 1}}
    assert read(data).options[method]["task_vectors"] is False
    assert read({**data, "base_model": "org/base"}).options[method]["task_vectors"] is True
    assert set(read({**data, "base_model": "org/base"}).experts) == {"a", "b"}


def test_parameters_have_mergekits_defaults() -> None:
    recipe = read(
        {"merge_method": "della", "base_model": "b", "models": [{"model": "a"}], "parameters": {"weight": 1}}
    )
    assert recipe.coefficients(PLACES["lm_head.weight"]) == {
        "weight": (1.0,),
        "density": (1.0,),
        "epsilon": (0.15,),
        "lambda": (1.0,),
    }
    assert recipe.options == {"della": {"normalize": True, "rescale": True}}


def test_the_scale_of_passthrough_may_stand_beside_its_model() -> None:
    recipe = read(
        {"merge_method": "passthrough", "models": [{"model": "org/a", "parameters": {"scale": 0.9}}], "dtype": None}
    )
    assert value(recipe, "lm_head.weight", "scale") == 0.9
    assert recipe.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("org/a", Source(model="org/a")),
        ("org/a@v1", Source(model="org/a", revision="v1")),
        ({"model": "org/a@v1"}, Source(model="org/a", revision="v1")),
        ({"model": {"path": "/x/a+b@c"}, "lora": None}, Source(model="/x/a+b@c")),
        ({"model": {"path": "org/a", "revision": "v1"}}, Source(model="org/a", revision="v1")),
    ],
)
def test_models_may_be_written_in_all_of_mergekits_ways(written: Any, source: Source) -> None:
    config = mergekit_yaml.read("", {"merge_method": "karcher", "models": [{"model": written}, {"model": "org/z"}]})
    assert source in config.experts.values()


def test_experts_are_named_after_their_folders_and_no_two_alike() -> None:
    models = ["x/maths", "y/maths", "z/maths@v2", "x/attention", "/x/very odd*/", "~/Qwen2.5-7B"]
    config = mergekit_yaml.read("", {"merge_method": "karcher", "models": [{"model": model} for model in models]})
    assert list(config.experts) == ["maths", "maths-2", "maths-3", "attention-2", "very-odd", "Qwen2.5-7B"]


@pytest.mark.parametrize(
    ("keys", "vocabulary"),
    [
        ({}, None),
        ({"tokenizer_source": "base"}, "base"),
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "org/base"}, "base"),
        ({"tokenizer": {}}, "union"),
        ({"tokenizer": {"source": "base", "tokens": None}}, "base"),
        ({"tokenizer": {"source": "org/base"}, "chat_template": "auto"}, "base"),
    ],
)
def test_the_tokenizer_is_the_bases_or_the_union(keys: dict[str, Any], vocabulary: str | None) -> None:
    data = {"merge_method": "sce", "base_model": "org/base", "models": [{"model": "org/a"}], **keys}
    assert read(data).vocabulary == vocabulary


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "torch.float32", "out_dtype": "float16"}, "float16"),
        ({"out_dtype": "float32"}, "float32"),
    ],
)
def test_the_dtype_is_that_of_the_result(keys: dict[str, Any], dtype: str) -> None:
    assert read({"merge_method": "sce", "base_model": "b", "models": [{"model": "a"}], **keys}).dtype == dtype


# --- reading: what is refused ------------------------------------------------------------------------------

TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [{"model": "org/a", "parameters": {"weight": 0.5}}],
}
NUSLERP: dict[str, Any] = {"merge_method": "nuslerp", "models": [{"model": "a"}, {"model": "b"}]}


def sliced(*ranges: Any, **changes: Any) -> dict[str, Any]:
    """A file with slices of org/base and org/a, the ranges of each given."""
    slices = [
        {"sources": [{"model": "org/base", "layer_range": one}, {"model": "org/a", "layer_range": two}]}
        for one, two in ranges
    ]
    return {"merge_method": "sce", "base_model": "org/base", "slices": slices, **changes}


def with_weight(weight: Any) -> dict[str, Any]:
    return {**TIES, "models": [{"model": "org/a", "parameters": {"weight": weight}}]}


REFUSED: dict[str, tuple[Any, str]] = {
    "a misspelt key": ({**TIES, "dtpye": "float32"}, "dtpye: is no key here"),
    "a misspelt key of a model": ({**TIES, "models": [{"model": "a", "wieght": 1}]}, "models[0].wieght: is no key"),
    "a misspelt parameter": (
        {**TIES, "models": [*TIES["models"], {"model": "org/b", "parameters": {"wieght": 1, "weight": 1}}]},
        "models[1].parameters.wieght: mergekit's ties has no such parameter. Did you mean 'weight'?",
    ),
    "a parameter of the whole beside a model": (
        {**TIES, "models": [{"model": "a", "parameters": {"weight": 1, "lambda": 1}}]},
        "models[0].parameters.lambda: holds for all models, and mergekit passes it over here; move it up",
    ),
    "a parameter that mergekit lacks": (
        sliced([[0, 4], [0, 4]], parameters={"lambda": 0.5}),
        "parameters.lambda: mergekit's sce has no such parameter",
    ),
    "weights of karcher": (
        {"merge_method": "karcher", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}]},
        "models[0].parameters.weight: mergekit's karcher has no such parameter",
    ),
    "another number of steps": (
        {"merge_method": "karcher", "models": [{"model": "a"}], "parameters": {"max_iter": 20}},
        "parameters.max_iter: is 10 in evomerge; remove it",
    ),
    "another eps": (
        {"merge_method": "multislerp", "models": [{"model": "a"}], "parameters": {"eps": "1e-6", "weight": 1}},
        "parameters.eps: is 1e-08 in evomerge",
    ),
    "a missing weight": (
        {**TIES, "models": [*TIES["models"], {"model": "org/b"}]},
        "models[1].parameters.weight: is missing; ties needs it",
    ),
    "a missing t": (
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}]},
        "parameters.t: is missing; slerp needs it",
    ),
    "a missing weight of the base that joins linear": (
        {"merge_method": "linear", "base_model": "z", "models": [{"model": "a", "parameters": {"weight": 1}}]},
        "parameters.weight: is missing; linear needs it",
    ),
    "filters that leave a tensor without a value": (
        with_weight([{"filter": "proj", "value": 1}]),
        "models[0].parameters.weight: no filter matches model.embed_tokens.weight; end with a `value`",
    ),
    "a value out of bounds": (
        with_weight([{"filter": "proj", "value": [1, ".inf"]}, {"value": True}]),
        "models[0].parameters.weight[0].value[1]: must be a number, but is '.inf'",
    ),
    "a truth as a number": (with_weight(True), "models[0].parameters.weight: must be a number, but is True"),
    "a density of 0": (
        {**TIES, "parameters": {"density": [0.5, 0.0]}},
        "parameters.density[1]: must lie in (0, 1], but is 0",
    ),
    "an empty gradient": (with_weight([]), "models[0].parameters.weight: must not be empty"),
    "numbers among filters": (
        with_weight([{"value": 1}, 2]),
        "models[0].parameters.weight[1]: must be a mapping with `value`",
    ),
    "a filter without a value": (
        with_weight([{"filter": "x"}]),
        "models[0].parameters.weight[0].value: is missing",
    ),
    "a misspelt filter": (
        with_weight({"fliter": "x", "value": 1}),
        "models[0].parameters.weight.fliter: is no key here; known: filter, value",
    ),
    "a filter that is a number": (
        with_weight({"filter": 3, "value": 1}),
        "models[0].parameters.weight.filter: must be a text, but is 3",
    ),
    "an option by filter": (
        {**TIES, "parameters": {"normalize": [{"filter": "mlp", "value": True}, {"value": False}]}},
        "parameters.normalize: must be true or false, one for the whole model",
    ),
    "an option of some slices": (
        {
            **sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]]),
            "merge_method": "model_stock",
            "slices": [
                {
                    "sources": [
                        {"model": f"org/{n}", "layer_range": [2 * k, 2 * k + 2]} for n in ("base", "a", "b")
                    ],
                    "parameters": {"filter_wise": bool(k)},
                }
                for k in (0, 1)
            ],
        },
        "slices[1].parameters.filter_wise: is true here and otherwise in another slice",
    ),
    "an unknown method": ({**TIES, "merge_method": "tiess"}, "merge_method: evomerge has no method 'tiess'"),
    "a method that we lack": ({**TIES, "merge_method": "ramplus_tl"}, "merge_method: evomerge has no method"),
    "modules": (
        {"merge_method": "ties", "modules": {"text": {"models": []}}},
        "modules: evomerge merges whole language models; give `models` or `slices`",
    ),
    "several merges": (
        {"merge_method": "ties", "merges": [{}, {}]},
        "merges: evomerge makes one model of one file",
    ),
    "models and slices": ({**sliced([[0, 4], [0, 4]]), "models": TIES["models"]}, "models: give either"),
    "neither": ({"merge_method": "ties", "base_model": "x"}, "models: give either `models` or `slices`"),
    "no models": ({"merge_method": "ties", "base_model": "x", "models": []}, "models: is empty"),
    "stacked layers": (
        sliced([[0, 3], [0, 3]], [[1, 4], [1, 4]]),
        "slices[1].sources[0].layer_range: is [1, 4], but has to go up from 3; evomerge neither stacks",
    ),
    "layers left out": (
        sliced([[0, 2], [0, 2]]),
        "slices[0].sources[0].layer_range: ends at 2, but the base has 4",
    ),
    "more layers than there are": (
        sliced([[0, 2], [0, 2]], [[2, 6], [2, 6]]),
        "slices[1].sources[0].layer_range: ends at 6, but the base has 4 layers",
    ),
    "other layers of another model": (
        sliced([[0, 2], [2, 4]], [[2, 4], [2, 4]]),
        "slices[0].sources[1].layer_range: is [2, 4], but that of sources[0] is [0, 2]; evomerge neither stacks",
    ),
    "no layers": (sliced([None, [0, 4]]), "slices[0].sources[0].layer_range: is missing"),
    "layers of models": (
        {**TIES, "models": [{**TIES["models"][0], "layer_range": [0, 4]}]},
        "models[0].layer_range: stands in `slices` only",
    ),
    "another base in a slice": (
        {
            **sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]]),
            "slices": [
                {**part, "base_model": base}
                for part, base in zip(
                    sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]])["slices"], ("org/base", "org/a"), strict=True
                )
            ],
        },
        "slices[1].base_model: is org/a, but that of the first slice is org/base; evomerge takes one base",
    ),
    "a residual weight": (
        {**TIES, "models": None, "slices": [{"sources": [{"model": "a"}], "residual_weight": 0.5}]},
        "slices[0].residual_weight: evomerge has no such thing",
    ),
    "a slice without the base": (
        {
            "merge_method": "sce",
            "base_model": "z",
            "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}]}],
        },
        "slices[0].sources: lacks the base model z; list it, without parameters",
    ),
    "no base": ({**TIES, "base_model": None}, "base_model: is missing; ties needs it"),
    "a model too many": (
        {
            "merge_method": "slerp",
            "base_model": "z",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": 1},
        },
        "models: slerp takes exactly 1 model, but there are 2 besides the base",
    ),
    "a model too few": (
        {**NUSLERP, "models": [{"model": "a", "parameters": {"weight": 1}}]},
        "models: nuslerp takes exactly 2 models, but there is 1",
    ),
    "a model twice": ({**TIES, "models": TIES["models"] * 2}, "models[1].model: org/a stands twice"),
    "an adapter on a model": (
        {**TIES, "models": [{"model": "org/a+org/lora"}]},
        "models[0].model: names an adapter (org/lora) on a model",
    ),
    "an adapter in a mapping": (
        {**TIES, "base_model": {"model": "a", "lora": "b"}},
        "base_model: names an adapter (b)",
    ),
    "another architecture": (
        {**TIES, "base_model": {"model": "a", "override_architecture": "X"}},
        "base_model: override_architecture cannot be given",
    ),
    "two revisions": ({**TIES, "base_model": "a@b@c"}, "base_model: must be `path` or `path@revision`"),
    "a path in a wrong place": ({**TIES, "base_model": {"path": "a"}}, "base_model: must be a path, or a mapping"),
    "another model's tokenizer": (
        {**TIES, "tokenizer_source": "org/a"},
        "tokenizer_source: is org/a; evomerge takes the base model's (org/base), or `union`",
    ),
    "the base's tokenizer without a base": (
        {"merge_method": "karcher", "models": [{"model": "a"}], "tokenizer_source": "base"},
        "tokenizer_source: is base, but there is no base_model",
    ),
    "rules for tokens": (
        {**TIES, "tokenizer": {"source": "union", "tokens": {"<|im_start|>": {"source": "org/a"}}}},
        "tokenizer.tokens: evomerge has no rules for single tokens",
    ),
    "a padded vocabulary": (
        {**TIES, "tokenizer": {"pad_to_multiple_of": 64}},
        "tokenizer.pad_to_multiple_of: evomerge does not pad vocabularies",
    ),
    "two tokenizers": (
        {**TIES, "tokenizer": {"source": "base"}, "tokenizer_source": "union"},
        "tokenizer: cannot stand beside tokenizer_source",
    ),
    "a chat template": (
        {**TIES, "chat_template": "chatml"},
        "chat_template: evomerge keeps the base's chat template",
    ),
    "a dtype that we lack": (
        {**TIES, "dtype": "float64"},
        "dtype: Input should be 'float32', 'bfloat16' or 'float16'",
    ),
}


@pytest.mark.parametrize(("data", "fault"), REFUSED.values(), ids=REFUSED)
def test_what_a_recipe_cannot_say_is_refused_by_its_key(data: dict[str, Any], fault: str) -> None:
    assert any(line.startswith(fault) for line in faults(data)), faults(data)


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        """
        merge_method: ties
        base_model: org/base
        models:
          - {model: org/a, parameters: {wieght: 1, density: 2}}
          - {model: org/a, parameters: {weight: x}}
        parameters: {normalise: true}
        tokenizer_source: org/c
        """
    )
    assert [line.partition(":")[0] for line in found] == [
        "tokenizer_source",
        "models[1].model",
        "models[0].parameters.weight",
        "parameters.normalise",
        "models[0].parameters.wieght",
        "models[0].parameters.density",
        "models[1].parameters.weight",
    ]


# --- files -------------------------------------------------------------------------------------------------


def merged(path: Path, out: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["merge", str(path), str(out)])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "evomerge.json").read_text())
    return found


@pytest.mark.slow
def test_a_mergekit_file_and_the_recipe_of_its_meaning_are_one_model(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mergekit.yaml").write_text(
        """
        merge_method: ties
        base_model: models/base
        models:
          - {model: models/base}
          - {model: models/bee, parameters: {weight: [{filter: mlp, value: 0.8}, {value: [0.2, 0.5]}]}}
          - {model: models/ant, parameters: {weight: 0.4, density: 0.6}}
        parameters: {int8_mask: true, density: 0.5}
        dtype: float32
        """
    )
    bee = [0.2, 0.3, 0.4, 0.5]
    weight = {
        "model.norm.weight": {"ant": 0.4, "bee": 0.2},
        "*mlp*": {"ant": 0.4, "bee": 0.8},
        "*": {"ant": 0.4, "bee": bee},
    }
    recipe = {
        "method": "ties",
        "base": str(family / "models/base"),
        "experts": {name: str(family / "models" / name) for name in ("ant", "bee")},
        "parameters": {"weight": weight, "density": {"ant": 0.6, "bee": 0.5}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.chdir(family)  # mergekit's paths are relative to where it runs
    theirs, ours = (
        merged(tmp_path / "mergekit.yaml", tmp_path / "theirs"),
        merged(tmp_path / "recipe.yaml", tmp_path / "ours"),
    )
    assert theirs["recipe"] == ours["recipe"]
    assert theirs["weights_sha256"] == ours["weights_sha256"]
    back = merged(tmp_path / "ours" / "mergekit.yaml", tmp_path / "back")
    assert back == ours


def test_a_model_that_mergekit_cannot_build_comes_without_a_mergekit_file(family: Path, tmp_path: Path) -> None:
    for strength in (0.5, 1.0):
        recipe = {
            "method": "sce",
            "base": str(family / "models/base"),
            "experts": {"ant": str(family / "models/ant")},
            "parameters": {"lambda": strength},
        }
        path, out = tmp_path / "recipe.yaml", tmp_path / str(strength)
        path.write_text(yaml.safe_dump(recipe))
        merged(path, out)
        assert (out / "mergekit.yaml").exists() == (strength == 1.0)
        assert ("`mergekit.yaml`" in (out / "README.md").read_text()) == (strength == 1.0)


def test_a_file_with_faults_is_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("{merge_method: linear, models: [{model: x, weight: 1}]}")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "file.yaml"), str(tmp_path / "out")])
    assert result.exit_code == ConfigError.exit_code
    assert "models[0].weight: is no key here" in "".join(result.output.split("\n"))


def test_a_file_with_method_is_a_recipe() -> None:
    assert mergekit_yaml.is_one({"merge_method": "linear"})
    assert not mergekit_yaml.is_one({"method": "linear"})
    assert not mergekit_yaml.is_one({"method": "linear", "merge_method": "linear"})
