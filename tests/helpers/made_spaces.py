"""Small search spaces, models to lay them over, and made-up derivatives."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from evomerge.models.source import Source
from evomerge.models.tensor_names import MODULES, Place
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.decoding import CommonRecipe
from evomerge.searching.spaces.genes import initial
from evomerge.searching.spaces.space import SearchSpace

GENE = {"low": 0.0, "high": 1.0}


def make(**changes: Any) -> SearchSpace:
    data: dict[str, Any] = {
        "method": "task_arithmetic",
        "layers": {"groups": 2},
        "modules": ["attention", "mlp"],
        "genes": {"weight": {**GENE, "per": ["layer", "module", "expert"]}},
    }
    return SearchSpace.model_validate({**data, **changes})


def models(layers: int = 4, experts: str = "ab") -> CommonRecipe:
    sources = {name: Source(model=name, sha256=name * 64) for name in experts}
    return CommonRecipe(Source(model="base", sha256="0" * 64), sources, layers, "float32", 0)


def decode(chosen: SearchSpace, common: CommonRecipe, **values: Any) -> Recipe:
    genome = initial(decoding.coordinates(chosen, common))
    assert set(values) <= set(genome)
    return decoding.decode(chosen, common, {**genome, **values})


def weight(recipe: Recipe, layer: int, module: str) -> tuple[float, ...]:
    return recipe.coefficients(Place(layer, module, inside=True))["weight"]


SEVERAL = {
    "method": ["dare_ties", "task_arithmetic"],
    "genes": {"weight": {**GENE, "per": ["expert"]}, "density": {"low": 0.1, "high": 1.0}},
}


SWITCH = {"switch": {"per": ["expert"]}}
SOURCE = {"source": {"per": ["layer"], "base": True, "mix": True}}
WEIGHT = {"weight": {"low": 0.25, "high": 1.25, "init": 0.75, "per": ["expert"]}}


def gated(genes: dict[str, Any], **changes: Any) -> SearchSpace:
    return make(genes={**genes, **WEIGHT}, **changes)


AXES = [(), ("layer",), ("module",), ("expert",), ("layer", "module"), ("layer", "module", "expert")]
DEPTHS: list[Any] = [{"groups": 2}, {"groups": 3}, "each", {"anchors": 2}, {"anchors": 5}]


def tables_of(recipe: Recipe, layers: int, slope: Callable[[str, str, str, int], float]) -> dict[str, Any]:
    """Made-up derivatives, as `gradients` has them: parameter -> pattern or module group -> expert -> by layer."""
    found: dict[str, Any] = {}
    for name, table in recipe.parameters.items():
        experts = sorted(table["*"])
        patterns = [row for row in table if row not in (*MODULES, "*")]
        found[name] = {
            row: {expert: [slope(name, row, expert, layer) for layer in range(layers)] for expert in experts}
            for row in (*patterns, *MODULES)
        }
    return found


def some_slope(name: str, row: str, expert: str, layer: int) -> float:
    return random.Random(f"{name} {row} {expert} {layer}").uniform(-1.0, 1.0)


def inner(recipe: Recipe, tables: dict[str, Any], layers: int) -> float:
    """Σ derivative · value, over every value that a recipe has: what linear decoding must leave as it is."""
    total = 0.0
    for name, rows in tables.items():
        for row, experts in rows.items():
            values = recipe.parameters[name].get(row, recipe.parameters[name]["*"])
            for expert, slopes in experts.items():
                own = values[expert]
                total += sum(slopes[k] * (own[k] if isinstance(own, list) else own) for k in range(layers))
    return total
