"""The base, the experts, the vocabulary and the dtype are those that mergekit means."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.models.source import Source
from evomerge.recipes import mergekit_yaml
from tests.helpers.mergekit_recipes import PLACES, read, value


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
