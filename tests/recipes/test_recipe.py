from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.files.schema import faults_of
from evomerge.models.source import Source, relocate
from evomerge.models.tensor_names import MODULES, Place, places
from evomerge.recipes import files
from evomerge.recipes import recipe as recipes
from evomerge.recipes.recipe import Recipe


def make(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "method": "dare_ties",
        "base": {"model": "/models/base", "sha256": "0" * 64},
        "experts": {
            "b": {"model": "/models/b", "sha256": "2" * 64},
            "a": {"model": "/models/a", "sha256": "1" * 64},
        },
        "dtype": "float32",
        "layers": 4,
        "parameters": {"weight": 0.5, "density": 0.6},
    }
    return Recipe.model_validate({**data, **changes})


def faults(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    return "\n".join(faults_of(caught.value))


def _weights(recipe: Recipe, layer: int, module: str) -> tuple[float, ...]:
    return recipe.coefficients(Place(layer, module, inside=True))["weight"]


@pytest.mark.parametrize(
    ("value", "attention", "mlp"),
    [
        (0.5, (0.5, 0.5), (0.5, 0.5)),
        ({"a": 0.1, "b": 0.2}, (0.1, 0.2), (0.1, 0.2)),
        ({"attention": 0.3, "*": 0.4}, (0.3, 0.3), (0.4, 0.4)),
        ({"attention": {"a": 0.1, "b": 0.2}, "*": 0.4}, (0.1, 0.2), (0.4, 0.4)),
        ({"a": {"attention": 0.3, "*": 0.1}, "b": 0.2}, (0.3, 0.2), (0.1, 0.2)),
        ([0.0, 0.1, 0.2, 0.3], (0.2, 0.2), (0.2, 0.2)),
    ],
)
def test_parameters_may_be_written_short(value: Any, attention: Any, mlp: Any) -> None:
    recipe = make(parameters={"weight": value, "density": 1.0})
    assert _weights(recipe, 2, "attention") == attention
    assert _weights(recipe, 2, "mlp") == mlp


def test_equal_content_has_an_equal_hash() -> None:
    short = make(parameters={"weight": 0.5, "density": 0.6})
    long = make(
        parameters={
            "weight": {"mlp": [0.5] * 4, "*": {"b": 0.5, "a": 0.5}},
            "density": {"a": 0.6, "b": 0.6},
            "lambda": 1,
        },
        options={"rescale": True},
    )
    assert short.sha256 == long.sha256


def test_checkpoints_count_by_content_and_not_by_path() -> None:
    moved = make(base={"model": "/elsewhere", "sha256": "0" * 64})
    changed = make(base={"model": "/models/base", "sha256": "f" * 64})
    assert moved.sha256 == make().sha256 != changed.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"options": {"rescale": False}},
        {"parameters": {"weight": 0.5, "density": 0.7}},
    ],
)
def test_whatever_changes_the_model_changes_the_hash(changes: dict[str, Any]) -> None:
    assert make(**changes).sha256 != make().sha256


@given(
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.dictionaries(st.sampled_from(["a", "b"]), st.floats(0.01, 1), min_size=2),
)
def test_a_recipe_survives_its_yaml_bit_for_bit(tmp_path_factory: Any, weight: list[float], density: Any) -> None:
    recipe = make(parameters={"weight": {"attention": weight, "*": 0.5}, "density": density})
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(files.recipe_to_yaml(recipe))
    again = files.read_recipe_file(path)
    assert again.sha256 == recipe.sha256
    assert again == recipe


def test_the_canonical_dump_validates_to_itself() -> None:
    recipe = make()
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_experts_are_merged_in_the_order_of_their_names() -> None:
    assert list(make().experts) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dare_tie"}, "Did you mean 'dare_ties'"),
        ({"parameters": {"weight": 0.5}}, "parameters.density: dare_ties needs it"),
        ({"parameters": {"weight": 0.5, "density": 0.0}}, "parameters.density: must lie in (0, 1], but is 0"),
        ({"parameters": {"weight": 0.5, "density": 1.1}}, "must lie in (0, 1]"),
        ({"parameters": {"weight": float("nan"), "density": 1}}, "parameters.weight: must be finite"),
        ({"parameters": {"weight": [0.5], "density": 1}}, "has 1 values, but the model has 4 layers"),
        ({"parameters": {"weight": {"a": 0.5}, "density": 1}}, "has no value for b"),
        (
            {"parameters": {"weight": {"c": 0.5}, "density": 1}},
            "parameters.weight.c: is no expert, module group or pattern",
        ),
        ({"parameters": {"weight": {"attention": 0.5}, "density": 1}}, "has no value for"),
        ({"parameters": {"weight": "much", "density": 1}}, "must be a number"),
        (
            {"parameters": {"weight": 1, "density": 1, "epsilon": 1}},
            "parameters.epsilon: dare_ties has no such key",
        ),
        ({"options": {"int8_mask": True}}, "options.int8_mask: dare_ties has no such key"),
        ({"method": "slerp", "parameters": {"t": 0.5}}, "slerp takes exactly 1 expert, but there are 2"),
        ({"experts": {"mlp": "x"}}, "experts.mlp: is the name of a module group"),
        ({"method": {"mlp": "ties"}}, 'method: has none for all other tensors; give method."*"'),
        ({"method": {"mlp": "tie", "*": "ties"}}, "method.mlp: unknown method 'tie'. Did you mean 'ties'"),
        ({"method": {"mpl": "ties", "*": "ties"}}, "method.mpl: is no module group and no tensor pattern"),
        (
            {"method": {"mlp": "della", "*": "ram"}},
            "method: ram and another one mean different things by epsilon",
        ),
        ({"options": {"dare_ties": True}}, "options.dare_ties: must be a mapping"),
        ({"options": {"dare_ties": {"rescal": True}}}, "options.dare_ties.rescal: dare_ties has no such key"),
        (
            {"method": {"mlp": "dare_ties", "*": "sce"}, "options": {"filter_wise": True}},
            "options.filter_wise: dare_",
        ),
        ({"dtype": "int8"}, "dtype"),
        ({"extra": 1}, "extra: is no key here"),
    ],
)
def test_faults_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    assert message in faults(**changes)


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    data = {"method": "ties", "base": "b", "experts": {"a": "a"}, "dtype": "float32", "layers": 2}
    data["parameters"] = {"weight": "x", "density": 2, "gamma": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        files.read_recipe_file(path)
    assert len(caught.value.faults) == 3
    assert all(str(path) in line for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("text", "model", "revision"),
    [
        ("org/model", "org/model", None),
        ("org/model@v2", "org/model", "v2"),
        ("./a@b/model", "./a@b/model", None),
        ("models/base", "models/base", None),
    ],
)
def test_sources_take_a_revision_after_an_at_sign(text: str, model: str, revision: str | None) -> None:
    source = make(base=text).base
    assert (source.model, source.revision) == (model, revision)


def test_local_paths_are_relative_to_the_file_and_hub_ids_are_left(tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    source = Source(model="models/base")
    assert relocate(source, tmp_path).model == str(tmp_path / "models/base")
    hub = Source(model="org/model")
    assert relocate(hub, tmp_path) == hub


def test_a_recipe_that_names_every_module_group_survives_its_yaml(tmp_path: Path) -> None:
    weight = {module: 0.1 * k for k, module in enumerate(MODULES)}
    recipe = make(parameters={"weight": weight, "density": 1.0})
    (tmp_path / "recipe.yaml").write_text(files.recipe_to_yaml(recipe))
    assert files.read_recipe_file(tmp_path / "recipe.yaml").sha256 == recipe.sha256


Q, UP = "model.layers.2.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"


def _at(recipe: Recipe, name: str, parameter: str = "weight") -> tuple[float, ...]:
    return recipe.coefficients(places([Q, UP, "model.layers.3.mlp.up_proj.weight"])[name])[parameter]


def test_a_pattern_goes_before_the_module_group_and_the_first_of_patterns_before_the_next() -> None:
    recipe = make(
        parameters={"weight": {"attention": 0.1, "*q_proj*": 0.2, "*": 0.3, "*_proj*": 0.4}, "density": 1}
    )
    assert _at(recipe, Q) == (0.2, 0.2)
    assert _at(recipe, UP) == (0.4, 0.4)
    turned = make(parameters={"weight": {"*_proj*": 0.4, "*q_proj*": 0.2, "*": 0.3}, "density": 1})
    assert _at(turned, Q) == (0.4, 0.4)
    assert (
        turned.sha256
        != make(parameters={"weight": {"*q_proj*": 0.2, "*_proj*": 0.4, "*": 0.3}, "density": 1}).sha256
    )


def test_a_tensor_may_be_named_whole_and_take_values_per_expert_and_layer() -> None:
    recipe = make(parameters={"weight": {Q: {"a": [0.1, 0.2, 0.7, 0.3]}, "*": 0.5}, "density": 1})
    assert _at(recipe, Q) == (0.7, 0.5)
    assert _at(recipe, UP) == (0.5, 0.5)


def test_module_groups_may_have_methods_of_their_own() -> None:
    recipe = make(
        method={"*up_proj*": "task_arithmetic", "attention": "ties", "mlp": "dare_ties", "*": "dare_ties"},
        parameters={"weight": 0.5, "density": {"attention": 0.2, "*": 0.6}},
    )
    found = places([Q, UP, "model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
    assert [recipe.method_at(place) for place in found.values()] == [
        "ties",
        "task_arithmetic",
        "dare_ties",
        "dare_ties",
    ]
    assert recipe.methods == ["dare_ties", "task_arithmetic", "ties"]
    assert set(recipe.coefficients(found[UP])) == {"weight", "lambda"}
    assert recipe.coefficients(found[Q])["density"] == (0.2, 0.2)
    assert recipe.options["ties"]["normalize"]
    assert not recipe.options["dare_ties"]["normalize"]


def test_options_hold_for_every_method_that_has_them_unless_one_is_named() -> None:
    given = {"normalize": True, "ties": {"normalize": False}, "rescale": False}
    recipe = make(method={"mlp": "ties", "*": "dare_ties"}, options=given)
    assert recipe.options == {
        "ties": {"normalize": False, "rescale": False},
        "dare_ties": {"normalize": True, "rescale": False},
    }


def test_one_method_for_all_groups_is_one_method() -> None:
    assert make(method={"mlp": "dare_ties", "*": "dare_ties"}).sha256 == make().sha256


def test_a_recipe_of_several_methods_and_patterns_survives_its_yaml(tmp_path: Path) -> None:
    recipe = make(
        method={"*q_proj*": "linear", "mlp": "ties", "*": "dare_ties"},
        parameters={
            "weight": {"*v_proj*": {"a": 0.1, "b": 0.3}, "*q_proj*": 0.2, "mlp": 0.9, "*": 0.5},
            "density": 0.5,
        },
        options={"linear": {"normalize": False}},
        vocabulary="union",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(files.recipe_to_yaml(recipe))
    assert files.read_recipe_file(path).sha256 == recipe.sha256
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())).sha256 == recipe.sha256


def test_a_pattern_that_matches_no_tensor_is_told_with_its_key() -> None:
    recipe = make(
        method={"*q_prj*": "linear", "*": "dare_ties"}, parameters={"weight": {"*up*": 1, "*": 0}, "density": 1}
    )
    assert recipes.pattern_faults(recipe, [Q, UP]) == [
        f"method.*q_prj*: matches no tensor of the model, whose parameters are called like {UP}"
    ]


def test_a_changed_copy_has_a_hash_of_its_own() -> None:
    recipe = make()
    first = recipe.sha256
    changed = recipe.model_copy(update={"seed": recipe.seed + 1})
    assert changed.sha256 != first
    assert changed.model_copy(update={"seed": recipe.seed}).sha256 == first
