"""What mergekit passes over is noted and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.recipes import mergekit_yaml
from evomerge.recipes.mergekit_yaml import filters, passed_over
from tests.helpers.mergekit_recipes import NAMES, faults, read

WITHOUT: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [
        {"model": "org/base"},
        {"model": "org/a", "parameters": {"weight": 0.5}},
        {"model": "org/b", "parameters": {"weight": 0.3}},
    ],
    "parameters": {"density": 0.5},
}


def with_parameters(place: int | None, **parameters: Any) -> dict[str, Any]:
    """The file with more parameters beside one of its models, or at its top."""
    if place is None:
        return {**WITHOUT, "parameters": {**WITHOUT["parameters"], **parameters}}
    models = [dict(model) for model in WITHOUT["models"]]
    models[place]["parameters"] = {**models[place].get("parameters", {}), **parameters}
    return {**WITHOUT, "models": models}


NOTED: dict[str, tuple[dict[str, Any], str]] = {
    "the storage of masks": (with_parameters(None, int8_mask=True), f"parameters.int8_mask: {passed_over.STORAGE}"),
    "the storage of masks at the top": ({**WITHOUT, "int8_mask": True}, f"int8_mask: {passed_over.STORAGE}"),
    "another method's parameter": (
        with_parameters(None, t=0.5),
        "parameters.t: is no parameter of mergekit's ties, which passes it over",
    ),
    "another method's parameter of two models": (
        with_parameters(1, epsilon=0.1),
        "models[1].parameters.epsilon: is no parameter of mergekit's ties",
    ),
    "a parameter of all models beside one": (
        with_parameters(1, **{"lambda": 0.9}),
        f"models[1].parameters.lambda: {passed_over.ONE_FOR_ALL}",
    ),
    "a switch beside one model": (
        with_parameters(2, normalize=False),
        f"models[2].parameters.normalize: {passed_over.ONE_FOR_ALL}",
    ),
    "parameters of the base": (
        with_parameters(0, weight=1.0),
        f"models[0].parameters.weight: {passed_over.OF_THE_BASE}",
    ),
    "an option of the command line": (
        {**WITHOUT, "copy_tokenizer": True},
        f"copy_tokenizer: {passed_over.COMMAND_LINE}",
    ),
    "an option of the command line as a parameter": (
        with_parameters(None, lazy_unpickle=True),
        f"parameters.lazy_unpickle: {passed_over.COMMAND_LINE}",
    ),
    "a filter after a value for all": (
        with_parameters(None, density=[{"value": 0.5}, {"filter": "mlp", "value": 0.1}]),
        f"parameters.density[1].filter: {passed_over.UNREACHED}",
    ),
}


@pytest.mark.parametrize(("data", "note"), NOTED.values(), ids=NOTED)
def test_what_changes_nothing_is_noted(data: dict[str, Any], note: str) -> None:
    (line,) = mergekit_yaml.read("", data).notes
    assert line.startswith(note)
    assert read(data) == read(WITHOUT)
    assert not mergekit_yaml.read("", WITHOUT).notes


def test_the_same_beside_many_models_is_one_note() -> None:
    data = {
        **WITHOUT,
        "models": [{"model": f"org/{name}", "parameters": {"weight": 1, "t": 0.1}} for name in "abcd"],
    }
    (line,) = mergekit_yaml.read("", data).notes
    assert line.startswith("models[0].parameters.t and 3 more like it: is no parameter")


@pytest.mark.parametrize(
    ("method", "models", "name"),
    [
        ("linear", {"weight": 1}, "density"),
        ("karcher", {}, "weight"),
        ("slerp", {}, "weight"),
        ("sce", {}, "lambda"),
        ("model_stock", {}, "normalize"),
        ("task_arithmetic", {"weight": 1}, "density"),
    ],
)
def test_a_parameter_that_the_method_lacks_changes_nothing(method: str, models: dict[str, Any], name: str) -> None:
    def file(**parameters: Any) -> dict[str, Any]:
        names = ("a",) if method == "slerp" else ("a", "b")
        entries = [{"model": f"org/{one}", "parameters": {**models, **parameters}} for one in names]
        based = {} if method in ("linear", "karcher") else {"base_model": "org/base"}
        common = {"parameters": {"t": 0.5}} if method == "slerp" else {}
        return {"merge_method": method, **based, "models": entries, **common}

    (note,) = mergekit_yaml.read("", file(**{name: 0.5})).notes
    assert note.startswith(f"models[0].parameters.{name}")
    assert read(file(**{name: 0.5})) == read(file())


def test_null_counts_as_not_given() -> None:
    assert read(with_parameters(1, density=None)) == read(WITHOUT)
    assert read(with_parameters(None, normalize=None, rescale=None)) == read(WITHOUT)
    data = with_parameters(1, weight=None)
    assert faults(data) == ["models[1].parameters.weight: is missing; ties needs it"]
    data["parameters"]["weight"] = 0.5  # the next level
    assert read(data) == read(WITHOUT)


def test_a_filter_for_the_second_name_of_a_tied_tensor_is_noted() -> None:
    data = with_parameters(None, density=[{"filter": "lm_head", "value": 0.1}, {"value": 0.5}])
    names = [name for name in NAMES if not name.startswith("lm_head")]
    parts = mergekit_yaml.read("", data).parts
    made_of = {name: (name,) for name in names}
    assert filters.faults(parts, made_of, ["lm_head.weight"]) == []
    assert filters.notes(parts, made_of, {"lm_head.weight": f"it is tied to {names[0]}"}) == [
        "parameters.density[0].filter: changes nothing for lm_head.weight: it is tied to model.embed_tokens.weight"
    ]
    assert len(filters.faults(parts, made_of, [])) == 1


def test_the_seed_of_masks_is_taken_over() -> None:
    assert read({**WITHOUT, "random_seed": 7}).seed == 7
    assert read(WITHOUT).seed == 0


def test_karcher_takes_its_steps_and_tolerance_as_numbers_of_any_spelling() -> None:
    file = {"merge_method": "karcher", "models": [{"model": "org/a"}, {"model": "org/b"}]}
    recipe = read({**file, "parameters": {"max_iter": 1000, "tol": "1e-9"}})
    assert recipe.parameters["max_iter"] == {"*": {"": 1000.0}}
    assert recipe.parameters["tol"] == {"*": {"": 1e-9}}


def test_a_module_called_default_is_the_model() -> None:
    inside = {"models": WITHOUT["models"], "parameters": {"density": 0.5}}
    around = {key: value for key, value in WITHOUT.items() if key not in inside}
    assert read({**around, "modules": {"default": inside}}) == read(WITHOUT)
    # the module's parameters count before the file's, and a slice's before both
    assert read({**around, "parameters": {"density": 0.9}, "modules": {"default": inside}}) == read(WITHOUT)
    switched = {**inside, "parameters": {"density": 0.5, "normalize": False}}
    recipe = read({**around, "parameters": {"normalize": True}, "modules": {"default": switched}})
    assert recipe.options["ties"]["normalize"] is False
