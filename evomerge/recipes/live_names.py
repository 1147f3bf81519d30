"""Patterns of the live model's tensor names, made from tensors and from patterns of the names in the files.

transformers renames and fuses some tensors when it loads them. Recipes speak of the live model's tensors. A person
may write the names that lie in the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from evomerge.models.tensor_names import MadeOf, Place, is_pattern
from evomerge.recipes.recipe import Recipe


def literal(text: str) -> str:
    """A text as a shell pattern that matches just it."""
    return re.sub(r"([*?[])", r"[\1]", text)


def patterns_of(names: Sequence[str], places: Mapping[str, Place]) -> list[str]:
    """Patterns that match these tensors of a model and no other: one for all layers where that is possible.

    Args:
        names: in the order of `places`.
        places: all tensors of the model.
    """
    by_layer = list(dict.fromkeys(_in_all_layers(places[name]) for name in names))
    exact = [name for name in places if any(fnmatchcase(name, key) for key in by_layer)] == list(names)
    return by_layer if exact and len(by_layer) < len(names) else [literal(name) for name in names]


def _in_all_layers(place: Place) -> str:
    """A pattern that matches the tensors in the place of this one in all layers."""
    return literal(place.name).replace(f".{place.layer}.", ".*.", 1) if place.inside else literal(place.name)


def with_live_names(recipe: Recipe, places: Mapping[str, Place], made_of: MadeOf) -> tuple[Recipe, list[str]]:
    """A recipe in which patterns of the names in the files are patterns of the live names; and the faults.

    A pattern that matches a live name is left as it is, and so is one that matches nothing.

    Args:
        places: tensor that is merged -> where it sits.
        made_of: tensor that is merged -> the names in the base's files that it is made of.
    """
    reader = _Reader(places, made_of)
    tables = {name: reader.table(f"parameters.{name}", table) for name, table in recipe.parameters.items()}
    changes: dict[str, Any] = {"parameters": tables}
    if isinstance(recipe.method, dict):
        changes["method"] = reader.table("method", recipe.method)
    return recipe.model_copy(update=changes), reader.faults


class _Reader:
    """Puts live names into the tables of a recipe. Patterns of a part of a tensor are noted in `faults`."""

    def __init__(self, places: Mapping[str, Place], made_of: MadeOf) -> None:
        self.faults: list[str] = []
        self._places = places
        self._made_of = made_of

    def table(self, path: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """A table with the same rows under live names."""
        rows: dict[str, Any] = {}
        for key, row in table.items():
            for live in self._live(f"{path}.{key}", key):
                rows.setdefault(live, row)
        return rows

    def _live(self, path: str, key: str) -> list[str]:
        """The keys that stand for one key."""
        if not is_pattern(key) or any(fnmatchcase(name, key) for name in self._made_of):
            return [key]
        caught = []
        for name, own in self._made_of.items():
            matching = [one for one in own if fnmatchcase(one, key)]
            if len(matching) == len(own):
                caught.append(name)
            elif matching:
                other = next(one for one in own if one not in matching)
                self.faults.append(
                    f"{path}: matches {matching[0]} and not {other}, but transformers makes one tensor of them, "
                    f"{name}"
                )
                return [key]
        return patterns_of(caught, self._places) or [key]
