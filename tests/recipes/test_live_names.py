"""Patterns of the names in the files become patterns of the live names."""

from __future__ import annotations

from typing import Any

from evomerge.models import tensor_names
from evomerge.recipes.live_names import patterns_of, with_live_names
from evomerge.recipes.recipe import Recipe, pattern_faults

OLD, NEW = "model.layers.{}.block_sparse_moe.", "model.layers.{}.mlp."
MADE_OF = {
    "model.embed_tokens.weight": ("model.embed_tokens.weight",),
    **{
        name: names
        for layer in range(3)
        for name, names in {
            f"model.layers.{layer}.self_attn.q_proj.weight": (f"model.layers.{layer}.self_attn.q_proj.weight",),
            NEW.format(layer) + "gate.weight": (OLD.format(layer) + "gate.weight",),
            NEW.format(layer) + "experts.up": tuple(
                OLD.format(layer) + f"experts.{n}.{w}.weight" for n in range(2) for w in ("w1", "w3")
            ),
        }.items()
    },
}
PLACES = tensor_names.places(MADE_OF)


def recipe(method: Any = "linear", **weight: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "method": method,
            "base": "org/base",
            "experts": {"a": "org/a"},
            "dtype": "float32",
            "layers": 3,
            "parameters": {"weight": {**weight, "*": 0.5}},
        }
    )


def test_a_pattern_of_old_names_catches_the_live_tensors() -> None:
    given = recipe(**{"*q_proj*": 0.1, "*block_sparse_moe.gate*": 0.2, "*block_sparse_moe*": 0.3})
    found, faults = with_live_names(given, PLACES, MADE_OF)
    assert not faults
    weight = found.parameters["weight"]
    assert list(weight) == ["*q_proj*", "model.layers.*.mlp.gate.weight", "model.layers.*.mlp.experts.up", "*"]
    at = {name: found.coefficients(place)["weight"][0] for name, place in PLACES.items()}
    assert at["model.layers.2.mlp.gate.weight"] == 0.2
    assert at["model.layers.1.mlp.experts.up"] == 0.3
    assert at["model.embed_tokens.weight"] == 0.5
    assert not pattern_faults(found, list(MADE_OF))
    # What is written says the same again.
    again = Recipe.model_validate(found.model_dump(mode="json"))
    assert again.sha256 == found.sha256


def test_one_layer_alone_is_named_in_full() -> None:
    name = "model.layers.1.mlp.gate.weight"
    assert patterns_of([name], PLACES) == [name]


def test_methods_have_patterns_of_old_names_too() -> None:
    found, faults = with_live_names(
        recipe({"*block_sparse_moe*": "task_arithmetic", "*": "linear"}), PLACES, MADE_OF
    )
    assert not faults
    assert isinstance(found.method, dict)
    assert list(found.method) == ["model.layers.*.mlp.gate.weight", "model.layers.*.mlp.experts.up", "*"]


def test_a_pattern_of_a_part_of_a_tensor_is_refused() -> None:
    _, faults = with_live_names(recipe(**{"*w1*": 0.1}), PLACES, MADE_OF)
    (fault,) = faults
    assert fault == (
        "parameters.weight.*w1*: matches model.layers.0.block_sparse_moe.experts.0.w1.weight and not "
        "model.layers.0.block_sparse_moe.experts.0.w3.weight, but transformers makes one tensor of them, "
        "model.layers.0.mlp.experts.up"
    )
    _, none = with_live_names(recipe(**{"*vision*": 0.1}), PLACES, MADE_OF)
    assert not none
    assert len(pattern_faults(recipe(**{"*vision*": 0.1}), list(MADE_OF))) == 1


def test_a_recipe_of_live_names_stays_as_it_is() -> None:
    given = recipe(**{"*mlp*": 0.1, "attention": 0.2})
    found, faults = with_live_names(given, PLACES, MADE_OF)
    assert found == given
    assert found.sha256 == given.sha256
    assert not faults
