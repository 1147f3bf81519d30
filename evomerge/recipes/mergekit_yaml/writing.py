"""Writes a recipe in mergekit's format, or finds that mergekit cannot say the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from evomerge import plugins
from evomerge.files import yaml
from evomerge.models import tensor_names
from evomerge.models.source import Source
from evomerge.models.tensor_names import is_pattern, key_of
from evomerge.recipes.canonical import ANY, Table, at_place
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS, Dialect, group_filters
from evomerge.recipes.recipe import Recipe

# Rows of a table as mergekit tries them: a filter, or None for all else, and the key of the table's row.
_Rows = list[tuple[str | None, str]]


def write(recipe: Recipe, names: Iterable[str]) -> str | None:
    """The recipe as a mergekit configuration; None if mergekit cannot say the same.

    mergekit has no methods by module group or pattern, no operators, no patterns that are more than a part of a
    name, and not all parameters of our methods. `seed` is not in the file: mergekit takes it on its command line.

    Args:
        names: the model's tensor names, from which filters are made.
    """
    if not isinstance(recipe.method, str) or recipe.method not in DIALECTS or recipe.operators:
        return None
    dialect = DIALECTS[recipe.method]
    based = dialect.base == "base" or recipe.options[recipe.method].get("task_vectors", False)
    models = [*([recipe.base] if based else []), *recipe.experts.values()]
    references = [reference(source) for source in models]
    if any(reference in references[:place] for place, reference in enumerate(references)):
        return None
    if not _has_all(recipe, dialect):
        return None
    names = list(names)
    filters = group_filters(names)
    rows = {}
    for name, table in recipe.parameters.items():
        own = _rows(table, filters, names)
        if own is None:
            return None
        if name not in dialect.lacking:
            rows[name] = own
    return yaml.write_yaml(_config(recipe, dialect, rows, references))


def _has_all(recipe: Recipe, dialect: Dialect) -> bool:
    """Whether mergekit's method has all parameters and options that the recipe makes use of."""
    assert isinstance(recipe.method, str)
    if dialect.base == "input" and recipe.options[recipe.method].get("task_vectors", False):
        return False
    for parameter in plugins.load("methods", recipe.method).PARAMETERS:
        if parameter.name in dialect.lacking:
            for row in recipe.parameters[parameter.name].values():
                wanted = next(iter(row.values())) if parameter.per_expert else parameter.default
                if any(values != wanted for values in row.values()):
                    return False
    return True


def reference(source: Source) -> Any:
    """A checkpoint as mergekit names it; `+` and `@` would be read as an adapter's and a revision's."""
    if "+" not in str(source) and "@" not in source.model:
        return str(source)
    path = {"path": source.model, **({"revision": source.revision} if source.revision else {})}
    return {"model": path}


def _rows(table: Table, filters: Mapping[str, list[str]], names: Sequence[str]) -> _Rows | None:
    """A table's rows in the order in which mergekit has to try them; None if filters cannot tell them apart."""
    rows: _Rows = []
    for key in table:
        if key == ANY:
            rows.append((None, ANY))
        elif is_pattern(key):
            part = _filter_of(key, names)
            if part is None:
                return None
            rows.append((part, key))
        else:
            rows += [(part, key) for part in filters[key]]
    for name, place in tensor_names.places(names).items():
        got = next(key for part, key in rows if part is None or part in name)
        if table[got] != table[key_of(table, place) or ANY]:
            return None
    return rows


def _filter_of(pattern: str, names: Sequence[str]) -> str | None:
    """The part of a name that says what a pattern does: `q_proj` for `*q_proj*`, or a tensor's whole name."""
    if match := re.fullmatch(r"\*([^*?\[\]]+)\*", pattern):
        return match.group(1)
    return pattern if [name for name in names if pattern in name] == [pattern] else None


def _config(
    recipe: Recipe, dialect: Dialect, rows: Mapping[str, _Rows], references: Sequence[Any]
) -> dict[str, Any]:
    """The content of the mergekit file."""
    assert isinstance(recipe.method, str)
    options = dict(recipe.options[recipe.method])
    config: dict[str, Any] = {"merge_method": recipe.method}
    named = dialect.base != "optional" or options["task_vectors"]
    if named:
        config["base_model"] = reference(recipe.base)
    options.pop("task_vectors", None)
    config["slices"] = [
        _slice(recipe, rows, references, start, stop) for start, stop in _equal_layers(recipe, rows)
    ]
    if options:
        config["parameters"] = {dialect.renamed.get(name, name): on for name, on in options.items()}
    config["dtype"] = "float32"  # evomerge computes in float32, whatever it writes
    if recipe.dtype != "float32":
        config["out_dtype"] = recipe.dtype
    if recipe.vocabulary == "union":
        config["tokenizer_source"] = "union"
    elif recipe.vocabulary == "base" or not named:
        config["tokenizer_source"] = "base" if named else reference(recipe.base)
    return config


def _equal_layers(recipe: Recipe, names: Iterable[str]) -> list[tuple[int, int]]:
    """The longest runs of layers in which all values of these parameters are equal, as half-open ranges."""
    every = [values for name in names for row in recipe.parameters[name].values() for values in row.values()]
    runs, start = [], 0
    for _, layers in groupby(range(recipe.layers), key=lambda layer: [at_place(values, layer) for values in every]):
        stop = start + len(list(layers))
        runs.append((start, stop))
        start = stop
    return runs


def _slice(
    recipe: Recipe, rows: Mapping[str, _Rows], references: Sequence[Any], start: int, stop: int
) -> dict[str, Any]:
    """One entry of the file's `slices`, for the half-open range of layers from start to stop."""

    def value(name: str, expert: str) -> Any:
        """A number, or mergekit's list of filters with a last value for the rest."""
        number = int if name in DIALECTS[str(recipe.method)].whole else float
        values = [(part, number(at_place(recipe.parameters[name][key][expert], start))) for part, key in rows[name]]
        if len(values) == 1:
            return values[0][1]
        return [{"filter": part, "value": at} if part else {"value": at} for part, at in values]

    method = plugins.load("methods", str(recipe.method))
    per_expert = [p.name for p in method.PARAMETERS if p.name in rows and p.per_expert]
    common = [p.name for p in method.PARAMETERS if p.name in rows and not p.per_expert]
    sources: list[dict[str, Any]] = [{"model": model, "layer_range": [start, stop]} for model in references]
    if per_expert:
        for expert, source in zip(recipe.experts, sources[len(sources) - len(recipe.experts) :], strict=True):
            source["parameters"] = {name: value(name, expert) for name in per_expert}
    part: dict[str, Any] = {"sources": sources}
    if common:
        part["parameters"] = {name: value(name, "") for name in common}
    return part
