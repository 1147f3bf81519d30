"""mergekit's parameter values: filters and gradients at several levels, and the recipe's table that says the same.

A setting is a number, a gradient (numbers spread evenly over the layers of a slice and interpolated between), or a
list of `{filter, value}`: the first whose filter is a part of the tensor's name counts, one without filter always.
A parameter is looked up in one level after another, and a level in which no filter matches is passed over.

Tensors before the layers take the first slice's first value. Those after them (final norm, head) take the last
slice's, but its *first* value too: a gradient does not reach them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from evomerge.models.tensor_names import MODULES, Place
from evomerge.recipes.canonical import ANY, Values
from evomerge.recipes.mergekit_yaml.dialects import group_filters

Matches = Callable[[str], bool]  # whether a filter is to count as matching


@dataclass(frozen=True)
class Setting:
    """One value as mergekit writes it: filters, tried in order (None matches all), with their gradients."""

    rows: tuple[tuple[str | None, tuple[float, ...]], ...]

    def at(self, matches: Matches, share: Fraction) -> float | None:
        """The value at a share of the way through the slice's layers; None where no filter matches."""
        for part, gradient in self.rows:
            if part is None or matches(part):
                return _interpolated(gradient, share)
        return None


def constant(number: float) -> Setting:
    """The same value everywhere."""
    return Setting(((None, (number,)),))


def _interpolated(gradient: Sequence[float], share: Fraction) -> float:
    place = share * (len(gradient) - 1)
    left = math.floor(place)
    between = float(place - left)
    return gradient[left] + (between * (gradient[left + 1] - gradient[left]) if between else 0.0)


# --- from YAML ---------------------------------------------------------------------------------------------


def parse(value: Any, path: str, fault_of: Callable[[float], str | None]) -> tuple[Setting | None, list[str]]:
    """A setting from YAML and its faults, each with its path in the file.

    Args:
        fault_of: why a number is unsound, or None.
    """
    conditions = [value] if isinstance(value, Mapping) else value
    if not isinstance(conditions, list) or not any(isinstance(item, Mapping) for item in conditions):
        gradient, faults = _gradient(value, path, fault_of)
        return Setting(((None, gradient),)) if not faults else None, faults
    rows, faults = [], []
    for position, item in enumerate(conditions):
        here = f"{path}[{position}]" if isinstance(value, list) else path
        if not isinstance(item, Mapping):
            faults.append(f"{here}: must be a mapping with `value` and perhaps `filter`, as its neighbours are")
            continue
        faults += [f"{here}.{key}: is no key here; known: filter, value" for key in item if key not in _KEYS]
        if "value" not in item:
            faults.append(f"{here}.value: is missing")
            continue
        part = item.get("filter")
        if not isinstance(part, str | None):
            faults.append(f"{here}.filter: must be a text, but is {part!r}")
        gradient, wrong = _gradient(item["value"], f"{here}.value", fault_of)
        faults += wrong
        rows.append((None if part in ("", "*") else part, gradient))
    last = next((place for place, (part, _) in enumerate(rows) if part is None), len(rows))
    return Setting(tuple(rows[: last + 1])) if not faults else None, faults


_KEYS = ("filter", "value")


def _gradient(
    value: Any, path: str, fault_of: Callable[[float], str | None]
) -> tuple[tuple[float, ...], list[str]]:
    """The numbers of a gradient; one of a plain value."""
    if value == []:
        return (), [f"{path}: must not be empty"]
    numbers, faults = [], []
    for position, item in enumerate(value if isinstance(value, list) else [value]):
        number = _number(item)
        fault = f"must be a number, but is {item!r}" if number is None else fault_of(number)
        if fault:
            faults.append(f"{path}[{position}]: {fault}" if isinstance(value, list) else f"{path}: {fault}")
        numbers.append(number or 0.0)
    return tuple(numbers), faults


def _number(value: Any) -> float | None:
    """A finite number; YAML reads some, such as `1e-5`, as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# --- to the tables of recipes ------------------------------------------------------------------------------


class MissingValueError(Exception):
    """A parameter has no value for this tensor of this expert ("" for all together)."""

    def __init__(self, tensor: str, expert: str) -> None:
        self.tensor, self.expert = tensor, expert
        super().__init__(f"{tensor} of {expert}")


@dataclass(frozen=True)
class Part:
    """One slice, or the whole model.

    Attributes:
        start, stop: its layers, half-open; stop is None for a whole model of any length.
        levels: (parameter, expert or "") -> its settings, in the order in which they are looked up.
    """

    start: int
    stop: int | None
    levels: Mapping[tuple[str, str], tuple[Setting, ...]]

    def value(self, parameter: str, expert: str, matches: Matches, share: Fraction) -> float | None:
        """A parameter's value; None if no level has one."""
        found = (setting.at(matches, share) for setting in self.levels[parameter, expert])
        return next((value for value in found if value is not None), None)


class Model:
    """The slices laid over a model's tensors."""

    def __init__(self, parts: Sequence[Part], places: Mapping[str, Place], layers: int) -> None:
        self.parts = parts
        self.places = places
        self.layers = layers
        self._groups = group_filters(places)

    def table(self, parameter: str, experts: Sequence[str]) -> dict[str, dict[str, Values]]:
        """A recipe's table of one parameter, with the same value for every tensor: see `recipe.Table`.

        Rows are named after filters, or after module groups where the filters are those that `mergekit_yaml`
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
        """The table's keys in the order in which they are tried, each with its filters."""
        settings = (s for part in self.parts for expert in experts for s in part.levels[parameter, expert])
        filters = list(dict.fromkeys(part for setting in settings for part, _ in setting.rows if part is not None))
        groups: list[str] = []
        cut = len(filters)
        for place in range(len(filters)):
            if found := _as_groups(filters[place:], self._groups):
                groups, cut = found, place
                break
        patterns = [(self._pattern(part), [part]) for part in filters[:cut]]
        return [*patterns, *((group, self._groups[group]) for group in groups), (ANY, [])]

    def _pattern(self, part: str) -> str:
        """A filter as a recipe's key: a tensor's whole name as it is."""
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
        found = [inside.get(layer, value) for layer, value in enumerate(stated)]
        fits = all(exact[name] == found[place.layer] for name, place in caught.items())
        if not inside and len(outside) == 1 and not fits:
            found = [*outside] * self.layers
        known = next((value for value in found if value is not None), None)
        if known is None:
            return None, []
        values = [known := known if value is None else value for value in found]
        return values, [name for name, place in caught.items() if exact[name] != values[place.layer]]

    def _exact(self, parameter: str, expert: str, name: str) -> float:
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
    """Rows that catch nothing and stand for nothing, filled in from another row."""
    known: dict[str, Values] = {}
    for expert in experts:
        known[expert] = next(values for row in rows.values() if (values := row[expert]) is not None)
    return {key: {e: known[e] if (v := row[e]) is None else v for e in experts} for key, row in rows.items()}


def _as_groups(filters: Sequence[str], groups: Mapping[str, list[str]]) -> list[str] | None:
    """The module groups that filters stand for, one group after the other; None if there is more."""
    found, rest = [], list(filters)
    for module in MODULES:
        own = groups[module]
        if own and rest[: len(own)] == own:
            found.append(module)
            rest = rest[len(own) :]
    return found if not rest else None
