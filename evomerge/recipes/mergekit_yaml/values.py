"""mergekit's parameter values: filters and gradients.

A setting is a number, a gradient (numbers spread evenly over the layers of a slice and interpolated between), or a
list of `{filter, value}`: the first whose filter is a part of the tensor's name counts, one without filter always.
A parameter is looked up in one level after another, and a level in which no filter matches is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Matches = Callable[[str], bool]  # tells whether a filter matches


@dataclass(frozen=True)
class Setting:
    """One value as mergekit writes it: filters, tried in order (None matches all), with their gradients.

    Attributes:
        filters: the path in the file of each filter in `rows` -> the filter.
        unreached: the paths of those that stand after a value without a filter, so that they never count.
    """

    rows: tuple[tuple[str | None, tuple[float, ...]], ...]
    filters: Mapping[str, str] = field(default_factory=dict, compare=False)
    unreached: tuple[str, ...] = field(default=(), compare=False)

    def at(self, matches: Matches, share: Fraction) -> float | None:
        """The value at a share of the way through the slice's layers; None where no filter matches."""
        for part, gradient in self.rows:
            if part is None or matches(part):
                return _interpolated(gradient, share)
        return None


def constant(number: float) -> Setting:
    """The setting that has one value everywhere."""
    return Setting(((None, (number,)),))


def _interpolated(gradient: Sequence[float], share: Fraction) -> float:
    """A gradient's value at a share of the way from its first number to its last."""
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
    rows, paths, faults = [], [], []
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
        paths.append(f"{here}.filter")
    if faults:
        return None, faults
    last = next((place for place, (part, _) in enumerate(rows) if part is None), len(rows))
    filters = {path: part for path, (part, _) in zip(paths[:last], rows[:last], strict=True) if part is not None}
    return Setting(tuple(rows[: last + 1]), filters, tuple(paths[last + 1 :])), []


_KEYS = ("filter", "value")


def _gradient(
    value: Any, path: str, fault_of: Callable[[float], str | None]
) -> tuple[tuple[float, ...], list[str]]:
    """The numbers of a gradient, and the faults. A plain value is a gradient of one number."""
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
    """A finite number, or None. YAML reads some numbers, such as `1e-5`, as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
