"""Writes recipes in mergekit's format, for those who build models with it.

mergekit draws DARE's masks from an unseeded generator and breaks ties in magnitude by sorting, so for those methods
its model is a sibling of ours and not its copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from evomerge import catalog, plugins, tensors
from evomerge.recipe import ANY, Recipe
from evomerge.tensors import MODULES

SUPPORTED = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def write(recipe: Recipe, names: Iterable[str]) -> str | None:
    """The recipe as a mergekit configuration; None if mergekit has no such method, or the recipe has operators.

    Args:
        names: the model's tensor names, from which filters are made.
    """
    if recipe.method not in SUPPORTED or recipe.operators:
        return None
    filters = _filters(names)
    config: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.method != "linear":
        config["base_model"] = recipe.base.model
    runs = _equal_layers(recipe)
    config["slices"] = [_slice(recipe, filters, start, stop) for start, stop in runs]
    config["parameters"] = dict(recipe.options)
    config["dtype"] = recipe.dtype
    config["tokenizer_source"] = recipe.base.model
    if not config["parameters"]:
        del config["parameters"]
    return catalog.write_yaml(config)


def _filters(names: Iterable[str]) -> dict[str, list[str]]:
    """Module group -> the parts of tensor names inside the layers by which mergekit can tell it."""
    found: dict[str, set[str]] = {module: set() for module in MODULES}
    for name, place in tensors.places(names).items():
        if place.inside:
            found[place.module].add(tensors.telling_part(name))
    return {module: sorted(parts) for module, parts in found.items()}


def _equal_layers(recipe: Recipe) -> list[tuple[int, int]]:
    """The longest runs of layers whose values are all equal, as half-open ranges."""

    def key(layer: int) -> Any:
        return [[recipe.coefficients(tensors.Place(layer, module, inside=True)) for module in MODULES]]

    runs, start = [], 0
    for _, layers in groupby(range(recipe.layers), key=key):
        stop = start + len(list(layers))
        runs.append((start, stop))
        start = stop
    return runs


def _slice(recipe: Recipe, filters: dict[str, list[str]], start: int, stop: int) -> dict[str, Any]:
    method = plugins.load("methods", recipe.method)
    per_expert = [p.name for p in method.PARAMETERS if p.per_expert]
    common = [p.name for p in method.PARAMETERS if not p.per_expert]
    sources: list[dict[str, Any]] = []
    if recipe.method != "linear":
        sources.append({"model": recipe.base.model, "layer_range": [start, stop]})
    for position, expert in enumerate(recipe.experts):
        source: dict[str, Any] = {"model": str(recipe.experts[expert].model), "layer_range": [start, stop]}
        if per_expert:
            source["parameters"] = {name: _value(recipe, filters, name, position, start) for name in per_expert}
        sources.append(source)
    part: dict[str, Any] = {"sources": sources}
    if common:
        part["parameters"] = {name: _value(recipe, filters, name, 0, start) for name in common}
    return part


def _value(recipe: Recipe, filters: dict[str, list[str]], name: str, position: int, layer: int) -> Any:
    """One parameter's value in a layer: a number, or mergekit's list of filters with a last value for the rest."""

    def at(module: str) -> float:
        return recipe.coefficients(tensors.Place(layer, module, inside=True))[name][position]

    named: Sequence[str] = [module for module in MODULES if module in recipe.parameters[name]]
    rest = next((module for module in MODULES if module not in named), MODULES[-1])
    if not named:
        return at(rest)
    rows = [{"filter": part, "value": at(module)} for module in named for part in filters[module]]
    assert ANY in recipe.parameters[name]
    return [*rows, {"value": at(rest)}]
