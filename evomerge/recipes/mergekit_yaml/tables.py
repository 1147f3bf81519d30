"""The recipe's table of a parameter that says the same as mergekit's settings at several levels.

Tensors before the layers take the first slice's first value. Those after them (final norm, head) take the last
slice's, but its *first* value too: a gradient does not reach them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial

from evomerge.models.tensor_names import MODULES, MadeOf, Place, is_pattern
from evomerge.recipes.canonical import ANY, Values
from evomerge.recipes.live_names import literal, patterns_of
from evomerge.recipes.mergekit_yaml.dialects import group_filters
from evomerge.recipes.mergekit_yaml.values import Matches, Setting


class MissingValueError(Exception):
    """A parameter has no value for a tensor of an expert ("" for all experts together)."""

    def __init__(self, tensor: str, expert: str) -> None:
        self.tensor, self.expert = tensor, expert
        super().__init__(f"{tensor} of {expert}")


class SplitValueError(Exception):
    """A filter gives parts of one live tensor different values.

    Attributes:
        fault: what is wrong, as a line that names the filter's path in the file.
    """

    def __init__(self, fault: str) -> None:
        self.fault = fault
        super().__init__(fault)


@dataclass(frozen=True)
class Part:
    """One slice, or the whole model.

    Attributes:
        start, stop: the slice's layers, half-open; stop is None for a whole model of any length.
        levels: (parameter, expert or "") -> the parameter's settings, in the order in which they are looked up.
        path: the slice's path in the file.
    """

    start: int
    stop: int | None
    levels: Mapping[tuple[str, str], tuple[Setting, ...]]
    path: str = ""

    def value(self, parameter: str, expert: str, matches: Matches, share: Fraction) -> float | None:
        """A parameter's value; None if no level has one."""
        values = (setting.at(matches, share) for setting in self.levels[parameter, expert])
        return next((value for value in values if value is not None), None)


class SlicedModel:
    """The slices laid over a model's tensors.

    A filter speaks of the names in the base's files, as mergekit's do. A tensor that is made of several is caught
    by a filter that is a part of all of them, and has a value if all of them have the same.

    Args:
        places: the model's tensors.
        layers: the model's number of layers.
        made_of: the model's tensors -> the names in the base's files that they are made of.
    """

    def __init__(self, parts: Sequence[Part], places: Mapping[str, Place], layers: int, made_of: MadeOf) -> None:
        self.parts = parts
        self.places = places
        self.layers = layers
        self.made_of = made_of
        plain = all(names == (tensor,) for tensor, names in made_of.items())
        # The filters of module groups are made from the live names.
        self._groups: Mapping[str, list[str]] = group_filters(places) if plain else {}

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
            if key in rows:  # an earlier filter has caught all that it matches
                continue
            caught = {name: place for name, place in waiting.items() if self._catches(key, filters, name)}
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
        patterns = [(pattern, [part]) for part in filters[:cut] for pattern in self._patterns(part)]
        return [*patterns, *((group, self._groups[group]) for group in groups), (ANY, [])]

    def _catches(self, key: str, filters: Sequence[str], name: str) -> bool:
        """Whether a row of the table catches a tensor."""
        if key == ANY:
            return True
        caught = any(self._is_part(part, name) for part in filters)
        return caught and (not is_pattern(key) or fnmatchcase(name, key))

    def _is_part(self, part: str, name: str) -> bool:
        """Whether a filter is a part of all names in the files that a tensor is made of."""
        return all(part in own for own in self.made_of[name])

    def _patterns(self, part: str) -> list[str]:
        """A filter as keys of a recipe, which match the live names of the tensors that it catches."""
        caught = [name for name in self.places if self._is_part(part, name)]
        short = f"*{literal(part)}*"
        if caught != [part] and [name for name in self.places if fnmatchcase(name, short)] == caught:
            return [short] if caught else []
        return patterns_of(caught, self.places)

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
        values: dict[float, str] = {}
        for own in self.made_of[name]:
            value = part.value(parameter, expert, partial(contains, own), share)
            if value is None:
                raise MissingValueError(own, expert)
            values.setdefault(value, own)
        if len(values) > 1:
            raise SplitValueError(self._split_fault(part.levels[parameter, expert], name, [*values.values()]))
        (value,) = values
        return value

    def _split_fault(self, settings: Iterable[Setting], name: str, parts: Sequence[str]) -> str:
        """What is wrong where a filter tells the parts of one tensor from each other.

        Args:
            settings: the parameter's settings.
            name: the live tensor.
            parts: names in the files with different values.
        """
        filters = [both for setting in settings for both in setting.filters.items()]
        path, part = next((p, f) for p, f in filters if len({f in own for own in parts}) > 1)
        yes, no = sorted(parts[:2], key=lambda own: part not in own)
        return (
            f"{path}: {part!r} picks {yes} and not {no}, but transformers makes one tensor of them, {name}, which "
            "has one value; give both the same"
        )

    def _where(self, place: Place) -> tuple[Part, Fraction]:
        """The slice of a tensor, and the share of the slice's layers that lie before it."""
        if not place.inside:
            return self.parts[0 if place.module == "embedding" else -1], Fraction(0)
        part = next(p for p in self.parts if p.stop is None or place.layer < p.stop)
        last = (self.layers if part.stop is None else part.stop) - part.start - 1
        return part, Fraction(place.layer - part.start, last) if last else Fraction(1)


def contains(name: str, part: str) -> bool:
    """Whether a filter is a part of a name in the files."""
    return part in name


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
        own = groups.get(module, [])
        if own and rest[: len(own)] == own:
            named.append(module)
            rest = rest[len(own) :]
    return named if not rest else None
