"""The recipe's table of a parameter that says the same as mergekit's settings at several levels.

Tensors before the layers take the first slice's first value. Those after them (final norm, head) take the last
slice's, but its *first* value too: a gradient does not reach them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from evomerge.models.tensor_names import MODULES, Place
from evomerge.recipes.canonical import ANY, Values
from evomerge.recipes.mergekit_yaml.dialects import group_filters
from evomerge.recipes.mergekit_yaml.values import Matches, Setting


class MissingValueError(Exception):
    """A parameter has no value for a tensor of an expert ("" for all experts together)."""

    def __init__(self, tensor: str, expert: str) -> None:
        self.tensor, self.expert = tensor, expert
        super().__init__(f"{tensor} of {expert}")


@dataclass(frozen=True)
class Part:
    """One slice, or the whole model.

    Attributes:
        start, stop: the slice's layers, half-open; stop is None for a whole model of any length.
        levels: (parameter, expert or "") -> the parameter's settings, in the order in which they are looked up.
    """

    start: int
    stop: int | None
    levels: Mapping[tuple[str, str], tuple[Setting, ...]]

    def value(self, parameter: str, expert: str, matches: Matches, share: Fraction) -> float | None:
        """A parameter's value; None if no level has one."""
        values = (setting.at(matches, share) for setting in self.levels[parameter, expert])
        return next((value for value in values if value is not None), None)


class SlicedModel:
    """The slices laid over a model's tensors.

    Args:
        places: the model's tensors.
        layers: the model's number of layers.
    """

    def __init__(self, parts: Sequence[Part], places: Mapping[str, Place], layers: int) -> None:
        self.parts = parts
        self.places = places
        self.layers = layers
        self._groups = group_filters(places)

    def table(self, parameter: str, experts: Sequence[str]) -> dict[str, dict[str, Values]]:
        """A recipe's table of one parameter, with the same value for every tensor: see `canonical.Table`.

        Rows are named after filters, or after module groups where the filters are those that `mergekit_yaml.write`
        writes for them. A tensor that such a row does not fit gets a row of its own before them.

        Raises:
            MissingValueError: a tensor has no value.
        """
        rows: dict[str, dict[str, Values | None]] = {}
        own: dict[str, dict[str, Values]] = {}
        waiting = dict(self.places)
        for key, filters in self._keys(parameter, experts):
            caught = {n: p for n, p in waiting.items() if key == ANY or any(part in n for part in filters)}
            waiting = {name: place for name, place in waiting.items() if name not in caught}
            rows[key] = {}
            for expert in experts:
                rows[key][expert], odd = self._row(parameter, expert, filters, caught)
                for name in odd:
                    own[literal(name)] = {e: self._exact(parameter, e, name) for e in experts}
        return {**own, **{key: row for key, row in _filled(rows, experts).items() if key not in own}}

    def _keys(self, parameter: str, experts: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The table's keys in the order in which they are tried, each with the filters that it stands for."""
        settings = (s for part in self.parts for expert in experts for s in part.levels[parameter, expert])
        filters = list(dict.fromkeys(part for setting in settings for part, _ in setting.rows if part is not None))
        groups: list[str] = []
        cut = len(filters)
        for place in range(len(filters)):
            if named := _as_groups(filters[place:], self._groups):
                groups, cut = named, place
                break
        patterns = [(self._pattern(part), [part]) for part in filters[:cut]]
        return [*patterns, *((group, self._groups[group]) for group in groups), (ANY, [])]

    def _pattern(self, part: str) -> str:
        """A filter as a recipe's key: a tensor's whole name is its own key, a part of a name becomes a pattern."""
        return literal(part) if [n for n in self.places if part in n] == [part] else f"*{literal(part)}*"

    def _row(
        self, parameter: str, expert: str, filters: Sequence[str], caught: Mapping[str, Place]
    ) -> tuple[Values | None, list[str]]:
        """The values of one row for each layer, and the caught tensors that they do not fit.

        A layer in which the row catches nothing has the value that the row's filters stand for; None if they stand
        for none in any layer.
        """
        exact = {name: self._exact(parameter, expert, name) for name in caught}
        inside = {place.layer: exact[name] for name, place in caught.items() if place.inside}
        outside = {exact[name] for name, place in caught.items() if not place.inside}
        stated = []
        for layer in range(self.layers):
            part, share = self._where(Place(layer, "other", inside=True))
            stated.append(part.value(parameter, expert, lambda own: own in filters, share))
        by_layer = [inside.get(layer, value) for layer, value in enumerate(stated)]
        fits = all(exact[name] == by_layer[place.layer] for name, place in caught.items())
        if not inside and len(outside) == 1 and not fits:
            by_layer = [*outside] * self.layers
        known = next((value for value in by_layer if value is not None), None)
        if known is None:
            return None, []
        values = [known := known if value is None else value for value in by_layer]
        return values, [name for name, place in caught.items() if exact[name] != values[place.layer]]

    def _exact(self, parameter: str, expert: str, name: str) -> float:
        """The value that mergekit would take for one tensor."""
        part, share = self._where(self.places[name])
        value = part.value(parameter, expert, lambda filter: filter in name, share)
        if value is None:
            raise MissingValueError(name, expert)
        return value

    def _where(self, place: Place) -> tuple[Part, Fraction]:
        """The slice of a tensor, and the share of the slice's layers that lie before it."""
        if not place.inside:
            return self.parts[0 if place.module == "embedding" else -1], Fraction(0)
        part = next(p for p in self.parts if p.stop is None or place.layer < p.stop)
        last = (self.layers if part.stop is None else part.stop) - part.start - 1
        return part, Fraction(place.layer - part.start, last) if last else Fraction(1)


def literal(text: str) -> str:
    """A text as a shell pattern that matches just it."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _filled(
    rows: Mapping[str, Mapping[str, Values | None]], experts: Sequence[str]
) -> dict[str, dict[str, Values]]:
    """The rows, with those that catch nothing and stand for nothing filled in from another row."""
    known: dict[str, Values] = {}
    for expert in experts:
        known[expert] = next(values for row in rows.values() if (values := row[expert]) is not None)
    return {key: {e: known[e] if (v := row[e]) is None else v for e in experts} for key, row in rows.items()}


def _as_groups(filters: Sequence[str], groups: Mapping[str, list[str]]) -> list[str] | None:
    """The module groups that filters stand for, one group after the other; None if a filter is left over."""
    named, rest = [], list(filters)
    for module in MODULES:
        own = groups[module]
        if own and rest[: len(own)] == own:
            named.append(module)
            rest = rest[len(own) :]
    return named if not rest else None
