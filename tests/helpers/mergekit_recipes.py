"""Recipes of a small model, and what mergekit's format makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.models import tensor_names
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
    made_of = {name: (name,) for name in names}
    return mergekit_yaml.read("file.yaml", data).recipe(tensor_names.places(names), made_of, "bfloat16")


def faults(text: str | dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.where == "file.yaml"
    return list(caught.value.faults)


def value(recipe: Recipe, name: str, parameter: str, expert: int = 0) -> float:
    return recipe.coefficients(PLACES[name])[parameter][expert]
